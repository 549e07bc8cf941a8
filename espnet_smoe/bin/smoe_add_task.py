"""Add a task to a trained model: a token and experts of its own, all else frozen.

Train it with --config OUT_DIR/train_<task>.yaml --token_dir OUT_DIR on data directories
with text.<task>; what the model did before stays the same to the bit.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_smoe.bin.cli import run
from espnet_smoe.files import MODEL_FILE

__all__ = ["get_parser", "main"]


def get_parser() -> argparse.ArgumentParser:
    """Options of this tool."""
    parser = argparse.ArgumentParser(prog="smoe_add_task", description=__doc__)
    parser.add_argument("--exp_dir", type=Path, required=True, help="experiment folder")
    parser.add_argument(
        "--inference_model", default=MODEL_FILE, help="checkpoint in exp_dir"
    )
    parser.add_argument("--task", required=True, help="the new task, e.g. st_es")
    parser.add_argument(
        "--like", required=True, help="the task to begin as a copy of, e.g. st_de"
    )
    parser.add_argument(
        "--out_dir", type=Path, required=True, help="experiment folder to make"
    )
    return parser


def _call(args: argparse.Namespace) -> None:
    from espnet_smoe.add_task import add_task

    experiment = args.exp_dir / args.inference_model
    report = add_task(experiment, args.task, args.like, args.out_dir)
    print(
        f"{args.task} begins as {args.like}: {report['parameters']} parameters of its "
        f"own; largest difference of all outputs {report['difference']}"
    )
    print(
        f"train it on data with texts of {args.task}: ./run.sh --corpus manifest "
        f"--manifest FILE --train_config {args.out_dir}/train_{args.task}.yaml "
        f"--token_listdir {args.out_dir} --smoe_stats_dir {args.out_dir}_stats, "
        "stages 1 to 4 and 10 to 11"
    )


def main(cmd: Sequence[str] | None = None) -> int:
    """Run; returns the exit status."""
    return run(get_parser(), _call, cmd)


if __name__ == "__main__":
    sys.exit(main())
