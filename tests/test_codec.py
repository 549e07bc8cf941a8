"""Telephone codecs against their standards."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import soundfile
from scipy.signal import lfilter

from espnet_smoe import codec
from espnet_smoe.codec import CODECS, through_codec
from espnet_smoe.config import ConfigError
from espnet_smoe.telephone import TelephoneLine

RATE = 8_000
EVERY_SAMPLE = np.arange(-32_768, 32_768).astype(np.int16)
G711 = ("mulaw", "alaw")


def mulaw(sample: int) -> int:
    """ITU-T G.711, table 2, spelled out on its 14-bit scale."""
    biased = min(abs(sample) // 4, 8_158) + 33
    segment = biased.bit_length() - 6
    step = biased // 2 ** (segment + 1) % 16
    magnitude = ((2 * step + 33) * 2**segment - 33) * 4
    return -magnitude if sample < 0 else magnitude


def alaw(sample: int) -> int:
    """ITU-T G.711, table 1, spelled out; 11 bits of magnitude."""
    magnitude = min(abs(sample) // 16, 2_047)
    segment = max(magnitude.bit_length() - 4, 0)
    width = 16 * 2 ** max(segment - 1, 0)  # of a step, on the 16-bit scale
    middle = magnitude * 16 // width * width + width // 2
    return -middle if sample < 0 else middle


def voice(samples: int) -> np.ndarray:
    """Pulses of 120 Hz through three resonances, (S,) int16."""
    heard = np.zeros(samples)
    heard[::67] = 1.0
    for hertz, width in ((500, 80), (1_500, 120), (2_500, 150)):
        radius = np.exp(-np.pi * width / RATE)
        turn = 2 * radius * np.cos(2 * np.pi * hertz / RATE)
        heard = lfilter([1.0], [1.0, -turn, radius**2], heard)
    return np.rint(heard / np.abs(heard).max() * 12_000).astype(np.int16)


def ratio_db(signal: np.ndarray, error: np.ndarray) -> float:
    return 10 * np.log10(np.sum(signal**2.0) / np.sum(error**2.0))


@pytest.mark.parametrize(("name", "law"), [("mulaw", mulaw), ("alaw", alaw)])
def test_g711_is_the_standards_for_every_sample(name: str, law) -> None:
    expected = [law(int(sample)) for sample in EVERY_SAMPLE]
    np.testing.assert_array_equal(through_codec(EVERY_SAMPLE, name), expected)


@pytest.mark.parametrize(("name", "values"), [("mulaw", 255), ("alaw", 256)])
def test_every_g711_code_decodes_to_a_value_that_is_coded_without_loss(
    name: str, values: int
) -> None:
    """Mu-law has a positive and a negative zero."""
    once = through_codec(EVERY_SAMPLE, name)
    assert len(np.unique(once)) == values
    np.testing.assert_array_equal(through_codec(once, name), once)


@pytest.mark.parametrize(
    ("name", "format", "subtype"),
    [("mulaw", "AU", "ULAW"), ("alaw", "WAV", "ALAW"), ("gsm", "WAV", "GSM610")],
)
def test_a_call_equals_what_libsndfile_stores_in_a_file(
    tmp_path, name: str, format: str, subtype: str
) -> None:
    call = voice(7_999)
    soundfile.write(tmp_path / "call", call, RATE, format=format, subtype=subtype)
    stored = soundfile.read(tmp_path / "call", dtype="int16")[0][: len(call)]
    np.testing.assert_array_equal(through_codec(call, name), stored)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("samples", [1, 159, 160, 161, 320, 8_001, 16_037])
def test_length_and_type_stay(name: str, samples: int) -> None:
    call = voice(samples)
    before = call.copy()
    heard = through_codec(call, name)
    assert heard.shape == call.shape
    assert heard.dtype == np.int16
    np.testing.assert_array_equal(call, before)


@pytest.mark.parametrize(
    ("name", "lowest"),
    [("mulaw", 35), ("alaw", 35), ("gsm", 15), ("opus", 8), ("amr", 7)],
)
def test_no_codec_delays_the_call_and_all_resemble_it(name: str, lowest: float) -> None:
    call = voice(16_000).astype(float)
    heard = through_codec(voice(16_000), name).astype(float)
    delays = range(-60, 61)  # less than a period of the voice
    likeness = [np.dot(call[200:-200], heard[200 + d : d - 200]) for d in delays]
    assert delays[int(np.argmax(likeness))] == 0
    assert ratio_db(call, heard - call) > lowest


@pytest.mark.parametrize("name", CODECS)
def test_a_codec_is_deterministic(name: str) -> None:
    """The container of Opus holds a random serial number; the samples do not."""
    call = voice(4_000)
    calls = [through_codec(call, name) for _ in range(3)]
    np.testing.assert_array_equal(calls[0], calls[1])
    np.testing.assert_array_equal(calls[0], calls[2])


def test_gsm_hears_frames_of_20_ms_one_after_another() -> None:
    """What comes later changes nothing, and frames begin with the call."""
    call = voice(1_600)
    np.testing.assert_array_equal(
        through_codec(call, "gsm")[:800], through_codec(call[:800], "gsm")
    )


def test_opus_spends_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    spent = []
    read = soundfile.read

    def weigh(file, *args, **kwargs):
        spent.append(len(file.getvalue()))
        return read(file, *args, **kwargs)

    monkeypatch.setattr(soundfile, "read", weigh)
    noise = np.random.default_rng(0).normal(0, 3_000, 20 * RATE)
    for seconds in (10, 20):  # the difference is without headers
        through_codec(noise[: seconds * RATE].astype(np.int16), "opus")
    kilobits = (spent[1] - spent[0]) * 8 / 10 / 1_000
    assert 9 < kilobits < 15


def test_an_unknown_codec_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"'evs'; known: mulaw, .*, opus, amr"):
        through_codec(EVERY_SAMPLE, "evs")


AMR_MISSING = r"codec 'amr' needs .*pip install \"av>=17,<19\"$"


def test_amr_without_pyav_is_refused_at_once_and_the_rest_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "av"] + ["av"]:
        monkeypatch.setitem(sys.modules, name, None)  # cannot be imported
    with pytest.raises(ConfigError, match=AMR_MISSING):
        TelephoneLine(codecs=("mulaw", "amr"))
    TelephoneLine()
    for name in set(CODECS) - {"amr"}:
        through_codec(voice(160), name)


def test_amr_is_refused_where_pyav_has_only_the_decoder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(codec, "_AMR_ENCODER", "amrnb")  # what PyAV 19 has of it
    with pytest.raises(ConfigError, match=AMR_MISSING):
        TelephoneLine(codecs=("amr",))


def test_amr_is_not_delayed_by_parts_of_a_period() -> None:
    """Noise has no period to be mistaken by."""
    noise = lfilter([1], [1, -1.2, 0.6], np.random.default_rng(0).normal(size=16_000))
    call = noise / np.abs(noise).max() * 12_000
    heard = through_codec(call.astype(np.int16), "amr").astype(float)
    delays = range(-300, 301)
    likeness = [np.dot(call[400:-400], heard[400 + d : d - 400]) for d in delays]
    assert delays[int(np.argmax(likeness))] == 0


def test_amr_spends_12_2_kilobits_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of 244 bits for 20 ms, in packets of 32 bytes with a header."""
    import av

    spent, create = [], av.CodecContext.create

    class Weighed:
        def __init__(self, context) -> None:
            vars(self)["context"] = context

        def __getattr__(self, name: str) -> object:
            return getattr(self.context, name)

        def __setattr__(self, name: str, value: object) -> None:
            setattr(self.context, name, value)

        def encode(self, frame) -> list:
            packets = self.context.encode(frame)
            spent.extend(packet.size for packet in packets)
            return packets

    def weigh(name: str, mode: str) -> object:
        context = create(name, mode)
        return Weighed(context) if mode == "w" else context

    monkeypatch.setattr(
        av, "CodecContext", type("Contexts", (), {"create": staticmethod(weigh)})
    )
    through_codec(voice(16_000), "amr")
    assert set(spent) == {32}
    assert len(spent) in (100, 101)
