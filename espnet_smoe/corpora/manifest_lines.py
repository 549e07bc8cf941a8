"""The lines of a manifest: which keys they may have and what those may hold."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from espnet_smoe.guide import BANDWIDTH, GuideTable

__all__ = ["KEYS", "line_faults", "nonblank_lines", "parse_line", "show"]

_REQUIRED = ("id", "audio", "split", "texts")
KEYS = (*_REQUIRED, "start", "end", "channel", "speaker", BANDWIDTH)


def nonblank_lines(manifest: Path) -> Iterator[tuple[int, bytes]]:
    """Number (from 1) and bytes of each line that is not blank."""
    with manifest.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")  # byte order mark
            if raw.strip():
                yield number, raw


def parse_line(raw: bytes) -> dict[str, object]:
    """One line of JSON as a mapping.

    Raises:
        ValueError: no valid JSON in UTF-8, no object, or a key comes twice.
    """
    try:
        line = json.loads(raw.decode(), object_pairs_hook=_no_doubled_key)
    except json.JSONDecodeError as error:
        # its own text counts lines, of which this is one
        where = f"character {error.pos + 1}"
        raise ValueError(f"no valid JSON: {error.msg} at {where}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no valid JSON: {error}") from None
    if not isinstance(line, dict):
        raise ValueError(f"expected a JSON object, got {show(line)}")
    return line


def _no_doubled_key(pairs: list[tuple[str, object]]) -> dict[str, object]:
    keys = Counter(key for key, _ in pairs)
    if doubled := sorted(key for key, count in keys.items() if count > 1):
        raise ValueError(f"key {doubled[0]!r} comes twice")
    return dict(pairs)


def line_faults(
    line: Mapping[str, object], guides: GuideTable, splits: Sequence[str]
) -> Iterator[str]:
    """Each thing that is wrong with a line, its audio aside, as a sentence."""
    extra = [a.name for a in guides.utterance_axes if a.name != BANDWIDTH]
    known = (*KEYS, *extra)
    for key in line:
        if key not in known:
            yield f"unknown key {show(key)}; known: {', '.join(known)}"
    for key in (*_REQUIRED, *extra):
        if key not in line:
            yield f"missing key {key!r}"
    for key in ("id", "speaker"):
        if key in line and not _is_word(line[key]):
            yield f"{key} must be one word, got {show(line[key])}"
    audio = line.get("audio", "x")
    if not isinstance(audio, str) or not audio.strip():
        yield f"audio must be a path, got {show(audio)}"
    elif audio != audio.strip() or set(audio) & set("\n\r\0") or not _is_text(audio):
        yield f"audio must be a path that a line of text can hold, got {show(audio)}"
    if "split" in line and line["split"] not in splits:
        yield f"unknown split {show(line['split'])}; asked for: {', '.join(splits)}"
    if "texts" in line:
        yield from _text_faults(line["texts"], guides)
    for axis in guides.utterance_axes:
        if axis.name in line and line[axis.name] not in axis.guides:
            yield (
                f"unknown {axis.name} {show(line[axis.name])}; known: "
                f"{', '.join(axis.guides)}"
            )
    for key in ("start", "end"):
        if key in line and not _is_seconds(line[key]):
            yield f"{key} must be seconds, a number >= 0, got {show(line[key])}"
    channel = line.get("channel", 0)
    if isinstance(channel, bool) or not isinstance(channel, int) or channel < 0:
        yield f"channel must be an integer >= 0, got {show(channel)}"


def _text_faults(texts: object, guides: GuideTable) -> Iterator[str]:
    if not isinstance(texts, dict) or not texts:
        yield f"texts must map tasks to texts, at least one, got {show(texts)}"
        return
    for task, text in texts.items():
        if task not in guides.tasks:
            yield f"unknown task {show(task)}; known: {', '.join(guides.tasks)}"
        elif not isinstance(text, str) or not _is_text(text):
            yield f"the {task} text must be a string, got {show(text)}"
        elif not text.strip():
            yield f"the {task} text is empty"


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # half a surrogate pair, possible in JSON
        return False
    return True


def _is_word(value: object) -> bool:
    return isinstance(value, str) and value.split() == [value] and _is_text(value)


def _is_seconds(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value) and value >= 0
    except OverflowError:  # an integer beyond the range of float
        return False


def show(value: object) -> str:
    """A JSON value for a message, shortened to 60 characters."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
