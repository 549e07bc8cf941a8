"""Where do tasks and bandwidths pull a layer apart? Cosines between their gradients."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_smoe.bin.cli import run
from espnet_smoe.files import MODEL_FILE

__all__ = ["get_parser", "main"]


def get_parser() -> argparse.ArgumentParser:
    """Options of ``smoe_interference``."""
    parser = argparse.ArgumentParser(
        prog="smoe_interference",
        description=f"{__doc__} Meant for a hard-sharing model: places that guides "
        "route already are left out, by name. Writes interference.json, "
        "interference.md and interference.png.",
    )
    parser.add_argument("--exp_dir", type=Path, required=True, help="experiment folder")
    parser.add_argument(
        "--inference_model", default=MODEL_FILE, help="checkpoint in exp_dir"
    )
    parser.add_argument(
        "--data_dir",
        type=Path,
        required=True,
        help="dumped data directory, e.g. dump/raw/dev",
    )
    parser.add_argument(
        "--out_dir", type=Path, required=True, help="folder of the results, new"
    )
    parser.add_argument(
        "--num_batches", type=int, help="at most so many; default: all utterances"
    )
    parser.add_argument(
        "--batch_size", type=int, default=16, help="utterances a batch (%(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the shuffling (%(default)s)"
    )
    parser.add_argument("--ngpu", type=int, default=0, help="1 = compute on a GPU")
    return parser


def main(cmd: Sequence[str] | None = None) -> int:
    """Run ``smoe_interference``; returns the exit status."""
    given = list(sys.argv[1:] if cmd is None else cmd)

    def call(args: argparse.Namespace) -> None:
        from espnet_smoe.config import check_out_dir
        from espnet_smoe.interference_data import measure_datadir
        from espnet_smoe.interference_report import FILES, write_interference

        check_out_dir(args.out_dir, FILES)
        measured = measure_datadir(
            args.exp_dir,
            args.inference_model,
            args.data_dir,
            args.num_batches,
            args.batch_size,
            args.seed,
            "cuda" if args.ngpu else "cpu",
        )
        command = ["python", "-m", "espnet_smoe.bin.smoe_interference", *given]
        settings = {
            "command": shlex.join(command),
            "model": str(args.exp_dir / args.inference_model),
            "data": str(args.data_dir),
            "batch_size": args.batch_size,
            "seed": args.seed,
        }
        print(write_interference(args.out_dir, measured, settings))

    return run(get_parser(), call, given)


if __name__ == "__main__":
    sys.exit(main())
