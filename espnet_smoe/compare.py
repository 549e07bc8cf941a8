"""Systems trained with several seeds -> means, and p values against a baseline.

The score of a system in a cell is the mean over its seeds of the metric on the whole
cell. The test is the paired bootstrap over utterances: each of the resamples draws
utterances with replacement, the same ones for every seed of both systems, and gives
one difference of the two means. p is two-sided: the share of resamples whose
difference lies as far from the mean of all resampled differences as the measured one
from zero, (1 + hits) / (1 + resamples). Systems that never differ have p = 1.

It speaks of the test utterances, not of the luck of a training: for that, read the
single values beside the mean.

Source: Riezler and Maxwell 2005 (the shift). sacrebleu 2.x ``PairedTest`` draws the
same resamples, but shifts absolute differences: its p is another, 1 / 1001 for equal
systems.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from espnet_smoe.metrics import ScoreError, measure, metrics_of, resampled
from espnet_smoe.score import Cell, read_cells

__all__ = [
    "Comparison",
    "Key",
    "Score",
    "compare",
    "p_value",
    "read_run",
    "score_system",
]

Key = tuple[str, str, str, str]
"""Set, task, bandwidth, metric."""

_TOLERANCE = 1e-6  # per cent, between scores.json and the same score made here


@dataclasses.dataclass(frozen=True)
class Score:
    """One metric of one system in one cell.

    Args:
        values: the metric of each seed, per cent.
        resampled: (R,) float64, the mean over seeds on each resample.
        references: of the cell, sorted by utterance id.
        signature: how the metric is made.
    """

    values: tuple[float, ...]
    resampled: np.ndarray
    references: tuple[str, ...]
    signature: str

    @property
    def mean(self) -> float:
        """Mean over seeds, per cent."""
        return float(np.mean(self.values))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A system against the baseline in one cell; a line of ``experiments.json``.

    Args:
        values: the metric of each seed, per cent, in the order of the seeds.
        p: of the difference to the baseline; None for the baseline itself, where the
            baseline has no such cell, and for one utterance, which cannot vary.
    """

    system: str
    set: str
    task: str
    bandwidth: str
    metric: str
    mean: float
    values: tuple[float, ...]
    p: float | None
    utterances: int
    signature: str


def read_run(decode_dir: Path, dump_dir: Path, sets: Sequence[str]) -> list[Cell]:
    """Cells of a finished run that were decoded with their true guides.

    Of the tasks those that were decoded or scored: ``--tasks`` may have left some out.

    Raises:
        ScoreError: hypotheses or scores are missing, broken or do not fit each other.
        DataDirError: a data directory is broken.
    """
    path = Path(decode_dir) / "scores.json"
    recorded = _read_scores(path)
    tasks = {task for _, task, _, _ in recorded}
    cells = []
    for name in sets:
        decoded = (Path(decode_dir) / name).glob("text.*")
        wanted = tasks | {f.name.removeprefix("text.") for f in decoded}
        cells += [
            cell
            for cell in read_cells(decode_dir, dump_dir, name, sorted(wanted))
            if cell.guide == cell.bandwidth
        ]
    for cell in cells:
        metric = metrics_of(cell.task)[0]
        counted = measure(metric, cell.references, cell.hypotheses)
        value = counted.rate(counted.counts.sum(axis=0))
        old = recorded.get((cell.set, cell.task, cell.bandwidth, metric))
        if old is None or not abs(old - value) <= _TOLERANCE:
            raise ScoreError(
                f"{path} says {metric} {old} of {cell.set} {cell.task} "
                f"{cell.bandwidth}, its hypotheses {value}; run stage 13 again"
            )
    return cells


def _read_scores(path: Path) -> dict[Key, float]:
    """Scores with true guides of a ``scores.json``."""
    if not path.is_file():
        raise ScoreError(f"{path} is missing; run stage 13 first")
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        return {
            (r["set"], r["task"], r["bandwidth"], r["metric"]): float(r["value"])
            for r in rows
            if r["guide"] == r["bandwidth"]
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ScoreError(
            f"{path} holds no scores ({error!r}); run stage 13 again"
        ) from None


def p_value(difference: float, resampled: np.ndarray) -> float:
    """Two-sided p of a difference, in (0, 1].

    Args:
        difference: measured on all utterances.
        resampled: (R,) the same on each resample.
    """
    away = np.abs(resampled - resampled.mean())
    hits = int((away >= abs(difference)).sum())
    return (1 + hits) / (1 + len(resampled))


def score_system(name: str, runs: Sequence[Sequence[Cell]]) -> dict[Key, Score]:
    """Scores of a system in all its cells.

    Args:
        name: of the system, for messages.
        runs: the cells of each seed.

    Raises:
        ScoreError: the seeds were not scored on the same cells and references, or two
            models were scored on one cell.
    """
    tables = [_table(name, cells) for cells in runs]
    scores: dict[Key, Score] = {}
    for table in tables[1:]:
        if set(table) != set(tables[0]):
            other = sorted(set(table) ^ set(tables[0]))
            raise ScoreError(f"{name}: not all seeds have scores of {other}")
    for place, first in tables[0].items():
        cells = [table[place] for table in tables]
        if any(cell.references != first.references for cell in cells):
            raise ScoreError(
                f"{name}: the seeds were scored on different references of "
                f"{' '.join(place)}; run stages 12 and 13 again"
            )
        for metric in metrics_of(first.task):
            counted = [measure(metric, c.references, c.hypotheses) for c in cells]
            scores[*place, metric] = Score(
                values=tuple(m.rate(m.counts.sum(axis=0)) for m in counted),
                resampled=np.mean(
                    [resampled(m.counts, m.rate) for m in counted], axis=0
                ),
                references=first.references,
                signature=counted[0].signature,
            )
    return scores


def _table(name: str, cells: Sequence[Cell]) -> dict[tuple[str, str, str], Cell]:
    table: dict[tuple[str, str, str], Cell] = {}
    for cell in cells:
        place = cell.set, cell.task, cell.bandwidth
        if place in table:
            raise ScoreError(
                f"{name}: two of its models were scored on {' '.join(place)}; a system "
                "of several models has one for each cell"
            )
        table[place] = cell
    return table


def compare(
    systems: Mapping[str, Mapping[Key, Score]], baseline: str
) -> list[Comparison]:
    """Every score of every system, with p against the baseline's.

    Args:
        systems: name -> scores.
        baseline: one of the names.

    Raises:
        ScoreError: a system was scored on other references than the baseline.
    """
    comparisons = []
    for name, scores in systems.items():
        for key, score in scores.items():
            other = systems[baseline].get(key)
            if other is not None and other.references != score.references:
                raise ScoreError(
                    f"{name} and {baseline} were scored on different references of "
                    f"{' '.join(key[:3])}"
                )
            p = None
            if name != baseline and other is not None and len(score.references) > 1:
                p = p_value(score.mean - other.mean, score.resampled - other.resampled)
            comparisons.append(
                Comparison(
                    name,
                    *key,
                    mean=score.mean,
                    values=score.values,
                    p=p,
                    utterances=len(score.references),
                    signature=score.signature,
                )
            )
    return comparisons
