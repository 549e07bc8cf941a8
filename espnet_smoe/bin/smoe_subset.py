"""Keep the utterances of some guides: data for a model of one condition."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_smoe.bin.cli import run

__all__ = ["get_parser", "main"]


def _axis_and_guide(text: str) -> tuple[str, str]:
    axis, equals, guide = text.partition("=")
    if not (axis and equals and guide):
        raise argparse.ArgumentTypeError(f"expected AXIS=GUIDE, got {text!r}")
    return axis, guide


def get_parser() -> argparse.ArgumentParser:
    """Options of the tool."""
    parser = argparse.ArgumentParser(prog="smoe_subset", description=__doc__)
    parser.add_argument("--in_dir", type=Path, required=True, help="data directory")
    parser.add_argument("--out_dir", type=Path, required=True, help="its part")
    parser.add_argument(
        "--keep",
        type=_axis_and_guide,
        action="append",
        required=True,
        metavar="AXIS=GUIDE",
        help="e.g. bandwidth=nb or task=asr; several of one axis keep any of them",
    )
    return parser


def _subset(args: argparse.Namespace) -> None:
    from espnet_smoe.subset import keep_guides

    keep: dict[str, set[str]] = {}
    for axis, guide in args.keep:
        keep.setdefault(axis, set()).add(guide)
    keep_guides(args.in_dir, args.out_dir, keep)


def main(cmd: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return run(get_parser(), _subset, cmd)


if __name__ == "__main__":
    sys.exit(main())
