"""Dumped data -> the host's statistics and training."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import yaml

from espnet_smoe.config import check_keys
from espnet_smoe.datadir import read_datadir
from espnet_smoe.files import DataDirError, write_atomically
from espnet_smoe.guide import GuideTable, read_guides
from espnet_smoe.preprocess import write_targets

__all__ = ["collect_stats", "train"]

logger = logging.getLogger(__name__)


def collect_stats(
    config: Path,
    train_dir: Path,
    valid_dir: Path,
    token_dir: Path,
    output_dir: Path,
    host_options: Sequence[str],
) -> None:
    """Lengths and feature statistics of both sets, through the host.

    Args:
        config: training YAML.
        train_dir, valid_dir: dumped data directories.
        token_dir: holds ``bpe.model`` and ``tokens.txt``.
        output_dir: appears complete or not at all.
        host_options: further options of the host's trainer.

    Raises:
        ValueError: an input is missing or refused; says which stage makes it.
    """
    guides = read_guides(config)
    with write_atomically(output_dir) as folder:
        command = _common_options(
            config, train_dir, valid_dir, token_dir, folder, folder, guides
        )
        _run_host(config, [*command, "--collect_stats", "true", *host_options])


def train(
    config: Path,
    train_dir: Path,
    valid_dir: Path,
    token_dir: Path,
    stats_dir: Path,
    output_dir: Path,
    host_options: Sequence[str],
) -> None:
    """Train through the host; ``--resume true`` goes on where a run was killed.

    Args:
        stats_dir: folder that ``collect_stats`` made.
        output_dir: experiment folder: config.yaml, bpe.model, checkpoints, logs.

    Raises:
        ValueError: an input is missing or refused; says which stage makes it.
    """
    guides = read_guides(config)
    shapes = [stats_dir / split / "speech_shape" for split in ("train", "valid")]
    if missing := [str(s) for s in shapes if not s.is_file()]:
        raise DataDirError(f"{', '.join(missing)} missing; run stage 10 first")
    output_dir.mkdir(parents=True, exist_ok=True)
    command = _common_options(
        config, train_dir, valid_dir, token_dir, output_dir, output_dir / "data", guides
    )
    for split, shape in zip(("train", "valid"), shapes, strict=True):
        command += [f"--{split}_shape_file", os.fspath(shape)]
    if (yaml.safe_load(config.read_text()) or {}).get("normalize") == "global_mvn":
        stats = stats_dir / "train" / "feats_stats.npz"
        command += ["--normalize_conf", f"stats_file={stats}"]
    _run_host(config, [*command, *host_options])


def _common_options(
    config: Path,
    train_dir: Path,
    valid_dir: Path,
    token_dir: Path,
    output_dir: Path,
    targets_dir: Path,
    guides: GuideTable,
) -> list[str]:
    for name in ("bpe.model", "tokens.txt"):
        if not (token_dir / name).is_file():
            raise DataDirError(f"{token_dir / name} is missing; run stage 5 first")
    # the experiment folder carries its tokeniser, so that it works when moved
    shutil.copyfile(token_dir / "bpe.model", output_dir / "bpe.model")
    options = [
        "--config", os.fspath(config),
        "--token_list", os.fspath(token_dir / "tokens.txt"),
        "--bpemodel", os.fspath(output_dir / "bpe.model"),
        "--output_dir", os.fspath(output_dir),
    ]  # fmt: skip
    for split, folder in (("train", train_dir), ("valid", valid_dir)):
        if not folder.is_dir():
            raise DataDirError(f"{folder} is missing; run stage 4 first")
        utterances = read_datadir(folder)
        unused = {t for u in utterances for t in u.texts} - set(guides.tasks)
        if unused:
            logger.warning("%s: no model task for text.%s", folder, sorted(unused))
        targets = targets_dir / split / "targets"
        targets.parent.mkdir(parents=True, exist_ok=True)
        write_targets(targets, utterances, guides)
        data = [
            (folder / "wav.scp", "speech", "kaldi_ark"),
            (targets, "targets", "text"),
        ]
        data += [
            (folder / f"utt2{axis.name}", axis.name, "text")
            for axis in guides.utterance_axes
        ]
        for path, name, kind in data:
            options += [
                f"--{split}_data_path_and_name_and_type",
                f"{path},{name},{kind}",
            ]
    return options


def _run_host(config: Path, command: Sequence[str]) -> None:
    from espnet_smoe.task import SMoETask

    # the host answers an unknown key with its whole usage text
    conf = yaml.safe_load(config.read_text(encoding="utf-8"))
    check_keys(str(config), conf, SMoETask.option_names())
    logger.info("host options: %s", " ".join(command))
    SMoETask.main(cmd=list(command))
