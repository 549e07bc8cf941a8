"""Train, decode, score and compare a list of systems with several seeds each.

Run it in the folder of the recipe. What is finished is not run again, what was killed
goes on. Writes RESULTS.md, experiments.json and experiments.png under
<expdir>/<name of the list>, all or none.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_smoe.bin.cli import run

__all__ = ["get_parser", "main"]


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1, got {text!r}")
    return int(text)


def get_parser() -> argparse.ArgumentParser:
    """Options of the tool."""
    parser = argparse.ArgumentParser(prog="smoe_experiments", description=__doc__)
    parser.add_argument(
        "--list",
        type=Path,
        required=True,
        help="YAML of systems and seeds, e.g. conf/demo/experiments.yaml",
    )
    parser.add_argument(
        "--jobs", type=_count, default=1, help="trainings at a time (default: 1)"
    )
    return parser


def main(cmd: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    given = list(sys.argv[1:] if cmd is None else cmd)

    def call(args: argparse.Namespace) -> None:
        from espnet_smoe.experiments_run import run_experiments

        command = ["python", "-m", "espnet_smoe.bin.smoe_experiments", *given]
        print(run_experiments(args.list, args.jobs, shlex.join(command)))

    return run(get_parser(), call, given)


if __name__ == "__main__":
    # `kill` ends what was started too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
