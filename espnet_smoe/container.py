"""Whether an audio file is of a format whose end can be checked, and is whole."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["refusal"]

# libsndfile's names of the containers whose end it or ``_ends_early`` checks. It
# opens more (MAT5, VOC, ...), but takes what is left of a cut one for the whole. An
# MP3 without a Xing frame does not say how long it is, so there nothing is checked.
_CONTAINERS = (
    "AIFF", "AU", "FLAC", "MP3", "NIST", "OGG", "RF64", "W64", "WAV", "WAVEX",
)  # fmt: skip
_UNREADABLE = ("DWVW_12", "DWVW_16", "DWVW_24")  # soundfile fails to read these

# Sizes in libsndfile's account of the header that cover the samples
_SIZE_FIELD = re.compile(
    r"^\s*(?:data|SSND|Data Size|riff|Riff size)\s*:\s*(\d+) \(should be (\d+)\)",
    re.MULTILINE,
)
# Writers that cannot seek back put such a size where they do not know it
_UNKNOWN_SIZE = 0x7FFF_0000
_SPHERE_HEADER = 1024  # bytes
_OGG_PAGE = 65_307  # bytes, the longest page of RFC 3533


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
    if _ends_early(path, file):
        return f"truncated: ends at sample {file.frames}"
    return None


def _ends_early(path: Path, file) -> bool:
    """Whether bytes are missing that libsndfile silently does without."""
    for declared, found in _SIZE_FIELD.findall(file.extra_info):
        if int(found) < int(declared) < _UNKNOWN_SIZE:
            return True
    with path.open("rb") as raw:
        if file.format == "NIST":
            count = re.search(rb"sample_count -i (\d+)", raw.read(_SPHERE_HEADER))
            return count is not None and file.frames < int(count[1])
        if file.format == "OGG":
            raw.seek(max(0, path.stat().st_size - _OGG_PAGE))
            tail = raw.read()
            return not _is_last_ogg_page(tail[tail.rfind(b"OggS") :])
    return False


def _is_last_ogg_page(page: bytes) -> bool:
    """Whether it is complete and ends a stream (RFC 3533, section 6)."""
    header = 27  # bytes
    if len(page) < header:
        return False
    is_last, segments = page[5] & 4, page[26]
    length = header + segments + sum(page[header : header + segments])
    return bool(is_last) and len(page) >= length
