"""Latency of one utterance, ASR: the host's dense model over ours.

Beam 5, CTC weight 0.3; one utterance at a time on both sides, another in each pair.

    python benchmarks/bench_latency.py [--exp_dir DIR] [--data_dir DIR]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from side_by_side import interleave, record, speedup
from trained import Host, add_options, check_hypotheses, load, queries

from espnet_smoe.bin.cli import run


def measure(args: argparse.Namespace) -> None:
    """One row."""
    ours = load(args)
    asked = queries(args.data_dir, args.utterances, ["asr"])
    with tempfile.TemporaryDirectory() as folder:
        host = Host(args.exp_dir, ours, asked, Path(folder))
        found = [ours.decode([query])[0]["asr"][0][3] for query in asked]
        check_hypotheses("asr", found, [host.decode(q, "asr") for q in asked])
        result = interleave(
            lambda pair: ours.decode([asked[pair]]),
            lambda pair: host.decode(asked[pair], "asr"),
            pairs=len(asked),
        )
    record("latency_of_one_utterance_s2t_over_ours", speedup(result), "time / time")


def main() -> int:
    """Measure; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="bench_latency", description=__doc__)
    add_options(parser)
    parser.add_argument("--utterances", type=int, default=40)
    return run(parser, measure, None)


if __name__ == "__main__":
    sys.exit(main())
