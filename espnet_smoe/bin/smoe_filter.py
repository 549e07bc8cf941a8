"""Stage 4: remove utterances that are too short or too long to train on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_smoe.bin.cli import run

__all__ = ["get_parser", "main"]


def get_parser() -> argparse.ArgumentParser:
    """Options of the tool."""
    parser = argparse.ArgumentParser(prog="smoe_filter", description=__doc__)
    parser.add_argument("--in_dir", type=Path, required=True, help="dump/raw/org/<set>")
    parser.add_argument("--out_dir", type=Path, required=True, help="dump/raw/<set>")
    parser.add_argument(
        "--min_wav_duration", type=float, required=True, help="shortest kept, s"
    )
    parser.add_argument(
        "--max_wav_duration", type=float, required=True, help="longest kept, s"
    )
    return parser


def _filter(args: argparse.Namespace) -> None:
    from espnet_smoe.dump import filter_by_length

    filter_by_length(
        args.in_dir, args.out_dir, args.min_wav_duration, args.max_wav_duration
    )


def main(cmd: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return run(get_parser(), _filter, cmd)


if __name__ == "__main__":
    sys.exit(main())
