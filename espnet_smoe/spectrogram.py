"""Power over time and frequency, and what in it stands out or stays.

The measures under ``bandwidth``: bands of a spectrogram, how far they rise above
their own floor, and how music-like they are. Frequencies in Hz, one frame each
``HOP`` seconds.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

__all__ = [
    "HOP",
    "WINDOW",
    "Spectrogram",
    "band_edges",
    "decibel",
    "floor_of",
    "running_median",
    "syllable_share",
    "tonal_steadiness",
]

HOP = 0.010  # s, from one frame to the next
WINDOW = 0.032  # s
_TINY = 1e-30  # keeps logarithms finite, far under any 16-bit sample's power
_FLOOR_PERCENTILE = 15.0  # of frames: the quiet ones, yet not the few quietest
_MEDIAN_FRAMES = 9  # a click fills 4 frames, with a dropout's two ends less than 9
_TONE_WINDOW = 0.064  # s: tells harmonics apart
_TONE_BAND = (200.0, 3_600.0)  # Hz; the same in both bandwidths
_TONE_LAG = 13  # frames: longer than a vowel holds its pitch, shorter than a note
_TONE_NEIGHBOURS = 21  # bins of 15.6 Hz: wider than the gap between harmonics
_SYLLABLES = (2.5, 6.5)  # Hz, per second
_MODULATIONS = (0.3, 20.0)  # Hz


@dataclass(frozen=True)
class Spectrogram:
    """Power of a signal in cells of time and frequency.

    Args:
        cells: (T, F) power; the sum over F is the mean square of the frame.
        frequencies: (F,) of the bins, Hz.
    """

    cells: np.ndarray
    frequencies: np.ndarray

    @classmethod
    def of(cls, samples: np.ndarray, rate: int, window: float = WINDOW) -> Spectrogram:
        """Of (S,) float samples at ``rate`` Hz, in Hann windows of ``window`` s.

        Frame t starts at sample ``round(HOP * rate) * t``; only a signal shorter
        than one window is padded.
        """
        length, hop = round(window * rate), round(HOP * rate)
        samples = np.pad(samples, (0, max(0, length - len(samples))))
        frames = np.lib.stride_tricks.sliding_window_view(samples, length)[::hop]
        hann = np.hanning(length + 1)[:-1]
        cells = np.abs(np.fft.rfft(frames * hann, axis=1)) ** 2
        cells *= 2 / (length * (hann**2).sum())
        return cls(cells, np.fft.rfftfreq(length, 1 / rate))

    def bands(self, edges: np.ndarray) -> np.ndarray:
        """(T, K) power between neighbours of ``edges`` (K + 1,), Hz."""
        first = np.searchsorted(self.frequencies, edges)
        parts = itertools.pairwise(first)
        return np.stack([self.cells[:, a:b].sum(axis=1) for a, b in parts], axis=1)


def band_edges(low: float, high: float, width: float) -> np.ndarray:
    """(K + 1,) edges of equal bands from ``low`` to ``high`` Hz, about ``width``."""
    return np.linspace(low, high, max(1, round((high - low) / width)) + 1)


def running_median(powers: np.ndarray) -> np.ndarray:
    """Median over 90 ms of (T, K) powers: steady stretches stay, clicks vanish."""
    from scipy.ndimage import median_filter

    return median_filter(powers, size=(_MEDIAN_FRAMES, 1), mode="nearest")


def floor_of(powers: np.ndarray) -> np.ndarray:
    """(K,) power of the quiet frames of (T, K): the noise, where there is any."""
    return np.percentile(powers, _FLOOR_PERCENTILE, axis=0)


def tonal_steadiness(samples: np.ndarray, rate: int) -> float:
    """How alike the fine spectrum is 130 ms later: about 0 in speech, 1 for a chord.

    The median over loud frames of the correlation between log spectra, each less
    its local mean over frequency. Harmonics of speech glide, those of notes stay.
    The thought is that of continuous frequency activation (Seyerlehner et al.,
    "Automatic music detection in television productions", DAFx 2007).

    Args:
        samples: (S,) float; the measure means little on less than 3 s.
        rate: Hz.
    """
    from scipy.ndimage import uniform_filter1d

    spectrogram = Spectrogram.of(samples, rate, _TONE_WINDOW)
    low, high = np.searchsorted(spectrogram.frequencies, _TONE_BAND)
    cells = spectrogram.cells[:, low:high]
    if len(cells) <= _TONE_LAG:
        return 0.0
    level = cells.sum(axis=1)
    loud = level > 1e-4 * np.percentile(level, 95)
    logs = decibel(cells)
    fine = logs - uniform_filter1d(logs, _TONE_NEIGHBOURS, axis=1)
    size = np.sqrt((fine**2).mean(axis=1))
    now, later = slice(None, -_TONE_LAG), slice(_TONE_LAG, None)
    alike = (fine[now] * fine[later]).mean(axis=1)
    alike /= np.maximum(size[now] * size[later], _TINY)
    both = loud[now] & loud[later]
    return float(np.median(alike[both])) if both.any() else 0.0


def syllable_share(powers: np.ndarray) -> float:
    """Share of (T, K) powers' changes at the rate of syllables, 0..1.

    Of the modulation energy from 0.3 to 20 Hz, what lies at 2.5 to 6.5 Hz. Source:
    "4 Hz modulation energy" of Scheirer and Slaney, "Construction and evaluation of
    a robust multifeature speech/music discriminator", ICASSP 1997.
    """
    envelopes = np.sqrt(powers)
    envelopes = envelopes / np.maximum(envelopes.mean(axis=0), _TINY) - 1
    hann = np.hanning(len(envelopes))[:, np.newaxis]
    energy = (np.abs(np.fft.rfft(envelopes * hann, axis=0)) ** 2).sum(axis=1)
    rates = np.fft.rfftfreq(len(envelopes), HOP)

    def between(low: float, high: float) -> float:
        return energy[(rates > low) & (rates < high)].sum()

    return float(between(*_SYLLABLES) / max(between(*_MODULATIONS), _TINY))


def decibel(powers: np.ndarray) -> np.ndarray:
    """10 log10 of powers, finite for zero."""
    return 10 * np.log10(np.maximum(powers, _TINY))
