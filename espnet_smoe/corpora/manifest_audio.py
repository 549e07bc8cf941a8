"""The audio of a manifest's lines: read once, kept as evidence, never as samples."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from espnet_smoe.audio import AudioError, probe, read_audio
from espnet_smoe.progress import progress
from espnet_smoe.quality import is_silent
from espnet_smoe.survey import Evidence, examine

__all__ = ["LineAudio", "read_all_audio"]


@dataclass(frozen=True)
class LineAudio:
    """What is known of the audio of one line.

    Args:
        path: of the file, absolute, the same however the line spells it.
        rate: native rate, Hz.
        num_samples: from the line's start to its end, at that rate.
        segment: (start, end) in the file, seconds; None = the whole file.
        evidence: of the samples.
    """

    path: Path
    rate: int
    num_samples: int
    segment: tuple[float, float] | None
    evidence: Evidence


def read_all_audio(
    lines: Mapping[int, dict], folder: Path, nj: int, mode: str
) -> Iterator[tuple[int, LineAudio | str]]:
    """Line number -> audio, or why it cannot be used, in the order of ``lines``.

    Memory holds one utterance of audio per thread.

    Args:
        lines: line number -> fields, all of which are all right.
        folder: that relative paths start from.
        nj: threads.
        mode: of the survey.
    """
    from multiprocessing.pool import ThreadPool

    def read(number: int) -> tuple[int, LineAudio | str]:
        try:
            return number, _read(lines[number], folder, mode)
        except (ValueError, OSError) as error:
            return number, str(error)

    # threads do: libsndfile and numpy leave the interpreter lock
    with ThreadPool(nj) as pool:
        results = pool.imap(read, lines, chunksize=8)
        yield from progress(results, len(lines), "checking audio")


def _read(line: Mapping, folder: Path, mode: str) -> LineAudio:
    """Read the audio of a line once, from its start to its end."""
    # Path.resolve does not take links in a circle for a missing file
    path = Path(os.path.realpath(folder / line["audio"]))
    info = probe(path)
    segment, channel = None, line.get("channel")
    if "start" in line or "end" in line:
        # `segments` holds microseconds; the length must be of what is read back
        start = round(float(line.get("start", 0.0)), 6)
        end = round(float(line.get("end", info.num_samples / info.rate)), 6)
        if start >= end:
            raise AudioError(f"start {start} s must be before end {end} s")
        segment = (start, end)
    samples, rate = read_audio(path, segment=segment, channel=channel)
    if is_silent(samples):
        others = [
            c
            for c in range(info.channels)
            if not is_silent(read_audio(path, segment=segment, channel=c)[0])
        ]
        raise AudioError(
            f"{path}: channel {channel or 0} is silent, all {len(samples)} samples are "
            f"{samples[0]:g}"
            + (f"; not so channel {', '.join(map(str, others))}" if others else "")
        )
    return LineAudio(path, rate, len(samples), segment, examine(samples, rate, mode))
