"""What to read of an audio file, and which files not to read at all."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from espnet_smoe import extent

__all__ = ["num_samples", "read_column", "refusal"]

# libsndfile's names of the containers whose end ``extent`` checks. It opens more
# (MAT5, VOC, ...), but takes what is left of a cut one for the whole.
_CONTAINERS = (
    "AIFF", "AU", "FLAC", "MP3", "NIST", "OGG", "RF64", "W64", "WAV", "WAVEX",
)  # fmt: skip
_UNREADABLE = ("DWVW_12", "DWVW_16", "DWVW_24")  # soundfile fails to read these

_FLAC_BYTES = {"PCM_S8": 1, "PCM_16": 2, "PCM_24": 3}  # of a sample
# A header may claim any length: read what is there, some MB at a time
_BLOCK = 1 << 20  # samples of all channels


def refusal(path: Path, file) -> str | None:
    """Why not to read a file, from its header and its size; None = nothing is wrong.

    Args:
        path: of the file.
        file: a ``soundfile.SoundFile`` of it, just opened.
    """
    if file.format not in _CONTAINERS:
        known = ", ".join(_CONTAINERS)
        return f"cannot be read as audio: format {file.format} is none of {known}"
    if file.subtype in _UNREADABLE:
        return (
            f"cannot be read as audio: codec {file.subtype}; expected any other codec "
            f"of format {file.format}, such as PCM_16"
        )
    with _mapped(path) as raw:
        return extent.fault(raw, file)


def num_samples(path: Path, file) -> int:
    """Samples per channel in a file that ``refusal`` finds nothing wrong with."""
    with _mapped(path) as raw:
        return extent.num_samples(raw, file)


def read_column(path: Path, file, start: int, stop: int, column: int) -> np.ndarray:
    """Read one channel of a file just opened, from sample ``start`` to ``stop``.

    Returns:
        (S,) float32; S is under ``stop - start`` where the file ends early.

    Raises:
        RuntimeError: libsndfile cannot decode the file, or a FLAC file read whole has
            other samples than its MD5 sum says.
    """
    is_whole = (start, stop) == (0, file.frames)
    digest = _Digest(path, file) if file.format == "FLAC" and is_whole else None
    _skip(path, file, start)
    parts = []
    while start < stop:
        count = min(stop - start, max(1, _BLOCK // file.channels))
        part = file.read(count, dtype="float32", always_2d=True)
        parts.append(part[:, column].copy())
        if digest:
            digest.add(part)
        if len(part) < count:  # reading on would jump over what is missing
            break
        start += count
    if digest:
        digest.compare()
    return np.concatenate(parts)


class _Digest:
    """The MD5 sum of a FLAC file's samples, beside the one in its header."""

    def __init__(self, path: Path, file) -> None:
        with _mapped(path) as raw:
            place = raw.find(b"fLaC") + 26  # of STREAMINFO, RFC 9639
            self._expected = raw[place : place + 16]
        self._bytes = _FLAC_BYTES[file.subtype]
        self._found = hashlib.md5(usedforsecurity=False)

    def add(self, samples: np.ndarray) -> None:
        """Samples (S, channels), float32 of full scale 1.0."""
        steps = (samples * 2.0 ** (8 * self._bytes - 1)).astype("<i4")
        parts = steps.view(np.uint8).reshape(-1, 4)[:, : self._bytes]
        self._found.update(parts.tobytes())

    def compare(self) -> None:
        unknown = bytes(16)
        if self._expected not in (unknown, self._found.digest()):
            raise RuntimeError("the samples do not have the MD5 sum in the header")


def _skip(path: Path, file, count: int) -> None:
    """Go to sample ``count`` of a file just opened."""
    if count and file.seekable():
        with _mapped(path) as raw:
            near = min(count, extent.farthest_seek(raw, file))
        file.seek(near)
        count -= near
    # codecs such as GSM 06.10 only go forward, and refuse even to seek to 0
    while count:
        read = len(file.read(min(count, _BLOCK), dtype="float32"))
        if not read:
            return
        count -= read


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw,
    ):
        yield raw
