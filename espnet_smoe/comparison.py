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
    "Comparison",
    "Condition",
    "Skipped",
    "compare",
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
        half: only this half of the control; None = both.
    """

    tasks: tuple[str, ...]
    ctc: bool = False
    needs: tuple[str, ...] = ()
    guides: tuple[str, tuple[str, ...]] | None = None
    half: int | None = None

    def meets(
        self, guides: Mapping[str, str], tasks: frozenset[str], half: int
    ) -> bool:
        """Whether utterances of these guides, references and half count."""
        if not tasks.issuperset(self.needs) or self.half not in (None, half):
            return False
        return self.guides is None or guides[self.guides[0]] in self.guides[1]


@dataclass(frozen=True)
class Comparison:
    """Two guides of an axis and the losses that stand for them.

    Args:
        loss: ``attention``, or ``attention+ctc`` (encoder only; CTC is part of
            ``asr`` and does not reach the decoder).
        control: the sides are random halves of the utterances of both guides.
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


def compare(
    model: SMoEModel,
    utterances: Iterable[tuple[Mapping[str, str], Iterable[str]]],
) -> tuple[list[Comparison], list[Skipped]]:
    """Every pair of guides of every axis that the utterances tell something about.

    Args:
        utterances: of each its guides (utterance axis -> guide) and its tasks.

    Returns:
        The comparisons, and the pairs of which one guide has no utterance.
    """
    utterances = [(guides, frozenset(tasks)) for guides, tasks in utterances]
    tasks = model.guides.tasks
    losses = [ATTENTION] + [WITH_CTC] * (model.ctc is not None)
    found: list[Comparison] = []
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
            found.append(Comparison(TASK, *pair, loss, False, matched, sides))
    for axis in model.guides.utterance_axes:
        have = {g: sum(u[axis.name] == g for u, _ in utterances) for g in axis.guides}
        full = {u[axis.name] for u, of in utterances if of.issuperset(tasks)}
        for pair in itertools.combinations(axis.guides, 2):
            if lacks(axis.name, pair, have):
                continue
            matched = full.issuperset(pair)
            for loss, control in itertools.product(losses, (False, True)):
                sides = tuple(
                    Condition(
                        tasks,
                        loss == WITH_CTC,
                        tasks if matched else (),
                        (axis.name, pair if control else (guide,)),
                        half if control else None,
                    )
                    for half, guide in enumerate(pair)
                )
                found.append(
                    Comparison(axis.name, *pair, loss, control, matched, sides)
                )
    return found, skipped
