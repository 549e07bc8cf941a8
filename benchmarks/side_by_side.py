"""Measure two sides interleaved and record their ratio."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch

__all__ = ["Ratio", "interleave", "record"]

RESULTS = Path(__file__).with_name("results.json")


@dataclass(frozen=True)
class Ratio:
    """Time of ours over time of theirs.

    Args:
        ratio: median over the pairs; low, high: its quartiles.
        ours, theirs: median times, seconds.
        pairs: number of pairs measured.
    """

    ratio: float
    low: float
    high: float
    ours: float
    theirs: float
    pairs: int


def interleave(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    pairs: int,
    warmup: int = 3,
) -> Ratio:
    """Time the two sides in turn, so that drift of the machine hits both alike.

    The order within a pair alternates. On a GPU each side is synchronised.
    """
    for _ in range(warmup):
        ours(), theirs()
    times: dict[int, list[float]] = {0: [], 1: []}
    for pair in range(pairs):
        for side in ((0, 1), (1, 0))[pair % 2]:
            _synchronize()
            start = time.perf_counter()
            (ours, theirs)[side]()
            _synchronize()
            times[side].append(time.perf_counter() - start)
    ratios = sorted(a / b for a, b in zip(times[0], times[1], strict=True))
    low, middle, high = statistics.quantiles(ratios, n=4)
    return Ratio(
        middle,
        low,
        high,
        statistics.median(times[0]),
        statistics.median(times[1]),
        pairs,
    )


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def record(name: str, result: Ratio, unit: str) -> None:
    """Print one line and append it to ``results.json``."""
    print(
        f"{name}: {result.ratio:.3f} [{result.low:.3f}, {result.high:.3f}] {unit} "
        f"({result.ours * 1e3:.1f} ms / {result.theirs * 1e3:.1f} ms, "
        f"{result.pairs} pairs)"
    )
    rows = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    rows.append(
        {
            "name": name,
            **{k: round(v, 4) for k, v in asdict(result).items()},
            "unit": unit,
            "hardware": _hardware(),
            "versions": {p: version(p) for p in ("espnet", "torch")},
            "commit": _commit(),
            "date": datetime.date.today().isoformat(),
        }
    )
    temporary = RESULTS.with_suffix(".tmp")
    temporary.write_text(json.dumps(rows, indent=1) + "\n")
    os.replace(temporary, RESULTS)


def _hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [ln for ln in cpuinfo.read_text().splitlines() if "model name" in ln]
        model = names[0].split(":")[1].strip() if names else model
    return f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
    )
    return done.stdout.strip() or "unknown"
