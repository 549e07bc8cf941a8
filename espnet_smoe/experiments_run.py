"""A list of experiments -> data, trainings, hypotheses, scores and one comparison."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from espnet_smoe.compare import compare, read_run, score_system
from espnet_smoe.config import ConfigError, check_out_dir
from espnet_smoe.cost import Cost, measure_cost
from espnet_smoe.experiments import Run, check_recorded, older, plan
from espnet_smoe.experiments_list import ExperimentList, read_list
from espnet_smoe.experiments_report import FILES, Results, write_results
from espnet_smoe.jobs import Job, run_jobs
from espnet_smoe.subset import keep_guides

__all__ = ["collect", "run_experiments"]

logger = logging.getLogger(__name__)


def run_experiments(path: Path, jobs: int, command: str) -> str:
    """Bring every run of a list to its end and compare; see `experiments`.

    Args:
        path: the list.
        jobs: trainings at a time, one thread each.
        command: command line of all this, for the results.

    Returns:
        The text of RESULTS.md.

    Raises:
        ValueError: an input was refused, or runs failed (names them); what stood in
            the folder of the results stays.
    """
    experiments = read_list(path)
    runs = plan(experiments, inference_nj=max(1, (os.cpu_count() or 1) // jobs))
    expdir = runs[0].folders.experiment.parent
    out_dir, logs = expdir / path.stem, expdir / f"{path.stem}_log"
    _check_name(path, out_dir, runs)
    with _locked(expdir / ".experiments.lock") as lock:
        _prepare(experiments, runs, logs, lock)
        refused, todo = [], []
        for run in runs:
            try:
                check_recorded(run)
            except ConfigError as error:
                logger.error("%s", error)
                refused.append(str(error))
                continue
            stage = run.folders.next_stage()
            if stage is None:
                logger.info("%s is finished", run.name)
            else:
                todo.append(_job(run, stage, 13, logs))
        failed = run_jobs(todo, jobs, lock)
        if refused or failed:
            reasons = refused + [f"{j.name} failed (log: {j.log})" for j in failed]
            raise ConfigError(
                f"{len(reasons)} of {len(runs)} runs did not end, no table was "
                f"written: {'; '.join(reasons)}"
            )
        results = collect(experiments, runs)
        return write_results(out_dir, results, command, jobs)


def _check_name(path: Path, out_dir: Path, runs: Sequence[Run]) -> None:
    """Refuse a list whose results would replace what stands or will stand there."""
    check_out_dir(out_dir, FILES)
    if out_dir in {f for r in runs for f in (r.folders.experiment, r.folders.stats)}:
        raise ConfigError(
            f"{path} is named as a folder that it trains, {out_dir}, which its results "
            "would replace: give the list another name"
        )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Open file that is locked until all processes that hold it open have ended."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{path} is locked: a list is run in {path.parent} already, or a "
                "training of a run that was killed still goes on"
            ) from None
        yield file.fileno()


def _job(run: Run, stage: int, stop_stage: int, logs: Path) -> Job:
    name = run.name if stop_stage > 10 else f"data of {run.name}"
    return Job(name, run.command(stage, stop_stage), logs / f"{run.name}.log")


def _prepare(
    experiments: ExperimentList, runs: Sequence[Run], logs: Path, lock: int
) -> None:
    """Stages 1 to 10 once, then the parts of the data with statistics of their own."""
    # statistics are shared by all systems of the same data: one after the other
    baseline = next(r for r in runs if r.system == experiments.baseline)
    _make_data(baseline, logs, lock)
    for run in runs:
        if run.part is None:
            continue
        sources = run.whole.set_dirs
        for source, target in zip(sources, run.folders.set_dirs, strict=True):
            made = target / "wav.scp"
            # audio is the source's own: what it rewrote, the part must follow
            if not made.is_file() or any(older(made, f) for f in source.iterdir()):
                keep_guides(source, target, run.part)
        _make_data(run, logs, lock)


def _make_data(run: Run, logs: Path, lock: int) -> None:
    stage = run.folders.missing_data()
    if stage is not None:
        job = _job(run, stage, 10, logs)
        if run_jobs([job], 1, lock):
            raise ConfigError(f"{job.name}: stages {stage} to 10 failed: {job.log}")


def collect(experiments: ExperimentList, runs: Sequence[Run]) -> Results:
    """Scores and costs of finished runs.

    Raises:
        ValueError: a run is not finished, or runs do not fit each other.
    """
    scores, costs = {}, {}
    for system in experiments.systems:
        mine = [run for run in runs if run.system == system.name]
        by_seed = [[r for r in mine if r.seed == s] for s in experiments.seeds]
        scores[system.name] = score_system(
            system.name,
            [[cell for run in seed for cell in _cells(run)] for seed in by_seed],
        )
        measured = [[measure_cost(r.folders.experiment) for r in s] for s in by_seed]
        costs[system.name] = _system_cost(measured)
    return Results(
        baseline=experiments.baseline,
        seeds=experiments.seeds,
        comparisons=compare(scores, experiments.baseline),
        costs=costs,
        commands={r.name: _to_repeat(r) for r in runs},
    )


def _to_repeat(run: Run) -> str:
    """Command line that makes a run elsewhere: by the interpreter found there."""
    words = [w for w in run.command(11, 13) if not w.startswith("--python=")]
    return shlex.join(words)


def _cells(run: Run) -> list:
    return read_run(run.folders.decoding, run.folders.dump, run.folders.test_sets)


def _system_cost(measured: Sequence[Sequence[Cost]]) -> Cost:
    """Cost of a system from that of its models, for each seed."""
    first = measured[0]
    seconds = [cost.step_seconds for seed in measured for cost in seed]
    return Cost(
        parameters=sum(cost.parameters for cost in first),
        # an utterance meets one of the models
        active=max(cost.active for cost in first),
        flops=max(cost.flops for cost in first),
        step_seconds=sum(seconds) / len(seconds),
    )
