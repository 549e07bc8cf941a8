"""Stage 3: audio of a data directory -> 16 kHz, 16-bit Kaldi archives."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_smoe.bin.cli import run

__all__ = ["get_parser", "main"]


def get_parser() -> argparse.ArgumentParser:
    """Options of the tool."""
    parser = argparse.ArgumentParser(prog="smoe_dump", description=__doc__)
    parser.add_argument("--in_dir", type=Path, required=True, help="data/<set>")
    parser.add_argument(
        "--out_dir", type=Path, required=True, help="dump/raw/org/<set>"
    )
    parser.add_argument("--nj", type=int, default=1, help="processes")
    return parser


def _dump(args: argparse.Namespace) -> None:
    from espnet_smoe.dump import dump

    dump(args.in_dir, args.out_dir, args.nj)


def main(cmd: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return run(get_parser(), _dump, cmd)


if __name__ == "__main__":
    sys.exit(main())
