"""Anyone's data: a JSON Lines manifest -> data directories.

One utterance a line:

    {"id": "call7-0001", "audio": "wav/call7.wav", "split": "train",
     "texts": {"asr": "good morning", "st_de": "guten Morgen"},
     "start": 1.5, "end": 3.25, "channel": 0, "speaker": "ann", "bandwidth": "nb"}

``id``, ``audio``, ``split`` and ``texts`` are required. ``audio`` is absolute or
relative to the manifest's folder, in a format that ``audio.read_audio`` takes.
``start`` and ``end`` (seconds) cut an utterance out of a longer file; ``channel``
(from 0) is needed where the file has several; ``speaker`` is the id unless given.
``bandwidth`` follows from the native rate unless given. Further utterance axes of
the model's guides are required keys of their own.

Every line and every second of audio is read before anything is written.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from espnet_smoe.audio import bandwidth_of_rate, probe, read_audio
from espnet_smoe.corpora.manifest_lines import (
    KEYS,
    line_faults,
    nonblank_lines,
    parse_line,
)
from espnet_smoe.datadir import Utterance, write_datadir
from espnet_smoe.files import DataDirError
from espnet_smoe.guide import BANDWIDTH, GuideTable
from espnet_smoe.progress import progress

__all__ = ["ManifestError", "prepare_manifest"]

log = logging.getLogger(__name__)

_REPORTED = 20  # mistakes spelled out in one report


class ManifestError(ValueError):
    """A manifest has mistakes; the message lists them with line and id."""


@dataclass
class _Mistakes:
    """Mistakes found so far: (line, utterance id, reason); line 0 = the file."""

    found: list[tuple[int, str, str]] = field(default_factory=list)

    def add(self, line: int, utt: str, reason: str) -> None:
        self.found.append((line, utt, reason))

    def raise_if_any(self, manifest: Path) -> None:
        """Raise one ManifestError that lists the first mistakes by line."""
        if not self.found:
            return
        shown = []
        for line, utt, reason in sorted(self.found, key=lambda m: m[0])[:_REPORTED]:
            where = f"line {line}" + (f" ({utt})" if utt else "") + ": "
            shown.append((where if line else "") + reason)
        if (more := len(self.found) - len(shown)) > 0:
            shown.append(f"and {more} more")
        count = f"{len(self.found)} mistake" + ("s" if len(self.found) > 1 else "")
        raise ManifestError(
            f"{manifest}: {count}, nothing was written:\n" + ";\n".join(shown)
        )


def prepare_manifest(
    manifest: Path,
    datadir: Path,
    guides: GuideTable,
    splits: Sequence[str],
    nj: int = 1,
) -> None:
    """Check a manifest and its audio as a whole, then write ``datadir/<split>``.

    White space in texts is collapsed; case and punctuation are kept. Memory grows
    with the number of lines and one utterance of audio per thread.

    Args:
        manifest: JSON Lines file, see the module's text.
        datadir: folder of the data directories.
        guides: the tasks and utterance guides that lines may name.
        splits: data directories to write; each needs an utterance.
        nj: threads that read audio.

    Raises:
        ManifestError: any mistake, in one report of up to 20 lines by line number.
    """
    manifest = Path(manifest)
    if not manifest.is_file():
        raise ManifestError(f"manifest {manifest} is missing or no file")
    _check_splits(splits)
    _check_axes(guides)
    if nj < 1:
        raise ManifestError(f"nj must be at least 1, got {nj}")
    mistakes = _Mistakes()
    lines = _read_lines(manifest, guides, splits, mistakes)
    utterances = _read_all_audio(lines, manifest.parent, guides, nj, mistakes)
    mistakes.raise_if_any(manifest)
    for split in splits:
        chosen = [u for n, u in utterances.items() if lines[n]["split"] == split]
        write_datadir(Path(datadir) / split, chosen)
        log.info("%s/%s: %d utterances", datadir, split, len(chosen))


def _check_splits(splits: Sequence[str]) -> None:
    good = [s for s in splits if re.fullmatch(r"\w[\w.-]*", s)]
    if not splits or len(set(good)) != len(splits):
        raise ManifestError(
            f"splits must be distinct names of letters, digits, '_', '-' and '.', got "
            f"{list(splits)}"
        )


def _check_axes(guides: GuideTable) -> None:
    taken = set(KEYS) - {BANDWIDTH}
    if clash := [a.name for a in guides.utterance_axes if a.name in taken]:
        raise ManifestError(
            f"the axis name {clash[0]!r} is a manifest key with another meaning; "
            "rename the axis in the config's guides"
        )


def _read_lines(
    manifest: Path, guides: GuideTable, splits: Sequence[str], mistakes: _Mistakes
) -> dict[int, dict]:
    """Line number -> fields, for the lines whose fields are all right."""
    good: dict[int, dict] = {}
    first_line: dict[str, int] = {}
    used: Counter[str] = Counter()
    for number, raw in nonblank_lines(manifest):
        try:
            line = parse_line(raw)
        except ValueError as error:
            mistakes.add(number, "", str(error))
            continue
        utt = line["id"] if isinstance(line.get("id"), str) else ""
        reasons = list(line_faults(line, guides, splits))
        if utt and first_line.setdefault(utt, number) != number:
            reasons.append(f"the id is already that of line {first_line[utt]}")
        for reason in reasons:
            mistakes.add(number, utt, reason)
        if isinstance(line.get("split"), str):
            used[line["split"]] += 1
        if not reasons:
            good[number] = line
    for split in splits:
        if not used[split]:
            mistakes.add(0, "", f"no utterance for split {split!r}")
    return good


def _read_all_audio(
    lines: Mapping[int, dict],
    folder: Path,
    guides: GuideTable,
    nj: int,
    mistakes: _Mistakes,
) -> dict[int, Utterance]:
    """Line number -> utterance, for the lines whose audio is all right."""
    from multiprocessing.pool import ThreadPool

    ids = {line["id"] for line in lines.values()}

    def read(number: int) -> tuple[int, Utterance | str]:
        try:
            return number, _utterance(lines[number], folder, guides, ids)
        except (ValueError, OSError) as error:
            return number, str(error)

    utterances: dict[int, Utterance] = {}
    # threads do: libsndfile and numpy leave the interpreter lock
    with ThreadPool(nj) as pool:
        results = pool.imap(read, lines, chunksize=8)
        for number, result in progress(results, len(lines), "checking audio"):
            if isinstance(result, str):
                mistakes.add(number, lines[number]["id"], result)
            else:
                utterances[number] = result
    return utterances


def _utterance(
    line: Mapping, folder: Path, guides: GuideTable, ids: set[str]
) -> Utterance:
    """Read the audio of a line once, from its start to its end.

    Raises:
        ValueError: the audio cannot be used, or its bandwidth is not known.
    """
    path = (folder / line["audio"]).absolute()
    info = probe(path)
    segment = recording = None
    if "start" in line or "end" in line:
        # `segments` holds microseconds; the length must be of what is read back
        start = round(float(line.get("start", 0.0)), 6)
        end = round(float(line.get("end", info.num_samples / info.rate)), 6)
        if start >= end:
            raise ManifestError(f"start {start} s must be before end {end} s")
        segment, recording = (start, end), _recording_id(path, ids)
    samples, rate = read_audio(path, segment=segment, channel=line.get("channel"))
    bandwidth = line.get(BANDWIDTH) or bandwidth_of_rate(rate)
    if bandwidth not in guides.bandwidths:
        raise DataDirError(
            f"{rate} Hz means bandwidth {bandwidth!r}, which the model does not have; "
            f"known: {', '.join(guides.bandwidths)}"
        )
    facts = {a.name: line[a.name] for a in guides.utterance_axes if a.name in line}
    return Utterance(
        id=line["id"],
        audio=str(path),
        speaker=line.get("speaker", line["id"]),
        fs=rate,
        num_samples=len(samples),
        guides={**facts, BANDWIDTH: bandwidth},
        texts={task: " ".join(t.split()) for task, t in line["texts"].items()},
        segment=segment,
        channel=line.get("channel"),
        recording=recording,
    )


def _recording_id(path: Path, ids: set[str]) -> str:
    """One word for a file, the same for all its segments and no utterance's id."""
    stem = re.sub(r"[^\w.-]+", "-", path.stem)
    name = f"{stem}-{hashlib.sha256(str(path).encode()).hexdigest()[:10]}"
    while name in ids:
        name += "-recording"
    return name
