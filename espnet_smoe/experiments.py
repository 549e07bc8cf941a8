"""A list of systems and seeds -> what the recipe would make of each, and what is left.

    baseline: train_dense
    seeds: [1, 2]
    systems:
      train_smoe: {train_config: conf/demo/train_smoe.yaml}
      train_dense: {train_config: conf/demo/train_dense.yaml, smoe_args: --max_epoch 4}
      one_per_condition:              # several models, each on the data of its guides
      - {train_config: conf/demo/train_single_nb_asr.yaml}
      - {train_config: conf/demo/train_single_wb_asr.yaml}
    run_options: {nbpe: 300}          # of run.sh, for all

The recipe names its folders itself (``run.sh --dry_run true``), so what was trained by
hand is found.
"""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from espnet_smoe.config import ConfigError, check_keys, check_number
from espnet_smoe.guide import read_guides

__all__ = [
    "ExperimentList",
    "Model",
    "Places",
    "Run",
    "System",
    "check_recorded",
    "plan",
    "read_list",
]

MODEL = "valid.acc.ave.pth"
"""Checkpoint that is compared; the host makes it when a training has ended."""

_PLACES = (
    *("dump", "train_dir", "valid_dir", "test_sets", "tokens", "stats"),
    *("experiment", "decoding"),
)
# what the list or this module decides; a checkpoint by epoch exists too early
_RESERVED = (
    *("stage", "stop_stage", "train_config", "smoe_args", "smoe_tag", "smoe_exp"),
    *("model_tag", "inference_model", "dry_run"),
)
# the host completes these: total_steps, stats_file
_COMPLETED = ("scheduler_conf", "normalize_conf")


@dataclass(frozen=True, kw_only=True)
class Model:
    """One training; the fields are ``run.sh``'s options."""

    train_config: str
    smoe_args: str = ""


@dataclass(frozen=True)
class System:
    """What is compared: one model, or several with the data of their guides each."""

    name: str
    models: tuple[Model, ...]
    in_parts: bool


@dataclass(frozen=True, kw_only=True)
class ExperimentList:
    """The YAML, checked."""

    baseline: str
    seeds: tuple[int, ...]
    systems: tuple[System, ...]
    run_options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Places:
    """Where the recipe reads and makes things; names as ``run.sh --dry_run``."""

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
        whole: places of the data that the part is of.
    """

    system: str
    seed: int
    model: Model
    options: tuple[str, ...]
    places: Places
    part: Mapping[str, Sequence[str]] | None = None
    whole: Places | None = None

    @property
    def name(self) -> str:
        """Name of the experiment's folder."""
        return self.places.experiment.name

    def command(self, stage: int, stop_stage: int) -> tuple[str, ...]:
        """Command line of some stages."""
        stages = (f"--stage={stage}", f"--stop_stage={stop_stage}")
        return ("./run.sh", *self.options, *stages)


def _older(path: Path, than: Path) -> bool:
    return than.exists() and path.lstat().st_mtime_ns < than.lstat().st_mtime_ns


def read_list(path: Path) -> ExperimentList:
    """Read and check a list of experiments; training YAMLs are looked for here.

    Raises:
        ConfigError: names the key, what it says and what was expected.
    """
    if not path.is_file():
        raise ConfigError(f"list of experiments {path} is missing")
    try:
        conf = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"list of experiments {path} is no YAML: {error}") from None
    needed = ("baseline", "seeds", "systems")
    check_keys(str(path), conf, (*needed, "run_options"))
    if missing := [key for key in needed if key not in conf]:
        raise ConfigError(f"{path} lacks {missing}; it needs {list(needed)}")
    seeds = conf["seeds"]
    if not isinstance(seeds, list) or not seeds:
        raise ConfigError(f"{path}: seeds must be a list of numbers, got {seeds!r}")
    for seed in seeds:
        check_number(f"{path}: a seed", seed, int)
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"{path}: a seed stands twice in {seeds}")
    systems = conf["systems"]
    if not isinstance(systems, dict) or not systems:
        raise ConfigError(f"{path}: systems must map names to models, got {systems!r}")
    if conf["baseline"] not in systems:
        raise ConfigError(
            f"{path}: baseline {conf['baseline']!r} is none of the systems "
            f"{sorted(map(str, systems))}"
        )
    if isinstance(systems[conf["baseline"]], list):
        raise ConfigError(f"{path}: the baseline {conf['baseline']} must be one model")
    options = conf.get("run_options", {})
    if not isinstance(options, dict):
        raise ConfigError(f"{path}: run_options must be a mapping, got {options!r}")
    if taken := sorted(set(options) & set(_RESERVED)):
        raise ConfigError(f"{path}: run_options may not set {taken}")
    return ExperimentList(
        baseline=str(conf["baseline"]),
        seeds=tuple(seeds),
        systems=tuple(_system(path, str(n), s) for n, s in systems.items()),
        run_options={str(k): _text(v) for k, v in options.items()},
    )


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _system(path: Path, name: str, conf: Any) -> System:
    members = conf if isinstance(conf, list) else [conf]
    if not members:
        raise ConfigError(f"{path}: system {name} has no model")
    models = []
    for member in members:
        check_keys(f"{path}: system {name}", member, ("train_config", "smoe_args"))
        if "train_config" not in member:
            raise ConfigError(f"{path}: system {name} lacks train_config")
        model = Model(**{key: str(value) for key, value in member.items()})
        if not Path(model.train_config).is_file():
            raise ConfigError(
                f"{path}: system {name}: {model.train_config} does not exist"
            )
        if any(w.partition("=")[0] == "--seed" for w in model.smoe_args.split()):
            raise ConfigError(
                f"{path}: system {name}: seeds stand in the list, not in smoe_args "
                f"{model.smoe_args!r}"
            )
        models.append(model)
    return System(name, tuple(models), isinstance(conf, list))


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
        other = owners.setdefault(run.places.experiment, run)
        if other is not run:
            raise ConfigError(
                f"{other.system} seed {other.seed} and {run.system} seed {run.seed} "
                f"would both be {run.places.experiment}"
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
    places = _ask(given)
    if not system.in_parts:
        return Run(system.name, seed, model, _options(given), places)
    guides = read_guides(Path(model.train_config))
    part = {axis.name: axis.guides for axis in guides.axes}
    tag = "part_" + "_".join("-".join(names) for names in part.values())
    given["dumpdir"] = str(places.dump.parent / tag)
    given["token_listdir"] = str(places.tokens)
    given["smoe_stats_dir"] = f"{places.stats}_{tag}"
    own = _ask(given)
    return Run(system.name, seed, model, _options(given), own, part, places)


def _options(given: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"--{name}={value}" for name, value in given.items())


def _ask(given: Mapping[str, str]) -> Places:
    """What ``run.sh`` would name its folders."""
    if not Path("run.sh").is_file():
        raise ConfigError(f"no run.sh in {Path.cwd()}: run this in a recipe's folder")
    command = ["./run.sh", *_options(given), "--dry_run=true"]
    said = subprocess.run(command, capture_output=True, text=True)
    if said.returncode:
        lines = said.stderr.strip().splitlines() or ["(nothing said)"]
        raise ConfigError(f"{shlex.join(command)} failed: {lines[-1]}")
    lines = (line.partition("=") for line in said.stdout.splitlines())
    found = {name: value for name, _, value in lines if name in _PLACES}
    sets = tuple(found.pop("test_sets").split())
    return Places(test_sets=sets, **{k: Path(v) for k, v in found.items()})


def check_recorded(run: Run) -> None:
    """Refuse a folder that was trained by another YAML or with another seed.

    What the YAML says is compared with the folder's ``config.yaml``; what ``smoe_args``
    set instead is part of the folder's name.

    Raises:
        ConfigError: names the folder and the options that differ.
    """
    path = run.places.experiment / "config.yaml"
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
            f"{run.places.experiment} was trained with another "
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
