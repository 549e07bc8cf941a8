"""A long call is read segment by segment: memory does not grow with the file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

RATE, CHANNELS = 8_000, 2
MINUTES = 1, 12
SEGMENTS_A_MINUTE = 6


@pytest.fixture(scope="module", params=["wav", "flac"])
def folder(request, tmp_path_factory) -> Path:
    """Folder with a short and a long two-channel call, each with its manifest."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "train.yaml").write_text("guides: {bandwidth: [nb, wb], task: [asr]}")
    rng = np.random.default_rng(0)
    minute = rng.normal(0, 0.1, (60 * RATE, CHANNELS)).clip(-1, 1)
    for minutes in MINUTES:
        name = f"{minutes}.{request.param}"
        with soundfile.SoundFile(folder / name, "w", RATE, CHANNELS) as file:
            for _ in range(minutes):
                file.write(minute)
        seconds = 60 / SEGMENTS_A_MINUTE
        lines = (
            {"id": f"u{k:04}", "audio": name, "split": "train", "channel": k % 2,
             "start": k * seconds, "end": (k + 1) * seconds, "texts": {"asr": "yes"}}
            for k in range(minutes * SEGMENTS_A_MINUTE)
        )  # fmt: skip
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{minutes}.jsonl").write_text(text)
    return folder


def peak_of(folder: Path, tool: str, *options: object) -> int:
    """Largest memory of a process that runs a tool, bytes."""
    # not getrusage: its peak includes that of the process that started this one
    code = (
        "import pathlib, re, sys\n"
        f"from espnet_smoe.bin.{tool} import main\n"
        "status = main(sys.argv[1:])\n"
        "said = pathlib.Path('/proc/self/status').read_text()\n"
        "print(1024 * int(re.search(r'VmHWM:\\s*(\\d+) kB', said)[1]))\n"
        "sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, options)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def test_memory_does_not_grow_with_the_recording(folder) -> None:
    peaks: dict[str, list[int]] = {"smoe_data": [], "smoe_dump": []}
    for minutes in MINUTES:
        data = folder / f"data{minutes}"
        peaks["smoe_data"].append(
            peak_of(
                *(folder, "smoe_data", "--corpus", "manifest", "--splits", "train"),
                *("--manifest", folder / f"{minutes}.jsonl", "--datadir", data),
                *("--train_config", folder / "train.yaml"),
            )
        )
        peaks["smoe_dump"].append(
            peak_of(
                *(folder, "smoe_dump", "--in_dir", data / "train"),
                *("--out_dir", folder / f"dump{minutes}"),
            )
        )
    # float32, as it is read; one channel of it is half
    decoded = 4 * CHANNELS * RATE * 60 * MINUTES[1]
    for tool, (short, long) in peaks.items():
        assert long - short < decoded / 5, tool
    lines = (folder / f"dump{MINUTES[1]}" / "utt2num_samples").read_text().split("\n")
    assert len(lines) - 1 == MINUTES[1] * SEGMENTS_A_MINUTE
