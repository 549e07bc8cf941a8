"""What the one resampler lets through, in dB, and that everything hears through it.

Measured, relative to the tone: aliases under -127 dB, images under -130 dB, ripple
under 0.011 dB up to 0.92 of the lower Nyquist frequency. From there to 1.0 lies the
transition band, which aliases into nothing: -3 dB at 0.95, -33 dB at 0.98.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_smoe.audio import resample, to_model_rate
from espnet_smoe.datadir import Utterance, read_datadir, write_datadir
from espnet_smoe.dump import dump, load_dumped
from espnet_smoe.guide import GuideTable
from espnet_smoe.query import make_query

DOWN = [(48_000, 16_000), (44_100, 16_000), (96_000, 16_000), (16_000, 8_000)]
UP = [(8_000, 16_000), (11_025, 16_000)]
AMPLITUDE = 0.5
PASS_BAND = 0.92  # of the lower Nyquist frequency


def _tone(hertz: float, rate: int) -> np.ndarray:
    """(rate,) float32, one second."""
    phase = 2 * np.pi * hertz * np.arange(rate) / rate
    return (AMPLITUDE * np.sin(phase)).astype(np.float32)


def _inner(samples: np.ndarray) -> np.ndarray:
    """Without the ends, where the tone switches on and off."""
    margin = len(samples) // 8
    return samples[margin:-margin].astype(float)


def _decibel(amplitude: float) -> float:
    return 20 * np.log10(amplitude / AMPLITUDE + 1e-12)


def _level(samples: np.ndarray) -> float:
    """dB relative to the tone that was put in."""
    return _decibel(np.sqrt(2 * np.mean(_inner(samples) ** 2)))


def _spectrum(samples: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies in Hz and amplitudes of a tone there; side lobes under -160 dB."""
    samples = _inner(samples)
    window = np.kaiser(len(samples), 24)
    lines = 2 * np.abs(np.fft.rfft(samples * window)) / window.sum()
    return np.fft.rfftfreq(len(samples), 1 / rate), lines


@pytest.mark.parametrize(("rate", "new_rate"), DOWN)
def test_no_alias_of_what_the_new_rate_cannot_hold(rate: int, new_rate: int) -> None:
    nyquist = new_rate / 2
    near = nyquist * np.linspace(1.0, 1.2, 21)
    far = np.linspace(1.2 * nyquist, 0.999 * rate / 2, 20)
    for hertz in np.concatenate([near, far]):
        left = resample(_tone(hertz, rate), rate, new_rate)
        assert _level(left) < -120, hertz


@pytest.mark.parametrize(("rate", "new_rate"), UP)
def test_no_image_above_what_the_old_rate_held(rate: int, new_rate: int) -> None:
    nyquist = rate / 2
    for hertz in nyquist * np.linspace(0.05, 0.98, 40):
        where, lines = _spectrum(resample(_tone(hertz, rate), rate, new_rate), new_rate)
        assert _decibel(lines[where > nyquist + 20].max()) < -120, hertz


@pytest.mark.parametrize(("rate", "new_rate"), DOWN + UP)
def test_the_pass_band_is_flat_and_the_transition_band_narrow(rate, new_rate) -> None:
    nyquist = min(rate, new_rate) / 2

    def level(share: float) -> float:
        hertz = 4 * round(share * nyquist / 4)  # whole periods in three quarters
        return _level(resample(_tone(hertz, rate), rate, new_rate))

    levels = [level(share) for share in np.linspace(0.02, PASS_BAND, 40)]
    assert np.abs(levels).max() < 0.02
    assert -3 < level(0.95) < -0.1


@pytest.mark.parametrize("rate", [44_100, 48_000, 96_000])
def test_on_the_16_bit_grid_an_alias_is_at_most_one_step(rate: int) -> None:
    for hertz in (8_000, 8_100, 9_000, 12_000, 15_900, 20_000):
        assert np.abs(_inner(to_model_rate(_tone(hertz, rate), rate))).max() <= 2**-15


@pytest.mark.parametrize(
    ("rate", "codec"),
    [
        *((8_000, "PCM_16"), (8_000, "ULAW"), (11_025, "PCM_16"), (16_000, "PCM_16")),
        *(
            (16_000, "FLOAT"),
            (44_100, "PCM_24"),
            (48_000, "PCM_16"),
            (96_000, "PCM_24"),
        ),
    ],
)
def test_training_decoding_and_api_hear_the_same_bits(
    tmp_path: Path, rate: int, codec: str
) -> None:
    rng = np.random.default_rng(rate)
    path = tmp_path / "a.wav"
    # 0.4 s of noise, some of it clipped by the resampler's overshoot
    soundfile.write(path, rng.uniform(-1, 1, 2 * rate // 5), rate, subtype=codec)
    bandwidth = "nb" if rate == 8_000 else "wb"
    utt = Utterance(
        id="a",
        audio=str(path),
        speaker="s",
        fs=rate,
        num_samples=2 * rate // 5,
        guides={"bandwidth": bandwidth},
        texts={"asr": "a"},
    )
    write_datadir(tmp_path / "data", [utt])
    dump(tmp_path / "data", tmp_path / "dump", nj=1)
    [dumped] = read_datadir(tmp_path / "dump")
    trained_on = load_dumped(dumped)  # what decoding reads as well
    table = GuideTable.from_mapping({"bandwidth": ["nb", "wb"], "task": ["asr"]})
    asked = make_query(table, path, None, "asr", bandwidth, None, None)
    np.testing.assert_array_equal(asked.samples, trained_on)
    assert len(trained_on) == pytest.approx(0.4 * 16_000, abs=1)
    samples, _ = soundfile.read(path, dtype="float32")
    array = make_query(table, samples, rate, "asr", bandwidth, None, None)
    np.testing.assert_array_equal(array.samples, trained_on)
