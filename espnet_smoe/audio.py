"""Read audio and bring it to the model's rate; rates in Hz, times in seconds.

Recordings come at their native rate (8 kHz and up). The model hears 16 kHz: one
function, ``to_model_rate``, makes the samples that the dump stores and the API
encodes, so both see the same numbers. Telephone effects: ``espnet_smoe.telephone``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from espnet_smoe.container import num_samples, read_column, refusal

__all__ = [
    "FULL_SCALE",
    "MODEL_RATE",
    "NARROWBAND_RATE",
    "AudioError",
    "AudioInfo",
    "bandwidth_of_rate",
    "change_speed",
    "check_samples",
    "narrow_band",
    "probe",
    "read_audio",
    "resample",
    "to_model_rate",
]

MODEL_RATE = 16_000  # Hz
NARROWBAND_RATE = 8_000  # Hz
FULL_SCALE = 1 << 15  # 16-bit samples reach from -FULL_SCALE to FULL_SCALE - 1

_HIGHEST_RATE = 768_000  # Hz, of the fastest audio converters
_LOUDEST = 10.0  # 20 dB over full scale: such floats are no samples in [-1, 1]
_SPEEDS = (0.5, 2.0)  # factors that still sound like speech


class AudioError(ValueError):
    """Audio is missing, broken or outside what the model takes."""


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says.

    Args:
        rate: native rate, Hz.
        num_samples: samples per channel at that rate.
        channels: number of channels.
    """

    rate: int
    num_samples: int
    channels: int


def probe(path: Path | str) -> AudioInfo:
    """Read the header of an audio file and compare it with the file's size.

    Raises:
        AudioError: missing, empty, truncated or not audio; a header that contradicts
            itself or the file; zero length; a rate outside 8 to 768 kHz.
    """
    with _opened(path) as (file, length):
        return AudioInfo(file.samplerate, length, file.channels)


def read_audio(
    path: Path | str,
    *,
    segment: tuple[float, float] | None = None,
    channel: int | None = None,
) -> tuple[np.ndarray, int]:
    """Read one channel of an audio file, or a part of it.

    Args:
        path: AIFF, AU, FLAC, MP3, NIST SPHERE, Ogg (Opus, Vorbis), W64 or WAV.
        segment: (start, end), seconds; only this part is read. None = all.
        channel: from 0; needed where the file has several.

    Returns:
        Samples (S,) float32, full scale 1.0, and the native rate in Hz.

    Raises:
        AudioError: as ``probe``; damaged; NaN, infinite or far too loud samples; a
            segment outside the file; a channel that is out of range or not given.
    """
    with _opened(path) as (file, length):
        rate = file.samplerate
        column = _column(path, file.channels, channel)
        start, stop = _span(path, length, rate, segment)
        try:
            samples = read_column(Path(path), file, start, stop, column)
        except RuntimeError as error:
            raise AudioError(f"{path}: truncated or damaged: {error}") from None
    if len(samples) < stop - start:
        raise AudioError(
            f"{path}: truncated: expected {stop - start} samples from sample "
            f"{start} on, got {len(samples)}"
        )
    check_samples(samples, str(path))
    return samples, rate


def check_samples(samples: np.ndarray, name: str) -> None:
    """Refuse what is no audio: ``samples`` must be (S,) float, S > 0, finite.

    They may exceed full scale, 1.0, but not tenfold: those are integers as floats.

    Raises:
        AudioError: it is not; the message starts with ``name``.
    """
    if not isinstance(samples, np.ndarray) or samples.ndim != 1:
        shape = getattr(samples, "shape", type(samples).__name__)
        raise AudioError(f"{name}: expected samples of shape (S,), got {shape}")
    if not np.issubdtype(samples.dtype, np.floating):
        raise AudioError(f"{name}: expected float samples, got {samples.dtype}")
    if not samples.size:
        raise AudioError(f"{name}: expected audio, got zero samples")
    if not np.isfinite(samples).all():
        first = int(np.flatnonzero(~np.isfinite(samples))[0])
        raise AudioError(f"{name}: sample {first} is {samples[first]}, not a number")
    if (loudest := float(max(samples.max(), -samples.min()))) > _LOUDEST:
        raise AudioError(
            f"{name}: float samples must lie in [-1, 1], got {loudest:.0f}; divide "
            "16-bit values by 32768"
        )


def resample(samples: np.ndarray, rate: float, new_rate: float) -> np.ndarray:
    """Change the rate of (S,) float samples; ceil(S * new_rate / rate) come back.

    Source: the SoX resampler, quality "HQ" (images and aliases below -100 dB).
    """
    if rate == new_rate:
        return samples
    import librosa

    return librosa.resample(
        samples, orig_sr=rate, target_sr=new_rate, res_type="soxr_hq"
    )


def to_model_rate(samples: np.ndarray, rate: int) -> np.ndarray:
    """The samples the model hears: 16 kHz, on the 16-bit grid.

    Rounding here, in the dump and in the API, makes both hear the same; 16 kHz
    16-bit audio passes unchanged. What lies beyond full scale is clipped.

    Args:
        samples: (S,) float, full scale 1.0.
        rate: Hz.

    Returns:
        (S',) float32, each k / 32768 with k in [-32768, 32767].

    Raises:
        AudioError: ``samples`` are no audio, or ``rate`` is not 8 to 768 kHz.
    """
    check_samples(samples, "audio")
    _check_rate(rate, "audio")
    grid = np.rint(resample(samples, rate, MODEL_RATE) * FULL_SCALE)
    grid = np.clip(grid, -FULL_SCALE, FULL_SCALE - 1)
    return (grid / FULL_SCALE).astype(np.float32)


def bandwidth_of_rate(rate: int) -> str:
    """Bandwidth of a recording of that native rate (Hz): ``nb`` or ``wb``.

    Raises:
        AudioError: not 8 to 768 kHz, or between 8 and 16, where it must be said.
    """
    _check_rate(rate, "audio")
    if rate == NARROWBAND_RATE:
        return "nb"
    if rate >= MODEL_RATE:
        return "wb"
    raise AudioError(
        f"a rate of {rate} Hz is neither narrowband ({NARROWBAND_RATE} Hz) nor "
        f"wideband ({MODEL_RATE} Hz and above): say the bandwidth, 'nb' or 'wb'"
    )


def change_speed(samples: np.ndarray, factor: float) -> np.ndarray:
    """Play ``factor`` times as fast: tempo and pitch change together.

    Args:
        samples: (S,) float at any rate.
        factor: in [0.5, 2]; above 1 is faster and shorter.

    Returns:
        (ceil(S / factor),) float32 at the same rate.

    Raises:
        AudioError: ``samples`` are no audio, or ``factor`` is out of range.
    """
    check_samples(samples, "audio")
    low, high = _SPEEDS
    if not low <= factor <= high:
        raise AudioError(f"speed factor {factor} must lie in [{low}, {high}]")
    return resample(samples.astype(np.float32), factor, 1.0)


def narrow_band(samples: np.ndarray, rate: int) -> np.ndarray:
    """Take out what lies above 4 kHz, as a rate of 8 kHz would.

    Args:
        samples: (S,) float, full scale 1.0.
        rate: Hz; at 8 kHz there is nothing to take out.

    Returns:
        (S,) float32 at the same rate.

    Raises:
        AudioError: ``samples`` are no audio, or ``rate`` is not 8 to 768 kHz.
    """
    check_samples(samples, "audio")
    _check_rate(rate, "audio")
    narrow = resample(samples.astype(np.float32), rate, NARROWBAND_RATE)
    # both ways round up: never too short
    return resample(narrow, NARROWBAND_RATE, rate)[: len(samples)]


@contextmanager
def _opened(path: Path | str) -> Iterator:
    """A checked ``soundfile.SoundFile`` and its samples per channel."""
    import soundfile

    path = Path(path)
    if not path.is_file():
        raise AudioError(f"{path}: audio file is missing")
    if not path.stat().st_size:
        raise AudioError(f"{path}: audio file is empty")
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, TypeError) as error:
        # soundfile raises TypeError for headerless formats (.raw)
        reason = _reason(error)
        raise AudioError(f"{path}: cannot be read as audio: {reason}") from None
    with file:
        if reason := refusal(path, file):
            raise AudioError(f"{path}: {reason}")
        length = num_samples(path, file)
        if not length:
            raise AudioError(f"{path}: audio has zero length")
        _check_rate(file.samplerate, str(path))
        yield file, length


def _check_rate(rate: int, name: str) -> None:
    if rate < NARROWBAND_RATE:
        raise AudioError(
            f"{name}: a rate of {rate} Hz is under the lowest, {NARROWBAND_RATE} Hz"
        )
    if rate > _HIGHEST_RATE:
        raise AudioError(
            f"{name}: a rate of {rate} Hz is over the highest, {_HIGHEST_RATE} Hz"
        )


def _column(path: Path | str, channels: int, channel: int | None) -> int:
    if channel is None and channels > 1:
        raise AudioError(f"{path}: has {channels} channels: say which, from 0")
    if not 0 <= (channel or 0) < channels:
        raise AudioError(
            f"{path}: channel {channel} is not in the file; it has {channels}, from 0"
        )
    return channel or 0


def _span(
    path: Path | str, frames: int, rate: int, segment: tuple[float, float] | None
) -> tuple[int, int]:
    """First sample and the one after the last."""
    if segment is None:
        return 0, frames
    start, end = segment
    if not (math.isfinite(start) and math.isfinite(end)):
        raise AudioError(f"{path}: segment {start} to {end} s is not finite")
    first, stop = round(start * rate), round(end * rate)
    if not 0 <= first < stop <= frames:
        raise AudioError(
            f"{path}: segment {start} to {end} s is not in the file, which is "
            f"{frames / rate:.3f} s long"
        )
    return first, stop


def _reason(error: Exception) -> str:
    text = getattr(error, "error_string", None) or str(error)
    return " ".join(text.split()).rstrip(".") or type(error).__name__
