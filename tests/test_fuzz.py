"""Damaged audio files are refused in one line, or read by what they say of themselves.

Each file is one seed: a small valid file, and something done to it. Workers judge the
files in processes of their own, so that a crash, a hang or a burst of memory is the
failure of a test, with the seed in its message. By hand, many more:

    python tests/test_fuzz.py FOLDER FIRST_SEED LAST_SEED
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_smoe.audio import AudioError, probe, read_audio

FORMATS = {  # name: container, codec, channels
    "wav": ("WAV", "PCM_16", 1),
    "wav_stereo": ("WAV", "PCM_16", 2),
    "wav_24": ("WAV", "PCM_24", 1),
    "wav_float": ("WAV", "FLOAT", 1),
    "wav_mulaw": ("WAV", "ULAW", 1),
    "wav_alaw": ("WAV", "ALAW", 1),
    "wav_gsm": ("WAV", "GSM610", 1),
    "wav_ima": ("WAV", "IMA_ADPCM", 1),
    "wav_ms": ("WAV", "MS_ADPCM", 1),
    "wavex": ("WAVEX", "PCM_16", 1),
    "rf64": ("RF64", "PCM_16", 1),
    "w64": ("W64", "PCM_16", 1),
    "aiff": ("AIFF", "PCM_16", 1),
    "aiff_stereo": ("AIFF", "PCM_24", 2),
    "aiff_mulaw": ("AIFF", "ULAW", 1),
    "au": ("AU", "PCM_16", 1),
    "au_mulaw": ("AU", "ULAW", 1),
    "sphere": ("NIST", "PCM_16", 1),
    "sphere_mulaw": ("NIST", "ULAW", 1),
    "flac": ("FLAC", "PCM_16", 1),
    "flac_stereo": ("FLAC", "PCM_24", 2),
    "vorbis": ("OGG", "VORBIS", 1),
    "vorbis_stereo": ("OGG", "VORBIS", 2),
    "opus": ("OGG", "OPUS", 1),
    "mp3": ("MP3", "MPEG_LAYER_III", 1),
    "mp3_stereo": ("MP3", "MPEG_LAYER_III", 2),
}
EXTREMES = (
    *(0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 1_024, 1_025, 48_000),
    *(4_000_000_000, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFE, 0xFFFF_FFFF),
    *(2**63 - 1, 2**64 - 1, 2**36 - 1),
)
COUNTS = (-1, 0, 1, 3, 16, 3_999, 4_001, 8_000, 10**6, 2**31 - 1, 2**31, 2**32, 10**15)
MEMORY = 512 << 20  # bytes a worker may take; its files hold some kB of audio
PATIENCE = 10  # s for one file
RUNS, SEEDS = 4, 600


# ---------------------------------------------------------------- what is done


def _flip(rng: np.random.Generator, raw: bytearray, end: int) -> None:
    for _ in range(rng.integers(1, 6)):
        raw[rng.integers(end)] ^= 1 << int(rng.integers(8))


def flip_header(rng, raw, others, header):
    _flip(rng, raw, header)
    return raw


def flip_anywhere(rng, raw, others, header):
    _flip(rng, raw, len(raw))
    return raw


def set_fields(rng, raw, others, header):
    counts = list(re.finditer(rb"-i (\d+)", raw[:1024]))
    if counts:  # SPHERE writes its fields as text, in a header of fixed size
        field = counts[rng.integers(len(counts))]
        value = b"%d" % COUNTS[rng.integers(len(COUNTS))]
        text = raw[: field.start(1)] + value + raw[field.end(1) : 1024]
        return text.ljust(1024)[:1024] + raw[1024:]
    for _ in range(rng.integers(1, 3)):
        size = int(rng.choice([1, 2, 4, 8]))
        place = int(rng.integers(header - size))
        value = EXTREMES[rng.integers(len(EXTREMES))] % (1 << 8 * size)
        raw[place : place + size] = value.to_bytes(size, rng.choice(["little", "big"]))
    return raw


def cut(rng, raw, others, header):
    return raw[: rng.integers(len(raw))]


def remove(rng, raw, others, header):
    place = int(rng.integers(len(raw)))
    return raw[:place] + raw[place + int(rng.integers(1, 200)) :]


def insert(rng, raw, others, header):
    place = int(rng.integers(len(raw)))
    return raw[:place] + rng.bytes(int(rng.integers(1, 200))) + raw[place:]


def repeat(rng, raw, others, header):
    place, length = int(rng.integers(len(raw))), int(rng.integers(1, 400))
    return raw[: place + length] + raw[place:]


def splice(rng, raw, others, header):
    other = others[rng.integers(len(others))]
    return raw[: rng.integers(len(raw))] + other[rng.integers(len(other)) :]


def append_noise(rng, raw, others, header):
    return raw + rng.bytes(int(rng.integers(1, 3_000)))


def zero_tail(rng, raw, others, header):
    place = int(rng.integers(len(raw)))
    return raw[:place] + bytes(len(raw) - place)


def magic_and_noise(rng, raw, others, header):
    magic = raw[: int(rng.choice([4, 8, 12, 16, 20, 36]))]
    return magic + rng.bytes(int(rng.integers(6_000)))


def noise(rng, raw, others, header):
    return rng.bytes(int(rng.integers(6_000)))


MUTATIONS = (
    *(flip_header, flip_anywhere, set_fields, cut, remove, insert, repeat, splice),
    *(append_noise, zero_tail, magic_and_noise, noise),
)


# ---------------------------------------------------------------- what is judged


def _make_files(folder: Path) -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    made = {}
    for name, (container, codec, channels) in FORMATS.items():
        rate = 8_000 if codec == "GSM610" else 16_000
        time = np.arange(rate // 4) / rate
        wave = [
            0.5 * np.sin(2 * np.pi * (300 + 99 * c) * time) for c in range(channels)
        ]
        wave = np.stack(wave, axis=1) + 0.05 * rng.standard_normal(
            (len(time), channels)
        )
        path = folder / f"whole.{name}"
        soundfile.write(path, wave, rate, format=container, subtype=codec)
        made[name] = path.read_bytes()
    return made


def _judge(path: Path, whole: np.ndarray) -> str:
    """How a file was taken; an AssertionError or any other one is a defect."""
    refusals = []
    info = samples = None
    try:
        info = probe(path)
    except AudioError as error:
        refusals.append(str(error))
    try:
        samples, rate = read_audio(path, channel=0)
    except AudioError as error:
        refusals.append(str(error))
    for message in refusals:
        assert message.startswith(f"{path}: "), message
        assert message.isprintable(), message
        assert len(message) < len(str(path)) + 200, message
    if samples is None:
        return "refused"
    assert info is not None, "read, but not probed"
    assert (info.rate, info.num_samples) == (rate, len(samples))
    assert 8_000 <= rate <= 768_000
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert len(samples) > 0
    assert np.isfinite(samples).all()
    start, stop = len(samples) // 3, len(samples) // 2
    if stop > start:
        part, _ = read_audio(path, channel=0, segment=(start / rate, stop / rate))
        np.testing.assert_allclose(part, samples[start:stop], atol=1e-6)
    if len(samples) != len(whole):
        return "shorter" if len(samples) < len(whole) else "longer"
    return "same" if np.array_equal(samples, whole) else "other"


def _promise(container: str, mutation: str) -> set[str]:
    """What may come of a mutation."""
    if mutation in ("noise", "magic_and_noise"):
        return {"refused"}
    if container in ("FLAC", "OGG") or mutation in ("cut", "append_noise"):
        return {"refused", "same"}  # checksums; lengths
    if mutation in ("flip_header", "flip_anywhere", "set_fields"):
        # no checksum guards samples, and in AU, SPHERE and AIFF no second field the
        # coding: other samples, or others in number, where the file is consistent
        return {"refused", "same", "other", "shorter", "longer"}
    return {"refused", "same", "other"}


def work(folder: Path, first: int, last: int) -> None:
    """Judge the files of some seeds; the result is ``result.json``."""
    files = _make_files(folder)
    wholes = {n: read_audio(folder / f"whole.{n}", channel=0)[0] for n in files}
    others = list(files.values())
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf(
        "SC_PAGESIZE"
    )
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    counts, defects = Counter(), []
    for seed in range(first, last):
        rng = np.random.default_rng(seed)
        name = list(FORMATS)[rng.integers(len(FORMATS))]
        mutate = MUTATIONS[rng.integers(len(MUTATIONS))]
        container, mutation = FORMATS[name][0], mutate.__name__
        header = 1024 if container == "NIST" else 120
        raw = bytes(mutate(rng, bytearray(files[name]), others, header))
        path = folder / f"seed{seed}.{name}"
        path.write_bytes(raw)
        (folder / "now").write_text(f"seed {seed}: {mutation} of {name}, {path}")
        signal.alarm(PATIENCE)  # ends the process, whatever it is in
        try:
            outcome = "same" if raw == files[name] else _judge(path, wholes[name])
            assert outcome in _promise(container, mutation) | {"same"}, outcome
            path.unlink()
        except Exception as error:  # what a defect raises is not known before
            outcome = "defect"
            defects.append(f"seed {seed}: {mutation} of {name}: {error!r:.300}")
        counts[f"{container} {mutation} {outcome}"] += 1
    signal.alarm(0)
    result = {"counts": counts, "defects": defects}
    (folder / "result.json").write_text(json.dumps(result))


# ---------------------------------------------------------------- tests


@pytest.mark.parametrize("run", range(RUNS))
def test_no_damaged_file_crashes_hangs_or_passes_for_whole(tmp_path, run: int) -> None:
    seeds = [str(run * SEEDS), str((run + 1) * SEEDS)]
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path), *seeds],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
        check=False,
    )
    doing = (tmp_path / "now").read_text() if (tmp_path / "now").is_file() else "start"
    assert done.returncode == 0, (done.returncode, doing, done.stderr[-2_000:])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["defects"] == []
    outcomes = Counter()
    for key, count in result["counts"].items():
        outcomes[key.split()[-1]] += count
    assert outcomes.total() == SEEDS
    assert outcomes["refused"] > SEEDS // 2  # else the mutations are too tame


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
