"""Decoded sets -> one score per (set, task, bandwidth, guide, metric).

Input: ``<decode_dir>/<set>/text.<task>`` (``<id> <text>``; an id alone is an empty
hypothesis) and the data directory ``<dump_dir>/<set>``. The two pair by id. Texts
are taken as they are but for white space: a run of it counts as one blank.
``<decode_dir>/<set>/utt2bandwidth`` holds the guides decoded with; without it they
were the true ones. ``<decode_dir>/force_<guide>/<set>`` is the same set decoded with
that guide throughout; what it says of utterances of another bandwidth is scored too.

Utterances of a cell are sorted by id and the bootstrap's seed is fixed, so the same
draws serve every system scored on that cell.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from espnet_smoe.datadir import Utterance, read_datadir
from espnet_smoe.files import read_table, some_of
from espnet_smoe.guide import BANDWIDTH
from espnet_smoe.metrics import ScoreError, bootstrap, measure, metrics_of
from espnet_smoe.progress import progress

__all__ = ["Cell", "Row", "ScoreError", "read_cells", "read_hypotheses", "score_sets"]


@dataclasses.dataclass(frozen=True)
class Cell:
    """Texts of one (set, task, bandwidth, guide), sorted by utterance id."""

    set: str
    task: str
    bandwidth: str
    guide: str
    references: tuple[str, ...]
    hypotheses: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """One score of one cell; a line of ``scores.json``. Rates are per cent.

    Args:
        bandwidth: what the utterances are.
        guide: the bandwidth guide they were decoded with.
    """

    set: str
    task: str
    bandwidth: str
    guide: str
    metric: str
    value: float
    low: float
    high: float
    utterances: int
    reference_units: int
    signature: str


def read_hypotheses(path: Path) -> dict[str, str]:
    """Read ``<id> <text>`` lines; an id alone is an empty hypothesis.

    Raises:
        ScoreError: the file is missing, a line has no id, an id comes twice.
    """
    if not path.is_file():
        raise ScoreError(f"{path} is missing; run stage 12 first")
    texts: dict[str, str] = {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                raise ScoreError(f"{path}:{number}: expected '<id> <text>', got ''")
            utt, *words = line.split()
            if utt in texts:
                raise ScoreError(f"{path}:{number}: id {utt!r} comes twice")
            texts[utt] = " ".join(words)
    return texts


def read_cells(
    decode_dir: Path, dump_dir: Path, name: str, tasks: Sequence[str] | None = None
) -> list[Cell]:
    """Pair hypotheses with references of one set, by id.

    Args:
        decode_dir: holds the folder ``name``; its subfolders are not looked at.
        tasks: the tasks to score; None = all that have references or hypotheses.

    Raises:
        ScoreError: a folder or a hypothesis file is missing, an id has only one of
            the two texts, or a task has no metric.
        DataDirError: the data directory is broken.
    """
    decoded, dumped = Path(decode_dir) / name, Path(dump_dir) / name
    if not decoded.is_dir():
        raise ScoreError(f"{decoded} is missing; run stage 12 first")
    if not dumped.is_dir():
        raise ScoreError(f"{dumped} is missing; run stages 1 to 4 first")
    utterances = read_datadir(dumped)
    present = {f.name.removeprefix("text.") for f in decoded.glob("text.*")}
    present |= {t for u in utterances for t in u.texts}
    wanted = sorted(present if tasks is None else present & set(tasks))
    given = {u.id: u.guides[BANDWIDTH] for u in utterances}
    if (path := decoded / "utt2bandwidth").exists():
        given = read_table(path)
    cells: list[Cell] = []
    for task in wanted:
        cells += _task_cells(name, task, decoded / f"text.{task}", utterances, given)
    return cells


def _task_cells(
    name: str,
    task: str,
    path: Path,
    utterances: Sequence[Utterance],
    given: Mapping[str, str],
) -> Iterator[Cell]:
    metrics_of(task)  # refuses a task without metrics
    referred = {u.id: u for u in utterances if task in u.texts}
    hypotheses = read_hypotheses(path)
    if missing := sorted(set(referred) - set(hypotheses)):
        raise ScoreError(
            f"{path} has no hypothesis for {len(missing)} of {len(referred)} "
            f"references: {some_of(missing)}"
        )
    if extra := sorted(set(hypotheses) - set(referred)):
        raise ScoreError(
            f"{path} has {len(extra)} hypotheses without a reference in set {name!r}: "
            f"{some_of(extra)}"
        )
    if unguided := sorted(set(referred) - set(given)):
        raise ScoreError(
            f"{path.with_name('utt2bandwidth')} lacks {len(unguided)} decoded "
            f"utterances: {some_of(unguided)}"
        )
    kinds = {i: (u.guides[BANDWIDTH], given[i]) for i, u in sorted(referred.items())}
    for kind in sorted(set(kinds.values())):
        ids = [i for i in kinds if kinds[i] == kind]
        yield Cell(
            set=name,
            task=task,
            bandwidth=kind[0],
            guide=kind[1],
            references=tuple(" ".join(referred[i].texts[task].split()) for i in ids),
            hypotheses=tuple(hypotheses[i] for i in ids),
        )


def score_sets(
    decode_dir: Path,
    dump_dir: Path,
    sets: Sequence[str],
    tasks: Sequence[str] | None = None,
    forced: Sequence[str] = (),
) -> list[Row]:
    """Score every cell of every set, in the order of sets, tasks and bandwidths.

    Args:
        forced: bandwidth guides that the sets were also decoded with throughout; of
            ``force_<guide>`` the cells with a wrong guide follow at the end.

    Raises:
        ScoreError: as `read_cells`; or a task of ``tasks`` is in no set.
        DataDirError: a data directory is broken.
    """
    decode_dir = Path(decode_dir)
    if not decode_dir.is_dir():
        raise ScoreError(f"{decode_dir} is missing; run stage 12 first")
    cells: list[Cell] = []
    for name in dict.fromkeys(sets):
        cells += read_cells(decode_dir, dump_dir, name, tasks)
    for guide, name in itertools.product(dict.fromkeys(forced), dict.fromkeys(sets)):
        probed = read_cells(decode_dir / f"force_{guide}", dump_dir, name, tasks)
        if wrong := sorted({c.guide for c in probed} - {guide}):
            raise ScoreError(
                f"{decode_dir / f'force_{guide}' / name}: expected every utterance "
                f"decoded as {guide}, got {', '.join(wrong)}; run stage 12 again"
            )
        cells += [c for c in probed if c.guide != c.bandwidth]
    if unseen := sorted(set(tasks or ()) - {c.task for c in cells}):
        raise ScoreError(f"no text for task {', '.join(unseen)} in {', '.join(sets)}")
    jobs = [(cell, metric) for cell in cells for metric in metrics_of(cell.task)]
    return [_row(*job) for job in progress(jobs, len(jobs), "scores")]


def _row(cell: Cell, metric: str) -> Row:
    counted = measure(metric, cell.references, cell.hypotheses)
    low, high = bootstrap(counted.counts, counted.rate)
    return Row(
        set=cell.set,
        task=cell.task,
        bandwidth=cell.bandwidth,
        guide=cell.guide,
        metric=metric,
        value=counted.rate(counted.counts.sum(axis=0)),
        low=low,
        high=high,
        utterances=len(cell.references),
        reference_units=counted.reference_units,
        signature=counted.signature,
    )
