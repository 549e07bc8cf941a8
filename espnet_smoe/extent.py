"""Where the audio of a file ends by its own account, and whether that is so.

libsndfile trusts the length in a header, or silently replaces it. Here a file that
contradicts itself is refused: audio that lies behind the declared end would be lost,
and what is read beyond it was never sound. Trailing zeros and metadata are no fault.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from espnet_smoe.mpeg import TAGS, frames_of

__all__ = ["farthest_seek", "fault", "num_samples"]

# Sizes that writers who cannot seek back leave in a header, of 32 and of 64 bits
_UNKNOWN_SIZES = (range(0x7FFF_0000, 0x8000_0001), range(0xFFFF_0000, 0x1_0000_0000))
_UNKNOWN_LONG_SIZES = (2**63 - 1, 2**64 - 1)
_BLOCK = 1 << 16  # bytes

_PCM, _FLOAT, _ALAW, _MULAW, _EXTENSIBLE = 1, 3, 6, 7, 0xFFFE  # of WAV
_GSM_BLOCK = (65, 320)  # bytes, samples

_OGG_HEADER = 27  # bytes
_OGG_START, _OGG_END = 2, 4  # flags of a stream's first and last page

_MP3_TRIM = 8192  # samples that a LAME tag may cut off both ends


def fault(raw, file) -> str | None:
    """Say how a file contradicts itself about its length; None = it does not.

    Args:
        raw: all bytes of the file (an ``mmap``).
        file: a ``soundfile.SoundFile`` of it, of a format that ``container`` takes.
    """
    check = {
        "AIFF": _aiff, "AU": _au, "FLAC": _flac, "MP3": _mp3, "NIST": _sphere,
        "OGG": _ogg, "RF64": _riff, "W64": _w64, "WAV": _riff, "WAVEX": _riff,
    }[file.format]  # fmt: skip
    return check(raw, file)


def num_samples(raw, file) -> int:
    """Samples per channel in a file without fault; arguments as ``fault``.

    libsndfile takes the byte that pads a WAV file of GSM 06.10 for one more block, and
    guesses the length of an MP3 file that has no Xing frame.
    """
    if file.format in ("WAV", "WAVEX") and file.subtype == "GSM610":
        size, samples = _GSM_BLOCK
        return _chunks(raw, _order(raw))[0][b"data"][1] // size * samples
    if file.subtype == "MPEG_LAYER_III":
        return min(file.frames, frames_of(Path(file.name))[0])
    return file.frames


def farthest_seek(raw, file) -> int:
    """The last sample to seek to; arguments as ``fault``.

    In the last page of a Vorbis stream libsndfile 1.2.2 misses the sample by some
    hundred. Reading on from before that page hits it.
    """
    if file.subtype != "VORBIS":
        return file.frames
    ends = [page.num_samples for page in _pages(raw)]
    return max(0, *ends[-2:-1])


def _riff(raw, file) -> str | None:
    order = _order(raw)
    chunks, end = _chunks(raw, order)
    if b"data" not in chunks:
        return _truncated(file)
    return _behind(raw, end) or _format_fault(raw, chunks[b"fmt "][0], order)


def _order(raw) -> str:
    return ">" if raw[:4] == b"RIFX" else "<"


def _aiff(raw, file) -> str | None:
    chunks, end = _chunks(raw, ">")
    if b"SSND" not in chunks:
        return _truncated(file)
    in_samples = file.subtype not in ("GSM610", "IMA_ADPCM")  # those count packets
    (said,) = struct.unpack_from(">I", raw, chunks[b"COMM"][0] + 2)
    if in_samples and said != file.frames:
        return _miscounted(str(said), file)
    return _behind(raw, end)


def _chunks(raw, order: str) -> tuple[dict[bytes, tuple[int, int]], int]:
    """First chunk of each name -> (start, length), and where chunks end, in bytes."""
    found: dict[bytes, tuple[int, int]] = {}
    place = 12
    while place + 8 <= len(raw):
        name, length = struct.unpack_from(f"{order}4sI", raw, place)
        if not all(32 <= letter < 127 for letter in name):
            break
        place += 8
        if name == b"data" and b"ds64" in found and length == 0xFFFF_FFFF:
            length = struct.unpack_from("<Q", raw, found[b"ds64"][0] + 8)[0]
        elif name in (b"data", b"SSND") and any(length in r for r in _UNKNOWN_SIZES):
            length = len(raw) - place
        if place + length > len(raw):
            return found, place - 8
        found.setdefault(name, (place, length))
        place += length
        # some writers leave out the byte that pads an odd chunk
        if length % 2 and raw[place : place + 1] == b"\0":
            place += 1
    return found, place


def _format_fault(raw, place: int, order: str) -> str | None:
    """Whether rate, channels and sizes of a WAV header agree; 0 = not said."""
    tag, channels, rate, speed, align, bits = struct.unpack_from(
        f"{order}HHIIHH", raw, place
    )
    if tag == _EXTENSIBLE:
        tag = struct.unpack_from(f"{order}H", raw, place + 24)[0]
    if tag in (_PCM, _FLOAT):
        width = channels * -(-bits // 8)
    elif tag in (_ALAW, _MULAW):
        width = channels
    else:
        return None
    if align in (0, width) and speed in (0, rate * width):
        return None
    return (
        f"header contradicts itself: {channels} channels of {bits} bits at {rate} Hz "
        f"make {width} bytes, {rate * width} a second; it says {align} and {speed}"
    )


def _w64(raw, file) -> str | None:
    place, header, form = 40, 24, None  # bytes
    while place + header <= len(raw):
        name = raw[place : place + 4]
        (length,) = struct.unpack_from("<Q", raw, place + 16)
        if name == b"fmt ":
            form = place + header
        if name == b"data" and length in _UNKNOWN_LONG_SIZES:
            return None
        if name == b"data":
            # libsndfile reads all that follows as samples, other chunks as well
            end = place + length
            if end > len(raw):
                break
            return _behind(raw, end) or (form and _format_fault(raw, form, "<"))
        place += max(header, -(-length // 8) * 8)
    return _truncated(file)


def _au(raw, file) -> str | None:
    order = ">" if raw[:4] == b".snd" else "<"
    offset, size = struct.unpack_from(f"{order}II", raw, 4)
    if size == 0xFFFF_FFFF:
        return None
    end = offset + size
    return _truncated(file) if end > len(raw) else _behind(raw, end)


def _sphere(raw, file) -> str | None:
    said = re.search(rb"sample_count -i (\S+)", raw[: _first_number(raw[8:16])])
    if said is None or said[1] == b"%d" % file.frames:
        return None
    return _miscounted(said[1].decode("ascii", "replace"), file)


def _first_number(text: bytes) -> int:
    digits = text.strip()
    return int(digits) if digits.isdigit() else 1024  # bytes, the usual header


def _flac(raw, file) -> str | None:
    if file.frames > len(raw) * _BLOCK:  # a frame is longer than a byte
        return "does not say how long it is; decode it and encode it again"
    return None


def _ogg(raw, file) -> str | None:
    """Go from page to page; libogg checks what is in them."""
    end, last = 0, None
    for page in _pages(raw):
        if last and (page.stream != last.stream or page.flags & _OGG_START):
            return "holds several Ogg streams; expected one"
        if last and page.number != last.number + 1:
            return f"page {last.number + 1} of its Ogg stream is missing"
        end, last = page.end, page
    if end > len(raw) or not last or not last.flags & _OGG_END:
        return _truncated(file)
    return _behind(raw, end)


class _Page(NamedTuple):
    """What the header of an Ogg page says (RFC 3533, section 6)."""

    flags: int
    num_samples: int  # of the stream up to its end; -1 = not said
    stream: int
    number: int
    end: int  # byte


def _pages(raw) -> Iterator[_Page]:
    place = 0
    while raw[place : place + 4] == b"OggS" and place + _OGG_HEADER <= len(raw):
        sizes = place + _OGG_HEADER
        end = sizes + raw[place + 26] + sum(raw[sizes : sizes + raw[place + 26]])
        yield _Page(*struct.unpack_from("<BqII", raw, place + 5), end)
        place = end


def _mp3(raw, file) -> str | None:
    if file.subtype != "MPEG_LAYER_III":
        return None
    total, end, is_counted = frames_of(Path(file.name))
    if end > len(raw):
        return _truncated(file)
    least = total - _MP3_TRIM if is_counted else total
    if file.frames < least or (is_counted and file.frames > total):
        return (
            f"its frames hold {total} samples, its header leads to {file.frames}; "
            "encode it again, with a Xing or Info frame"
        )
    return None if raw[end : end + 11].startswith(TAGS) else _behind(raw, end)


def _behind(raw, end: int) -> str | None:
    for place in range(end, len(raw), _BLOCK):
        if raw[place : place + _BLOCK].strip(b"\0"):
            return (
                f"{len(raw) - end} bytes follow the audio that its header declares; "
                "the header is wrong or the file is damaged"
            )
    return None


def _miscounted(said: str, file) -> str:
    cut = "truncated: " if said.isdigit() and int(said) > file.frames else ""
    return f"{cut}header says {said} samples, the file holds {file.frames}"


def _truncated(file) -> str:
    return f"truncated: ends at sample {file.frames}"
