"""Guiding tokens: what an utterance is and what is asked of it.

A *guide* is a name (``nb``, ``asr``, ``st_de``); its token is the name in angle
brackets. An *axis* is one known condition and the guides it can take. The last
axis is always ``task``: what is asked of a row; all others are facts about the
utterance. Source: arXiv 2508.10009 (guiding tokens).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

__all__ = [
    "BANDWIDTH",
    "TASK",
    "Axis",
    "ExpertMap",
    "GuideError",
    "GuideTable",
    "read_guides",
    "token",
]

BANDWIDTH = "bandwidth"
TASK = "task"

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_TASK_NAME = re.compile(r"asr|st_[a-z]{2,3}")


class GuideError(ValueError):
    """A guide, axis or expert map is unknown, missing or doubly defined."""


def token(guide: str) -> str:
    """Guiding token of a guide.

    >>> token("nb")
    '<nb>'
    """
    return f"<{guide}>"


@dataclass(frozen=True)
class Axis:
    """One known condition and the guides it can take, in id order.

    Raises:
        GuideError: no guide, a doubled guide, or a name that is not lower case.

    >>> Axis("bandwidth", ("nb", "wb")).index("wb")
    1
    """

    name: str
    guides: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.guides or len(set(self.guides)) != len(self.guides):
            raise GuideError(
                f"axis {self.name!r} needs distinct guides, got {list(self.guides)}"
            )
        for name in (self.name, *self.guides):
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise GuideError(
                    f"{name!r} (axis {self.name!r}) is no guide name; expected lower-"
                    "case letters and digits, starting with a letter, joined by '_'"
                )

    @property
    def tokens(self) -> tuple[str, ...]:
        """Guiding tokens in id order."""
        return tuple(token(g) for g in self.guides)

    def index(self, guide: str) -> int:
        """Guide id in [0, number of guides).

        Raises:
            GuideError: ``guide`` is not on this axis; lists the known ones.
        """
        if guide not in self.guides:
            raise GuideError(
                f"unknown {self.name} {guide!r}; known: {', '.join(self.guides)}"
            )
        return self.guides.index(guide)

    def check_ids(self, ids: Iterable[int]) -> None:
        """Refuse ids that are no guide's.

        Raises:
            GuideError: lists them and the known ones.
        """
        if bad := sorted({i for i in ids if not 0 <= i < len(self.guides)}):
            known = ", ".join(f"{i} {g}" for i, g in enumerate(self.guides))
            raise GuideError(f"unknown {self.name} ids {bad}; known: {known}")


@dataclass(frozen=True)
class GuideTable:
    """Every axis a model knows, in prompt order: utterance axes, then ``task``.

    >>> t = GuideTable.from_mapping({"bandwidth": ["nb", "wb"], "task": ["asr"]})
    >>> t.tokens
    ('<nb>', '<wb>', '<asr>')
    >>> t.prompt({"bandwidth": "nb", "task": "asr"})
    ('<nb>', '<asr>')
    """

    axes: tuple[Axis, ...]

    def __post_init__(self) -> None:
        names = [a.name for a in self.axes]
        if len(set(names)) != len(names) or names[-1:] != [TASK]:
            raise GuideError(
                f"guides need distinct axes that end in {TASK!r}, got {names}"
            )
        if BANDWIDTH not in names:
            raise GuideError(f"guides need the axis {BANDWIDTH!r}, got {names}")
        every = [g for a in self.axes for g in a.guides]
        if doubled := sorted({g for g in every if every.count(g) > 1}):
            raise GuideError(f"guides {doubled} stand on more than one axis")
        for guide in self.tasks:
            if not _TASK_NAME.fullmatch(guide):
                raise GuideError(
                    f"task {guide!r} must be 'asr' or 'st_XX', XX the ISO 639-1 code "
                    "of the target language"
                )

    @classmethod
    def from_mapping(cls, conf: Mapping[str, Sequence[str]]) -> GuideTable:
        """Build from YAML's ``guides``: axis name -> list of guides, task last.

        Raises:
            GuideError: not such a mapping, or the axes do not fit together.
        """
        if not isinstance(conf, Mapping) or not conf:
            raise GuideError(f"guides must map axis names to lists, got {conf!r}")
        axes = []
        for name, guides in conf.items():
            if isinstance(guides, str) or not isinstance(guides, Sequence):
                raise GuideError(f"axis {name!r} must be a list of guides: {guides!r}")
            axes.append(Axis(name, tuple(guides)))
        return cls(tuple(axes))

    def axis(self, name: str) -> Axis:
        """The axis of that name.

        Raises:
            GuideError: no such axis; lists the known ones.
        """
        for axis in self.axes:
            if axis.name == name:
                return axis
        known = ", ".join(a.name for a in self.axes)
        raise GuideError(f"unknown axis {name!r}; known: {known}")

    @property
    def tasks(self) -> tuple[str, ...]:
        """Guides of the task axis."""
        return self.axes[-1].guides

    @property
    def bandwidths(self) -> tuple[str, ...]:
        """Guides of the bandwidth axis."""
        return self.axis(BANDWIDTH).guides

    @property
    def utterance_axes(self) -> tuple[Axis, ...]:
        """The axes that are facts about an utterance: all but ``task``."""
        return self.axes[:-1]

    @property
    def tokens(self) -> tuple[str, ...]:
        """Guiding tokens of all axes, in order."""
        return tuple(t for a in self.axes for t in a.tokens)

    def prompt(self, guides: Mapping[str, str]) -> tuple[str, ...]:
        """Decoder prompt of one row: a token for each axis, task last.

        Raises:
            GuideError: an axis is missing or a guide unknown.
        """
        if missing := [a.name for a in self.axes if a.name not in guides]:
            raise GuideError(f"no guide given for {missing}; got {dict(guides)}")
        return tuple(a.tokens[a.index(guides[a.name])] for a in self.axes)


@dataclass(frozen=True)
class ExpertMap:
    """Which expert of a stack serves which guides.

    Args:
        axes: names of the axes that route the stack.
        table: guide ids (one per axis, in the order of ``axes``) -> expert id.

    Source: the table is ours; one expert per guide as in arXiv 2508.10009.
    """

    axes: tuple[str, ...]
    table: Mapping[tuple[int, ...], int]

    @classmethod
    def unguided(cls) -> ExpertMap:
        """Routing by no axis: the one combination of no guides has expert 0."""
        return cls((), {(): 0})

    @classmethod
    def build(
        cls,
        guides: GuideTable,
        axes: Sequence[str],
        shared: Mapping[str, int] | None = None,
    ) -> ExpertMap:
        """One expert per guide (or per combination, for several axes).

        Args:
            shared: guide -> expert id, for guides that share an expert; must name
                every guide of the one axis, with ids 0..E-1 all in use.

        Raises:
            GuideError: an unknown axis, or ``shared`` does not fit it.
        """
        if not axes or len(set(axes)) != len(axes):
            raise GuideError(f"a stack needs distinct axes to route by: {list(axes)}")
        routed = [guides.axis(name) for name in axes]
        combinations = itertools.product(*(range(len(a.guides)) for a in routed))
        if shared is None:
            return cls(tuple(axes), {c: e for e, c in enumerate(combinations)})
        if len(routed) != 1 or set(shared) != set(routed[0].guides):
            raise GuideError(
                f"an expert map needs one axis and each of its guides: axes "
                f"{list(axes)}, guides {[list(a.guides) for a in routed]}, "
                f"got {dict(shared)}"
            )
        used = sorted(set(shared.values()))
        if used != list(range(len(used))):
            raise GuideError(f"expert ids must be 0..E-1, all in use; got {used}")
        return cls(tuple(axes), {(routed[0].index(g),): e for g, e in shared.items()})

    def expert(self, guides: GuideTable, names: Mapping[str, str]) -> int:
        """Expert that serves the guides ``names`` (axis -> guide; at least ``axes``).

        Raises:
            GuideError: a guide is unknown; lists the known ones.
        """
        return self.table[tuple(guides.axis(a).index(names[a]) for a in self.axes)]

    def only_of(self, guides: GuideTable, axis: str, names: Sequence[str]) -> list[int]:
        """Ids of the experts that serve no guide of ``axis`` but ``names``.

        None if the stack is not routed by that axis.
        """
        if axis not in self.axes:
            return []
        place = self.axes.index(axis)
        wanted = {guides.axis(axis).index(name) for name in names}
        others = {e for key, e in self.table.items() if key[place] not in wanted}
        return sorted(set(self.table.values()) - others)

    @property
    def num_experts(self) -> int:
        """Number of experts E."""
        return len(set(self.table.values()))


def read_guides(config: Path) -> GuideTable:
    """The guides of a training YAML (its top-level key ``guides``).

    Raises:
        GuideError: the file is missing or no YAML, or the key is missing or broken.
    """
    try:
        conf = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise GuideError(f"cannot read the config {config}: {reason}") from None
    if not isinstance(conf, Mapping) or "guides" not in conf:
        raise GuideError(f"{config} lacks the key 'guides' (axis -> list of guides)")
    return GuideTable.from_mapping(conf["guides"])
