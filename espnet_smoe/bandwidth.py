"""Effective bandwidth: how high the speech in a recording reaches, whatever its rate.

An 8 kHz call stored at 16 kHz is still narrowband. ``detect_bandwidth`` listens to
the speech and ignores the header. No training data and no learned model: it asks
whether anything above 4.5 kHz comes and goes with the speech, loud enough to be
speech and other than a mirror image of what lies below 4 kHz. Measured figures and
limits: ``docs/detector.md``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from espnet_smoe.audio import NARROWBAND_RATE, AudioError, check_samples
from espnet_smoe.spectrogram import (
    HOP,
    WINDOW,
    Spectrogram,
    band_edges,
    decibel,
    floor_of,
    running_median,
    syllable_share,
    tonal_steadiness,
)

__all__ = ["UNKNOWN", "BandwidthEstimate", "detect_bandwidth"]

UNKNOWN = "unknown"

_PIECE = 15.0  # s judged at a time: noise changes little within it
_MOST_PIECES = 20  # of a longer recording so many, evenly spaced, are judged

_TELEPHONE_BAND = (300.0, 3_300.0)  # Hz
_HIGH_BAND = (4_500.0, 7_500.0)  # Hz; starts above the slope of good resamplers
_TOP = 0.45  # of the rate: below the slope of whatever made that rate
_LEAST_HIGH_BAND = 400.0  # Hz; so 11.025 kHz has one and 10 kHz has none
_BAND_WIDTH = 500.0  # Hz

_GATED = 1e-6  # of the loudest power: digital silence, not the noise of a room
_SPEECH_RISE = 2.5  # dB above the floor; steady noise stays under it
_SPEECH_FRAMES = 6  # at least so many rise
_SPEECH_DEPTH = 30.0  # dB under the loud frames: quieter ones are pauses
_AROUND = 20  # frames beside them belong to the speech: unvoiced sounds
_PEAK = 98.0  # percentile of frames: one /s/ in a sentence

_HIGH_RISE = 2.3  # dB above the floor; steady noise stays under it
_HIGH_LEVEL = -60.0  # dB beside the speech; what codecs leave stays under it
_BAND_RISE = 5.0  # dB above the floor, of a single band that speech reaches
_IMAGE_SPREAD = 4.0  # dB; images of narrowband speech stay under it
_IMAGE_RISE = 8.0  # times the floor: cells that noise does not rule
_IMAGE_CELLS = 40  # fewer say nothing
_LEAST_CLEAN = 0.2  # of the speech frames, without clipped ones
_LARGEST_SCORE = 60.0  # dB

_MUSIC_SECONDS = 3.0  # less sound is never called music
_STEADY, _VERY_STEADY = 0.17, 0.31  # tonal steadiness
_FEW_SYLLABLES = 0.36  # syllable share


@dataclass(frozen=True)
class BandwidthEstimate:
    """What ``detect_bandwidth`` found.

    Args:
        bandwidth: ``nb``, ``wb`` or ``UNKNOWN``.
        score: margin in dB, in [-60, 60]: above 0 wideband, otherwise narrowband;
            0.0 if unknown. The least of three margins: how far the band above
            4.5 kHz rises with the speech, how loud it is beside the speech, how
            freely it moves against the band below 4 kHz; each less the most that
            narrowband speech shows. Between -2 and 0, noise may hide the band.
        reason: a short clause for people.
    """

    bandwidth: str
    score: float
    reason: str


_SILENCE = BandwidthEstimate(UNKNOWN, 0.0, "no speech: silence")
_NOISE = BandwidthEstimate(UNKNOWN, 0.0, "no speech: nothing but steady noise")
_MUSIC = BandwidthEstimate(UNKNOWN, 0.0, "music")


def detect_bandwidth(samples: np.ndarray, rate: int) -> BandwidthEstimate:
    """Say whether the speech in a recording is narrowband or wideband.

    Level, sign, offset and digital silence around the speech do not matter. The
    recording is judged in pieces of up to 15 s, and the verdict is the median of
    those with speech. Of more than 5 minutes, 20 evenly spaced pieces are judged,
    so that time and memory stay bounded.

    Args:
        samples: (S,) float, full scale 1.0.
        rate: Hz, at least 8000.

    Raises:
        AudioError: ``samples`` are no audio, or ``rate`` is under 8 kHz.
    """
    check_samples(samples, "audio")
    if rate < NARROWBAND_RATE:
        raise AudioError(
            f"audio: a rate of {rate} Hz is under the lowest, {NARROWBAND_RATE} Hz"
        )
    found = [_judge(piece, rate) for piece in _pieces(samples, rate)]
    heard = sorted((e for e in found if e.bandwidth != UNKNOWN), key=lambda e: e.score)
    if heard and 2 * len(heard) >= found.count(_MUSIC):
        return heard[len(heard) // 2]
    return next(e for e in (_MUSIC, _NOISE, _SILENCE) if e in found)


def _pieces(samples: np.ndarray, rate: int) -> Iterator[np.ndarray]:
    """Pieces of at most 15 s, float64, with a peak of 1 (or all zero)."""
    count = -(-len(samples) // round(_PIECE * rate))
    length = -(-len(samples) // count)
    starts = np.linspace(0, len(samples) - length, min(count, _MOST_PIECES))
    for start in starts.astype(int):
        piece = samples[start : start + length].astype(np.float64)
        if np.ptp(piece) == 0:
            yield np.zeros_like(piece)
            continue
        yield piece / np.abs(piece).max()


def _judge(piece: np.ndarray, rate: int) -> BandwidthEstimate:
    if not piece.any():
        return _SILENCE
    spectrogram = Spectrogram.of(piece, rate)
    low = spectrogram.bands(band_edges(*_TELEPHONE_BAND, _BAND_WIDTH))
    speech, sound = _speech_frames(low)
    if not speech.any():
        return _NOISE
    if speech.sum() * HOP >= _MUSIC_SECONDS and _is_music(piece, rate, low):
        return _MUSIC
    top = min(_HIGH_BAND[1], _TOP * rate)
    if top < _HIGH_BAND[0] + _LEAST_HIGH_BAND:
        return BandwidthEstimate(
            "nb", -_LARGEST_SCORE, f"a rate of {rate} Hz holds nothing higher"
        )
    clean = ~_clipped_frames(piece, rate, len(low))
    if (speech & clean).sum() >= _LEAST_CLEAN * speech.sum():
        speech, sound = speech & clean, sound & clean
    edges = band_edges(_HIGH_BAND[0], top, _BAND_WIDTH)
    rounding = _rounding_power(piece) * np.diff(edges) / (rate / 2)
    return _weigh(spectrogram, edges, rounding, speech, sound)


def _speech_frames(low: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames that rise above steady noise, and frames with any sound at all.

    Args:
        low: (T, K) powers of the telephone band.

    Returns:
        (T,) bool, with 0.2 s before and after each frame that rises, for the
        unvoiced sounds; and (T,) bool, all but digital silence.
    """
    from scipy.ndimage import binary_dilation

    smooth = running_median(low)
    level = smooth.sum(axis=1)
    sound = level > _GATED * level.max()
    if not sound.any():
        return sound, sound
    rises = sound & (_rise(smooth, floor_of(smooth[sound])) > _SPEECH_RISE)
    if rises.sum() < _SPEECH_FRAMES:
        return np.zeros_like(sound), sound
    loud = decibel(level)
    speech = rises & (loud > np.percentile(loud[rises], 95) - _SPEECH_DEPTH)
    return sound & binary_dilation(speech, iterations=_AROUND), sound


def _is_music(piece: np.ndarray, rate: int, low: np.ndarray) -> bool:
    steadiness = tonal_steadiness(piece, rate)
    if steadiness < _STEADY:
        return False
    return steadiness > _VERY_STEADY or syllable_share(low) < _FEW_SYLLABLES


def _weigh(
    spectrogram: Spectrogram,
    edges: np.ndarray,
    rounding: np.ndarray,
    speech: np.ndarray,
    sound: np.ndarray,
) -> BandwidthEstimate:
    """Compare the bands between ``edges`` (K + 1,), Hz, with their own floor, with
    the speech and with its mirror image; the weakest comparison decides.

    Args:
        rounding: (K,) power that rounding the samples puts into each band.
        speech, sound: (T,) bool, as of ``_speech_frames``.
    """
    powers = running_median(spectrogram.bands(edges)[sound])
    floor = np.maximum(floor_of(powers), 2 * rounding)
    powers = powers[speech[sound]]
    voice = spectrogram.bands(np.array(_TELEPHONE_BAND))[speech, 0]
    voice = np.percentile(voice, 95)
    excess = np.maximum(powers - floor, 0).sum(axis=1)
    rise = np.percentile(_rise(powers, floor), _PEAK)
    level = decibel(np.percentile(excess, _PEAK) / voice)
    spread = _image_spread(spectrogram, edges, floor, speech)
    margins = {
        "nothing above 4.5 kHz rises with the speech": rise - _HIGH_RISE,
        "nothing of the speech above 4.5 kHz": level - _HIGH_LEVEL,
        "above 4 kHz only a mirror image of what is below": spread - _IMAGE_SPREAD,
    }
    reason, score = min(margins.items(), key=lambda item: item[1])
    score = float(np.clip(score, -_LARGEST_SCORE, _LARGEST_SCORE))
    if score <= 0:
        return BandwidthEstimate("nb", score, reason)
    peaks = np.percentile(powers, _PEAK, axis=0)
    rises = decibel(peaks / np.maximum(floor, 1e-30)) > _BAND_RISE
    reached = edges[1:][rises & (decibel(peaks / voice) > _HIGH_LEVEL)]
    highest = max(reached, default=edges[1])
    return BandwidthEstimate("wb", score, f"speech up to {highest / 1000:.1f} kHz")


def _rise(powers: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """(T,) dB by which (T, K) powers exceed their floors (K,), mean over bands."""
    return decibel((powers / np.maximum(floor, 1e-30)).mean(axis=1))


def _image_spread(
    spectrogram: Spectrogram, edges: np.ndarray, floor: np.ndarray, speech: np.ndarray
) -> float:
    """How freely the high band moves against its mirror below 4 kHz, dB.

    A resampler that lets images through puts f at 8 kHz - f, weaker by an amount
    that depends on f alone. So the ratio of the two varies little over time (its
    standard deviation, pooled over bins, is returned), while in wideband speech
    either side has a life of its own. Infinite where too few cells stand out.
    """
    frequencies = spectrogram.frequencies
    first, last = np.searchsorted(frequencies, (edges[0], edges[-1]))
    bins = np.arange(first, last)
    mirror = np.rint((NARROWBAND_RATE - frequencies[bins]) / frequencies[1])
    high = spectrogram.cells[speech, first:last]
    low = spectrogram.cells[speech][:, mirror.astype(int)]
    band = np.searchsorted(edges, frequencies[bins], side="right") - 1
    quiet = floor[band] / np.bincount(band)[band]
    stands_out = high > np.maximum(_IMAGE_RISE * quiet, 1e-10 * low.max())
    count = stands_out.sum(axis=0)
    if count.sum() < _IMAGE_CELLS:
        return np.inf
    ratio = np.where(stands_out, decibel(high) - decibel(low), 0.0)
    usual = ratio.sum(axis=0) / np.maximum(count, 1)
    squares = np.where(stands_out, (ratio - usual) ** 2, 0.0).sum()
    return float(np.sqrt(squares / max(1, np.maximum(count - 1, 0).sum())))


def _clipped_frames(piece: np.ndarray, rate: int, count: int) -> np.ndarray:
    """(``count``,) bool: frames that touch two neighbours at the end of the range.

    Clipping makes harmonics at any frequency.
    """
    margin = 1e-3 * np.ptp(piece)
    pinned = (piece >= piece.max() - margin) | (piece <= piece.min() + margin)
    pinned[1:] &= pinned[:-1]
    total = np.concatenate([[0], np.cumsum(pinned)])
    starts = np.minimum(np.arange(count) * round(HOP * rate), len(piece))
    ends = np.minimum(starts + round(WINDOW * rate), len(piece))
    return total[ends] > total[starts]


def _rounding_power(piece: np.ndarray) -> float:
    """Power of the error that put the samples on their grid (step ** 2 / 12).

    It is there while somebody speaks and gone in digital silence, as speech is.
    """
    return float(np.diff(np.unique(piece)).min() ** 2 / 12)
