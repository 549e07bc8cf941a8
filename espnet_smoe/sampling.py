"""Which utterances an epoch draws and which process gets them.

The *condition* of an utterance is its guides: its bandwidth and the tasks that it has
references of, e.g. ``nb asr+st_de``. YAML ``sampling`` sets how often each is drawn:

    share of a condition ~ (its utterances) ^ (1 / temperature) x weights of its guides

Source: the temperature is that of multilingual training (arXiv 1907.05019).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from espnet2.samplers.abs_sampler import AbsSampler

from espnet_smoe.config import ConfigError, check_keys, check_number
from espnet_smoe.files import read_table
from espnet_smoe.guide import GuideTable

__all__ = [
    "Condition", "ConditionSampler", "SamplingConfig", "deal", "draws", "name_of",
    "read_conditions",
]  # fmt: skip

Condition = tuple[str, ...]
"""Guides of an utterance: one for each utterance axis, then its tasks in order."""

_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How often each condition is drawn (YAML ``sampling``)."""

    temperature: float = 1.0
    """1 = as in the data; larger evens the conditions out; ``.inf`` = all alike."""

    weights: Mapping[str, float] = field(default_factory=dict)
    """Guide -> factor > 0, for every utterance that has this guide; default 1."""

    @classmethod
    def from_mapping(
        cls, conf: Mapping[str, Any], guides: GuideTable
    ) -> SamplingConfig:
        """Build from YAML.

        Raises:
            ConfigError: an unknown key or guide (lists the known ones), or a value
                that is no positive number.
        """
        check_keys("sampling", conf, [f.name for f in dataclasses.fields(cls)])
        known = [guide for axis in guides.axes for guide in axis.guides]
        check_keys("sampling.weights", conf.get("weights", {}), known)
        values = {f"weights.{g}": w for g, w in conf.get("weights", {}).items()}
        values["temperature"] = conf.get("temperature", 1.0)
        for name, value in values.items():
            check_number(f"sampling.{name}", value)
            if not value > 0 or (name != "temperature" and math.isinf(value)):
                raise ConfigError(f"sampling.{name} must be > 0, got {value}")
        return cls(**conf)


def read_conditions(
    files: Mapping[str, str | Path], guides: GuideTable
) -> dict[str, Condition]:
    """Condition of each utterance, from the files that training reads.

    Args:
        files: ``targets`` and every utterance axis -> path; see ``make_targets``.
    """
    targets = read_table(Path(files["targets"]))
    columns = [read_table(Path(files[axis.name])) for axis in guides.utterance_axes]
    conditions = {}
    for name, text in targets.items():
        has = json.loads(text)
        tasks = [task for task in guides.tasks if task in has]
        conditions[name] = (*(column[name] for column in columns), *tasks)
    return conditions


def name_of(condition: Condition, guides: GuideTable) -> str:
    """A condition as the log shows it, e.g. ``nb asr+st_de``."""
    axes = len(guides.utterance_axes)
    return " ".join([*condition[:axes], "+".join(condition[axes:])])


def draws(
    counts: Mapping[Condition, int], config: SamplingConfig
) -> dict[Condition, int]:
    """Utterances of each condition that one pass draws, at least one of each.

    A pass is as large as the data, but for rounding.

    Args:
        counts: condition -> utterances in the data, > 0.
    """
    # relative to the largest, so that no power overflows
    largest = max(counts.values())
    sizes = {
        condition: (count / largest) ** (1 / config.temperature)
        * math.prod(config.weights.get(guide, 1.0) for guide in condition)
        for condition, count in counts.items()
    }
    scale = sum(counts.values()) / sum(sizes.values())
    return {c: max(1, round(size * scale)) for c, size in sizes.items()}


def deal(
    batch: Sequence[str], conditions: Mapping[str, Condition], rank: int, ranks: int
) -> list[str]:
    """What one process gets of a batch.

    Two processes differ by at most one utterance, of every condition and in all: a
    condition with as many utterances as there are processes reaches each of them.
    """
    return sorted(batch, key=conditions.__getitem__)[rank::ranks]


class ConditionSampler(AbsSampler):
    """Batches of similar length with the conditions in the shares asked for.

    A pass fills *slots*. Those of a condition split its utterances, sorted by length,
    into ranges of equal size, and each draws from its range. So all passes have the
    same batches of slots and nearly the same lengths, and over the passes each slot
    goes evenly through its range. Utterances drawn several times a pass have several
    slots: these go to different batches while there are enough.

    Args:
        lengths: utterance -> samples.
        conditions: utterance -> condition, of the same utterances.
        config: the shares.
        batch_bins: samples of a batch of all processes, padding included; only what
            feeds all processes and cannot be shared out makes a larger one, always
            of fewer than 2 ``ranks`` utterances.
        rank, ranks: this process and their number; see ``deal``.

    Raises:
        ConfigError: fewer utterances than processes.
    """

    def __init__(
        self,
        lengths: Mapping[str, int],
        conditions: Mapping[str, Condition],
        config: SamplingConfig,
        batch_bins: int,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        groups: dict[Condition, list[str]] = {}
        for utterance in lengths:
            groups.setdefault(conditions[utterance], []).append(utterance)
        ordered, self.counts = [], {}
        for condition, group in sorted(groups.items()):
            ordered += sorted(group, key=lambda u: (lengths[u], u))
            self.counts[condition] = len(group)
        self.draws = draws(self.counts, config)
        if sum(self.draws.values()) < ranks:
            raise ConfigError(
                f"{sum(self.draws.values())} utterances cannot feed {ranks} processes"
            )
        self._utterances = np.array(ordered)
        # each slot's range of utterances: first, beyond the last (not whole numbers)
        low, high, start = [], [], 0
        for condition, count in self.counts.items():
            edges = np.arange(self.draws[condition] + 1) * count
            edges = start + edges / self.draws[condition]
            low.append(edges[:-1])
            high.append(edges[1:])
            start += count
        self._low, self._high = np.concatenate(low), np.concatenate(high)
        self._last = np.ceil(self._high).astype(int) - 1
        longest = np.array([lengths[u] for u in ordered])[self._last]
        repeats = max(math.ceil(d / self.counts[c]) for c, d in self.draws.items())
        # slots are numbered by condition: sorted, they are ready to deal
        batches = _cut(longest, batch_bins, repeats, ranks)
        self._batches = [np.sort(batch)[rank::ranks] for batch in batches]

    def generate(self, seed: int) -> list[list[str]]:
        """The batches of pass number ``seed`` (the host's seed + pass)."""
        # steps of the golden ratio fill [0, 1) evenly: no utterance waits for long
        place = math.modf(seed * _GOLDEN)[0]
        drawn = self._low + place * (self._high - self._low)
        drawn = np.minimum(drawn.astype(int), self._last)
        return [self._utterances[drawn[slots]].tolist() for slots in self._batches]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self):
        return iter(self.generate(0))

    def summary(self, guides: GuideTable) -> str:
        """The shares in data and training, a condition a line, for the log."""
        utterances, drawn = sum(self.counts.values()), sum(self.draws.values())
        lines = [
            f"{name_of(c, guides)}: {n} utterances, {n / utterances:.1%} of the data, "
            f"{self.draws[c] / drawn:.1%} of training, each {self.draws[c] / n:.3g} "
            "times a pass"
            for c, n in self.counts.items()
        ]
        return f"sampling, {len(self)} batches a pass:\n" + "\n".join(lines)


def _cut(longest: np.ndarray, bins: int, repeats: int, smallest: int) -> list:
    """Slots of each batch, longest first, from the longest that a slot can draw.

    Args:
        repeats: slots next to each other that may draw one utterance; as many
            batches of similar length take slots in turn.
        smallest: least slots of a batch.
    """
    order = np.argsort(-longest, kind="stable")
    batches: list[np.ndarray] = []
    while len(order):
        size = max(smallest, bins // longest[order[0]])
        bucket, order = order[: size * repeats], order[size * repeats :]
        number = min(-(-len(bucket) // size), max(1, len(bucket) // smallest))
        if len(bucket) < smallest and batches:
            # too few to feed all: shared with the batch before, or added to it
            bucket = np.concatenate([batches.pop(), bucket])
            number = min(2, len(bucket) // smallest)
        batches += [np.sort(bucket)[n::number] for n in range(number)]
    return batches
