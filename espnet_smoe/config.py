"""Typed views of YAML mappings; an unknown key is refused, listing the known ones."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet_smoe.files import some_of
from espnet_smoe.guide import ExpertMap, GuideTable

__all__ = [
    "ConfigError",
    "ExpertConfig",
    "GateConfig",
    "check_device",
    "check_keys",
    "check_number",
    "check_out_dir",
]


class ConfigError(ValueError):
    """A configuration value is unknown, missing or out of range."""


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """A learned gate, the baseline without guides (YAML ``experts.gate``)."""

    num_experts: int
    """Experts E of every bank."""

    top_k: int = 1
    """Experts that a frame runs through, 1..E; each costs one FFN."""

    balance_weight: float = 0.01
    """Weight of every bank's load-balancing loss against the loss of one token."""

    def __post_init__(self) -> None:
        check_number("experts.gate.num_experts", self.num_experts, int)
        check_number("experts.gate.top_k", self.top_k, int)
        check_number("experts.gate.balance_weight", self.balance_weight)
        if not 1 <= self.top_k <= self.num_experts:
            raise ConfigError(
                "experts.gate needs 1 <= top_k <= num_experts, got top_k "
                f"{self.top_k} and num_experts {self.num_experts}"
            )
        if not 0.0 <= self.balance_weight < math.inf:
            raise ConfigError(
                "experts.gate.balance_weight must be finite and >= 0, got "
                f"{self.balance_weight}"
            )

    @classmethod
    def from_mapping(cls, conf: Mapping[str, Any]) -> GateConfig:
        """Build from YAML.

        Raises:
            ConfigError: a key that is not known (lists the known ones),
                ``num_experts`` missing, or a value out of range.
        """
        check_keys("experts.gate", conf, [f.name for f in dataclasses.fields(cls)])
        if "num_experts" not in conf:
            raise ConfigError(
                f"experts.gate needs the key 'num_experts', got {dict(conf)}"
            )
        return cls(**conf)


@dataclass(frozen=True, kw_only=True)
class ExpertConfig:
    """Where experts sit in a stack and what picks them (YAML ``experts``)."""

    axis: str | Sequence[str] | None = None
    """Axis that routes the stack; a list routes by every combination."""

    gate: GateConfig | None = None
    """Learned gate in place of ``axis``."""

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

    copy_moments: bool = False
    """At the late split the copies also get the first expert's optimiser state
    (Adam's moments and step count); false = they start with none."""

    shared: bool = False
    """Beside the guided expert every row runs through one shared expert; each has
    half of ``linear_units``, so that the cost stays that of one FFN."""

    def __post_init__(self) -> None:
        for name in ("copy_moments", "shared"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(
                    f"experts.{name} must be true or false, got {getattr(self, name)!r}"
                )
        if self.gate is not None:
            guided = ("axis", "map", "split_at", "copy_moments", "shared")
            unset = (None, False, 0.0)
            if clash := [n for n in guided if getattr(self, n) not in unset]:
                raise ConfigError(
                    f"experts.gate learns its routing and cannot go with {clash}, "
                    "which belong to experts picked by guides"
                )
        elif self.axis is None:
            raise ConfigError(
                "experts needs the key 'axis' (guides pick experts) or 'gate' (a "
                "learned gate does)"
            )
        axes = [self.axis] if isinstance(self.axis, str) else self.axis or []
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
        if self.copy_moments and self.split_at == 0.0:
            raise ConfigError(
                "experts.copy_moments true needs a late split to copy at, but "
                "experts.split_at is 0"
            )

    @classmethod
    def from_mapping(cls, conf: Mapping[str, Any]) -> ExpertConfig:
        """Build from YAML.

        Raises:
            ConfigError: a key that is not known (lists the known ones), neither
                ``axis`` nor ``gate``, or keys that contradict each other.
        """
        check_keys("experts", conf, [f.name for f in dataclasses.fields(cls)])
        if conf.get("gate") is not None:
            conf = {**conf, "gate": GateConfig.from_mapping(conf["gate"])}
        return cls(**conf)

    def expert_map(self, guides: GuideTable) -> ExpertMap:
        """Guides of the routing axes -> expert ids; a gate has no such axes."""
        if self.gate is not None:
            return ExpertMap.unguided()
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


def check_out_dir(out_dir: Path, own: Collection[str]) -> None:
    """Refuse a folder that holds anything but an earlier result: it is replaced.

    Args:
        own: names of what the tool writes there.

    Raises:
        ConfigError: names what stands there.
    """
    if out_dir.exists() and not out_dir.is_dir():
        raise ConfigError(f"{out_dir} is no folder")
    found = sorted(p.name for p in out_dir.iterdir()) if out_dir.exists() else []
    if others := [name for name in found if name not in own]:
        raise ConfigError(
            f"{out_dir} holds {some_of(others)}; expected a new folder or one of an "
            "earlier run, since it is replaced"
        )


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
