"""Offset, clipping and overload are named where they are, and nowhere else."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
import soundfile

from espnet_smoe.quality import check_quality, is_silent

RATES = [8_000, 16_000, 48_000]


def _speechlike(rate: int, seed: int = 0, seconds: float = 1.5) -> np.ndarray:
    """(S,) float64, peak 1: pulses of a voice through resonances, with pauses."""
    from scipy.signal import lfilter

    rng = np.random.default_rng(seed)
    length = round(seconds * rate)
    pulses = np.zeros(length)
    pulses[:: rate // 120] = 1.0
    loudness = np.abs(np.sin(2 * np.pi * 1.5 * np.arange(length) / rate)) ** 2
    voice = pulses * loudness + 1e-3 * rng.standard_normal(length)
    for hertz, width in ((600, 80), (1_200, 100), (2_500, 150)):
        radius = np.exp(-np.pi * width / rate)
        poles = [1, -2 * radius * np.cos(2 * np.pi * hertz / rate), radius**2]
        voice = lfilter([1.0], poles, voice)
    voice = lfilter([1.0], [1, -0.9], voice)  # louder when low, as voices are
    voice -= voice.mean()
    return voice / np.abs(voice).max()


def _int16(samples: np.ndarray) -> np.ndarray:
    return (np.rint(samples * 32_767) / 32_768).astype(np.float32)


def _mulaw(samples: np.ndarray) -> np.ndarray:
    stored = io.BytesIO()
    soundfile.write(stored, _int16(samples), 8_000, "ULAW", format="WAV")
    stored.seek(0)
    return soundfile.read(stored, dtype="float32")[0]


STORED = {"float": lambda x: x.astype(np.float32), "int16": _int16, "mulaw": _mulaw}


def _kinds(samples: np.ndarray) -> list[str]:
    return [sentence.partition(":")[0] for sentence in check_quality(samples)]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("decibel", [0, -20, -40, -60, -80])
def test_clean_speech_is_clean_however_loud_and_stored(rate, stored, decibel) -> None:
    for seed in range(3):
        speech = _speechlike(rate, seed) * 10 ** (decibel / 20)
        assert check_quality(STORED[stored](speech)) == []


def test_a_sine_is_clean_however_few_levels_it_has() -> None:
    rng = np.random.default_rng(0)
    for _ in range(400):
        rate = rng.choice(RATES)
        hertz = rng.choice([rng.uniform(60, rate / 2), 100, 440, 1_000, rate / 4])
        phase = rng.choice([0.0, np.pi / 16, np.pi / 4, rng.uniform(0, 6.3)])
        time = np.arange(rate) / rate
        wave = 10 ** rng.uniform(-4, 0) * np.sin(2 * np.pi * hertz * time + phase)
        for store in STORED.values():
            assert "clipped" not in _kinds(store(wave)), (rate, hertz, phase)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("gain", [1.0, 0.3, 0.01])
@pytest.mark.parametrize("share", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("stored", ["float", "int16"])
def test_clipping_is_measured_also_when_scaled_down(rate, gain, share, stored) -> None:
    speech = _speechlike(rate)
    limit = np.quantile(np.abs(speech), 1 - share)
    clipped = STORED[stored](gain * np.clip(speech / limit, -1, 1))
    sentence = check_quality(clipped)[-1]  # hard clipping moves the mean as well
    said = re.fullmatch(
        r"clipped: ([\d.]+) % of the samples sit at the largest value, "
        r"([\d.]+) of full scale",
        sentence,
    )
    assert said, sentence
    assert float(said[1]) / 100 == pytest.approx(share, rel=0.05)
    assert float(said[2]) == pytest.approx(gain, abs=1e-3)


def test_clipped_telephone_speech_and_one_sided_clipping_are_seen() -> None:
    speech = _speechlike(8_000)
    assert "clipped" in _kinds(_mulaw(np.clip(20 * speech, -1, 1)))
    for side in (speech, -speech):
        assert "clipped" in _kinds(_int16(np.minimum(side, 0.2)))


@pytest.mark.parametrize("gain", [1.0, 0.1, 0.01])
def test_an_offset_is_named_with_its_size(gain: float) -> None:
    speech = gain * 0.5 * _speechlike(16_000)
    rms = np.sqrt(np.mean(speech**2))
    assert check_quality(speech + 0.05 * rms) == []
    for relative in (0.2, -0.2):
        [sentence] = check_quality(speech + relative * rms)
        mean, share = re.findall(r"-?[\d.]+", sentence)
        assert float(mean) == pytest.approx(relative * rms, abs=6e-5)
        assert float(share) == 20  # 0.2 / sqrt(1 + 0.2 ** 2), in per cent
        assert sentence.startswith("DC offset: the mean is ")


def test_what_lies_beyond_full_scale_is_counted() -> None:
    samples = _speechlike(16_000)
    samples[100:200] = np.linspace(-1.4, 1.5, 100)
    beyond = 100 * np.mean(np.abs(samples) > 1)
    [sentence] = check_quality(samples)
    assert sentence == (
        f"too loud: {beyond:.2g} % of the samples lie beyond full scale, up to 1.5, "
        "and are clipped"
    )
    samples[100:200] = np.linspace(-1.0, 1.0, 100)
    assert check_quality(samples) == []


def test_a_dead_channel_is_silent_and_nothing_else_is() -> None:
    for level in (0.0, 0.1, -1.0):
        assert is_silent(np.full(1_000, level, np.float32))
    assert is_silent(np.zeros(1))
    assert check_quality(np.zeros(1_000, np.float32)) == ["silent: all samples are 0"]
    assert check_quality(np.full(1_000, 0.1)) == ["silent: all samples are 0.1"]
    quiet = np.zeros(1_000, np.float32)
    quiet[999] = 1 / 32_768
    assert not is_silent(quiet)


def test_the_samples_are_left_alone_and_every_fault_is_one_line() -> None:
    samples = np.clip(3 * _speechlike(16_000) + 0.4, -1.5, 1.5).astype(np.float32)
    before = samples.copy()
    sentences = check_quality(samples)
    np.testing.assert_array_equal(samples, before)
    assert [s.partition(":")[0] for s in sentences] == [
        "DC offset",
        "clipped",
        "too loud",
    ]
    assert not any("\n" in s or s.endswith(".") for s in sentences)
