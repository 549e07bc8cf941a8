"""Train the sentencepiece model and the token list (stage 5)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_smoe.bin.cli import run

__all__ = ["get_parser", "main"]


def get_parser() -> argparse.ArgumentParser:
    """Options of this tool."""
    parser = argparse.ArgumentParser(prog="smoe_tokens", description=__doc__)
    parser.add_argument(
        "--train_dir",
        type=Path,
        required=True,
        help="data directory of the training set",
    )
    parser.add_argument(
        "--train_config", type=Path, required=True, help="YAML with the key 'guides'"
    )
    parser.add_argument(
        "--nbpe", type=int, required=True, help="vocabulary size of sentencepiece"
    )
    parser.add_argument(
        "--out_dir", type=Path, required=True, help="folder of bpe.model and tokens.txt"
    )
    return parser


def _call(args: argparse.Namespace) -> None:
    from espnet_smoe.guide import read_guides
    from espnet_smoe.tokens import train_tokens

    guides = read_guides(args.train_config)
    train_tokens(args.train_dir, guides, args.nbpe, args.out_dir)


def main(cmd: Sequence[str] | None = None) -> int:
    """Run; returns the exit status."""
    return run(get_parser(), _call, cmd)


if __name__ == "__main__":
    sys.exit(main())
