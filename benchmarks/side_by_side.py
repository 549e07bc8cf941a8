"""Measure two sides interleaved, record their ratio; refuse sides that differ."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch

__all__ = [
    "DEVICE",
    "DifferenceError",
    "Ratio",
    "check_equal",
    "interleave",
    "ratio_of",
    "record",
    "speedup",
]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""Where everything is measured."""

RESULTS = Path(__file__).with_name("results.json")


class DifferenceError(ValueError):
    """The two sides do not do the same; their ratio would mean nothing."""


@dataclass(frozen=True)
class Ratio:
    """What ours takes over what theirs takes.

    Args:
        ratio: median over the pairs; low, high: its quartiles.
        ours, theirs: medians of what was measured: seconds, or bytes.
        pairs: number of pairs measured.
    """

    ratio: float
    low: float
    high: float
    ours: float
    theirs: float
    pairs: int


def check_equal(
    what: str,
    ours: torch.Tensor,
    theirs: torch.Tensor,
    tolerance: float,
    floor: float = 1.0,
) -> None:
    """Refuse two sides whose results differ.

    Args:
        what: the result, for the message.
        ours, theirs: of one shape.
        tolerance: largest absolute difference over the largest absolute entry of
            ``theirs``, or over ``floor`` if that is more.

    Raises:
        DifferenceError: they differ by more, or are not finite.
    """
    ours, theirs = ours.detach().cpu().double(), theirs.detach().cpu().double()
    scale = float(theirs.abs().max().clamp(min=floor))
    difference = float((ours - theirs).abs().max()) / scale
    if not difference <= tolerance:  # nor is a NaN
        raise DifferenceError(
            f"{what} of the two sides differ by {difference:.1e}; expected at most "
            f"{tolerance:.0e}"
        )


def interleave(
    ours: Callable[[int], object],
    theirs: Callable[[int], object],
    pairs: int,
    warmup: int = 3,
) -> Ratio:
    """Time the two sides in turn, so that drift of the machine hits both alike.

    The order within a pair alternates. On a GPU each side is synchronised. Both
    sides are called with the number of the pair.
    """
    for pair in range(warmup):
        ours(pair), theirs(pair)
    times: dict[int, list[float]] = {0: [], 1: []}
    for pair in range(pairs):
        for side in ((0, 1), (1, 0))[pair % 2]:
            _synchronize()
            start = time.perf_counter()
            (ours, theirs)[side](pair)
            _synchronize()
            times[side].append(time.perf_counter() - start)
    return ratio_of(times[0], times[1])


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Median and quartiles of the ratios of two or more pairs of measurements."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    medians = statistics.median(ours), statistics.median(theirs)
    return Ratio(middle, low, high, *medians, len(ratios))


def speedup(result: Ratio) -> Ratio:
    """The same measurements as how many times more ours does in the same time."""
    return replace(
        result, ratio=1 / result.ratio, low=1 / result.high, high=1 / result.low
    )


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def record(name: str, result: Ratio, unit: str) -> None:
    """Print one line and append it to ``results.json``.

    Args:
        name: of the row.
        unit: what the ratio is of, "time / time".
    """
    print(
        f"{name}: {result.ratio:.3f} [{result.low:.3f}, {result.high:.3f}] {unit} "
        f"(ours {result.ours:.4g}, theirs {result.theirs:.4g}, {result.pairs} pairs)",
        flush=True,
    )
    rows = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    rows.append(
        {
            "name": name,
            **{
                k: float(f"{v:.4g}") if isinstance(v, float) else v
                for k, v in asdict(result).items()
            },
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
    commit = _git("rev-parse", "--short", "HEAD").stdout.strip()
    rest = (":/", ":(top,exclude)benchmarks/results.json")
    changed = _git("diff", "--quiet", "HEAD", "--", *rest).returncode
    return f"{commit}-dirty" if commit and changed else commit or "unknown"


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
    )
