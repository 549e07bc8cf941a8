"""What a telephone line and a microphone do to speech.

One telephone channel for all: the demo corpus, narrowband twins of wideband corpora,
and augmentation in training. It band-passes, resamples to 8 kHz, sets the level, adds
noise, codes and decodes, and may lose packets. Frequencies in Hz, levels in dB relative
to full scale (RMS).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from espnet_smoe.audio import FULL_SCALE, MODEL_RATE, NARROWBAND_RATE, resample
from espnet_smoe.codec import check_codec, through_codec
from espnet_smoe.config import ConfigError, check_keys, check_number

__all__ = [
    "Microphone",
    "TelephoneLine",
    "call_seed",
    "through_microphone",
    "through_telephone",
]

_HEADROOM = 0.98  # peaks are scaled down to this
_PACKET = 160  # samples: 20 ms
_FADE = (80, 480)  # samples after a loss, 10 and 60 ms: the fade begins, is complete


@dataclass(frozen=True)
class TelephoneLine:
    """One call's properties are drawn uniformly from these ranges.

    The defaults are of ordinary calls, fixed and mobile: +-10 dB around the -26 dB at
    which speech is played into networks under test (ITU-T P.56 level), from a noisy
    street to a quiet room, G.711 as in Europe and America or GSM, nothing lost.

    Args:
        low_edge_hz: lower edge of the pass band (-3 dB), Hz.
        high_edge_hz: range of its upper edge (-3 dB), Hz; 3400 on a real line.
        level_dbfs: range of the speech level (RMS), dB to full scale, below 0.
        snr_db: range of the speech to noise ratio, dB.
        codecs: names of ``codec.CODECS``; a call has one of them.
        packet_loss: range of the share of 20 ms packets lost, in [0, 1); which ones
            are lost is drawn packet by packet.

    Raises:
        ConfigError: names the field, the value and what was expected.
    """

    low_edge_hz: float = 300.0
    high_edge_hz: tuple[float, float] = (2800.0, 3400.0)
    level_dbfs: tuple[float, float] = (-36.0, -16.0)
    snr_db: tuple[float, float] = (10.0, 30.0)
    codecs: tuple[str, ...] = ("mulaw", "alaw", "gsm")
    packet_loss: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        half = NARROWBAND_RATE / 2
        check_number("telephone.low_edge_hz", self.low_edge_hz)
        if not 0 < self.low_edge_hz < half:
            raise ConfigError(
                f"telephone.low_edge_hz must lie between 0 and {half:g} Hz, got "
                f"{self.low_edge_hz}"
            )
        for name, bounds in {
            "high_edge_hz": (self.low_edge_hz, half),
            "level_dbfs": (-math.inf, 0.0),
            "snr_db": (-math.inf, math.inf),
            "packet_loss": (0.0, 1.0),
        }.items():
            _check_range(f"telephone.{name}", getattr(self, name), *bounds)
        if not isinstance(self.codecs, tuple) or not self.codecs:
            raise ConfigError(
                f"telephone.codecs must be a list of codecs, got {self.codecs!r}"
            )
        for codec in self.codecs:
            check_codec(codec)

    @classmethod
    def from_mapping(cls, conf: Mapping[str, Any]) -> TelephoneLine:
        """Build from YAML, where ranges and ``codecs`` are lists.

        Raises:
            ConfigError: an unknown key (lists the known ones) or a value out of range.
        """
        check_keys("telephone", conf, [f.name for f in dataclasses.fields(cls)])
        return cls(
            **{k: tuple(v) if isinstance(v, list) else v for k, v in conf.items()}
        )


@dataclass(frozen=True)
class Microphone:
    """A wideband recording; properties are drawn uniformly from these ranges.

    Args:
        level_dbfs: range of the speech level (RMS), dB to full scale.
        snr_db: range of the speech to noise ratio, dB.
    """

    level_dbfs: tuple[float, float] = (-32.0, -20.0)
    snr_db: tuple[float, float] = (20.0, 40.0)


def call_seed(utt: str) -> int:
    """Seed in [0, 2**32) of the telephone call of the utterance with that id.

    >>> call_seed("tel-a") == call_seed("sp0.9-tel-a")
    False
    """
    return int(hashlib.sha256(utt.encode()).hexdigest()[:8], 16)


def through_telephone(
    speech: np.ndarray, rate: float, line: TelephoneLine, rng: np.random.Generator
) -> np.ndarray:
    """Send (S,) float speech of ``rate`` Hz through a telephone call.

    Noise comes after the band-pass, as the hiss of the line does, and all of it is
    coded. Lost packets are concealed after decoding.

    Args:
        speech: S > 0.
        rng: all draws come from it; a codec is drawn where there are several, lost
            packets where some can be lost.

    Returns:
        (S',) int16 at 8 kHz, S' = ceil(S * 8000 / rate). Without packet loss they
        are values of the codec, so storing a mu-law call as mu-law loses nothing.
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
    sent = _record(narrow, line.level_dbfs, line.snr_db, rng)
    codec = rng.integers(len(line.codecs))  # draws nothing from a single one
    heard = through_codec(sent, line.codecs[codec])
    if line.packet_loss[1] > 0:
        share = rng.uniform(*line.packet_loss)
        lost = rng.random(-(-len(heard) // _PACKET)) < share
        heard = _conceal(heard, lost)
    return heard


def through_microphone(
    speech: np.ndarray, rate: float, room: Microphone, rng: np.random.Generator
) -> np.ndarray:
    """Record (S,) float speech of ``rate`` Hz as wideband: (S',) int16, 16 kHz."""
    wide = resample(speech.astype(float), rate, MODEL_RATE)
    return _record(wide, room.level_dbfs, room.snr_db, rng)


def _check_range(name: str, value: object, lowest: float, highest: float) -> None:
    """Refuse what is no (low, high) with lowest <= low <= high < highest."""
    wanted = f"a range [low, high], {lowest:g} <= low <= high < {highest:g}"
    if not isinstance(value, tuple) or len(value) != 2:
        raise ConfigError(f"{name} must be {wanted}, got {value!r}")
    for number in value:
        check_number(name, number)
    low, high = value
    if not (math.isfinite(low) and lowest <= low <= high < highest):
        raise ConfigError(f"{name} must be {wanted}, got {list(value)}")


def _conceal(samples: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """Fill lost packets with the last one that came, repeated and faded out.

    Args:
        samples: (S,) int16.
        lost: (ceil(S / 160),) bool.

    Returns:
        (S,) int16; silence where no packet came before.

    Source: after ITU-T G.711 Appendix I, whose fade this is (none for 10 ms, then 20 %
    every 10 ms, silence from 60 ms on); it repeats pitch periods instead of packets.
    """
    numbers = np.arange(len(lost))
    came = np.maximum.accumulate(np.where(lost, -1, numbers))  # -1: none so far
    packets = np.pad(samples, (0, len(lost) * _PACKET - len(samples)))
    packets = packets.reshape(-1, _PACKET)
    # samples since the loss began; negative in a packet that came
    since = (numbers - came - 1)[:, None] * _PACKET + np.arange(_PACKET)
    begin, end = _FADE
    gain = np.clip((end - since) / (end - begin), 0.0, 1.0)
    gain[came < 0] = 0.0
    filled = np.rint(packets[came] * gain).astype(np.int16)
    return filled.reshape(-1)[: len(samples)]


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
    return np.rint(heard * (FULL_SCALE - 1)).astype(np.int16)


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
