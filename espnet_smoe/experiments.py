"""A list of experiments -> what the recipe would make of each, and what is left.

The recipe names its folders itself (``run.sh --dry_run true``), so what was trained by
hand is found.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import yaml

from espnet_smoe.config import ConfigError
from espnet_smoe.experiments_list import ExperimentList, Model, System
from espnet_smoe.files import MODEL_FILE
from espnet_smoe.guide import BANDWIDTH, TASK, read_guides
from espnet_smoe.recorded import other_data, other_options, read_recorded

__all__ = [
    "Folders",
    "Run",
    "check_recorded",
    "older",
    "plan",
]

_FOLDERS = (
    *("dump", "train_dir", "valid_dir", "test_sets", "tokens", "stats"),
    *("experiment", "decoding", "inference_config"),
)
# options, or beginnings of their names
_NOT_COMPARED = (
    *("config", "output_dir", "resume", "token_list", "bpemodel", "train_data_path"),
    *("valid_data_path", "train_shape_file", "valid_shape_file", "ngpu", "dist_"),
    *("multiprocessing_distributed", "espnet_smoe_version"),
)


@dataclass(frozen=True)
class Folders:
    """Where the recipe reads and makes; names as ``run.sh --dry_run``."""

    dump: Path
    train_dir: Path
    valid_dir: Path
    test_sets: tuple[str, ...]
    tokens: Path
    stats: Path
    experiment: Path
    decoding: Path
    inference_config: Path

    @property
    def set_dirs(self) -> list[Path]:
        """Dumped data directories."""
        tests = [self.dump / name for name in self.test_sets]
        return [self.train_dir, self.valid_dir, *tests]

    def missing_data(self) -> int | None:
        """Stage of the recipe that data are missing from: 1, 10; None = none."""
        data = [folder / "wav.scp" for folder in self.set_dirs]
        data += [self.tokens / name for name in ("bpe.model", "tokens.txt")]
        if not all(path.is_file() for path in data):
            return 1
        for split, folder in (("train", self.train_dir), ("valid", self.valid_dir)):
            shapes = self.stats / split / "speech_shape"
            if not shapes.is_file() or older(shapes, folder / "wav.scp"):
                return 10
        return None

    def next_stage(self) -> int | None:
        """Stage of the recipe to go on with: 11, 12; None = trained and scored.

        Raises:
            ConfigError: the decoding YAML is refused.
        """
        from espnet_smoe.decode import searched_with

        model = self.experiment / MODEL_FILE
        checkpoint = self.experiment / "checkpoint.pth"
        # the link itself: what it points to may be an epoch's file
        if not model.is_file() or older(model, checkpoint):
            return 11
        scores = self.decoding / "scores.json"
        made_of = [model, *(self.dump / name / "wav.scp" for name in self.test_sets)]
        if not scores.is_file() or any(older(scores, path) for path in made_of):
            return 12
        decoded = [self.decoding / name for name in self.test_sets]
        same = all(searched_with(path, self.inference_config) for path in decoded)
        return None if same else 12


@dataclass(frozen=True)
class Run:
    """One model of a system with one seed.

    Args:
        options: of ``run.sh``, without stages.
        part: axis -> guides of its data, if it is trained on a part.
        whole: folders of the data that the part is of.
    """

    system: str
    seed: int
    model: Model
    options: tuple[str, ...]
    folders: Folders
    part: Mapping[str, Sequence[str]] | None = None
    whole: Folders | None = None

    @property
    def name(self) -> str:
        """Name of the experiment's folder."""
        return self.folders.experiment.name

    def command(self, stage: int, stop_stage: int) -> tuple[str, ...]:
        """Command line of some stages."""
        stages = (f"--stage={stage}", f"--stop_stage={stop_stage}")
        return ("./run.sh", *self.options, *stages)


def older(path: Path, than: Path) -> bool:
    """Whether a file is older than another one that is there; of a link, itself."""
    return than.exists() and path.lstat().st_mtime_ns < than.lstat().st_mtime_ns


def plan(experiments: ExperimentList, inference_nj: int) -> list[Run]:
    """All runs, seed after seed; run this in the folder of the recipe.

    Args:
        inference_nj: processes that each run decodes with.

    Raises:
        ValueError: a training YAML is broken, the recipe refuses an option, two runs
            have one folder, or two models of one system the same bandwidth and task.
    """
    runs: list[Run] = []
    for seed in experiments.seeds:
        for system in experiments.systems:
            for model in system.models:
                runs.append(_run(experiments, system, model, seed, inference_nj))
    owners: dict[Path, Run] = {}
    for run in runs:
        other = owners.setdefault(run.folders.experiment, run)
        if other is not run:
            raise ConfigError(
                f"{other.system} seed {other.seed} and {run.system} seed {run.seed} "
                f"would both be {run.folders.experiment}"
            )
    for run, other in itertools.combinations(runs, 2):
        if (run.system, run.seed) == (other.system, other.seed):
            _check_apart(run, other)
    return runs


def _check_apart(run: Run, other: Run) -> None:
    """Refuse two models of one system that would both be scored on a cell."""
    common = [set(run.part[a]) & set(other.part[a]) for a in (BANDWIDTH, TASK)]
    if all(common):
        guides = " ".join("+".join(sorted(names)) for names in common)
        raise ConfigError(
            f"{run.system}: {run.model.train_config} and {other.model.train_config} "
            f"would both be scored on {guides}; a system of several models has one for "
            "each bandwidth and task"
        )


def _run(
    experiments: ExperimentList,
    system: System,
    model: Model,
    seed: int,
    inference_nj: int,
) -> Run:
    guides = read_guides(Path(model.train_config))  # refuses what is no training YAML
    conf = yaml.safe_load(Path(model.train_config).read_text(encoding="utf-8"))
    # the seed of the YAML is no part of a name
    seeded = "" if seed == conf.get("seed", 0) else f"--seed {seed}"
    arguments = f"{model.smoe_args} {seeded}".strip()
    given = {
        "python": sys.executable,
        "inference_nj": str(inference_nj),
        **experiments.run_options,
        "train_config": model.train_config,
        **({"smoe_args": arguments} if arguments else {}),
    }
    model = Model(train_config=model.train_config, smoe_args=arguments)
    folders = _ask(given)
    if not system.in_parts:
        return Run(system.name, seed, model, _options(given), folders)
    part = {axis.name: axis.guides for axis in guides.axes}
    tag = "part_" + "_".join("-".join(names) for names in part.values())
    given["dumpdir"] = str(folders.dump.parent / tag)
    given["token_listdir"] = str(folders.tokens)
    given["smoe_stats_dir"] = f"{folders.stats}_{tag}"
    own = _ask(given)
    return Run(system.name, seed, model, _options(given), own, part, folders)


def _options(given: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"--{name}={value}" for name, value in given.items())


def _ask(given: Mapping[str, str]) -> Folders:
    """What ``run.sh`` would name its folders."""
    if not Path("run.sh").is_file():
        raise ConfigError(f"no run.sh in {Path.cwd()}: run this in a recipe's folder")
    command = ["./run.sh", *_options(given), "--dry_run=true"]
    said = subprocess.run(command, capture_output=True, text=True)
    if said.returncode:
        lines = said.stderr.strip().splitlines() or ["(nothing said)"]
        raise ConfigError(f"{shlex.join(command)} failed: {lines[-1]}")
    lines = (line.partition("=") for line in said.stdout.splitlines())
    found = {name: value for name, _, value in lines if name in _FOLDERS}
    sets = tuple(found.pop("test_sets").split())
    return Folders(test_sets=sets, **{k: Path(v) for k, v in found.items()})


def check_recorded(run: Run) -> None:
    """Refuse a folder that was trained with other options or on other data.

    All options are compared, those of ``smoe_args`` too, but for what names files or
    says which devices train.

    Raises:
        ConfigError: names the folder and what differs.
    """
    from espnet_smoe.train import read_inputs

    folders, config = run.folders, Path(run.model.train_config)
    recorded = read_recorded(folders.experiment)
    if recorded is None:
        return
    wanted, defaults = _wanted(run)
    keys = [key for key in vars(wanted) if not key.startswith(_NOT_COMPARED)]
    # what an earlier release did not know was as the default is now
    recorded = {**vars(defaults), **recorded}
    other = other_options(recorded, wanted, keys)
    data = folders.train_dir, folders.valid_dir, folders.tokens
    targets = read_inputs(config, *data).targets["train"]
    other += other_data(folders.experiment, recorded, folders.tokens, targets)
    if other:
        raise ConfigError(
            f"{folders.experiment} was trained with another "
            f"{', '.join(sorted(other))} than {config} with smoe_args "
            f"{run.model.smoe_args!r} says: move it away to train it anew"
        )


def _wanted(run: Run) -> tuple[argparse.Namespace, argparse.Namespace]:
    """Options of a training as the task reads them, and its defaults."""
    from espnet_smoe.task import SMoETask

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{run.system}: {run.model}: {message}")

    parser = SMoETask.get_parser()
    parser.error = refuse
    options = run.model.smoe_args.split()  # as smoe.sh does: no quotes
    command = ["--config", run.model.train_config, *options]
    return parser.parse_args(command), parser.parse_args([])
