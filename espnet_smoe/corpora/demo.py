"""The demo corpus: English speech with German translations, made on the spot.

A grammar writes the sentences (``demo_grammar``), eSpeak NG speaks them
(``demo_speech``), a telephone line or a microphone records them. Voices and sentences
of dev and test occur nowhere else. A training sentence is recorded once, narrowband
and wideband in turn; dev and test sentences are recorded both ways from one
synthesis, so that the two bandwidths differ by the recording alone.

The same seed gives the same bits, whatever the number of processes, on one machine
with one set of installed versions.
"""

from __future__ import annotations

import io
import itertools
import logging
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np

from espnet_smoe.audio import FULL_SCALE, MODEL_RATE, NARROWBAND_RATE
from espnet_smoe.corpora.demo_plan import SPLITS, Reading, plan
from espnet_smoe.corpora.demo_speech import Engine, SpeechError
from espnet_smoe.datadir import Utterance, write_datadir
from espnet_smoe.files import write_atomically
from espnet_smoe.guide import BANDWIDTH, TASK, GuideTable
from espnet_smoe.progress import progress
from espnet_smoe.survey import Entry, Evidence, check_mode, examine, judge
from espnet_smoe.survey_report import write_survey
from espnet_smoe.telephone import (
    Microphone,
    TelephoneLine,
    through_microphone,
    through_telephone,
)

__all__ = ["LINE", "MICROPHONE", "DemoError", "prepare_demo"]

log = logging.getLogger(__name__)

# How hard narrowband and wideband are; the line is far noisier than a real one
LINE = TelephoneLine(
    high_edge_hz=(2800.0, 3400.0),
    level_dbfs=(-32.0, -20.0),
    snr_db=(-6.0, 6.0),
    codecs=("mulaw",),
)
MICROPHONE = Microphone()
_CHUNK = 25  # sentences per fork; part of what makes the corpus repeatable
_SILENCE = 0.004  # of full scale
_PADDING = (0.08, 0.2)  # s of silence before and after


class DemoError(ValueError):
    """The demo corpus was asked for what it is not."""


def prepare_demo(
    datadir: Path,
    sizes: tuple[int, int, int],
    seed: int,
    nj: int,
    guides: GuideTable,
    *,
    bandwidth: str = "check",
) -> None:
    """Write the data directories train, dev and test, their audio and its survey.

    Audio lies in ``datadir/demo_audio/<split>``: 16 kHz PCM or 8 kHz mu-law. It
    appears when all of it is there; run again, everything is made anew. How an
    utterance was recorded is its label, whatever it sounds like.

    Args:
        sizes: sentences in train, dev and test, each at least 1.
        seed: the corpus depends on it and on ``sizes`` only.
        nj: number of processes.
        guides: must have the bandwidths ``nb`` and ``wb``, the tasks ``asr`` and
            ``st_de``, and no other utterance axis.
        bandwidth: of ``survey.MODES``; ``header`` saves the time of the detector.

    Raises:
        DemoError: ``guides`` lack one of these; a size or ``nj`` is under 1; a
            process died.
        SpeechError: eSpeak NG is missing.
        GrammarError: more sentences are asked for than the grammar has.
        SurveyError: there is no such mode.
    """
    check_mode(bandwidth)
    _check(guides, sizes, nj)
    datadir = Path(datadir).resolve()
    readings = plan(sizes, seed)
    engine = Engine()
    _load_libraries()
    final = datadir / "demo_audio"
    with write_atomically(final) as folder:
        for split in SPLITS:
            (folder / split).mkdir()
        recorder = _Recorder(engine, folder, bandwidth)
        recorded: dict[str, _Recorded] = {}
        for done in progress(
            _record_all(recorder, readings, nj), len(readings), "demo corpus"
        ):
            recorded.update(done)
    for split in SPLITS:
        part = [r for r in readings if r.split == split]
        write_datadir(datadir / split, _utterances(part, recorded, final / split))
        log.info("%s: %d sentences", datadir / split, len(part))
    # last: it never tells of data directories that are not there yet
    write_survey(datadir, judge(_entries(readings, recorded), bandwidth), bandwidth)


def _check(guides: GuideTable, sizes: Sequence[int], nj: int) -> None:
    has = {BANDWIDTH: guides.bandwidths, TASK: guides.tasks}
    needs = {BANDWIDTH: ("nb", "wb"), TASK: ("asr", "st_de")}
    for axis, wanted in needs.items():
        if missing := [g for g in wanted if g not in has[axis]]:
            raise DemoError(
                f"the demo corpus needs the {axis} guides {', '.join(wanted)}; the "
                f"model's guides lack {', '.join(missing)}"
            )
    if others := [a.name for a in guides.utterance_axes if a.name != BANDWIDTH]:
        raise DemoError(f"the demo corpus says nothing about the axes {others}")
    if len(sizes) != len(SPLITS) or min(sizes) < 1:
        raise DemoError(
            f"the demo corpus needs at least 1 sentence in each of {SPLITS}, got "
            f"{tuple(sizes)}"
        )
    if nj < 1:
        raise DemoError(f"the number of processes must be at least 1, got {nj}")


def _load_libraries() -> None:
    """Import what recording needs, so that forks do not import it each time."""
    import librosa
    import scipy.signal
    import soundfile

    _ = (librosa.resample, scipy.signal.butter, soundfile.write)


@dataclass(frozen=True)
class _Recorded:
    """What is kept of an utterance: rate (Hz), samples stored, what they say."""

    rate: int
    num_samples: int
    evidence: Evidence


@dataclass(frozen=True)
class _Recorder:
    """Speaks, records, surveys and stores readings under ``folder/<split>``."""

    engine: Engine
    folder: Path
    mode: str  # of the survey

    def __call__(self, reading: Reading) -> dict[str, _Recorded]:
        """Utterance id -> what was recorded."""
        import soundfile

        rng = np.random.default_rng(reading.seed)
        speech = self._speech(reading, rng)
        recorded = {}
        for bandwidth in reading.bandwidths:
            utt = reading.utterance_id(bandwidth)
            path = self.folder / reading.split / f"{utt}.wav"
            if bandwidth == "nb":
                samples = through_telephone(speech, self.engine.rate, LINE, rng)
                rate, subtype = NARROWBAND_RATE, "ULAW"
            else:
                samples = through_microphone(speech, self.engine.rate, MICROPHONE, rng)
                rate, subtype = MODEL_RATE, "PCM_16"
            # by way of memory: soundfile waits for the disk after each file
            file = io.BytesIO()
            soundfile.write(file, samples, rate, format="WAV", subtype=subtype)
            path.write_bytes(file.getvalue())
            heard = examine(samples / np.float32(FULL_SCALE), rate, self.mode)
            recorded[utt] = _Recorded(rate, len(samples), heard)
        return recorded

    def _speech(self, reading: Reading, rng: np.random.Generator) -> np.ndarray:
        """Float speech with short silences around it, at the engine's rate."""
        spoken = self.engine.speak(
            reading.english, reading.speaker.voice, reading.delivery, reading.seed
        )
        samples = spoken / FULL_SCALE
        loud = np.flatnonzero(np.abs(samples) > _SILENCE)
        if not loud.size:
            raise SpeechError(
                f"eSpeak NG whispered {reading.english!r} as "
                f"{reading.speaker.voice.name!r}"
            )
        before, after = (int(self.engine.rate * rng.uniform(*_PADDING)) for _ in "ab")
        return np.pad(samples[loud[0] : loud[-1] + 1], (before, after))


def _record_chunk(
    recorder: _Recorder, chunk: Sequence[Reading], sender: Connection
) -> None:
    """Life of a fork: send back what was recorded, or what went wrong."""
    try:
        sender.send([recorder(reading) for reading in chunk])
    except (ValueError, OSError) as error:
        sender.send(error)


def _record_all(
    recorder: _Recorder, readings: Sequence[Reading], nj: int
) -> Iterator[dict[str, _Recorded]]:
    """Record in forks of ``_CHUNK`` readings, ``nj`` at a time.

    Each fork starts from an engine that never spoke, so that its speech does not
    depend on the other chunks (see ``demo_speech``).
    """
    context = multiprocessing.get_context("fork")
    chunks = (readings[i : i + _CHUNK] for i in range(0, len(readings), _CHUNK))
    running: dict[Connection, multiprocessing.Process] = {}
    try:
        while True:
            for chunk in itertools.islice(chunks, nj - len(running)):
                receiver, sender = context.Pipe(duplex=False)
                fork = context.Process(
                    target=_record_chunk, args=(recorder, chunk, sender), daemon=True
                )
                fork.start()
                sender.close()  # the fork has its own: its death ends the pipe
                running[receiver] = fork
            if not running:
                return
            for receiver in wait(list(running)):
                result = _received(receiver)
                running.pop(receiver).join()
                yield from result
    finally:
        for fork in running.values():
            fork.terminate()
            fork.join()


def _received(receiver: Connection) -> list[dict[str, _Recorded]]:
    try:
        result = receiver.recv()
    except EOFError:
        raise DemoError(
            "a process that makes the demo corpus died; is there enough memory?"
        ) from None
    if isinstance(result, Exception):
        raise result
    return result


def _entries(
    readings: Sequence[Reading], recorded: dict[str, _Recorded]
) -> list[Entry]:
    return [
        Entry(
            id=utt,
            split=reading.split,
            rate=recorded[utt].rate,
            word=bandwidth,
            recording=(utt, 0),
            evidence=recorded[utt].evidence,
        )
        for reading in readings
        for bandwidth in reading.bandwidths
        for utt in [reading.utterance_id(bandwidth)]
    ]


def _utterances(
    readings: Sequence[Reading], recorded: dict[str, _Recorded], folder: Path
) -> Iterator[Utterance]:
    for reading in readings:
        for bandwidth in reading.bandwidths:
            utt = reading.utterance_id(bandwidth)
            yield Utterance(
                id=utt,
                audio=str(folder / f"{utt}.wav"),
                speaker=reading.speaker.id,
                fs=recorded[utt].rate,
                num_samples=recorded[utt].num_samples,
                guides={BANDWIDTH: bandwidth},
                texts={"asr": reading.english, "st_de": reading.german},
            )
