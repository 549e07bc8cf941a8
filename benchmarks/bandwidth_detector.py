"""How often the bandwidth detector is right, condition by condition.

    python benchmarks/bandwidth_detector.py --data_dir egs2/smoe_asr_st/data/test
    python benchmarks/bandwidth_detector.py --audio nb=calls wb='voices/*' other=music

Every condition is made here from the recordings given: copies narrowed to 8 kHz and
brought back to 16 kHz, telephone codecs, noise before and after. The same arguments
give the same table.
"""

from __future__ import annotations

import argparse
import glob
import io
import sys
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from espnet_smoe.audio import MODEL_RATE, NARROWBAND_RATE, read_audio, resample
from espnet_smoe.bandwidth import UNKNOWN, detect_bandwidth
from espnet_smoe.datadir import read_datadir
from espnet_smoe.guide import BANDWIDTH

KINDS = ("nb", "wb", "other")
VERDICTS = ("nb", "wb", UNKNOWN)
CODECS = {"mu-law": "ULAW", "A-law": "ALAW", "GSM 06.10": "GSM610"}
COLOURS = ("white", "pink")
SNRS = (0, 5, 10, 15, 20, 30)  # dB
ABOVE = 10  # dB: the total counts what is above, and all without added noise
SECONDS = (0.3, 1.0, 3.0, 10.0, 40.0)  # of silence and noise alone
NOISE_ALONE = 200  # recordings
SPEECH_DEPTH = 1e-4  # of the loudest 20 ms: what is softer is no speech
EXTENSIONS = {".wav", ".flac", ".ogg", ".opus", ".mp3"}


@dataclass(frozen=True)
class Source:
    """A recording: ``kind`` is its true bandwidth, or ``other`` for no speech."""

    name: str
    kind: str
    path: str
    segment: tuple[float, float] | None
    channel: int | None

    def read(self) -> tuple[np.ndarray, int]:
        samples, rate = read_audio(
            self.path, segment=self.segment, channel=self.channel
        )
        return samples.astype(np.float64), rate


@dataclass(frozen=True)
class Trial:
    """Audio under one condition; ``snr`` in dB, None without added noise."""

    condition: str
    snr: int | None
    truth: str
    samples: np.ndarray
    rate: int


def sources(data_dir: Path | None, audio: list[str], limit: int, seed: int):
    """Sources of both options, at most ``limit`` of each kind, drawn by ``seed``."""
    found = []
    if data_dir:
        for utt in read_datadir(data_dir):
            kind = utt.guides[BANDWIDTH]
            found.append(Source(utt.id, kind, utt.audio, utt.segment, utt.channel))
    for item in audio:
        kind, _, where = item.partition("=")
        if kind not in KINDS or not where:
            sys.exit(f"--audio {item}: expected one of {KINDS}, '=', a folder or glob")
        paths = Path(where).rglob("*") if Path(where).is_dir() else glob.glob(where)
        paths = sorted(str(p) for p in paths if Path(p).suffix in EXTENSIONS)
        if not paths:
            sys.exit(f"--audio {item}: no audio found")
        found += [Source(path, kind, path, None, 0) for path in paths]
    drawn = []
    for kind in KINDS:
        some = [s for s in found if s.kind == kind]
        order = np.random.default_rng(seed).permutation(len(some))
        drawn += [some[i] for i in sorted(order[: limit or None])]
    return drawn


def trials(source: Source, seed: int) -> Iterator[Trial]:
    """Every condition of one recording."""
    rng = np.random.default_rng([seed, zlib.crc32(source.name.encode())])
    samples, rate = source.read()
    if source.kind == "other":
        yield Trial("music", None, UNKNOWN, samples, rate)
        return
    if source.kind == "wb":
        yield Trial("wideband", None, "wb", samples, rate)
        for colour, snr in ((c, s) for c in COLOURS for s in SNRS):
            heard = with_noise(samples, rate, colour, snr, rng)
            yield Trial(f"wideband, {colour} noise", snr, "wb", stored(heard), rate)
        call = stored(resample(samples, rate, NARROWBAND_RATE))
        copy = "wideband to 8 kHz to 16 kHz"
    else:
        yield Trial("narrowband", None, "nb", samples, rate)
        if rate != NARROWBAND_RATE:
            return
        call = stored(samples)
        copy = "narrowband to 16 kHz"
    yield Trial(copy, None, "nb", widened(call), MODEL_RATE)
    for name, subtype in CODECS.items():
        heard = widened(coded(call, subtype))
        yield Trial(f"{name} to 16 kHz", None, "nb", heard, MODEL_RATE)
    for colour, snr in ((c, s) for c in COLOURS for s in SNRS):
        before = with_noise(call, NARROWBAND_RATE, colour, snr, rng)
        name = f"narrowband, {colour} noise before 16 kHz"
        yield Trial(name, snr, "nb", widened(stored(before)), MODEL_RATE)
        after = with_noise(widened(call), MODEL_RATE, colour, snr, rng)
        name = f"narrowband, {colour} noise after 16 kHz"
        yield Trial(name, snr, "nb", stored(after), MODEL_RATE)


def no_speech(seed: int) -> Iterator[Trial]:
    """Digital silence and noise alone."""
    rng = np.random.default_rng(seed)
    for rate in (NARROWBAND_RATE, MODEL_RATE):
        for seconds in SECONDS:
            length = round(seconds * rate)
            silence = np.zeros(length)
            yield Trial("digital silence", None, UNKNOWN, silence, rate)
            for colour in COLOURS:
                for _ in range(NOISE_ALONE // (4 * len(SECONDS))):
                    noise = stored(0.05 * noise_of(colour, length, rng))
                    yield Trial(f"{colour} noise alone", None, UNKNOWN, noise, rate)


def widened(call: np.ndarray) -> np.ndarray:
    return stored(resample(call, NARROWBAND_RATE, MODEL_RATE))


def stored(samples: np.ndarray) -> np.ndarray:
    """As 16-bit samples, scaled down where they would clip."""
    samples = samples * min(1.0, 0.98 / max(np.abs(samples).max(), 1e-9))
    return np.rint(samples * 32768) / 32768


def coded(call: np.ndarray, subtype: str) -> np.ndarray:
    """Through a codec of libsndfile at 8 kHz."""
    file = io.BytesIO()
    soundfile.write(file, call, NARROWBAND_RATE, format="WAV", subtype=subtype)
    file.seek(0)
    return soundfile.read(file)[0][: len(call)]


def with_noise(
    speech: np.ndarray, rate: int, colour: str, snr: float, rng: np.random.Generator
) -> np.ndarray:
    """Add noise ``snr`` dB under the level of the speech without its pauses."""
    frame = rate // 50
    whole = speech[: max(1, len(speech) // frame) * frame]
    powers = np.square(whole).reshape(-1, min(frame, len(whole))).mean(axis=1)
    level = powers[powers >= SPEECH_DEPTH * powers.max()].mean()
    noise = noise_of(colour, len(speech), rng)
    return speech + noise * np.sqrt(level / 10 ** (snr / 10))


def noise_of(colour: str, length: int, rng: np.random.Generator) -> np.ndarray:
    """(length,) noise, power 1."""
    size = 1 << (length - 1).bit_length()
    noise = rng.standard_normal(size)
    if colour == "pink":
        spectrum = np.fft.rfft(noise)
        spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
        noise = np.fft.irfft(spectrum, size)
    noise = noise[:length]
    return noise / max(np.sqrt(np.mean(noise**2)), 1e-9)


def table(counts: dict[tuple, Counter]) -> str:
    """Markdown: a row per condition, then totals."""
    lines = [
        "| condition | SNR, dB | truth | utterances | nb | wb | unknown | % right |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (condition, snr, truth), count in counts.items():
        lines.append(_row(condition, "" if snr is None else snr, truth, count))
    clear = {k: c for k, c in counts.items() if k[1] is None or k[1] > ABOVE}
    for truth in (*VERDICTS, None):
        part = {k: c for k, c in clear.items() if truth in (None, k[2])}
        if total := sum(part.values(), Counter()):
            right = sum(count[k[2]] for k, count in part.items())
            name = f"**total above {ABOVE} dB**"
            lines.append(_row(name, "", truth or "all", total, right))
    return "\n".join(lines)


def _row(condition, snr, truth, count: Counter, right: int | None = None) -> str:
    number = count.total()
    right = count[truth] if right is None else right
    cells = [condition, snr, truth, number, *(count[v] for v in VERDICTS)]
    return f"| {' | '.join(map(str, cells))} | {100 * right / number:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", type=Path, help="truth from its utt2bandwidth")
    parser.add_argument(
        "--audio",
        nargs="+",
        default=[],
        metavar="KIND=WHERE",
        help="nb=, wb= or other= (no speech), then a folder or a glob",
    )
    parser.add_argument("--limit", type=int, default=0, help="of each kind; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    drawn = sources(args.data_dir, args.audio, args.limit, args.seed)
    counts: dict[tuple, Counter] = defaultdict(Counter)
    spent = seconds = 0.0

    def judge(trial: Trial) -> None:
        nonlocal spent, seconds
        start = time.process_time()
        estimate = detect_bandwidth(trial.samples, trial.rate)
        spent += time.process_time() - start
        seconds += len(trial.samples) / trial.rate
        key = (trial.condition, trial.snr, trial.truth)
        counts[key][estimate.bandwidth] += 1

    for source in drawn:
        for trial in trials(source, args.seed):
            judge(trial)
    for trial in no_speech(args.seed):
        judge(trial)
    print(f"{len(drawn)} recordings, seed {args.seed}\n\n{table(counts)}\n")
    print(f"{1000 * spent / seconds:.2f} ms of CPU per second of audio")


if __name__ == "__main__":
    main()
