"""Stage 1: raw corpus -> one data directory per split."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_smoe.bin.cli import run
from espnet_smoe.survey import MODES

__all__ = ["get_parser", "main"]

_CORPORA = ("demo", "manifest")


def get_parser() -> argparse.ArgumentParser:
    """Options of the tool."""
    parser = argparse.ArgumentParser(prog="smoe_data", description=__doc__)
    parser.add_argument("--corpus", required=True, help=" or ".join(_CORPORA))
    parser.add_argument("--datadir", type=Path, required=True, help="folder to fill")
    parser.add_argument(
        "--train_config",
        type=Path,
        required=True,
        help="training YAML; its 'guides' name the tasks and bandwidths",
    )
    parser.add_argument("--manifest", type=Path, help="JSON Lines file (manifest)")
    parser.add_argument(
        "--splits",
        nargs="+",
        default=["train", "dev", "test"],
        help="data directories to write (manifest)",
    )
    parser.add_argument(
        "--demo_sizes",
        type=int,
        nargs=3,
        metavar=("TRAIN", "DEV", "TEST"),
        default=[10_000, 200, 300],
        help="sentences per split (demo)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the demo corpus")
    parser.add_argument("--nj", type=int, default=1, help="parallel jobs")
    parser.add_argument(
        "--bandwidth",
        choices=MODES,
        default="check",
        help="label by the native rate (header), by the sound (detect), or by the rate "
        "with a report of what sounds otherwise (check); a manifest's key wins, "
        "and the demo corpus, which knows its labels, takes no detect",
    )
    parser.add_argument(
        "--narrowband_twins",
        choices=("true", "false"),
        default="false",
        help="each wideband utterance also through a telephone (manifest)",
    )
    return parser


def _prepare(args: argparse.Namespace) -> None:
    from espnet_smoe.guide import read_guides

    if args.corpus not in _CORPORA:
        known = ", ".join(_CORPORA)
        raise ValueError(f"unknown corpus {args.corpus!r}; known: {known}")
    if (args.corpus == "manifest") != (args.manifest is not None):
        raise ValueError("--corpus manifest and --manifest FILE go together")
    twins = args.narrowband_twins == "true"
    if twins and args.corpus == "demo":
        raise ValueError("the demo corpus has a telephone half: no --narrowband_twins")
    if args.bandwidth == "detect" and args.corpus == "demo":
        raise ValueError(
            "the demo corpus knows its bandwidths: --bandwidth check or header"
        )
    guides = read_guides(args.train_config)
    if args.corpus == "manifest":
        from espnet_smoe.corpora.manifest import prepare_manifest

        prepare_manifest(
            *(args.manifest, args.datadir, guides, args.splits, args.nj),
            bandwidth=args.bandwidth,
            narrowband_twins=twins,
        )
    else:
        from espnet_smoe.corpora.demo import prepare_demo

        prepare_demo(
            *(args.datadir, tuple(args.demo_sizes), args.seed, args.nj, guides),
            bandwidth=args.bandwidth,
        )


def main(cmd: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return run(get_parser(), _prepare, cmd)


if __name__ == "__main__":
    sys.exit(main())
