"""Training step of S-MoE over that of its hard-sharing twin, mixed batch.

With 2, 4, 8 and 16 experts in every bank: as many bandwidths and tasks, all in one
batch of always the same utterances and rows. The cost must not grow with them.

    python benchmarks/bench_train_step.py [--config conf/demo/train_smoe.yaml]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from side_by_side import interleave, record
from twins import CONFIG, check_twins, mixed_batch, training_step, twins

from espnet_smoe.bin.cli import run

EXPERTS = (2, 4, 8, 16)


def measure(args: argparse.Namespace) -> None:
    """One row for each number of experts."""
    for experts in EXPERTS:
        torch.manual_seed(0)
        smoe, dense = twins(args.config, experts)
        batch = mixed_batch(smoe)
        check_twins(smoe, dense, batch)
        steps = [training_step(model, batch) for model in (smoe, dense)]
        result = interleave(*steps, pairs=args.pairs)
        record(f"train_step_smoe_over_dense_{experts}_experts", result, "time / time")


def main() -> int:
    """Measure; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="bench_train_step", description=__doc__)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--pairs", type=int, default=40)
    return run(parser, measure, None)


if __name__ == "__main__":
    sys.exit(main())
