"""Kaldi-style data directory: read, write, check.

Files (one line per utterance, sorted by id, ``<id> <value>``):

    wav.scp            audio: a path, or ``file.ark:offset`` (recording ids if
                       ``segments`` is there)
    utt2spk, spk2utt   speaker
    utt2fs             native rate of the recording, Hz
    utt2num_samples    samples at the rate of the stored audio
    utt2<axis>         guide on an utterance axis; ``utt2bandwidth`` always
    text.<task>        reference of a task; an utterance may lack some, not all
    segments           optional: ``<id> <recording> <start> <end>``, seconds
    utt2channel        optional: channel of a multi-channel file, from 0
    utt2speed          optional: speed factor to apply when dumping
    utt2telephone      optional: seed of the telephone call to apply when dumping,
                       after the speed; the rate and number of samples above stay
                       those of the recording

The format is Kaldi's (``segments``, ``utt2spk``) with ESPnet's ``utt2num_samples``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from espnet_smoe.files import (
    DataDirError,
    read_table,
    some_of,
    write_atomically,
    write_table,
)

__all__ = [
    "Utterance",
    "fill_datadir",
    "read_datadir",
    "write_datadir",
]

_NOT_AXES = {"spk", "fs", "num_samples", "channel", "speed", "telephone"}


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One segment of audio with its references.

    Args:
        id: unique, no white space.
        audio: path of the file that holds it, or ``file.ark:offset``.
        speaker: speaker id.
        fs: native rate of the recording, Hz.
        num_samples: length in samples of the stored audio (native rate in
            ``data/``, 16 kHz in ``dump/``).
        guides: utterance axis -> guide; ``bandwidth`` is required.
        texts: task -> reference; at least one.
        segment: (start, end) in ``audio``, seconds; None = the whole file.
        channel: channel of ``audio``, from 0; None = the file has one channel.
        speed: speed factor still to be applied, 1.0 = none.
        telephone: seed of the telephone call still to be sent through, None = none;
            the bandwidth is ``nb`` already.
    """

    id: str
    audio: str
    speaker: str
    fs: int
    num_samples: int
    guides: Mapping[str, str]
    texts: Mapping[str, str]
    segment: tuple[float, float] | None = None
    channel: int | None = None
    speed: float = 1.0
    telephone: int | None = None
    # id of the recording in wav.scp when `segment` is set
    recording: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not self.id or self.id.split() != [self.id]:
            raise DataDirError(f"utterance id {self.id!r} must be one word")
        if self.speaker.split() != [self.speaker]:
            raise DataDirError(f"{self.id}: speaker {self.speaker!r} must be one word")
        if "bandwidth" not in self.guides:
            raise DataDirError(f"{self.id}: no bandwidth guide, got {self.guides}")
        if self.telephone is not None and (
            self.telephone < 0 or self.guides["bandwidth"] != "nb"
        ):
            raise DataDirError(
                f"{self.id}: a telephone call has a seed >= 0 and bandwidth 'nb', got "
                f"{self.telephone} and {self.guides['bandwidth']!r}"
            )
        if clash := sorted(_NOT_AXES & set(self.guides)):
            raise DataDirError(
                f"{self.id}: an axis cannot be called {clash[0]!r}: utt2{clash[0]} "
                "has another meaning"
            )
        if not self.texts or not all(t.strip() for t in self.texts.values()):
            raise DataDirError(
                f"{self.id}: expected at least one text and no empty one, got "
                f"{dict(self.texts)}"
            )
        if self.fs <= 0 or self.num_samples <= 0:
            raise DataDirError(
                f"{self.id}: rate {self.fs} Hz and length {self.num_samples} samples "
                "must be positive"
            )


def write_datadir(path: Path, utterances: Iterable[Utterance]) -> None:
    """Write a data directory; it appears complete or not at all.

    Raises:
        DataDirError: no utterance, or an id comes twice.
    """
    try:
        with write_atomically(path) as folder:
            fill_datadir(folder, utterances)
    except DataDirError as error:
        raise DataDirError(f"{path}: {error}") from None


def fill_datadir(folder: Path, utterances: Iterable[Utterance]) -> None:
    """Write the files of a data directory into an existing folder.

    Not atomic: for a folder that ``write_atomically`` gave and that holds more than
    these files.

    Raises:
        DataDirError: no utterance, an id comes twice, or a recording id stands for
            two files.
    """
    utts: dict[str, Utterance] = {}
    for utt in utterances:
        if utt.id in utts:
            raise DataDirError(f"utterance id {utt.id!r} comes twice")
        utts[utt.id] = utt
    if not utts:
        raise DataDirError("no utterance to write")
    segmented = any(u.segment for u in utts.values())
    recordings, segments = {}, {}
    for u in utts.values():
        name = (u.recording or u.id) if segmented else u.id
        if recordings.setdefault(name, u.audio) != u.audio:
            raise DataDirError(
                f"recording {name!r} stands for {recordings[name]} and {u.audio}"
            )
        if segmented:
            start, end = u.segment or (0.0, u.num_samples / u.fs)
            segments[u.id] = f"{name} {start:.6f} {end:.6f}"
    write_table(folder / "wav.scp", recordings)
    write_table(folder / "segments", segments)
    write_table(folder / "utt2spk", {i: u.speaker for i, u in utts.items()})
    by_speaker: dict[str, list[str]] = {}
    for i in sorted(utts):
        by_speaker.setdefault(utts[i].speaker, []).append(i)
    write_table(folder / "spk2utt", {s: " ".join(ids) for s, ids in by_speaker.items()})
    write_table(folder / "utt2fs", {i: u.fs for i, u in utts.items()})
    write_table(folder / "utt2num_samples", {i: u.num_samples for i, u in utts.items()})
    channels = {i: u.channel for i, u in utts.items() if u.channel is not None}
    write_table(folder / "utt2channel", channels)
    speeds = {i: u.speed for i, u in utts.items() if u.speed != 1.0}
    write_table(folder / "utt2speed", speeds)
    calls = {i: u.telephone for i, u in utts.items() if u.telephone is not None}
    write_table(folder / "utt2telephone", calls)
    for axis in sorted({a for u in utts.values() for a in u.guides}):
        guides = {i: u.guides[axis] for i, u in utts.items() if axis in u.guides}
        write_table(folder / f"utt2{axis}", guides)
    for task in sorted({t for u in utts.values() for t in u.texts}):
        texts = {i: u.texts[task] for i, u in utts.items() if task in u.texts}
        write_table(folder / f"text.{task}", texts)


def read_datadir(path: Path) -> list[Utterance]:
    """Read and check a data directory, sorted by utterance id.

    Raises:
        DataDirError: a file is missing or two files name different utterances.
    """
    path = Path(path)
    if not path.is_dir():
        raise DataDirError(f"data directory {path} is missing")
    speakers = read_table(path / "utt2spk")
    if not speakers:
        raise DataDirError(f"{path} holds no utterance")
    rates = _read_full(path / "utt2fs", speakers)
    lengths = _read_full(path / "utt2num_samples", speakers)
    axes = {
        f.name[len("utt2") :]: _read_full(f, speakers)
        for f in sorted(path.glob("utt2*"))
        if f.name[len("utt2") :] not in _NOT_AXES
    }
    if "bandwidth" not in axes:
        raise DataDirError(f"{path}/utt2bandwidth is missing")
    texts = {
        f.name[len("text.") :]: _read_part(f, speakers)
        for f in sorted(path.glob("text.*"))
    }
    channels = _read_numbers(path / "utt2channel", speakers, int)
    speeds = _read_numbers(path / "utt2speed", speakers, float)
    calls = _read_numbers(path / "utt2telephone", speakers, int)
    audio = read_table(path / "wav.scp")
    segments = _read_segments(path, speakers, audio)

    utterances = []
    for i in sorted(speakers):
        recording, segment = segments.get(i, (i, None))
        utterances.append(
            Utterance(
                id=i,
                audio=audio[recording],
                speaker=speakers[i],
                fs=_number(path / "utt2fs", i, rates[i], int),
                num_samples=_number(path / "utt2num_samples", i, lengths[i], int),
                guides={a: t[i] for a, t in axes.items()},
                texts={task: t[i] for task, t in texts.items() if i in t},
                segment=segment,
                channel=channels.get(i),
                speed=speeds.get(i, 1.0),
                telephone=calls.get(i),
                recording=recording if segment else None,
            )
        )
    return utterances


def _number(path: Path, utt: str, value: str, kind: type) -> float:
    try:
        return kind(value)
    except ValueError:
        raise DataDirError(f"{path}: {utt}: {value!r} is no {kind.__name__}") from None


def _read_part(path: Path, known: Mapping[str, str]) -> dict[str, str]:
    table = read_table(path) if path.exists() else {}
    if extra := sorted(set(table) - set(known)):
        raise DataDirError(f"{path} names utterances not in utt2spk: {some_of(extra)}")
    return table


def _read_numbers(path: Path, known: Mapping[str, str], kind: type) -> dict:
    table = _read_part(path, known)
    return {i: _number(path, i, value, kind) for i, value in table.items()}


def _read_full(path: Path, known: Mapping[str, str]) -> dict[str, str]:
    if not path.exists():
        raise DataDirError(f"{path} is missing")
    table = _read_part(path, known)
    if missing := sorted(set(known) - set(table)):
        raise DataDirError(f"{path} lacks utterances of utt2spk: {some_of(missing)}")
    return table


def _read_segments(
    path: Path, known: Mapping[str, str], audio: Mapping[str, str]
) -> dict[str, tuple[str, tuple[float, float]]]:
    if not (path / "segments").exists():
        if missing := sorted(set(known) - set(audio)):
            raise DataDirError(f"{path}/wav.scp lacks {some_of(missing)}")
        return {}
    segments = {}
    for utt, line in _read_full(path / "segments", known).items():
        fields = line.split()
        if len(fields) != 3 or fields[0] not in audio:
            raise DataDirError(
                f"{path}/segments: {utt}: expected '<recording> <start> <end>' with a "
                f"recording of wav.scp, got {line!r}"
            )
        start = _number(path / "segments", utt, fields[1], float)
        end = _number(path / "segments", utt, fields[2], float)
        segments[utt] = (fields[0], (start, end))
    return segments
