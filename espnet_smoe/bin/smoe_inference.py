"""Decode a dumped data directory in every task (stage 12)."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_smoe.bin.cli import run
from espnet_smoe.files import MODEL_FILE

__all__ = ["get_parser", "main"]


def get_parser() -> argparse.ArgumentParser:
    """Options of this tool."""
    parser = argparse.ArgumentParser(prog="smoe_inference", description=__doc__)
    parser.add_argument("--exp_dir", type=Path, required=True, help="experiment folder")
    parser.add_argument(
        "--inference_model", default=MODEL_FILE, help="checkpoint in exp_dir"
    )
    parser.add_argument(
        "--data_dir", type=Path, required=True, help="dumped data directory"
    )
    parser.add_argument(
        "--output_dir", type=Path, required=True, help="folder of the hypotheses"
    )
    parser.add_argument("--config", type=Path, required=True, help="decoding YAML")
    parser.add_argument(
        "--tasks", nargs="+", help="decode these for every utterance, reference or not"
    )
    parser.add_argument(
        "--force_bandwidth",
        metavar="GUIDE",
        help="decode every utterance with this bandwidth guide, true or not: shows "
        "what a wrong guide costs",
    )
    parser.add_argument("--ngpu", type=int, default=0, help="1 = decode on a GPU")
    parser.add_argument("--nj", type=int, default=1, help="processes, without a GPU")
    return parser


def _call(args: argparse.Namespace) -> None:
    from espnet_smoe.decode import decode_datadir

    # the host's search writes some ten lines an utterance at INFO
    logging.getLogger("espnet2.legacy.nets").setLevel(logging.WARNING)
    decode_datadir(
        args.exp_dir,
        args.inference_model,
        args.data_dir,
        args.output_dir,
        args.config,
        args.tasks,
        nj=1 if args.ngpu else args.nj,
        device="cuda" if args.ngpu else "cpu",
        force_bandwidth=args.force_bandwidth,
    )


def main(cmd: Sequence[str] | None = None) -> int:
    """Run; returns the exit status."""
    return run(get_parser(), _call, cmd)


if __name__ == "__main__":
    sys.exit(main())
