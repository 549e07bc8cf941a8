"""The YAML of systems and seeds that are compared.

    baseline: train_dense
    seeds: [1, 2]
    systems:
      train_smoe: {train_config: conf/demo/train_smoe.yaml}
      train_dense: {train_config: conf/demo/train_dense.yaml, smoe_args: --max_epoch 4}
      one_per_condition:              # several models, each on the data of its guides
      - {train_config: conf/demo/train_single_nb_asr.yaml}
      - {train_config: conf/demo/train_single_wb_asr.yaml}
    run_options: {nbpe: 300}          # of run.sh, for all

Paths are those of the recipe's folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from espnet_smoe.config import ConfigError, check_keys, check_number

__all__ = ["ExperimentList", "Model", "System", "read_list"]

# what the list or its planning decides; a checkpoint by epoch exists too early
_RESERVED = (
    *("stage", "stop_stage", "train_config", "smoe_args", "smoe_tag", "smoe_exp"),
    *("model_tag", "inference_model", "dry_run"),
    *("skip_data_prep", "skip_train", "skip_eval"),
)


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
    systems = {str(name): system for name, system in systems.items()}
    baseline = str(conf["baseline"])
    if baseline not in systems:
        raise ConfigError(
            f"{path}: baseline {baseline!r} is none of the systems {sorted(systems)}"
        )
    if isinstance(systems[baseline], list):
        raise ConfigError(f"{path}: the baseline {baseline} must be one model")
    options = conf.get("run_options", {})
    if not isinstance(options, dict):
        raise ConfigError(f"{path}: run_options must be a mapping, got {options!r}")
    if taken := sorted(set(options) & set(_RESERVED)):
        raise ConfigError(f"{path}: run_options may not set {taken}")
    return ExperimentList(
        baseline=baseline,
        seeds=tuple(seeds),
        systems=tuple(_system(path, n, s) for n, s in systems.items()),
        run_options={
            str(k): _text(f"{path}: run_options.{k}", v) for k, v in options.items()
        },
    )


def _text(name: str, value: object) -> str:
    """A value as a command line has it."""
    if not isinstance(value, (str, int, float)):
        raise ConfigError(f"{name} must be a text or a number, got {value!r}")
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
        model = Model(
            **{k: _text(f"{path}: system {name}: {k}", v) for k, v in member.items()}
        )
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
