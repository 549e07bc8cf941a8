"""Charts of what decoding and training cost; no ratio, no part of ``make bench``.

``decoding_costs.png``: seconds of computing per second of audio, over batch size, beam
and length. ``training_costs.png``: seconds of a training step per second of audio, over
the number of experts, over the size of the batch and over what it is made of.

    python benchmarks/plot_costs.py [--exp_dir DIR] [--data_dir DIR]
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from side_by_side import interleave
from trained import BATCH_SIZE, add_options, load, queries
from twins import CONFIG, UTTERANCES, check_twins, mixed_batch, training_step, twins

from espnet_smoe.audio import MODEL_RATE
from espnet_smoe.bin.cli import run
from espnet_smoe.inference import Speech2Text
from espnet_smoe.palette import COLOURS
from espnet_smoe.query import Query

FOLDER = Path(__file__).parent
TASKS = {"ASR": ["asr"], "ST": ["st_de"], "ASR and ST": ["asr", "st_de"]}
BATCH_SIZES, BEAMS = (1, 2, 4, 8, 16, 32), (1, 2, 5, 10)
LENGTHS = (2.0, 5.0, 10.0, 20.0)  # s
EXPERTS = (2, 4, 8, 16)
TRAINING_SIZES = (16, 64, 256)  # utterances
COMPOSITIONS = {
    "one guide": [0],
    "skewed 15 : 1": [0] * (UTTERANCES - 1) + [1],
    "balanced": [0, 1],
}

Curves = dict[str, list[float]]
"""Name of a line -> its values."""
Points = list[list[float]]
"""Of every place on the x axis: S-MoE, hard sharing."""


def cost(s2t: Speech2Text, asked: Sequence[Query], repeats: int) -> list[float]:
    """Seconds of decoding per second of audio, for each of ``TASKS``."""
    seconds = sum(len(q.samples) for q in asked) / MODEL_RATE
    costs = []
    for tasks in TASKS.values():
        some = [Query(q.samples, q.guides, tasks) for q in asked]

        def decode(_: int, some: list[Query] = some) -> None:
            s2t.decode(some)

        # both sides the same: the median of twice as many runs
        result = interleave(decode, decode, repeats, warmup=1)
        costs.append((result.ours + result.theirs) / 2 / seconds)
    return costs


def joined(asked: Sequence[Query], seconds: float) -> list[Query]:
    """Utterances of one length: those asked for, repeated and cut."""
    samples = round(seconds * MODEL_RATE)
    return [Query(np.resize(q.samples, samples), q.guides, q.tasks) for q in asked]


def decoding(args: argparse.Namespace) -> dict[str, tuple[Sequence[float], Curves]]:
    """Title -> x values, curves."""
    s2t = load(args)
    asked = queries(args.data_dir, max(BATCH_SIZES), TASKS["ASR and ST"])
    sizes = [
        cost(load(args, batch_size=size), asked, args.repeats) for size in BATCH_SIZES
    ]
    some = asked[:BATCH_SIZE]
    lengths = [cost(s2t, joined(some, s), args.repeats) for s in LENGTHS]
    beams = [cost(load(args, beam), some, args.repeats) for beam in BEAMS]
    return {
        "batch size, utterances": (BATCH_SIZES, _curves(sizes)),
        "beam, hypotheses": (BEAMS, _curves(beams)),
        "length, s": (LENGTHS, _curves(lengths)),
    }


def _curves(points: Sequence[Sequence[float]]) -> Curves:
    return dict(zip(TASKS, map(list, zip(*points, strict=True)), strict=True))


def steps(
    experts: int,
    pairs: int,
    bandwidths: Sequence[int] | None = None,
    utterances: int = UTTERANCES,
) -> list[float]:
    """Seconds of a step per second of audio: S-MoE, hard sharing."""
    torch.manual_seed(0)
    sides = twins(CONFIG, experts)
    batch = mixed_batch(sides[0], bandwidths, utterances)
    check_twins(*sides, batch)
    result = interleave(*(training_step(m, batch, CONFIG) for m in sides), pairs=pairs)
    seconds = float(batch["speech_lengths"].sum()) / MODEL_RATE
    return [result.ours / seconds, result.theirs / seconds]


def plot_decoding(
    path: Path, panels: dict[str, tuple[Sequence[float], Curves]]
) -> None:
    """Three panels of three curves."""

    def draw(axes: Sequence) -> None:
        for place, (title, (x, curves)) in zip(axes, panels.items(), strict=True):
            for colour, (name, y) in zip(COLOURS, curves.items(), strict=False):
                place.plot(x, y, "o-", color=colour, label=name)
            place.set(xlabel=title, ylim=(0, None))
            if title != "length, s":
                place.set_xscale("log", base=2)
                place.set_xticks(x, x)
        axes[0].set_ylabel("s of computing per s of audio")
        axes[0].legend()

    _save(path, len(panels), draw)


def plot_training(
    path: Path, lines: dict[str, tuple[Sequence[int], Points]], bars: Points
) -> None:
    """Curves over experts and batch size, bars over compositions."""
    names = ("S-MoE", "hard sharing")

    def draw(axes: Sequence) -> None:
        for n, (colour, name) in enumerate(zip(COLOURS, names, strict=False)):
            for place, (x, points) in zip(axes, lines.values(), strict=False):
                place.plot(x, [p[n] for p in points], "o-", color=colour, label=name)
            places = np.arange(len(bars)) + 0.4 * n - 0.2
            axes[-1].bar(places, [point[n] for point in bars], 0.38, color=colour)
        for place, (title, (x, _)) in zip(axes, lines.items(), strict=False):
            place.set(xlabel=title, ylim=(0, None))
            place.set_xscale("log", base=2)
            place.set_xticks(x, x)
        axes[0].set_ylabel("s of a training step per s of audio")
        axes[0].legend()
        axes[-1].set_xticks(range(len(bars)), COMPOSITIONS)
        axes[-1].set(xlabel="bandwidths of the batch, 2 experts")

    _save(path, len(lines) + 1, draw)


def _save(path: Path, panels: int, draw: Callable[[Sequence], None]) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, panels, figsize=(4.2 * panels, 3.2), sharey=True)
    draw(axes)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=150, bbox_inches="tight")
    plt.close(figure)
    os.replace(temporary, path)
    print(path)


def measure(args: argparse.Namespace) -> None:
    """Both charts."""
    plot_decoding(FOLDER / "decoding_costs.png", decoding(args))
    pairs = 10 * args.repeats  # a step is short
    experts = [steps(number, pairs) for number in EXPERTS]
    most = EXPERTS[-1]
    sizes = [
        steps(most, max(2, pairs * UTTERANCES // size), utterances=size)
        for size in TRAINING_SIZES
    ]
    lines = {
        "experts, batch of 16 utterances": (EXPERTS, experts),
        "batch size, utterances, 16 experts": (TRAINING_SIZES, sizes),
    }
    bars = [steps(2, pairs, guides) for guides in COMPOSITIONS.values()]
    plot_training(FOLDER / "training_costs.png", lines, bars)


def main() -> int:
    """Measure and draw; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="plot_costs", description=__doc__)
    add_options(parser)
    parser.add_argument("--repeats", type=int, default=6)
    return run(parser, measure, None)


if __name__ == "__main__":
    sys.exit(main())
