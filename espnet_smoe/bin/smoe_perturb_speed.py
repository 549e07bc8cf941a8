"""Stage 2: a data directory with each utterance at several speeds."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_smoe.bin.cli import run

__all__ = ["get_parser", "main"]


def get_parser() -> argparse.ArgumentParser:
    """Options of the tool."""
    parser = argparse.ArgumentParser(prog="smoe_perturb_speed", description=__doc__)
    parser.add_argument("--in_dir", type=Path, required=True, help="data/<set>")
    parser.add_argument("--out_dir", type=Path, required=True, help="data/<set>_sp")
    parser.add_argument(
        "--factors",
        type=float,
        nargs="+",
        default=[0.9, 1.0, 1.1],
        help="speed factors; 1.0 keeps the utterance and its id",
    )
    return parser


def _perturb(args: argparse.Namespace) -> None:
    from espnet_smoe.speed import perturb_speed

    perturb_speed(args.in_dir, args.out_dir, args.factors)


def main(cmd: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return run(get_parser(), _perturb, cmd)


if __name__ == "__main__":
    sys.exit(main())
