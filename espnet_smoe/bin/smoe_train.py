"""Collect statistics (stage 10) or train (stage 11).

Options that are not listed here go to the host's trainer as they are, e.g.
``--max_epoch 10 --optim_conf lr=0.001``; ``--help_host`` lists them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_smoe.bin.cli import run

__all__ = ["get_parser", "main"]


def _bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return text.lower() == "true"


class _HelpHost(argparse.Action):
    """Print the options of the host's trainer and leave."""

    def __call__(self, *_: object) -> None:
        from espnet_smoe.task import SMoETask

        SMoETask.get_parser().print_help()
        sys.exit(0)


def get_parser() -> argparse.ArgumentParser:
    """Options of this tool."""
    parser = argparse.ArgumentParser(prog="smoe_train", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="training YAML")
    for split in ("train", "valid"):
        parser.add_argument(
            f"--{split}_dir", type=Path, required=True, help="dumped data directory"
        )
    parser.add_argument(
        "--token_dir", type=Path, required=True, help="folder that stage 5 made"
    )
    parser.add_argument(
        "--stats_dir", type=Path, help="folder that stage 10 made; needed to train"
    )
    parser.add_argument(
        "--output_dir", type=Path, required=True, help="experiment folder"
    )
    parser.add_argument(
        "--collect_stats",
        type=_bool,
        default=False,
        help="true: only collect statistics into output_dir",
    )
    parser.add_argument(
        "--help_host", action=_HelpHost, nargs=0, help="list the host's options"
    )
    return parser


def _call(args: argparse.Namespace) -> None:
    from espnet_smoe.train import collect_stats, train

    data = (args.config, args.train_dir, args.valid_dir, args.token_dir)
    if args.collect_stats:
        collect_stats(*data, args.output_dir, args.host_options)
    elif args.stats_dir is None:
        raise ValueError("--stats_dir is missing; stage 10 makes that folder")
    else:
        train(*data, args.stats_dir, args.output_dir, args.host_options)


def main(cmd: Sequence[str] | None = None) -> int:
    """Run; returns the exit status."""
    return run(get_parser(), _call, cmd, unknown="host_options")


if __name__ == "__main__":
    sys.exit(main())
