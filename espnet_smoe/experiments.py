"""A list of experiments -> what the recipe would make of each, and what is left.

The recipe names its folders itself (``run.sh --dry_run true``), so what was trained by
hand is found.
"""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from espnet_smoe.config import ConfigError
from espnet_smoe.experiments_list import ExperimentList, Model, System
from espnet_smoe.guide import read_guides

__all__ = [
    "Folders",
    "Run",
    "check_recorded",
    "plan",
]

MODEL = "valid.acc.ave.pth"
"""Checkpoint that is compared; the host makes it when a training has ended."""

_FOLDERS = (
    *("dump", "train_dir", "valid_dir", "test_sets", "tokens", "stats"),
    *("experiment", "decoding"),
)
# the host completes these: total_steps, stats_file
_COMPLETED = ("scheduler_conf", "normalize_conf")


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
        shapes = [self.stats / s / "speech_shape" for s in ("train", "valid")]
        return None if all(path.is_file() for path in shapes) else 10

    def next_stage(self) -> int | None:
        """Stage of the recipe to go on with: 11, 12; None = trained and scored."""
        model, checkpoint = self.experiment / MODEL, self.experiment / "checkpoint.pth"
        # the link itself: what it points to may be an epoch's file
        if not model.is_file() or _older(model, checkpoint):
            return 11
        scores = self.decoding / "scores.json"
        if not scores.is_file() or _older(scores, model):
            return 12
        return None


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


def _older(path: Path, than: Path) -> bool:
    return than.exists() and path.lstat().st_mtime_ns < than.lstat().st_mtime_ns


def plan(experiments: ExperimentList, inference_nj: int) -> list[Run]:
    """All runs, seed after seed; run this in the folder of the recipe.

    Args:
        inference_nj: processes that each run decodes with.

    Raises:
        ConfigError: the recipe refuses an option, or two runs have one folder.
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
    return runs


def _run(
    experiments: ExperimentList,
    system: System,
    model: Model,
    seed: int,
    inference_nj: int,
) -> Run:
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
    guides = read_guides(Path(model.train_config))
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
    """Refuse a folder that was trained by another YAML or with another seed.

    What the YAML says is compared with the folder's ``config.yaml``; what ``smoe_args``
    set instead is part of the folder's name.

    Raises:
        ConfigError: names the folder and the options that differ.
    """
    path = run.folders.experiment / "config.yaml"
    if not path.is_file():
        return
    recorded = yaml.safe_load(path.read_text(encoding="utf-8"))
    wanted = yaml.safe_load(Path(run.model.train_config).read_text(encoding="utf-8"))
    for word in run.model.smoe_args.split():
        wanted.pop(word.partition("=")[0].removeprefix("--"), None)
    wanted["seed"] = run.seed
    other = [key for key in wanted if not _same(key, recorded.get(key), wanted[key])]
    if other:
        raise ConfigError(
            f"{run.folders.experiment} was trained with another "
            f"{', '.join(sorted(other))} than {run.model.train_config} with seed "
            f"{run.seed} says: move it away to train it anew"
        )


def _same(key: str, recorded: Any, wanted: Any) -> bool:
    if isinstance(recorded, dict) and isinstance(wanted, dict):
        if key not in _COMPLETED and recorded.keys() != wanted.keys():
            return False
        return all(_same("", recorded.get(k), v) for k, v in wanted.items())
    if isinstance(wanted, str) and isinstance(recorded, float):
        # YAML reads 1e-3 as a text, the host as a number
        with contextlib.suppress(ValueError):
            wanted = float(wanted)
    return recorded == wanted
