"""Score decoded sets: WER and CER for ASR, BLEU, chrF2 and TER for ST, per cell."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_smoe.bin.cli import run

__all__ = ["get_parser", "main"]


def get_parser() -> argparse.ArgumentParser:
    """Options of ``smoe_score``."""
    parser = argparse.ArgumentParser(
        prog="smoe_score",
        description=f"{__doc__} Prints a table; writes scores.json, RESULTS.md and "
        "scores.png under --decode_dir.",
    )
    parser.add_argument(
        "--decode_dir",
        type=Path,
        required=True,
        help="folder with <set>/text.<task>, e.g. exp/smoe_x/decode_y",
    )
    parser.add_argument(
        "--dump_dir",
        type=Path,
        required=True,
        help="folder with the data directories of the sets, e.g. dump/raw",
    )
    parser.add_argument("--test_sets", nargs="+", required=True, metavar="SET")
    parser.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help="score these tasks only; default: all with references or hypotheses",
    )
    parser.add_argument(
        "--force_bandwidths",
        nargs="*",
        default=[],
        metavar="GUIDE",
        help="also score what the sets decoded with this bandwidth guide throughout, "
        "in <decode_dir>/force_GUIDE, say of utterances of another bandwidth",
    )
    return parser


def main(cmd: Sequence[str] | None = None) -> int:
    """Run ``smoe_score``; returns the exit status."""
    given = list(sys.argv[1:] if cmd is None else cmd)

    def call(args: argparse.Namespace) -> None:
        from espnet_smoe.report import table, write_report
        from espnet_smoe.score import score_sets

        rows = score_sets(
            args.decode_dir,
            args.dump_dir,
            args.test_sets,
            args.tasks,
            args.force_bandwidths,
        )
        command = shlex.join(["python", "-m", "espnet_smoe.bin.smoe_score", *given])
        write_report(args.decode_dir, rows, command)
        print(table(rows))

    return run(get_parser(), call, given)


if __name__ == "__main__":
    sys.exit(main())
