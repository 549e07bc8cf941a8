"""What a telephone line and a microphone do to speech.

Band-pass, level, noise and G.711 mu-law companding, to make narrowband recordings
out of studio speech. Frequencies in Hz, levels in dB relative to full scale (RMS).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from espnet_smoe.audio import MODEL_RATE, NARROWBAND_RATE, resample

__all__ = [
    "Microphone",
    "TelephoneLine",
    "mulaw_decode",
    "mulaw_encode",
    "through_microphone",
    "through_telephone",
]

_FULL_SCALE = 1 << 15
_HEADROOM = 0.98  # peaks are scaled down to this
_MULAW_BIAS = 33  # G.711, on its 14-bit scale
_MULAW_LARGEST = 8158  # largest 14-bit magnitude the code can hold


@dataclass(frozen=True)
class TelephoneLine:
    """One call's properties are drawn uniformly from these ranges.

    Args:
        low_edge_hz: lower edge of the pass band (-3 dB).
        high_edge_hz: range of its upper edge (-3 dB); at most 3400 as on a real line.
        level_dbfs: range of the speech level (RMS), dB to full scale.
        snr_db: range of the speech to noise ratio, dB.
    """

    low_edge_hz: float = 300.0
    high_edge_hz: tuple[float, float] = (2800.0, 3400.0)
    level_dbfs: tuple[float, float] = (-32.0, -20.0)
    snr_db: tuple[float, float] = (-6.0, 6.0)


@dataclass(frozen=True)
class Microphone:
    """A wideband recording; properties are drawn uniformly from these ranges.

    Args:
        level_dbfs: range of the speech level (RMS), dB to full scale.
        snr_db: range of the speech to noise ratio, dB.
    """

    level_dbfs: tuple[float, float] = (-32.0, -20.0)
    snr_db: tuple[float, float] = (20.0, 40.0)


def through_telephone(
    speech: np.ndarray, rate: float, line: TelephoneLine, rng: np.random.Generator
) -> np.ndarray:
    """Send (S,) float speech of ``rate`` Hz through a telephone call.

    Noise comes after the band-pass, as the hiss of the line does, and all of it is
    companded.

    Returns:
        (S',) int16 at 8 kHz: values of the G.711 mu-law code, so storing them as
        mu-law loses nothing.
    """
    from scipy.signal import butter, sosfilt

    high_edge = rng.uniform(*line.high_edge_hz)
    band = np.concatenate(
        [
            butter(4, line.low_edge_hz, "highpass", fs=NARROWBAND_RATE, output="sos"),
            butter(8, high_edge, "lowpass", fs=NARROWBAND_RATE, output="sos"),
        ]
    )
    narrow = sosfilt(band, resample(speech.astype(float), rate, NARROWBAND_RATE))
    heard = _record(narrow, line.level_dbfs, line.snr_db, rng)
    return mulaw_decode(mulaw_encode(heard))


def through_microphone(
    speech: np.ndarray, rate: float, room: Microphone, rng: np.random.Generator
) -> np.ndarray:
    """Record (S,) float speech of ``rate`` Hz as wideband: (S',) int16, 16 kHz."""
    wide = resample(speech.astype(float), rate, MODEL_RATE)
    return _record(wide, room.level_dbfs, room.snr_db, rng)


def mulaw_encode(samples: np.ndarray) -> np.ndarray:
    """G.711 mu-law code of 16-bit samples, equal to libsndfile's.

    Args:
        samples: int16, any shape.

    Returns:
        uint8 of that shape.

    Source: ITU-T G.711, table 2: sign, 3 bits of segment, 4 bits of step, inverted.
    """
    wide = samples.astype(np.int32)
    magnitude = np.minimum(np.abs(wide) >> 2, _MULAW_LARGEST) + _MULAW_BIAS
    # segment s holds the biased magnitudes of [2**(s + 5), 2**(s + 6))
    segment = np.frexp(magnitude)[1] - 6
    step = (magnitude >> (segment + 1)) & 0x0F
    sign = np.where(wide < 0, 0x80, 0)
    return (~(sign | segment << 4 | step) & 0xFF).astype(np.uint8)


def mulaw_decode(codes: np.ndarray) -> np.ndarray:
    """16-bit samples of G.711 mu-law codes: uint8 -> int16, same shape.

    Source: ITU-T G.711, table 2.
    """
    bits = ~codes.astype(np.int32) & 0xFF
    segment, step = bits >> 4 & 0x07, bits & 0x0F
    magnitude = (((2 * step + _MULAW_BIAS) << segment) - _MULAW_BIAS) << 2
    return np.where(bits & 0x80, -magnitude, magnitude).astype(np.int16)


def _record(
    speech: np.ndarray,
    level_dbfs: tuple[float, float],
    snr_db: tuple[float, float],
    rng: np.random.Generator,
) -> np.ndarray:
    """Set the level of (S,) speech, add noise, round to int16."""
    level = rng.uniform(*level_dbfs)
    noise_level = level - rng.uniform(*snr_db)
    heard = _at_level(speech, level) + _at_level(_noise(len(speech), rng), noise_level)
    peak = np.abs(heard).max()
    if peak > _HEADROOM:
        heard = heard * (_HEADROOM / peak)
    return np.rint(heard * (_FULL_SCALE - 1)).astype(np.int16)


def _noise(length: int, rng: np.random.Generator) -> np.ndarray:
    """White or pink noise, each half of the time."""
    size = 1 << (length - 1).bit_length()  # of a fast Fourier transform
    white = rng.standard_normal(size)
    if rng.random() < 0.5:
        return white[:length]
    spectrum = np.fft.rfft(white)
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))  # power as 1/f
    return np.fft.irfft(spectrum, size)[:length]


def _at_level(samples: np.ndarray, dbfs: float) -> np.ndarray:
    rms = np.sqrt(np.mean(samples**2))
    return samples * (10 ** (dbfs / 20) / max(rms, 1e-9))
