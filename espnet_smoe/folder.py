"""The folders that surgery writes, and what may be replaced by them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from espnet2.utils.yaml_no_alias_safe_dump import yaml_no_alias_safe_dump

from espnet_smoe.config import ConfigError, check_out_dir
from espnet_smoe.files import MODEL_FILE

__all__ = [
    "EXPERIMENT_FILES",
    "STATISTICS",
    "check_target",
    "write_experiment",
    "write_report",
    "write_statistics",
    "write_yaml",
]

STATISTICS = "feats_stats.npz"
"""The host's statistics of ``global_mvn``."""

EXPERIMENT_FILES = ("config.yaml", "bpe.model", "tokens.txt", MODEL_FILE, STATISTICS)
"""What ``write_experiment`` writes, the last one for ``global_mvn`` only."""


def check_target(
    out_dir: Path, report: str, others: Sequence[str], sources: Sequence[Path]
) -> None:
    """Refuse a folder that is no earlier result, or that is read: it is replaced.

    Args:
        report: the file by which the tool's results are known.
        others: names of what else the tool writes.
        sources: folders or files that the tool reads.

    Raises:
        ConfigError: names the folder and what stands there.
    """
    for source in sources:
        folder = source if source.is_dir() else source.parent
        if folder.resolve() == out_dir.resolve():
            raise ConfigError(
                f"{out_dir} would be replaced, but {source} is read; expected another "
                "folder"
            )
    check_out_dir(out_dir, (report, *others))
    # an experiment of few files may have no others than ours
    if out_dir.exists() and any(out_dir.iterdir()) and not (out_dir / report).exists():
        raise ConfigError(
            f"{out_dir} has no {report}, so it is no earlier result; expected a new "
            "folder or one of an earlier run, since it is replaced"
        )


def write_experiment(
    folder: Path,
    out_dir: Path,
    conf: Mapping[str, Any],
    state: Mapping[str, torch.Tensor],
    bpemodel: Path,
) -> dict[str, Any]:
    """Write what makes a folder an experiment, see ``EXPERIMENT_FILES``.

    Args:
        folder: where to.
        out_dir: where the folder will stand.
        conf: the model's options, ``token_list`` a list.
        state: the model's tensors.
        bpemodel: its sentencepiece model.

    Returns:
        The options as ``config.yaml`` has them, with paths in ``out_dir``.
    """
    conf = {**conf, "bpemodel": os.fspath(out_dir / "bpe.model")}
    shutil.copyfile(bpemodel, folder / "bpe.model")
    tokens = "".join(f"{token}\n" for token in conf["token_list"])
    (folder / "tokens.txt").write_text(tokens, encoding="utf-8")
    if conf["normalize"] == "global_mvn":
        write_statistics(state, folder / STATISTICS)
        path = os.fspath(out_dir / STATISTICS)
        conf["normalize_conf"] = {**conf["normalize_conf"], "stats_file": path}
    torch.save(dict(state), folder / MODEL_FILE)
    write_yaml(folder / "config.yaml", conf)
    return conf


def write_statistics(state: Mapping[str, torch.Tensor], path: Path) -> None:
    """The host's ``feats_stats.npz`` that gives a checkpoint's ``global_mvn``.

    The file that it was trained with may be elsewhere by now.
    """
    mean, std = (
        state[f"normalize.{name}"].double().numpy() for name in ("mean", "std")
    )
    np.savez(path, count=1.0, sum=mean, sum_square=std**2 + mean**2)


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write JSON, indented."""
    text = json.dumps(report, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def write_yaml(path: Path, conf: Mapping[str, Any]) -> None:
    """Write options in the order they have, every value in full."""
    with path.open("w", encoding="utf-8") as file:
        yaml_no_alias_safe_dump(dict(conf), file, sort_keys=False)
