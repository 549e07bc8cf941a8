"""The telephone line and the microphone of the demo corpus."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_smoe.telephone import (
    Microphone,
    TelephoneLine,
    mulaw_decode,
    mulaw_encode,
    through_microphone,
    through_telephone,
)

RATE = 22_050
QUIET = (120.0, 120.0)  # dB: no noise to speak of
EVERY_SAMPLE = np.arange(-32_768, 32_768).astype(np.int16)


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _tone(hertz: float, seconds: float = 2.0) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)


def _dbfs(samples: np.ndarray) -> float:
    return 10 * np.log10(np.mean((samples / 32_768) ** 2))


def test_the_mulaw_code_equals_libsndfiles_for_every_sample(tmp_path: Path) -> None:
    path = tmp_path / "every.au"
    soundfile.write(path, EVERY_SAMPLE, 8_000, subtype="ULAW")
    stored = np.frombuffer(path.read_bytes()[-len(EVERY_SAMPLE) :], np.uint8)
    codes = mulaw_encode(EVERY_SAMPLE)
    np.testing.assert_array_equal(codes, stored)
    np.testing.assert_array_equal(
        mulaw_decode(codes), soundfile.read(path, dtype="int16")[0]
    )


def test_decoded_mulaw_is_encoded_without_loss() -> None:
    once = mulaw_decode(mulaw_encode(EVERY_SAMPLE))
    np.testing.assert_array_equal(mulaw_decode(mulaw_encode(once)), once)
    assert len(np.unique(once)) == 255  # +0 and -0 are one value


def test_a_call_stored_as_mulaw_is_read_back_exactly(tmp_path: Path) -> None:
    call = through_telephone(_tone(1_000), RATE, TelephoneLine(), _rng())
    path = tmp_path / "call.wav"
    soundfile.write(path, call, 8_000, subtype="ULAW")
    np.testing.assert_array_equal(soundfile.read(path, dtype="int16")[0], call)


@pytest.mark.parametrize(
    ("hertz", "edge", "loss"),
    [(300, 3_400, 3), (2_800, 2_800, 3), (3_400, 3_400, 3), (1_000, 3_400, 0)],
)
def test_the_band_ends_at_its_edges(hertz: int, edge: int, loss: float) -> None:
    """The level is set after the band-pass, so compare with a tone in the band."""
    both = _tone(hertz) + _tone(1_200)
    line = TelephoneLine(high_edge_hz=(edge, edge), snr_db=QUIET)
    call = through_telephone(both, RATE, line, _rng())[2_000:10_000]
    lines = np.abs(np.fft.rfft(call.astype(float)))  # 1 Hz apart
    assert 20 * np.log10(lines[1_200] / lines[hertz]) == pytest.approx(loss, abs=0.4)


@pytest.mark.parametrize("hertz", [60, 100, 3_800, 5_000, 7_000])
def test_what_lies_outside_the_band_is_lost(hertz: int) -> None:
    both = _tone(hertz) + _tone(1_200)
    call = through_telephone(both, RATE, TelephoneLine(snr_db=QUIET), _rng())
    lines = np.abs(np.fft.rfft(call[2_000:10_000].astype(float)))
    folded = hertz if hertz < 4_000 else 8_000 - hertz
    assert lines[folded] < lines[1_200] * 10 ** (-35 / 20)


@pytest.mark.parametrize("level", [-40.0, -20.0])
def test_the_level_is_in_db_to_full_scale(level: float) -> None:
    quiet = {"level_dbfs": (level, level), "snr_db": QUIET}
    call = through_telephone(_tone(1_000), RATE, TelephoneLine(**quiet), _rng())
    wide = through_microphone(_tone(1_000), RATE, Microphone(**quiet), _rng())
    assert _dbfs(call) == pytest.approx(level, abs=0.3)
    assert _dbfs(wide) == pytest.approx(level, abs=0.1)


@pytest.mark.parametrize("snr", [5.0, 20.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_noise_has_the_level_asked_for(snr: float, seed: int) -> None:
    """Four seeds: white and pink noise both come up."""
    fixed = {"level_dbfs": (-26.0, -26.0), "snr_db": (snr, snr)}
    line = TelephoneLine(high_edge_hz=(3_400.0, 3_400.0), **fixed)
    for heard, clean in (
        (
            through_telephone(_tone(1_000), RATE, line, _rng(seed)),
            through_telephone(
                _tone(1_000), RATE, replace(line, snr_db=QUIET), _rng(seed)
            ),
        ),
        (
            through_microphone(_tone(1_000), RATE, Microphone(**fixed), _rng(seed)),
            through_microphone(
                _tone(1_000), RATE, Microphone((-26.0, -26.0), QUIET), _rng(seed)
            ),
        ),
    ):
        noise = heard.astype(float) - clean
        assert _dbfs(clean) - _dbfs(noise) == pytest.approx(snr, abs=0.5)


def test_calls_differ_and_one_seed_gives_one_call() -> None:
    speech = _tone(1_000)
    calls = [
        through_telephone(speech, RATE, TelephoneLine(), _rng(s)) for s in (1, 1, 2)
    ]
    np.testing.assert_array_equal(calls[0], calls[1])
    assert (calls[0] != calls[2]).any()


def test_loud_speech_is_turned_down_not_clipped() -> None:
    loud = {"level_dbfs": (0.0, 0.0), "snr_db": QUIET}
    wide = through_microphone(_tone(1_000), RATE, Microphone(**loud), _rng())
    assert 0.97 < np.abs(wide.astype(float)).max() / 32_768 < 0.99
    lines = np.abs(np.fft.rfft(wide[8_000:24_000].astype(float)))
    assert 20 * np.log10(lines[1_000] / lines[3_000]) > 60  # no third harmonic


def test_rates_and_lengths_are_those_of_the_medium() -> None:
    speech = _tone(1_000, seconds=1.5)
    call = through_telephone(speech, RATE, TelephoneLine(), _rng())
    wide = through_microphone(speech, RATE, Microphone(), _rng())
    assert call.dtype == wide.dtype == np.int16
    assert abs(len(call) - 12_000) <= 1
    assert abs(len(wide) - 24_000) <= 1
