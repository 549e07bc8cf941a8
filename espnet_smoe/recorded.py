"""What an experiment folder was trained with, against what is wanted now.

The host writes all options of a training to ``config.yaml``; ``bpe.model`` and
``data/train/targets`` lie beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import filecmp
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from espnet_smoe.config import ConfigError
from espnet_smoe.files import read_table

__all__ = ["MODEL_KEYS", "other_data", "other_options", "read_recorded"]

MODEL_KEYS = (
    "guides", "frontend_conf", "normalize", "encoder", "encoder_conf", "decoder",
    "decoder_conf", "model", "model_conf", "ctc_conf",
)  # fmt: skip
"""Options that make a checkpoint fit or not."""

# filled in when a training starts
_COMPLETED = {"scheduler_conf": "total_steps", "normalize_conf": "stats_file"}


def read_recorded(exp_dir: Path) -> dict[str, Any] | None:
    """All options that a folder was trained with; None = no training began there.

    Raises:
        ConfigError: ``config.yaml`` is broken; a kill may have cut it short.
    """
    path = exp_dir / "config.yaml"
    if not path.is_file():
        return None
    try:
        conf = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError):
        conf = None
    if not isinstance(conf, dict):
        raise ConfigError(
            f"{path} is broken, so it cannot be told what was trained there: move "
            f"{exp_dir} away to train anew"
        )
    return conf


def other_options(
    recorded: Mapping[str, Any], args: argparse.Namespace, keys: Sequence[str]
) -> list[str]:
    """Those of ``keys`` that differ.

    What is only known when a training starts (steps of the schedule, file of the
    statistics) is compared where ``args`` say it.

    Args:
        args: options as the task's parser gives them.
    """
    other = []
    for key in keys:
        wanted = getattr(args, key)
        old = recorded.get(key)
        if (completed := _COMPLETED.get(key)) and completed not in (wanted or {}):
            old = {k: v for k, v in (old or {}).items() if k != completed}
            wanted = wanted or {}
        if not _same(old, wanted):
            other.append(key)
    return other


def _same(recorded: Any, wanted: Any) -> bool:
    if isinstance(recorded, dict) and isinstance(wanted, dict):
        return recorded.keys() == wanted.keys() and all(
            _same(recorded[k], v) for k, v in wanted.items()
        )
    if isinstance(wanted, (list, tuple)) and isinstance(recorded, list):
        return len(recorded) == len(wanted) and all(map(_same, recorded, wanted))
    if isinstance(wanted, str) and isinstance(recorded, float):
        # YAML reads 1e-3 as a text, the host as a number
        with contextlib.suppress(ValueError):
            wanted = float(wanted)
    return recorded == wanted


def other_data(
    exp_dir: Path,
    recorded: Mapping[str, Any],
    token_dir: Path,
    targets: Mapping[str, str],
) -> list[str]:
    """``token list`` and ``training data``, where they differ.

    Args:
        token_dir: holds ``bpe.model`` and ``tokens.txt``.
        targets: of the utterances to train on; see ``make_targets``.
    """
    other = []
    tokens = (token_dir / "tokens.txt").read_text(encoding="utf-8").splitlines()
    bpemodels = exp_dir / "bpe.model", token_dir / "bpe.model"
    if recorded.get("token_list") != tokens or not (
        bpemodels[0].is_file() and filecmp.cmp(*bpemodels, shallow=False)
    ):
        other.append("token list")
    trained_on = exp_dir / "data" / "train" / "targets"
    if trained_on.is_file() and read_table(trained_on) != targets:
        other.append("training data")
    return other
