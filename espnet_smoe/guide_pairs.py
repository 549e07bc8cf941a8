"""What is compared: pairs of guides, and the losses that stand for each of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from espnet_smoe.guide import TASK
from espnet_smoe.model import SMoEModel

__all__ = [
    "ATTENTION",
    "WITH_CTC",
    "Condition",
    "GuidePair",
    "Skipped",
    "cuts_of",
    "pairs_of",
]

ATTENTION = "attention"
WITH_CTC = "attention+ctc"


@dataclass(frozen=True)
class Condition:
    """Whose losses one side of a comparison adds up.

    Args:
        tasks: their decoder losses, weighted as in training.
        ctc: also the CTC loss, both weighted as in training.
        needs: only utterances with references of all these tasks.
        guides: only utterances with one of these guides of an axis, (axis, guides);
            None = any.
        ranks: only utterances of these ranks in [low, high), see ``Piece``; None = all.
    """

    tasks: tuple[str, ...]
    ctc: bool = False
    needs: tuple[str, ...] = ()
    guides: tuple[str, tuple[str, ...]] | None = None
    ranks: tuple[float, float] | None = None

    def meets(
        self, guides: Mapping[str, str], tasks: frozenset[str], rank: float
    ) -> bool:
        """Whether utterances of these guides, references and rank count."""
        if not tasks.issuperset(self.needs):
            return False
        if self.ranks is not None and not self.ranks[0] <= rank < self.ranks[1]:
            return False
        return self.guides is None or guides[self.guides[0]] in self.guides[1]


@dataclass(frozen=True)
class GuidePair:
    """Two guides of an axis and the losses that stand for them.

    Args:
        loss: ``attention``, or ``attention+ctc`` (encoder only; CTC is part of
            ``asr`` and does not reach the decoder).
        control: the sides are random parts of the utterances of both guides, as
            large as the guides' own: a small side is noisy, which alone lowers its
            cosine.
        matched: the sides differ in the guide only: the same utterances for tasks,
            references of all tasks for other axes. False = no utterances allow it.
    """

    axis: str
    a: str
    b: str
    loss: str
    control: bool
    matched: bool
    sides: tuple[Condition, Condition]


@dataclass(frozen=True)
class Skipped:
    """What was not compared, and why."""

    axis: str
    a: str
    b: str
    place: str | None
    reason: str


def cuts_of(pairs: Iterable[GuidePair]) -> list[float]:
    """Ranks that part the sides of the controls, in order."""
    ranks = {side.ranks[1] for pair in pairs for side in pair.sides if side.ranks}
    return sorted(ranks - {1.0})


def pairs_of(
    model: SMoEModel,
    utterances: Iterable[tuple[Mapping[str, str], Iterable[str]]],
) -> tuple[list[GuidePair], list[Skipped]]:
    """Every pair of guides of every axis that the utterances tell something about.

    Args:
        utterances: of each its guides (utterance axis -> guide) and its tasks.

    Returns:
        What to compare, and the pairs of which one guide has no utterance.
    """
    utterances = [(guides, frozenset(tasks)) for guides, tasks in utterances]
    tasks = model.guides.tasks
    losses = [ATTENTION] + [WITH_CTC] * (model.ctc is not None)
    found: list[GuidePair] = []
    skipped: list[Skipped] = []

    def lacks(axis: str, pair: tuple[str, str], have: Mapping[str, int]) -> bool:
        if none := [g for g in pair if not have[g]]:
            reason = f"no utterance of {', '.join(none)}"
            skipped.append(Skipped(axis, *pair, None, reason))
        return bool(none)

    have = {t: sum(t in of for _, of in utterances) for t in tasks}
    for pair in itertools.combinations(tasks, 2):
        if lacks(TASK, pair, have):
            continue
        matched = any(of.issuperset(pair) for _, of in utterances)
        for loss in losses if "asr" in pair else losses[:1]:
            sides = tuple(
                Condition(
                    (task,),
                    loss == WITH_CTC and task == "asr",
                    pair if matched else (task,),
                )
                for task in pair
            )
            found.append(GuidePair(TASK, *pair, loss, False, matched, sides))
    for axis in model.guides.utterance_axes:
        have = {g: sum(u[axis.name] == g for u, _ in utterances) for g in axis.guides}
        full = {u[axis.name] for u, of in utterances if of.issuperset(tasks)}
        for pair in itertools.combinations(axis.guides, 2):
            if lacks(axis.name, pair, have):
                continue
            matched = full.issuperset(pair)
            counted = [
                u[axis.name]
                for u, of in utterances
                if not matched or of.issuperset(tasks)
            ]
            share = counted.count(pair[0]) / sum(g in pair for g in counted)
            for loss, control in itertools.product(losses, (False, True)):
                sides = tuple(
                    Condition(
                        tasks,
                        loss == WITH_CTC,
                        tasks if matched else (),
                        (axis.name, pair if control else (guide,)),
                        ranks if control else None,
                    )
                    for ranks, guide in zip(
                        ((0.0, share), (share, 1.0)), pair, strict=True
                    )
                )
                found.append(GuidePair(axis.name, *pair, loss, control, matched, sides))
    return found, skipped
