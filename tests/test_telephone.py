"""The telephone line and the microphone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import butter, sosfilt

from espnet_smoe.audio import resample
from espnet_smoe.codec import CODECS, through_codec
from espnet_smoe.config import ConfigError
from espnet_smoe.telephone import (
    Microphone,
    TelephoneLine,
    _conceal,
    through_microphone,
    through_telephone,
)

RATE = 22_050
QUIET = (120.0, 120.0)  # dB: no noise to speak of
MULAW = TelephoneLine(codecs=("mulaw",))


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _tone(hertz: float, seconds: float = 2.0) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)


def _dbfs(samples: np.ndarray) -> float:
    return 10 * np.log10(np.mean((samples / 32_768) ** 2))


def test_a_call_stored_as_mulaw_is_read_back_exactly(tmp_path: Path) -> None:
    call = through_telephone(_tone(1_000), RATE, MULAW, _rng())
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
    line = replace(MULAW, high_edge_hz=(edge, edge), snr_db=QUIET)
    call = through_telephone(both, RATE, line, _rng())[2_000:10_000]
    lines = np.abs(np.fft.rfft(call.astype(float)))  # 1 Hz apart
    assert 20 * np.log10(lines[1_200] / lines[hertz]) == pytest.approx(loss, abs=0.4)


@pytest.mark.parametrize("hertz", [60, 100, 3_800, 5_000, 7_000])
def test_what_lies_outside_the_band_is_lost(hertz: int) -> None:
    both = _tone(hertz) + _tone(1_200)
    call = through_telephone(both, RATE, replace(MULAW, snr_db=QUIET), _rng())
    lines = np.abs(np.fft.rfft(call[2_000:10_000].astype(float)))
    folded = hertz if hertz < 4_000 else 8_000 - hertz
    assert lines[folded] < lines[1_200] * 10 ** (-35 / 20)


@pytest.mark.parametrize("level", [-40.0, -20.0])
def test_the_level_is_in_db_to_full_scale(level: float) -> None:
    quiet = {"level_dbfs": (level, level), "snr_db": QUIET}
    call = through_telephone(_tone(1_000), RATE, replace(MULAW, **quiet), _rng())
    wide = through_microphone(_tone(1_000), RATE, Microphone(**quiet), _rng())
    assert _dbfs(call) == pytest.approx(level, abs=0.3)
    assert _dbfs(wide) == pytest.approx(level, abs=0.1)


@pytest.mark.parametrize("snr", [5.0, 20.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_noise_has_the_level_asked_for(snr: float, seed: int) -> None:
    """Four seeds: white and pink noise both come up."""
    fixed = {"level_dbfs": (-26.0, -26.0), "snr_db": (snr, snr)}
    line = replace(MULAW, high_edge_hz=(3_400.0, 3_400.0), **fixed)
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


DEMO = TelephoneLine(
    high_edge_hz=(2_800.0, 3_400.0),
    level_dbfs=(-32.0, -20.0),
    snr_db=(-6.0, 6.0),
    codecs=("mulaw",),
)


def demo_reference(speech: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What the demo corpus was made with: draws in the order of its first release."""
    edge = rng.uniform(2_800.0, 3_400.0)
    narrow = resample(speech, RATE, 8_000)
    for order, hertz, kind in ((4, 300.0, "highpass"), (8, edge, "lowpass")):
        sections = butter(order, hertz, kind, fs=8_000, output="sos")
        narrow = sosfilt(sections, narrow)
    level = rng.uniform(-32.0, -20.0)
    hiss = level - rng.uniform(-6.0, 6.0)
    noise = rng.standard_normal(2 ** int(np.ceil(np.log2(len(narrow)))))
    if rng.random() >= 0.5:
        spectrum = np.fft.rfft(noise)
        spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
        noise = np.fft.irfft(spectrum)
    heard = np.zeros(len(narrow))
    for part, dbfs in ((narrow, level), (noise[: len(narrow)], hiss)):
        heard += part * (10 ** (dbfs / 20) / np.sqrt(np.mean(part**2)))
    heard *= min(1.0, 0.98 / np.abs(heard).max())
    return through_codec(np.rint(heard * 32_767).astype(np.int16), "mulaw")


@pytest.mark.parametrize("seed", range(6))
def test_the_demo_corpus_stays_what_it_is(seed: int) -> None:
    """Later draws may only come behind these, and only for other lines."""
    speech = _rng(seed + 100).normal(0, 0.1, 20_000 + 777 * seed)
    ours, theirs = _rng(seed), _rng(seed)
    call = through_telephone(speech, RATE, DEMO, ours)
    # sums in another order may round another way, to the next code
    expected = demo_reference(speech, theirs)
    assert np.mean(call != expected) < 1e-3
    assert ours.bit_generator.state == theirs.bit_generator.state


def test_each_call_has_one_of_the_codecs() -> None:
    speech = _tone(1_000, seconds=0.2)
    line = TelephoneLine(codecs=CODECS)
    counts = dict.fromkeys(CODECS, 0)
    for seed in range(80):
        call = through_telephone(speech, RATE, line, _rng(seed))
        for codec in CODECS:
            alone = replace(line, codecs=(codec,))
            counts[codec] += np.array_equal(
                call, through_telephone(speech, RATE, alone, _rng(seed))
            )
    assert sum(counts.values()) == 80
    assert min(counts.values()) >= 8


@pytest.mark.parametrize("share", [0.03, 0.3])
def test_the_share_of_packets_asked_for_is_lost(share: float) -> None:
    speech = _rng(7).normal(0, 0.1, 40 * RATE)
    lossy = replace(MULAW, packet_loss=(share, share))
    whole, call = (through_telephone(speech, RATE, x, _rng(3)) for x in (MULAW, lossy))
    lost = (whole != call).reshape(-1, 160).any(axis=1)
    assert abs(lost.mean() - share) < 4 * np.sqrt(share / len(lost))
    once = through_telephone(speech, RATE, lossy, _rng(3))
    np.testing.assert_array_equal(once, call)


def conceal_reference(samples: np.ndarray, lost: np.ndarray) -> list[int]:
    """Sample by sample: the last packet again and again, fading from 10 to 60 ms."""
    heard: list[int] = []
    last, since = [0] * 160, 0
    for number, is_lost in enumerate(lost):
        packet = samples[160 * number : 160 * (number + 1)].tolist()
        if not is_lost:
            last, since = packet, 0
            heard += packet
            continue
        for k in range(len(packet)):
            percent = 100 - 20 * max(since - 80, 0) / 80
            heard.append(round(last[k] * max(percent, 0) / 100))
            since += 1
    return heard


@pytest.mark.parametrize("seed", range(8))
def test_lost_packets_are_the_last_one_faded_out(seed: int) -> None:
    rng = _rng(seed)
    samples = rng.integers(-32_768, 32_768, 160 * 30 - seed).astype(np.int16)
    lost = rng.random(30) < 0.6
    lost[:2] = seed % 2  # half of the calls begin with a loss: silence
    heard = _conceal(samples, lost)
    assert heard.dtype == np.int16
    difference = heard.astype(int) - conceal_reference(samples, lost)
    assert np.abs(difference).max() <= 1  # halves are rounded either way
    assert not difference[~np.repeat(lost, 160)[: len(samples)]].any()


def test_a_line_is_read_from_yaml() -> None:
    conf = {
        "low_edge_hz": 200,
        "high_edge_hz": [3_000, 3_400.0],
        "level_dbfs": [-30, -20],
        "snr_db": [-5, 40],
        "codecs": ["opus"],
        "packet_loss": [0, 0.1],
    }
    line = TelephoneLine.from_mapping(conf)
    assert line == TelephoneLine(
        low_edge_hz=200,
        high_edge_hz=(3_000, 3_400),
        level_dbfs=(-30, -20),
        snr_db=(-5, 40),
        codecs=("opus",),
        packet_loss=(0, 0.1),
    )
    hash(line)
    assert TelephoneLine.from_mapping({}) == TelephoneLine()


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"snr": [0, 1]}, r"unknown keys \['snr'\] in telephone; known: .*snr_db"),
        ({"low_edge_hz": 0}, "low_edge_hz must lie between 0 and 4000 Hz, got 0"),
        ({"low_edge_hz": "300"}, "low_edge_hz must be a number, got '300'"),
        ({"high_edge_hz": [200, 300]}, r"high_edge_hz .*300 <= low .*got \[200, 300\]"),
        ({"high_edge_hz": [3_000, 4_000]}, "high_edge_hz .*high < 4000, got"),
        ({"high_edge_hz": 3_400}, "high_edge_hz must be a range .*got 3400"),
        ({"level_dbfs": [-10, 0]}, "level_dbfs .*high < 0, got"),
        ({"level_dbfs": [-10, -20]}, "level_dbfs .*low <= high"),
        ({"level_dbfs": [-10, True]}, "level_dbfs must be a number, got True"),
        ({"snr_db": [30, 10]}, r"snr_db must be a range .*got \[30, 10\]"),
        ({"snr_db": [float("nan"), 10]}, "snr_db must be a range"),
        ({"snr_db": [0, float("inf")]}, "snr_db must be a range"),
        ({"snr_db": [1, 2, 3]}, "snr_db must be a range"),
        ({"codecs": "gsm"}, "codecs must be a list of codecs, got 'gsm'"),
        ({"codecs": []}, "codecs must be a list of codecs"),
        ({"codecs": ["gsm", "evs"]}, "unknown codec 'evs'; known: mulaw"),
        ({"packet_loss": [0, 1]}, "packet_loss .*high < 1, got"),
        ({"packet_loss": [-0.1, 0.1]}, "packet_loss .*0 <= low"),
        ([1], "telephone must map option names"),
    ],
)
def test_a_wrong_line_is_refused_by_name(conf: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TelephoneLine.from_mapping(conf)


def test_a_line_made_in_python_is_checked_too() -> None:
    with pytest.raises(ConfigError, match=r"telephone\.packet_loss"):
        TelephoneLine(packet_loss=(0.5, 1.5))
