"""Peak memory beyond the weights: S-MoE over its hard-sharing twin.

In a training step, beyond the weights and Adam's moments of them; and while 16
utterances are decoded in two tasks. What torch allocates is counted, byte for byte:
on the CPU from the profiler's record of every allocation, on a GPU by torch's own
peak.

    python benchmarks/bench_memory.py [--config conf/demo/train_smoe.yaml]
"""

from __future__ import annotations

import argparse
import gc
import itertools
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from side_by_side import DEVICE, DifferenceError, ratio_of, record
from twins import CONFIG, Batch, check_twins, mixed_batch, training_step, twins

from espnet_smoe.bin.cli import run
from espnet_smoe.host import Hypothesis
from espnet_smoe.model import SMoEModel
from espnet_smoe.search import RowSearch, SearchConfig

REPEATS = 2  # the same each time


def peak_bytes(call: Callable[[], object]) -> int:
    """Most bytes that ``call`` has allocated at a time, beyond those before it.

    It is called twice and must leave nothing behind.
    """
    call()
    gc.collect()  # so that nothing of it is freed while the next is watched
    if DEVICE == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        call()
    events = [
        event
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events))


@torch.no_grad()
def decode(model: SMoEModel, batch: Batch) -> list[list[Hypothesis]]:
    """Every utterance of a batch in its tasks, at most 20 tokens each."""
    guide_ids = {"bandwidth": batch["bandwidth"].view(-1).cpu()}
    lengths = [batch[f"text_{task}_lengths"] for task in model.guides.tasks]
    encoded, frames = model.encode(batch["speech"], batch["speech_lengths"], guide_ids)
    rows = model.rows_of(guide_ids, torch.stack(lengths).cpu() > 0)
    search = RowSearch(model, SearchConfig(maxlenratio=-20))
    return search(encoded, frames, rows)


def measure(args: argparse.Namespace) -> None:
    """One row for a training step, one for decoding."""
    torch.manual_seed(0)
    sides = twins(args.config)
    batch = mixed_batch(sides[0])
    check_twins(*sides, batch)
    peaks = []
    for model in sides:
        step = training_step(model, batch, args.config)

        def train(model: SMoEModel = model, step: Callable = step) -> None:
            step(0)
            model.zero_grad()

        train()  # Adam makes its moments
        peaks.append([peak_bytes(train) for _ in range(REPEATS)])
    result = ratio_of(*peaks)
    record("memory_of_train_step_smoe_over_dense", result, "bytes / bytes")

    logging.disable(logging.WARNING)  # the host writes ten lines an utterance
    for model in sides:
        model.eval()
    best = [[n[0].yseq.tolist() for n in decode(model, batch)] for model in sides]
    if best[0] != best[1]:
        raise DifferenceError("the two sides decode other tokens")
    peaks = [
        [peak_bytes(lambda model=model: decode(model, batch)) for _ in range(REPEATS)]
        for model in sides
    ]
    result = ratio_of(*peaks)
    record("memory_of_decoding_smoe_over_dense", result, "bytes / bytes")


def main() -> int:
    """Measure; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="bench_memory", description=__doc__)
    parser.add_argument("--config", type=Path, default=CONFIG)
    return run(parser, measure, None)


if __name__ == "__main__":
    sys.exit(main())
