"""Anyone's data: a JSON Lines manifest -> data directories.

One utterance a line:

    {"id": "call7-0001", "audio": "wav/call7.wav", "split": "train",
     "texts": {"asr": "good morning", "st_de": "guten Morgen"},
     "start": 1.5, "end": 3.25, "channel": 0, "speaker": "ann", "bandwidth": "nb"}

``id``, ``audio``, ``split`` and ``texts`` are required. ``audio`` is absolute or
relative to the manifest's folder, in a format that ``audio.read_audio`` takes.
``start`` and ``end`` (seconds) cut an utterance out of a longer file; ``channel``
(from 0) is needed where the file has several; ``speaker`` is the id unless given.
``bandwidth`` follows from the native rate unless given, or from the sound, see
``survey``. Further utterance axes of the model's guides are required keys of their own.

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

from espnet_smoe.audio import NARROWBAND_RATE
from espnet_smoe.corpora.manifest_audio import LineAudio, read_all_audio
from espnet_smoe.corpora.manifest_lines import (
    KEYS,
    line_faults,
    nonblank_lines,
    parse_line,
)
from espnet_smoe.corpora.twins import twin_name, with_narrowband_twins
from espnet_smoe.datadir import Utterance, write_datadir
from espnet_smoe.guide import BANDWIDTH, GuideTable
from espnet_smoe.survey import Entry, Finding, check_mode, judge
from espnet_smoe.survey_report import FOLDER, write_survey

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
    *,
    bandwidth: str = "check",
    narrowband_twins: bool = False,
) -> None:
    """Check a manifest and its audio as a whole, then write ``datadir/<split>``.

    White space in texts is collapsed; case and punctuation are kept. Memory grows
    with the number of lines and one utterance of audio per thread. The survey of the
    audio goes to ``datadir/survey``.

    Args:
        manifest: JSON Lines file, see the module's text.
        datadir: folder of the data directories.
        guides: the tasks and utterance guides that lines may name.
        splits: data directories to write; each needs an utterance.
        nj: threads that read audio.
        bandwidth: where labels come from, of ``survey.MODES``.
        narrowband_twins: add one to each wideband utterance, see ``twins``.

    Raises:
        ManifestError: any mistake, in one report of up to 20 lines by line number.
        SurveyError: there is no such mode.
    """
    manifest, datadir = Path(manifest), Path(datadir)
    if not manifest.is_file():
        raise ManifestError(f"manifest {manifest} is missing or no file")
    check_mode(bandwidth)
    _check_splits(splits)
    _check_axes(guides, narrowband_twins)
    if nj < 1:
        raise ManifestError(f"nj must be at least 1, got {nj}")
    mistakes = _Mistakes()
    lines = _read_lines(manifest, guides, splits, mistakes)
    if narrowband_twins:
        _check_twins(lines, mistakes)
    audio: dict[int, LineAudio] = {}
    for number, result in read_all_audio(lines, manifest.parent, nj, bandwidth):
        if isinstance(result, str):
            mistakes.add(number, lines[number]["id"], result)
        else:
            audio[number] = result
    entries = [_entry(lines[number], heard) for number, heard in audio.items()]
    findings = dict(zip(audio, judge(entries, bandwidth), strict=True))
    for number, finding in findings.items():
        if reason := _label_fault(finding, bandwidth, guides):
            mistakes.add(number, finding.entry.id, reason)
    mistakes.raise_if_any(manifest)
    twins = 0
    ids = {line["id"] for line in lines.values()}
    for split in splits:
        chosen = [
            _utterance(lines[n], audio[n], finding.label, guides, ids)
            for n, finding in findings.items()
            if finding.entry.split == split
        ]
        paired = list(with_narrowband_twins(chosen)) if narrowband_twins else chosen
        write_datadir(datadir / split, paired)
        added = len(paired) - len(chosen)
        twins += added
        log.info(
            "%s: %d utterances and %d narrowband twins",
            *(datadir / split, len(chosen), added),
        )
    # last: it never tells of data directories that are not there yet
    write_survey(datadir, list(findings.values()), bandwidth, twins)


def _check_splits(splits: Sequence[str]) -> None:
    good = [s for s in splits if re.fullmatch(r"\w[\w.-]*", s)]
    if not splits or len(set(good)) != len(splits):
        raise ManifestError(
            f"splits must be distinct names of letters, digits, '_', '-' and '.', got "
            f"{list(splits)}"
        )
    if FOLDER in splits:
        raise ManifestError(f"a split cannot be called {FOLDER!r}, the survey's folder")


def _check_axes(guides: GuideTable, narrowband_twins: bool) -> None:
    taken = set(KEYS) - {BANDWIDTH}
    if clash := [a.name for a in guides.utterance_axes if a.name in taken]:
        raise ManifestError(
            f"the axis name {clash[0]!r} is a manifest key with another meaning; "
            "rename the axis in the config's guides"
        )
    if narrowband_twins and "nb" not in guides.bandwidths:
        raise ManifestError(
            "narrowband twins need the bandwidth guide 'nb'; the model has only "
            f"{', '.join(guides.bandwidths)}"
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


def _check_twins(lines: Mapping[int, dict], mistakes: _Mistakes) -> None:
    """No utterance may have the id, or the speaker, of another one's twin."""
    ids = {line["id"]: number for number, line in lines.items()}
    speakers: dict[str, int] = {}
    for number, line in lines.items():
        speakers.setdefault(_speaker(line), number)
    named: set[int] = set()  # once: the speaker may be the id
    for what, numbers in (("id", ids), ("speaker", speakers)):
        for name, number in numbers.items():
            clash = numbers.get(twin_name(name))
            if clash is not None and clash not in named:
                named.add(clash)
                reason = (
                    f"the {what} {twin_name(name)} is that of the narrowband twin of "
                    f"line {number} ({name})"
                )
                mistakes.add(clash, lines[clash]["id"], reason)


def _speaker(line: Mapping) -> str:
    return line.get("speaker", line["id"])


def _entry(line: Mapping, audio: LineAudio) -> Entry:
    return Entry(
        id=line["id"],
        split=line["split"],
        rate=audio.rate,
        word=line.get(BANDWIDTH),
        recording=(str(audio.path), line.get("channel", 0)),
        evidence=audio.evidence,
    )


def _label_fault(finding: Finding, mode: str, guides: GuideTable) -> str | None:
    """Why a label cannot be used, as a sentence; None = it can."""
    rate = finding.entry.rate
    if rate == NARROWBAND_RATE and finding.entry.word == "wb":
        return (
            f"\"bandwidth\" is 'wb', but a file of {rate} Hz holds nothing above "
            f"{rate // 2} Hz"
        )
    if finding.label in guides.bandwidths:
        return None
    if finding.label is not None:
        heard = mode == "detect" and finding.label == finding.detected
        source = "its sound" if heard else f"{rate} Hz"
        return (
            f"{source} means bandwidth {finding.label!r}, which the model does not "
            f"have; known: {', '.join(guides.bandwidths)}"
        )
    wanted = f"{rate} Hz is neither narrowband (8000 Hz) nor wideband (16000 Hz and up)"
    if mode == "detect":
        reason = finding.entry.evidence.estimate.reason
        return f'{wanted} and its sound does not tell ({reason}): say "bandwidth"'
    return f'{wanted}: say "bandwidth", or prepare with --bandwidth detect'


def _utterance(
    line: Mapping, audio: LineAudio, bandwidth: str, guides: GuideTable, ids: set[str]
) -> Utterance:
    facts = {a.name: line[a.name] for a in guides.utterance_axes if a.name in line}
    return Utterance(
        id=line["id"],
        audio=str(audio.path),
        speaker=_speaker(line),
        fs=audio.rate,
        num_samples=audio.num_samples,
        guides={**facts, BANDWIDTH: bandwidth},
        texts={task: " ".join(t.split()) for task, t in line["texts"].items()},
        segment=audio.segment,
        channel=line.get("channel"),
        recording=_recording_id(audio.path, ids) if audio.segment else None,
    )


def _recording_id(path: Path, ids: set[str]) -> str:
    """One word for a file, the same for all its segments and no utterance's id."""
    stem = re.sub(r"[^\w.-]+", "-", path.stem)
    name = f"{stem}-{hashlib.sha256(str(path).encode()).hexdigest()[:10]}"
    while name in ids:
        name += "-recording"
    return name
