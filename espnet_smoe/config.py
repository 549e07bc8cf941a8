"""Typed views of YAML mappings; an unknown key is refused, listing the known ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from espnet_smoe.guide import ExpertMap, GuideTable

__all__ = [
    "ConfigError",
    "ExpertConfig",
    "check_device",
    "check_keys",
    "check_number",
]


class ConfigError(ValueError):
    """A configuration value is unknown, missing or out of range."""


@dataclass(frozen=True, kw_only=True)
class ExpertConfig:
    """Where experts sit in a stack and which guides pick them (YAML ``experts``)."""

    axis: str | Sequence[str]
    """Axis that routes the stack; a list routes by every combination."""

    map: Mapping[str, int] | None = None
    """Guide -> expert id, for guides that share an expert; default one each."""

    blocks: Sequence[int] | None = None
    """Blocks with experts, from 0; the others keep one FFN. Default all."""

    ffn: str = "both"
    """FFNs of a Conformer block that get experts: ``macaron``, ``final``, ``both``.
    A Transformer decoder block has one FFN: there only ``both`` is taken."""

    split_at: float = 0.0
    """Fraction of the training batches in [0, 1) that all utterances spend on the
    first expert; then the others become copies of it and routing begins."""

    def __post_init__(self) -> None:
        axes = [self.axis] if isinstance(self.axis, str) else self.axis
        if not isinstance(axes, Sequence) or not all(isinstance(a, str) for a in axes):
            raise ConfigError(
                f"experts.axis must be an axis name or a list of them, got {axes!r}"
            )
        check_number("experts.split_at", self.split_at)
        for name, values in (("blocks", self.blocks), ("map", self.map)):
            kind = Mapping if name == "map" else Sequence
            if values is None:
                continue
            if not isinstance(values, kind) or isinstance(values, str):
                raise ConfigError(
                    f"experts.{name} must be a {kind.__name__.lower()} "
                    f"of whole numbers, got {values!r}"
                )
            for value in values.values() if name == "map" else values:
                check_number(f"experts.{name}", value, int)
        if self.ffn not in ("macaron", "final", "both"):
            raise ConfigError(
                f"experts.ffn must be macaron, final or both, got {self.ffn!r}"
            )
        if not 0.0 <= self.split_at < 1.0:
            raise ConfigError(
                f"experts.split_at must lie in [0, 1), got {self.split_at}"
            )

    @classmethod
    def from_mapping(cls, conf: Mapping[str, Any]) -> ExpertConfig:
        """Build from YAML.

        Raises:
            ConfigError: a key that is not known (lists the known ones) or ``axis``
                missing.
        """
        check_keys("experts", conf, [f.name for f in dataclasses.fields(cls)])
        if "axis" not in conf:
            raise ConfigError(f"experts needs the key 'axis', got {dict(conf)}")
        return cls(**conf)

    def expert_map(self, guides: GuideTable) -> ExpertMap:
        """Guides of the routing axes -> expert ids."""
        axes = [self.axis] if isinstance(self.axis, str) else list(self.axis)
        return ExpertMap.build(guides, axes, self.map)

    def has_experts(self, block: int, num_blocks: int) -> bool:
        """Whether block number ``block`` of ``num_blocks`` gets experts.

        Raises:
            ConfigError: ``blocks`` names a block that the stack does not have.
        """
        if self.blocks is None:
            return True
        if bad := [b for b in self.blocks if not 0 <= b < num_blocks]:
            raise ConfigError(
                f"experts.blocks {bad} lie outside the stack's 0..{num_blocks - 1}"
            )
        return block in self.blocks


def check_keys(what: str, conf: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuse unknown keys of a mapping.

    Args:
        what: the mapping's name, for the message.

    Raises:
        ConfigError: ``conf`` is no mapping, or names the unknown and the known keys.
    """
    if not isinstance(conf, Mapping):
        raise ConfigError(f"{what} must map option names to values, got {conf!r}")
    if unknown := sorted(set(map(str, conf)) - set(known)):
        raise ConfigError(f"unknown keys {unknown} in {what}; known: {sorted(known)}")


def check_number(name: str, value: object, kind: type = float) -> None:
    """Refuse what is no number, or for ``kind`` int no whole one.

    Raises:
        ConfigError: names the option, the value and what was expected.
    """
    wanted = (int,) if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, wanted):
        number = "a whole number" if kind is int else "a number"
        raise ConfigError(f"{name} must be {number}, got {value!r}")


def check_device(device: str, count: int = 1) -> None:
    """Refuse a GPU where torch finds none, or ``count`` where it finds fewer.

    Raises:
        ConfigError: names the device.
    """
    import torch

    if not device.startswith("cuda"):
        return
    if not torch.cuda.is_available():
        raise ConfigError(
            f"device {device} was asked for, but torch finds no GPU here; use the CPU "
            "(--ngpu 0, device='cpu')"
        )
    if count > (found := torch.cuda.device_count()):
        raise ConfigError(f"--ngpu {count} was asked for, but torch finds {found} here")
