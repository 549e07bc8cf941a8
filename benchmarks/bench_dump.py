"""Stage 3, the dump: hours of audio a minute on one core, and memory by corpus size.

The corpus is noise in three kinds of file in turn: 16 kHz PCM, 8 kHz mu-law and 48 kHz
FLAC. Memory is the peak of a fresh process that dumps it all, for a small corpus and
for one eight times as large: their ratio must be 1.

    python benchmarks/bench_dump.py
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from side_by_side import check_equal, ratio_of, record
from torch import from_numpy

from espnet_smoe.audio import read_audio, to_model_rate
from espnet_smoe.bin.cli import run
from espnet_smoe.datadir import Utterance, read_datadir, write_datadir
from espnet_smoe.dump import load_dumped

KINDS = ((16_000, "wav", "PCM_16"), (8_000, "wav", "ULAW"), (48_000, "flac", "PCM_16"))
SECONDS, SMALL, LARGE = 6.0, 150, 1200
REPEATS = 3
DUMP = """
import resource, sys, time
from pathlib import Path
from espnet_smoe.dump import dump
dump(Path(sys.argv[1]) / "warmup", Path(sys.argv[2]) / "warmup", nj=1)
start = time.perf_counter()
dump(Path(sys.argv[1]) / sys.argv[3], Path(sys.argv[2]) / sys.argv[3], nj=1)
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
"""Prints seconds and kilobytes."""


def make_corpus(folder: Path) -> None:
    """Data directories ``warmup``, ``small`` and ``large`` and their audio."""
    rng = np.random.default_rng(0)
    utterances = []
    for number in range(LARGE):
        rate, suffix, subtype = KINDS[number % len(KINDS)]
        path = folder / f"audio/{number:05d}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = 0.1 * rng.standard_normal(int(SECONDS * rate))
        soundfile.write(path, samples, rate, subtype=subtype)
        utterances.append(
            Utterance(
                id=path.stem,
                audio=str(path),
                speaker="noise",
                fs=rate,
                num_samples=len(samples),
                guides={"bandwidth": "nb" if rate == 8_000 else "wb"},
                texts={"asr": "noise"},
            )
        )
    for name, count in (("warmup", len(KINDS)), ("small", SMALL), ("large", LARGE)):
        write_datadir(folder / name, utterances[:count])


def check_dump(source: Path, dumped: Path) -> None:
    """Every utterance is there; some are as read and resampled, to half a bit.

    Raises:
        DifferenceError: they are not.
    """
    wanted, found = read_datadir(source), read_datadir(dumped)
    counts = [from_numpy(np.array([float(len(side))])) for side in (found, wanted)]
    check_equal("numbers of utterances", *counts, 0.0)
    for before, after in list(zip(wanted, found, strict=True))[: 4 * len(KINDS)]:
        plain = to_model_rate(*read_audio(before.audio))
        check_equal(before.id, from_numpy(load_dumped(after)), from_numpy(plain), 2e-5)


def measure(args: argparse.Namespace) -> None:
    """One row for the throughput, one for the memory."""
    with tempfile.TemporaryDirectory() as name:
        data, out = Path(name) / "data", Path(name) / "dump"
        make_corpus(data)
        seconds: dict[str, list[float]] = {"small": [], "large": []}
        memory: dict[str, list[float]] = {"small": [], "large": []}
        for _ in range(REPEATS):
            for size in ("large", "small"):
                command = [sys.executable, "-c", DUMP, data, out, size]
                done = subprocess.run(
                    command, check=True, stdout=subprocess.PIPE, text=True
                )
                spent, kilobytes = map(float, done.stdout.split())
                seconds[size].append(spent)
                memory[size].append(kilobytes * 1024)
                check_dump(data / size, out / size)
    hours = [LARGE * SECONDS / 3600] * REPEATS
    minutes = [s / 60 for s in seconds["large"]]
    record("dump", ratio_of(hours, minutes), "hours of audio / minute of a core")
    result = ratio_of(memory["large"], memory["small"])
    record(f"dump_memory_of_{LARGE // SMALL}_times_the_corpus", result, "bytes / bytes")


def main() -> int:
    """Measure; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="bench_dump", description=__doc__)
    return run(parser, measure, None)


if __name__ == "__main__":
    sys.exit(main())
