"""The bandwidth detector on synthetic speech: what must and must not move it."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

from espnet_smoe.audio import AudioError, resample
from espnet_smoe.bandwidth import UNKNOWN, BandwidthEstimate, detect_bandwidth
from espnet_smoe.spectrogram import Spectrogram, band_edges

# eSpeak NG keeps state, so another process speaks; see corpora/demo_speech.py
SPEAK = """
import sys
import numpy as np
from espnet_smoe.corpora.demo_speech import Delivery, Engine, Voice
engine = Engine()
texts = {
    "she": ("She sells fresh fish at six, does she not?", "f4", 175),
    "he": ("The taxi stops at the station in a quarter of an hour.", "m7", 150),
    "six": ("six", "f4", 220),
    "long": ("Please say your zip code. " * 4, "m3", 165),
}
speech = {
    name: engine.speak(text, Voice("en-us", voice), Delivery(pace), 1) / 32768
    for name, (text, voice, pace) in texts.items()
}
np.savez(sys.argv[1], rate=engine.rate, **speech)
"""
SENTENCES = ("she", "he")


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> dict[str, np.ndarray]:
    """Name -> (S,) float speech at 16 kHz, on the 16-bit grid."""
    path: Path = tmp_path_factory.mktemp("speech") / "speech.npz"
    subprocess.run([sys.executable, "-c", SPEAK, str(path)], check=True)
    with np.load(path) as spoken:
        rate = int(spoken["rate"])
        return {
            name: stored(0.8 * resample(spoken[name], rate, 16_000))
            for name in spoken.files
            if name != "rate"
        }


def stored(samples: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(samples * 32768), -32768, 32767) / 32768


def call_of(wide: np.ndarray) -> np.ndarray:
    """Narrowed to 8 kHz, as 16-bit samples."""
    return stored(resample(wide, 16_000, 8_000))


def widened(call: np.ndarray, rate: int = 16_000) -> np.ndarray:
    return stored(resample(call, 8_000, rate))


def noise(length: int, colour: str, seed: int = 0) -> np.ndarray:
    """(length,) noise, power 1."""
    samples = np.random.default_rng(seed).standard_normal(length)
    if colour == "pink":
        spectrum = np.fft.rfft(samples)
        samples = np.fft.irfft(
            spectrum / np.sqrt(np.arange(1, len(spectrum) + 1)), length
        )
    return samples / samples.std()


def with_noise(samples: np.ndarray, colour: str, snr: float) -> np.ndarray:
    level = samples.std() * 10 ** (-snr / 20)
    return stored(0.7 * (samples + level * noise(len(samples), colour)))


def verdict(samples: np.ndarray, rate: int = 16_000) -> str:
    """Of one estimate, after checking what every estimate promises."""
    before = samples.copy()
    estimate = detect_bandwidth(samples, rate)
    np.testing.assert_array_equal(samples, before)
    assert isinstance(estimate, BandwidthEstimate)
    assert isinstance(estimate.score, float)
    assert abs(estimate.score) <= 60
    if estimate.bandwidth == UNKNOWN:
        assert estimate.score == 0
    else:
        assert estimate.bandwidth == ("wb" if estimate.score > 0 else "nb")
    assert 0 < len(estimate.reason) < 60
    return estimate.bandwidth


# ------------------------------------------------------ narrowband and wideband


@pytest.mark.parametrize("rate", [11_025, 12_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("name", SENTENCES)
def test_bandwidth_is_that_of_the_speech_at_any_rate(speech, name, rate) -> None:
    assert verdict(resample(speech[name], 16_000, rate), rate) == "wb"
    assert verdict(widened(call_of(speech[name]), rate), rate) == "nb"


def test_96_khz_and_8_khz_are_rates_like_any(speech) -> None:
    assert verdict(resample(speech["she"], 16_000, 96_000), 96_000) == "wb"
    call = call_of(speech["she"])
    assert verdict(resample(call, 8_000, 96_000), 96_000) == "nb"
    assert detect_bandwidth(call, 8_000) == BandwidthEstimate(
        "nb", -60.0, "a rate of 8000 Hz holds nothing higher"
    )


def test_a_digit_is_enough(speech) -> None:
    digit = speech["six"][: int(0.4 * 16_000)]
    assert verdict(digit) == "wb"
    assert verdict(widened(call_of(digit))) == "nb"
    assert verdict(call_of(digit), 8_000) == "nb"


@pytest.mark.parametrize("subtype", ["ULAW", "ALAW", "GSM610"])
@pytest.mark.parametrize("name", SENTENCES)
def test_coded_calls_are_narrowband(speech, name, subtype) -> None:
    file = io.BytesIO()
    soundfile.write(file, call_of(speech[name]), 8_000, subtype, format="WAV")
    file.seek(0)
    call = soundfile.read(file)[0]
    assert verdict(call, 8_000) == "nb"
    assert verdict(widened(call)) == "nb"


@pytest.mark.parametrize("colour", ["white", "pink"])
@pytest.mark.parametrize("snr", [5, 10, 15, 20, 30])
@pytest.mark.parametrize("name", SENTENCES)
def test_steady_noise_does_not_widen_a_call(speech, name, snr, colour) -> None:
    call = call_of(speech[name])
    assert verdict(widened(with_noise(call, colour, snr))) == "nb"
    assert verdict(with_noise(widened(call), colour, snr)) == "nb"


@pytest.mark.parametrize("colour", ["white", "pink"])
@pytest.mark.parametrize("snr", [5, 10, 15, 20, 30])
@pytest.mark.parametrize("name", SENTENCES)
def test_steady_noise_does_not_hide_wideband_speech(speech, name, snr, colour) -> None:
    assert verdict(with_noise(speech[name], colour, snr)) == "wb"


def test_the_reason_says_how_high_the_speech_reaches(speech) -> None:
    """Speech of 11.025 kHz is wideband, and less so than the original."""
    cut = resample(resample(speech["she"], 16_000, 11_025), 11_025, 16_000)
    reach = [
        float(detect_bandwidth(x, 16_000).reason.split()[-2])
        for x in (cut, speech["she"])
    ]
    assert 5.0 <= reach[0] <= 5.6
    assert reach[1] >= 6.5


@pytest.mark.parametrize(("pause", "truth"), [(0.1, "wb"), (0.8, "nb")])
def test_only_what_lies_beside_the_speech_counts(speech, pause, truth) -> None:
    """A hiss of 0.25 s above 4.5 kHz, with nothing below: an /s/, or a gas pipe."""
    word = widened(call_of(speech["six"]))
    word = word[: np.flatnonzero(np.abs(word) > 0.1)[-1]]
    hiss = noise(4_000, "white")
    hiss -= resample(resample(hiss, 16_000, 9_000), 9_000, 16_000)[: len(hiss)]
    hiss *= np.hanning(len(hiss))  # no click at its ends
    silence = np.zeros(round(pause * 16_000))
    heard = np.concatenate([word, silence, 0.1 * hiss, np.zeros(16_000)])
    assert verdict(heard + 1e-3 * noise(len(heard), "white")) == truth


# -------------------------------------------------------------- poor resamplers


def _linear(call: np.ndarray) -> np.ndarray:
    return np.interp(np.arange(2 * len(call)) / 2, np.arange(len(call)), call)


def _repeated(call: np.ndarray) -> np.ndarray:
    return np.repeat(call, 2)


def _short_filter(call: np.ndarray) -> np.ndarray:
    return resample_poly(call, 2, 1)


def _torchaudio(call: np.ndarray) -> np.ndarray:
    import torch
    from torchaudio.functional import resample as narrow_filter

    return narrow_filter(torch.from_numpy(call), 8_000, 16_000).numpy()


@pytest.mark.parametrize("widen", [_linear, _repeated, _short_filter, _torchaudio])
@pytest.mark.parametrize("name", SENTENCES)
def test_images_of_a_poor_resampler_do_not_count(speech, name, widen) -> None:
    assert verdict(stored(widen(call_of(speech[name])))) == "nb"
    soft = stored(0.02 * widen(call_of(speech[name])))
    assert verdict(soft) == "nb"


def test_rounding_a_soft_call_at_16_khz_does_not_count(speech) -> None:
    """It hisses while there is speech and not in digital silence."""
    call = call_of(speech["she"])
    call[np.abs(call) < 0.01] = 0
    for level in (0.1, 0.01, 0.003):
        assert verdict(stored(level * resample(call, 8_000, 16_000))) == "nb"


# --------------------------------------------------------------------- unknown


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
@pytest.mark.parametrize("seconds", [0.01, 0.3, 4.0, 31.0])
@pytest.mark.parametrize("level", [0.0, 0.25])
def test_digital_silence_and_a_constant_are_no_speech(rate, seconds, level) -> None:
    silence = np.full(round(seconds * rate), level, np.float32)
    estimate = detect_bandwidth(silence, rate)
    assert estimate == BandwidthEstimate(UNKNOWN, 0.0, "no speech: silence")


@pytest.mark.parametrize("colour", ["white", "pink"])
@pytest.mark.parametrize(("rate", "seconds"), [(8_000, 30), (16_000, 3), (16_000, 0.3)])
def test_noise_alone_is_no_speech(rate, seconds, colour) -> None:
    for seed, level in itertools.product(range(10), (0.2, 0.0002)):
        samples = noise(round(seconds * rate), colour, seed)
        assert verdict(stored(level * samples), rate) == UNKNOWN


def _chords(seconds: float, rate: int) -> np.ndarray:
    """A harmonium: three notes with ten harmonics each, new ones every 0.6 s."""
    rng = np.random.default_rng(4)
    time = np.arange(round(0.6 * rate)) / rate
    fade = np.minimum(1, np.minimum(time, time[::-1]) / 0.02)
    parts = []
    for _ in range(round(seconds / 0.6)):
        notes = 220 * 2 ** (rng.choice(24, 3, replace=False) / 12)
        parts.append(
            sum(
                np.sin(2 * np.pi * note * k * time) / k
                for note in notes
                for k in range(1, 11)
                if note * k < rate / 2
            )
            * fade
        )
    music = np.concatenate(parts)
    return 0.3 * music / np.abs(music).max()


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
@pytest.mark.parametrize("seconds", [6, 24])
def test_music_is_unknown(rate, seconds) -> None:
    estimate = detect_bandwidth(_chords(seconds, rate), rate)
    assert estimate == BandwidthEstimate(UNKNOWN, 0.0, "music")


def test_a_short_sound_is_never_called_music() -> None:
    for seconds in (0.6, 1.8, 2.4):
        sound = np.pad(_chords(seconds, 16_000), 4_000)
        assert detect_bandwidth(sound, 16_000).reason != "music"


# ------------------------------------------------------------------ invariance


@pytest.fixture(params=["wb", "nb", "noisy wb", "noisy nb"])
def case(request, speech) -> tuple[str, np.ndarray]:
    """(truth, samples at 16 kHz)."""
    samples = speech["she"]
    if "nb" in request.param:
        samples = widened(call_of(samples))
    if "noisy" in request.param:
        samples = with_noise(samples, "pink", 20)
    return request.param[-2:], samples


def test_level_sign_and_offset_do_not_matter(case) -> None:
    truth, samples = case
    score = detect_bandwidth(samples, 16_000).score
    for same in (0.01 * samples, 0.3 * samples, -samples, 0.5 * samples + 0.1):
        estimate = detect_bandwidth(same, 16_000)
        assert estimate.bandwidth == truth
        assert estimate.score == pytest.approx(score, abs=1e-3)
    single = (0.01 * samples).astype(np.float32)
    assert detect_bandwidth(single, 16_000).score == pytest.approx(score, abs=0.05)


def test_a_soft_recording_on_the_16_bit_grid_keeps_its_bandwidth(case) -> None:
    truth, samples = case
    for level in (0.01, 0.1):
        assert verdict(stored(level * samples)) == truth


@pytest.mark.parametrize("seconds", [0.5, 5.0])
def test_digital_silence_around_does_not_matter(case, seconds) -> None:
    truth, samples = case
    room = round(seconds * 16_000)
    for before, after in ((room, 0), (0, room), (room, room)):
        assert verdict(np.pad(samples, (before, after))) == truth


def test_a_click_or_a_dropout_does_not_matter(case) -> None:
    truth, samples = case
    loudest = int(np.argmax(np.abs(samples)))
    for place in (loudest, len(samples) // 3):
        clicked, dropped = samples.copy(), samples.copy()
        clicked[place : place + 2] = 0.95
        dropped[place : place + 320] = 0  # 20 ms
        assert verdict(clicked) == truth
        assert verdict(dropped) == truth


@pytest.mark.parametrize("over_db", [3, 6])
def test_clipping_does_not_matter(case, over_db) -> None:
    truth, samples = case
    gain = 10 ** (over_db / 20) / np.abs(samples).max()
    assert verdict(stored(gain * samples)) == truth


# -------------------------------------------------------------- long recordings


def test_a_call_with_hold_music_is_judged_by_its_speech(speech) -> None:
    pause = np.zeros(8_000)
    talk = np.concatenate([speech["long"], pause] * 6)
    for truth, heard in (("wb", talk), ("nb", widened(call_of(talk)))):
        assert verdict(np.concatenate([_chords(30, 16_000), heard])) == truth


def test_the_verdict_is_that_of_most_speech(speech) -> None:
    """A wideband greeting before a long narrowband call, and the other way."""
    talk = speech["long"]
    call = widened(call_of(talk))
    assert verdict(np.concatenate([talk, *[call] * 11])) == "nb"
    assert verdict(np.concatenate([call, *[talk] * 11])) == "wb"


def test_an_hour_takes_no_more_time_and_memory_than_six_minutes(speech) -> None:
    """But for one copy and one pass, of checking the samples."""
    call = call_of(speech["long"]).astype(np.float32)
    spent = []
    for minutes in (6, 60):
        samples = np.resize(call, minutes * 60 * 8_000)
        tracemalloc.start()
        start = time.process_time()
        assert detect_bandwidth(samples, 8_000).bandwidth == "nb"
        spent.append(time.process_time() - start)
        assert tracemalloc.get_traced_memory()[1] < samples.nbytes + 20e6
        tracemalloc.stop()
    assert spent[1] < 3 * spent[0]


# -------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (np.zeros(0), "zero samples"),
        (np.array([0.0, np.nan, 0.1]), "sample 1 is nan"),
        (np.array([np.inf, 0.0]), "sample 0 is inf"),
        (np.zeros(800, np.int16), "float samples, got int16"),
        (np.zeros((2, 800)), "shape"),
        ([0.0] * 800, "shape"),
    ],
)
def test_what_is_no_audio_is_refused(samples, reason: str) -> None:
    with pytest.raises(AudioError, match=reason):
        detect_bandwidth(samples, 16_000)


@pytest.mark.parametrize("rate", [7_999, 0, -8_000])
def test_a_rate_under_8_khz_is_refused(rate: int) -> None:
    with pytest.raises(AudioError, match=f"{rate} Hz is under the lowest, 8000 Hz"):
        detect_bandwidth(np.zeros(800), rate)


@pytest.mark.parametrize("length", [1, 2, 100, 511, 512, 513, 2_000])
def test_any_length_has_an_answer(length: int) -> None:
    assert verdict(noise(length, "white") / 10 if length > 1 else np.ones(1)) == UNKNOWN


# ----------------------------------------------------------------- spectrogram


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100])
def test_a_tone_has_its_power_in_its_band(rate: int) -> None:
    tone = 0.5 * np.sin(2 * np.pi * 1_700 * np.arange(rate) / rate)
    spectrogram = Spectrogram.of(tone, rate)
    powers = spectrogram.bands(band_edges(300, 3_300, 500))
    assert powers.shape == (len(spectrogram.cells), 6)
    np.testing.assert_allclose(powers[:, 2], 0.5**2 / 2, rtol=1e-2)
    assert np.delete(powers, 2, axis=1).max() < 1e-3


def test_cells_add_up_to_the_power_of_noise() -> None:
    samples = noise(40_000, "white")
    cells = Spectrogram.of(samples, 16_000).cells
    assert cells.sum(axis=1).mean() == pytest.approx(1.0, abs=0.02)
