"""Training step of S-MoE over that of its hard-sharing twin, mixed batch.

With 2, 4, 8 and 16 experts in every bank: as many bandwidths and tasks, all in one
batch of always the same utterances and rows. The cost must not grow with them.

The work that an optimiser does for every parameter grows with them, once a step,
whatever the batch: so the step is measured with the batch of the demo's YAML (50 s of
audio) and with that of ``conf/train_smoe.yaml`` (1000 s), both with the sizes of
``--config``. The latter takes 6 GB of memory.

    python benchmarks/bench_train_step.py [--config conf/demo/train_smoe.yaml]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from side_by_side import interleave, record
from twins import CONFIG, UTTERANCES, check_twins, mixed_batch, training_step, twins

from espnet_smoe.bin.cli import run

EXPERTS = (2, 4, 8, 16)
# utterances of 3 s -> pairs of steps
BATCHES = {UTTERANCES: 40, 20 * UTTERANCES: 6}


def measure(args: argparse.Namespace) -> None:
    """One row for each number of experts and size of the batch."""
    for experts in EXPERTS:
        torch.manual_seed(0)
        smoe, dense = twins(args.config, experts)
        # the larger batch, in double precision, would double the time of it all
        check_twins(smoe, dense, mixed_batch(smoe))
        for utterances, pairs in BATCHES.items():
            batch = mixed_batch(smoe, utterances=utterances)
            steps = [
                training_step(model, batch, args.config) for model in (smoe, dense)
            ]
            result = interleave(*steps, pairs=pairs, warmup=1)
            name = f"{experts}_experts_{utterances}_utterances"
            record(f"train_step_smoe_over_dense_{name}", result, "time / time")


def main() -> int:
    """Measure; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="bench_train_step", description=__doc__)
    parser.add_argument("--config", type=Path, default=CONFIG)
    return run(parser, measure, None)


if __name__ == "__main__":
    sys.exit(main())
