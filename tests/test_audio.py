"""Reading audio and bringing it to the model's rate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_smoe.audio import (
    MODEL_RATE,
    AudioError,
    AudioInfo,
    bandwidth_of_rate,
    change_speed,
    check_samples,
    narrow_band,
    probe,
    read_audio,
    resample,
    to_model_rate,
)

RATES = [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000]
FORMATS = ["wav", "flac", "ogg", "opus", "mp3", "sph", "aiff", "au", "rf64", "w64"]
CONTAINERS = {"AIFF", "AU", "FLAC", "MP3", "NIST", "OGG", "RF64", "W64", "WAV"}
CONTAINERS |= {"WAVEX"}
_CODEC = {"opus": ("OGG", "OPUS"), "sph": ("NIST", "PCM_16")}


def _tone(hertz: float, rate: int, seconds: float = 1.0) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def _noisy_tone(rate: int, seconds: float = 2.0) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(round(seconds * rate))
    return _tone(440, rate, seconds) + np.float32(0.02) * noise.astype(np.float32)


def _stored(folder: Path, extension: str) -> Path:
    """Two seconds at 16 kHz."""
    path = folder / f"a.{extension}"
    container, codec = _CODEC.get(extension, (extension.upper(), None))
    soundfile.write(path, _noisy_tone(16_000), 16_000, format=container, subtype=codec)
    return path


def _spectrum_db(samples: np.ndarray) -> np.ndarray:
    """dB relative to the strongest line."""
    window = np.blackman(len(samples))
    lines = np.abs(np.fft.rfft(samples.astype(float) * window))
    return 20 * np.log10(lines / lines.max() + 1e-15)


# ------------------------------------------------------------------ reading


@pytest.mark.parametrize("extension", FORMATS)
def test_every_format_is_probed_and_read(tmp_path: Path, extension: str) -> None:
    path = _stored(tmp_path, extension)
    info = probe(path)
    samples, rate = read_audio(path)
    assert (info.rate, info.channels, info.num_samples) == (rate, 1, len(samples))
    assert samples.dtype == np.float32
    assert abs(len(samples) - 2 * rate) < rate // 10


@pytest.mark.parametrize("rate", [8_000, 16_000, 96_000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    ("container", "codec", "floor"),  # dB, of what storing adds to the tone
    [
        *(("WAV", "PCM_16", -85), ("WAV", "PCM_24", -130), ("WAV", "FLOAT", -130)),
        *(("WAV", "DOUBLE", -130), ("WAV", "PCM_U8", -40), ("WAV", "ULAW", -30)),
        *(("WAV", "ALAW", -30), ("WAV", "IMA_ADPCM", -20), ("WAV", "MS_ADPCM", -20)),
        *(("WAVEX", "PCM_24", -130), ("RF64", "PCM_24", -130), ("W64", "ULAW", -30)),
        *(("AIFF", "PCM_24", -130), ("AIFF", "ULAW", -30), ("AIFF", "FLOAT", -130)),
        *(("AU", "PCM_24", -130), ("AU", "ALAW", -30), ("FLAC", "PCM_24", -130)),
        *(("NIST", "PCM_16", -85), ("NIST", "ULAW", -30), ("NIST", "PCM_24", -130)),
    ],
)
def test_what_is_stored_is_read(tmp_path, container, codec, floor, rate, channels):
    stored = np.stack([_tone(300 + 200 * c, rate, 0.5) for c in range(channels)], 1)
    path = tmp_path / "a"
    soundfile.write(path, stored, rate, codec, format=container)
    for channel in range(channels):
        samples, native = read_audio(path, channel=channel)
        assert native == rate
        assert len(samples) == probe(path).num_samples >= len(stored)
        added = samples[: len(stored)] - stored[:, channel]
        assert 20 * np.log10(np.std(added) / np.std(stored) + 1e-9) < floor


def test_floats_over_full_scale_are_read_and_integers_as_floats_refused(tmp_path):
    path = tmp_path / "a.wav"
    loud = 3 * _tone(440, 16_000)
    soundfile.write(path, loud, 16_000, "FLOAT")
    np.testing.assert_array_equal(read_audio(path)[0], loud)
    soundfile.write(path, 32_767 * loud, 16_000, "FLOAT")
    reason = r"a\.wav: float samples must lie in \[-1, 1\], got 49\d+; divide 16-bit"
    with pytest.raises(AudioError, match=reason):
        read_audio(path)
    for change in (lambda x: to_model_rate(x, 16_000), lambda x: change_speed(x, 1.1)):
        with pytest.raises(AudioError, match="audio: float samples must lie in"):
            change(32_767 * loud)


@pytest.mark.parametrize("extension", FORMATS)
@pytest.mark.parametrize("share", [0.5, 0.85])
def test_a_truncated_file_is_refused(
    tmp_path: Path, extension: str, share: float
) -> None:
    path = _stored(tmp_path, extension)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(AudioError, match=r"a\.\w+: (truncated|cannot be read)"):
        read_audio(path)


@pytest.mark.parametrize("container", sorted(soundfile.available_formats()))
def test_a_cut_file_is_refused_in_every_format_and_codec(
    tmp_path: Path, container: str
) -> None:
    path = tmp_path / f"a.{container.lower()}"
    taken = set()
    for codec in soundfile.available_subtypes(container):
        path.unlink(missing_ok=True)
        try:
            soundfile.write(
                path, _noisy_tone(8_000, 1.0), 8_000, format=container, subtype=codec
            )
        except soundfile.LibsndfileError:  # no writer for it
            continue
        raw = path.read_bytes()
        if container in CONTAINERS and not codec.startswith("DWVW"):
            taken.add(codec)
            samples, rate = read_audio(path)
            assert rate == 8_000
            assert len(samples) >= 8_000  # some codecs fill their last block
        else:
            name = (
                "samplerate" if container == "RAW" else f"format {container} |{codec}"
            )
            with pytest.raises(AudioError, match=f"cannot be read as.*({name})"):
                read_audio(path)
        for share in (0.3, 0.6, 0.98):
            path.write_bytes(raw[: int(len(raw) * share)])
            with pytest.raises(AudioError, match=r"a\.\w+: (truncated|cannot be read)"):
                read_audio(path)
    if container in ("AIFF", "W64", "WAV"):
        assert {"PCM_16", "ULAW", "ALAW", "IMA_ADPCM", "GSM610"} <= taken


@pytest.mark.parametrize("container", ["WAV", "W64", "AIFF"])
def test_a_codec_that_cannot_seek_is_read_whole_and_in_part(
    tmp_path: Path, container: str
) -> None:
    path = tmp_path / "a.gsm"
    length = 80_000  # more than is skipped at a time
    spoken = _noisy_tone(8_000, length / 8_000)
    soundfile.write(path, spoken, 8_000, format=container, subtype="GSM610")
    whole, rate = read_audio(path)
    assert (rate, len(whole)) == (8_000, length)
    assert np.corrcoef(whole, spoken)[0, 1] > 0.9
    for start, stop in ((0, 400), (1, 400), (4_000, 12_000), (70_000, length)):
        part, _ = read_audio(path, segment=(start / 8_000, stop / 8_000))
        np.testing.assert_array_equal(part, whole[start:stop])


def test_a_wav_of_unknown_length_is_no_truncated_one(tmp_path: Path) -> None:
    path = _stored(tmp_path, "wav")
    raw = bytearray(path.read_bytes())
    data = raw.index(b"data")
    raw[data + 4 : data + 8] = b"\xff\xff\xff\xff"  # as written to a pipe
    path.write_bytes(raw)
    assert len(read_audio(path)[0]) == 32_000


def test_a_segment_is_the_slice_of_the_whole(tmp_path: Path) -> None:
    path = _stored(tmp_path, "wav")
    whole, _ = read_audio(path)
    part, rate = read_audio(path, segment=(0.25, 1.7501))
    assert rate == 16_000
    np.testing.assert_array_equal(part, whole[4_000:28_002])
    np.testing.assert_array_equal(read_audio(path, segment=(0.0, 2.0))[0], whole)


@pytest.mark.parametrize(
    "segment",
    [(-0.1, 1.0), (1.0, 2.1), (1.0, 1.0), (1.5, 0.5), (3.0, 4.0), (0.0, np.nan)],
)
def test_a_segment_outside_the_file_is_refused(tmp_path: Path, segment) -> None:
    with pytest.raises(AudioError, match=r"a\.wav: segment"):
        read_audio(_stored(tmp_path, "wav"), segment=segment)


def test_a_channel_is_read_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    both = np.stack([_tone(300, 8_000), _tone(500, 8_000)], axis=1)
    soundfile.write(path, both, 8_000, subtype="FLOAT")
    assert probe(path) == AudioInfo(rate=8_000, num_samples=8_000, channels=2)
    for channel in (0, 1):
        samples, _ = read_audio(path, channel=channel)
        np.testing.assert_array_equal(samples, both[:, channel])


@pytest.mark.parametrize("channel", [None, 2, -1])
def test_a_channel_not_given_or_not_there_is_refused(tmp_path, channel) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros((100, 2)) + 0.1, 8_000)
    with pytest.raises(AudioError, match=r"a\.wav: .*channel"):
        read_audio(path, channel=channel)


def test_a_channel_of_a_mono_file_must_be_the_first(tmp_path: Path) -> None:
    path = _stored(tmp_path, "wav")
    assert len(read_audio(path, channel=0)[0]) == 32_000
    with pytest.raises(AudioError, match="channel 1 is not in the file; it has 1"):
        read_audio(path, channel=1)


def test_what_is_no_audio_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("hello " * 100)
    (tmp_path / "noise.raw").write_bytes(bytes(range(256)))
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16_000)
    soundfile.write(tmp_path / "slow.wav", np.zeros(100), 6_000)
    expected = {
        "missing.wav": "is missing",
        ".": "is missing",
        "empty.wav": "is empty",
        "text.wav": "cannot be read as audio",
        "noise.raw": "cannot be read as audio",
        "none.wav": "zero length",
        "slow.wav": "6000 Hz is under the lowest, 8000 Hz",
    }
    for name, reason in expected.items():
        for read in (probe, read_audio):
            with pytest.raises(AudioError, match=reason) as caught:
                read(tmp_path / name)
            assert str(tmp_path / name) in str(caught.value)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_refused(tmp_path: Path, bad: float) -> None:
    path = tmp_path / "a.wav"
    samples = np.zeros(1_000, np.float32)
    samples[700] = bad
    soundfile.write(path, samples, 16_000, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"a\.wav: sample 700 is -?(nan|inf)"):
        read_audio(path)
    assert len(read_audio(path, segment=(0.0, 0.01))[0]) == 160


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (np.zeros((2, 3)), r"shape \(S,\), got \(2, 3\)"),
        ([0.1, 0.2], "got list"),
        (np.zeros(3, np.int16), "int16"),
        (np.zeros(0), "zero samples"),
    ],
)
def test_arrays_that_are_no_audio_are_refused(samples, reason: str) -> None:
    with pytest.raises(AudioError, match=f"^call 7: .*{reason}"):
        check_samples(samples, "call 7")


# ------------------------------------------------------------------ rates


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("extra", [0, 1, 7])
def test_the_model_rate_keeps_the_duration_on_the_16_bit_grid(rate, extra) -> None:
    samples = np.resize(_noisy_tone(rate), rate + extra)
    heard = to_model_rate(samples, rate)
    assert heard.dtype == np.float32
    assert abs(len(heard) - len(samples) * MODEL_RATE / rate) <= 1
    grid = heard.astype(float) * 32_768
    np.testing.assert_array_equal(grid, np.rint(grid))


def test_16_khz_16_bit_audio_passes_unchanged(tmp_path: Path) -> None:
    every = np.arange(-32_768, 32_768).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", every, 16_000)
    heard = to_model_rate(*read_audio(tmp_path / "a.wav"))
    np.testing.assert_array_equal(heard * 32_768, every)
    np.testing.assert_array_equal(to_model_rate(heard, 16_000), heard)


@pytest.mark.parametrize("rate", RATES)
def test_a_tone_keeps_its_pitch_and_level_and_gets_no_image(rate: int) -> None:
    tone = _tone(3_300, rate, seconds=2)
    exact = resample(tone, rate, MODEL_RATE)[8_000:24_000]
    for heard, floor in (
        (exact, -100),
        (to_model_rate(tone, rate)[8_000:24_000], -80),  # rounding noise
    ):
        lines = _spectrum_db(heard)  # 1 Hz apart
        assert lines.argmax() == 3_300
        lines[3_290:3_311] = -np.inf
        assert lines.max() < floor
        np.testing.assert_allclose(np.abs(heard).max(), 0.5, rtol=1e-3)


@pytest.mark.parametrize("rate", [22_050, 44_100, 48_000, 96_000])
def test_what_the_model_rate_cannot_hold_vanishes(rate: int) -> None:
    alias = resample(_tone(10_000, rate), rate, MODEL_RATE)[1_000:-1_000]
    assert 20 * np.log10(np.abs(alias).max() / 0.5) < -100


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_overshoot_is_clipped_and_never_wraps(rate: int) -> None:
    square = np.sign(_tone(100, rate) + 1e-6).astype(np.float32) * 1.5
    heard = to_model_rate(square, rate)
    assert heard.max() == np.float32(32_767 / 32_768)
    assert heard.min() == -1.0
    loud = heard[len(heard) // 4 : len(heard) // 2]
    assert np.abs(loud).min() > 0.9 or rate != 16_000


def test_the_model_rate_refuses_what_is_no_audio() -> None:
    with pytest.raises(AudioError, match="7999 Hz is under the lowest"):
        to_model_rate(np.zeros(100, np.float32), 7_999)
    with pytest.raises(AudioError, match="768001 Hz is over the highest"):
        to_model_rate(np.zeros(100, np.float32), 768_001)
    with pytest.raises(AudioError, match="sample 1 is nan"):
        to_model_rate(np.array([0.0, np.nan]), 16_000)


def test_the_rate_tells_the_bandwidth_where_it_can() -> None:
    assert bandwidth_of_rate(8_000) == "nb"
    assert {bandwidth_of_rate(r) for r in (16_000, 22_050, 48_000)} == {"wb"}
    for rate in (8_001, 11_025, 15_999):
        with pytest.raises(AudioError, match=f"{rate} Hz is neither .* say the"):
            bandwidth_of_rate(rate)
    with pytest.raises(AudioError, match="4000 Hz is under the lowest"):
        bandwidth_of_rate(4_000)


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.1, 2.0])
def test_speed_changes_length_and_pitch_together(factor: float) -> None:
    tone = _tone(1_000, 16_000, seconds=2)
    fast = change_speed(tone, factor)
    assert fast.dtype == np.float32
    assert abs(len(fast) - len(tone) / factor) <= 1
    middle = fast[len(fast) // 4 :][:8_000]  # lines 2 Hz apart
    assert 2 * _spectrum_db(middle).argmax() == pytest.approx(1_000 * factor, abs=2)


def test_speed_one_changes_nothing_and_odd_speeds_are_refused() -> None:
    tone = _tone(1_000, 8_000)
    np.testing.assert_array_equal(change_speed(tone, 1.0), tone)
    for factor in (0.0, -1.0, 0.49, 2.1, float("nan")):
        with pytest.raises(AudioError, match=f"speed factor {factor}"):
            change_speed(tone, factor)


@pytest.mark.parametrize("rate", [8_000, 9_001, 16_000, 44_100, 48_000])
def test_narrow_band_takes_out_what_is_above_4_khz_and_only_that(rate):
    hertz = [f for f in (500, 3_000, 4_100, 6_000, 12_000) if f < 0.45 * rate]
    time = np.arange(rate - 3) / rate  # no whole number of periods of 8 kHz
    tones = {f: 0.1 * np.sin(2 * np.pi * f * time).astype(np.float32) for f in hertz}
    got = narrow_band(sum(tones.values()), rate)
    assert (got.shape, got.dtype) == (time.shape, np.float32)
    want = sum(tone for f, tone in tones.items() if f < 4_000)
    inner = slice(rate // 8, -rate // 8)
    np.testing.assert_allclose(got[inner], want[inner], atol=1e-3)
    for samples in (want, want.astype(float)):
        assert narrow_band(samples[:77], rate).shape == (77,)


def test_narrow_band_refuses_what_is_no_audio():
    with pytest.raises(AudioError, match="zero samples"):
        narrow_band(np.zeros(0, np.float32), 16_000)
    with pytest.raises(AudioError, match="7999 Hz is under"):
        narrow_band(np.ones(9, np.float32), 7_999)
