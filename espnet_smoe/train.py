"""Dumped data -> the host's statistics and training; all is checked before a write."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from espnet_smoe.config import ConfigError, check_device, check_keys
from espnet_smoe.datadir import read_datadir
from espnet_smoe.files import DataDirError, read_table, write_atomically, write_table
from espnet_smoe.guide import TASK, Axis, GuideTable, read_guides
from espnet_smoe.preprocess import make_targets
from espnet_smoe.recorded import MODEL_KEYS, other_data, other_options, read_recorded
from espnet_smoe.tokens import warn_of_unknown

__all__ = ["Inputs", "collect_stats", "read_inputs", "read_options", "train"]

logger = logging.getLogger(__name__)

_SPLITS = ("train", "valid")


@dataclass(frozen=True)
class Inputs:
    """What training reads, checked: split -> data directory, split -> targets.

    Args:
        targets: of each split; see ``make_targets``.
    """

    config: Path
    guides: GuideTable
    token_dir: Path
    folders: Mapping[str, Path]
    targets: Mapping[str, Mapping[str, str]]

    def host_options(self, output_dir: Path, targets_dir: Path) -> list[str]:
        options = [
            "--config", os.fspath(self.config),
            "--token_list", os.fspath(self.token_dir / "tokens.txt"),
            "--bpemodel", os.fspath(output_dir / "bpe.model"),
            "--output_dir", os.fspath(output_dir),
        ]  # fmt: skip
        for split, folder in self.folders.items():
            data = [
                (folder / "wav.scp", "speech", "kaldi_ark"),
                (targets_dir / split / "targets", "targets", "text"),
            ]
            for axis in self.guides.utterance_axes:
                data.append((folder / f"utt2{axis.name}", axis.name, "text"))
            for path, name, kind in data:
                name_and_type = f"{path},{name},{kind}"
                options += [f"--{split}_data_path_and_name_and_type", name_and_type]
        return options

    def write(self, output_dir: Path, targets_dir: Path) -> None:
        # the experiment folder carries its tokeniser, so that it works when moved
        shutil.copyfile(self.token_dir / "bpe.model", output_dir / "bpe.model")
        for split, targets in self.targets.items():
            (targets_dir / split).mkdir(parents=True, exist_ok=True)
            write_table(targets_dir / split / "targets", targets)


def collect_stats(
    config: Path,
    train_dir: Path,
    valid_dir: Path,
    token_dir: Path,
    output_dir: Path,
    options: Sequence[str],
) -> None:
    """Lengths and feature statistics of both sets, through the host.

    Args:
        config: training YAML.
        train_dir, valid_dir: dumped data directories.
        token_dir: holds ``bpe.model`` and ``tokens.txt``.
        output_dir: appears complete or not at all.
        options: further options of the host's trainer.

    Raises:
        ValueError: an input is missing or refused; says which stage makes it.
    """
    inputs = read_inputs(config, train_dir, valid_dir, token_dir)
    with write_atomically(output_dir) as folder:
        command = inputs.host_options(folder, folder)
        # statistics are of features before normalisation, which may need them
        command += ["--collect_stats", "true", *options, "--normalize", "none"]
        command += _schedule_options(config, command)
        _check_model(inputs.config, command)
        inputs.write(folder, folder)
        _run_host(command)


def train(
    config: Path,
    train_dir: Path,
    valid_dir: Path,
    token_dir: Path,
    stats_dir: Path,
    output_dir: Path,
    options: Sequence[str],
) -> None:
    """Train through the host; ``--resume true`` goes on where a run was killed.

    Args:
        stats_dir: folder that ``collect_stats`` made.
        output_dir: experiment folder: config.yaml, bpe.model, checkpoints, logs.

    Raises:
        ValueError: an input is missing or refused; says which stage makes it.
    """
    inputs = read_inputs(config, train_dir, valid_dir, token_dir)
    command = inputs.host_options(output_dir, output_dir / "data")
    for split in _SPLITS:
        shapes = stats_dir / split / "speech_shape"
        if not shapes.is_file():
            raise DataDirError(f"{shapes} is missing; run stage 10 first")
        if set(read_table(shapes)) != set(inputs.targets[split]):
            raise DataDirError(
                f"{shapes} and {inputs.folders[split]} name different utterances; run "
                "stage 10 again"
            )
        command += [f"--{split}_shape_file", os.fspath(shapes)]
    if _read_yaml(config).get("normalize") == "global_mvn":
        stats = stats_dir / "train" / "feats_stats.npz"
        command += ["--normalize_conf", f"stats_file={stats}"]
    command += options
    command += _schedule_options(config, command)
    args = _check_model(config, command)
    for path in args.init_param:
        _check_vocabulary(path.split(":")[0], token_dir)
    if args.ngpu > 1:
        # the host's other way, DataParallel, copies the model at every step: the
        # copies would not count batches for the late split
        command += ["--multiprocessing_distributed", "true"]
    if args.resume and (output_dir / "checkpoint.pth").exists():
        _check_same_experiment(output_dir, inputs, args)
    if _is_first_node(args):
        # the others read it after they have met the first one in the host
        output_dir.mkdir(parents=True, exist_ok=True)
        inputs.write(output_dir, output_dir / "data")
    else:
        # the host keeps the others quiet only where logging is not set up yet
        logging.getLogger().setLevel(logging.ERROR)
    _run_host(command)


def read_options(config: Path, token_dir: Path, output_dir: Path) -> argparse.Namespace:
    """All options of a training, the host's defaults included, without its data.

    Raises:
        ValueError: the YAML or the token list is missing or broken.
    """
    read_guides(config)
    _check_tokens(token_dir)
    command = [
        "--config", os.fspath(config),
        "--token_list", os.fspath(token_dir / "tokens.txt"),
        "--bpemodel", os.fspath(output_dir / "bpe.model"),
        "--output_dir", os.fspath(output_dir),
    ]  # fmt: skip
    return _parse(config, command)


def _check_tokens(token_dir: Path) -> None:
    for name in ("bpe.model", "tokens.txt"):
        if not (token_dir / name).is_file():
            raise DataDirError(f"{token_dir / name} is missing; run stage 5 first")


def _read_yaml(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def read_inputs(
    config: Path, train_dir: Path, valid_dir: Path, token_dir: Path
) -> Inputs:
    """Read and check what training reads.

    Raises:
        ValueError: an input is missing or refused; says which stage makes it.
    """
    guides = read_guides(config)
    # a task that is trained alone sees no other references
    only = (_read_yaml(config).get("model_conf") or {}).get("train_only")
    axis = Axis(TASK, tuple(only)) if only else guides.axes[-1]
    trained = GuideTable((*guides.utterance_axes, axis))
    _check_tokens(token_dir)
    folders = dict(zip(_SPLITS, (train_dir, valid_dir), strict=True))
    targets = {}
    for split, folder in folders.items():
        if not folder.is_dir():
            raise DataDirError(f"{folder} is missing; run stage 4 first")
        utterances = read_datadir(folder)
        unused = {t for u in utterances for t in u.texts} - set(guides.tasks)
        if unused:
            logger.warning("%s: no model task for text.%s", folder, sorted(unused))
        for task in trained.tasks:
            texts = [u.texts[task] for u in utterances if task in u.texts]
            warn_of_unknown(token_dir, texts, f"{folder}, text.{task}")
        targets[split] = make_targets(utterances, trained)
    return Inputs(config, guides, token_dir, folders, targets)


def _parse(config: Path, command: Sequence[str]) -> argparse.Namespace:
    from espnet_smoe.task import SMoETask

    # the host answers an unknown key with its whole usage text
    check_keys(str(config), _read_yaml(config), SMoETask.option_names())
    return SMoETask.get_parser().parse_args(command)


def _schedule_options(config: Path, command: Sequence[str]) -> list[str]:
    """A one-cycle schedule lasts as long as the training, unless YAML says else."""
    args = _parse(config, command)
    conf = args.scheduler_conf if isinstance(args.scheduler_conf, dict) else {}
    if args.scheduler != "onecyclelr" or {"total_steps", "epochs"} & set(conf):
        return []
    if not args.num_iters_per_epoch:
        raise ConfigError(
            f"{config}: onecyclelr needs num_iters_per_epoch or total_steps"
        )
    updates = args.max_epoch * args.num_iters_per_epoch // args.accum_grad
    return ["--scheduler_conf", f"total_steps={updates}"]


def _check_model(config: Path, command: Sequence[str]) -> argparse.Namespace:
    """Build what the options describe, so that nothing is written for bad ones."""
    from espnet_smoe.task import SMoETask

    args = _parse(config, command)
    if args.ngpu > 0:
        check_device("cuda", args.ngpu)
    try:
        SMoETask.build_all(args)
    except ValueError:
        raise
    except Exception as error:  # a value of the wrong type fails anywhere below
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{config} and the options given cannot be built: {reason}"
        ) from error
    return args


def _check_vocabulary(checkpoint: str, token_dir: Path) -> None:
    """Refuse to start from a model of other tokens: shapes may fit all the same."""
    config = Path(checkpoint).parent / "config.yaml"
    if not config.is_file():
        return
    theirs = _read_yaml(config).get("token_list") or []
    tokens = token_dir / "tokens.txt"
    ours = tokens.read_text(encoding="utf-8").splitlines()
    if theirs != ours:
        raise ConfigError(
            f"{checkpoint} has a vocabulary of {len(theirs)} tokens, {tokens} another "
            f"of {len(ours)}: use the token list of that model"
        )


def _is_first_node(args: argparse.Namespace) -> bool:
    """Whether this process is the only one started, or the first of several."""
    from espnet2.train.distributed_utils import get_node_rank, get_num_nodes

    nodes = get_num_nodes(args.dist_world_size, args.dist_launcher)
    return nodes <= 1 or not get_node_rank(args.dist_rank, args.dist_launcher)


def _check_same_experiment(
    output_dir: Path, inputs: Inputs, args: argparse.Namespace
) -> None:
    """Refuse to resume what was begun with another model or on other data."""
    old = read_recorded(output_dir)
    if old is None:
        return
    other = other_options(old, args, MODEL_KEYS)
    other += other_data(output_dir, old, inputs.token_dir, inputs.targets["train"])
    if other:
        raise ConfigError(
            f"{output_dir} was trained with another {', '.join(other)}: name another "
            "experiment folder, or start it anew with --resume false"
        )


def _run_host(command: Sequence[str]) -> None:
    from espnet_smoe.task import SMoETask

    logger.info("host options: %s", " ".join(command))
    SMoETask.main(cmd=list(command))
