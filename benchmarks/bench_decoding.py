"""Utterances a second, ASR and ST of each: ours over the host's dense models.

Beam 5, CTC weight 0.3 for ASR. Ours encodes an utterance once for both tasks and
searches 32 utterances together. The host decodes with the dense S2T model of each
route: one utterance after the other, which is what its ``Speech2Text`` does rightly,
and 32 together by its classes, see ``trained.Host.decode_batched``.

    python benchmarks/bench_decoding.py [--exp_dir DIR] [--data_dir DIR]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

from side_by_side import interleave, record, speedup
from trained import BATCH_SIZE, Host, add_options, check_hypotheses, load, queries

from espnet_smoe.bin.cli import run
from espnet_smoe.host import Hypothesis
from espnet_smoe.query import Query

TASKS = ("asr", "st_de")


def one_by_one(host: Host, asked: list[Query]) -> dict[str, list[Hypothesis]]:
    """Task -> the best hypothesis of each utterance."""
    return {task: [host.decode(q, task) for q in asked] for task in TASKS}


def batched(host: Host, asked: list[Query]) -> dict[str, list[Hypothesis]]:
    """Task -> the best hypothesis of each utterance."""
    return {task: host.decode_batched(asked, task, BATCH_SIZE) for task in TASKS}


def measure(args: argparse.Namespace) -> None:
    """One row for each way in which the host can decode."""
    ours = load(args)
    asked = queries(args.data_dir, args.utterances, TASKS)
    with tempfile.TemporaryDirectory() as folder:
        host = Host(args.exp_dir, ours, asked, Path(folder))
        results = ours.decode(asked)
        for way in (one_by_one, batched):
            found = way(host, asked)
            for task in TASKS:
                best = [result[task][0][3] for result in results]
                check_hypotheses(f"{task}, host {way.__name__}", best, found[task])
        for way in (one_by_one, batched):
            theirs = partial(way, host, asked)
            result = interleave(
                lambda _: ours.decode(asked),
                lambda _, theirs=theirs: theirs(),
                args.pairs,
                warmup=0,
            )
            record(
                f"decoding_asr_and_st_over_s2t_{way.__name__}",
                speedup(result),
                "utterances/s / utterances/s",
            )


def main() -> int:
    """Measure; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="bench_decoding", description=__doc__)
    add_options(parser)
    parser.add_argument("--utterances", type=int, default=96)
    parser.add_argument("--pairs", type=int, default=5)
    return run(parser, measure, None)


if __name__ == "__main__":
    sys.exit(main())
