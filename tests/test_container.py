"""Files that lie about their length, rate or layout are refused; odd ones are read."""

from __future__ import annotations

import os
import re
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_smoe import mpeg
from espnet_smoe.audio import AudioError, probe, read_audio

RATE = 8_000
LENGTH = 1_600
BEHIND = "bytes follow the audio that its header declares"


def _wave(length: int = LENGTH) -> np.ndarray:
    time = np.arange(length) / RATE
    noise = np.random.default_rng(0).standard_normal(length)
    return 0.4 * np.sin(2 * np.pi * 440 * time) + 0.05 * noise


def _stored(container: str, codec: str = "PCM_16", length: int = LENGTH) -> bytes:
    import io

    file = io.BytesIO()
    soundfile.write(file, _wave(length), RATE, format=container, subtype=codec)
    return file.getvalue()


def _put(raw: bytes, place: int, form: str, value: int) -> bytes:
    changed = bytearray(raw)
    struct.pack_into(form, changed, place, value)
    return bytes(changed)


def _flac_length(raw: bytes, length: int) -> bytes:
    """Write the 36 bits of STREAMINFO that say how many samples there are."""
    (fields,) = struct.unpack_from(">Q", raw, 18)
    return _put(raw, 18, ">Q", fields >> 36 << 36 | length)


def _sphere(raw: bytes, count: str) -> bytes:
    return raw.replace(b"-i 1600\n", f"-i {count:<4}\n".encode(), 1)


WAV, RF64, W64 = _stored("WAV"), _stored("RF64"), _stored("W64")
AIFF, AU, SPHERE = _stored("AIFF"), _stored("AU"), _stored("NIST")
FLAC, VORBIS = _stored("FLAC"), _stored("OGG", "VORBIS", 80_000)
GSM = _stored("WAV", "GSM610")
DATA = WAV.index(b"data") + 4
W64_DATA, RF64_DATA = W64.index(b"data") + 16, RF64.index(b"ds64") + 16
COMM, SSND = AIFF.index(b"COMM") + 10, AIFF.index(b"SSND") + 4
PAGES = [found.start() for found in re.finditer(b"OggS", VORBIS)]
NOISE = np.random.default_rng(1).bytes(100)

LIES = {
    "wav-data-half": (_put(WAV, DATA, "<I", 1_600), BEHIND),
    "wav-data-zero": (_put(WAV, DATA, "<I", 0), f"3200 {BEHIND}"),
    "wav-data-double": (_put(WAV, DATA, "<I", 6_400), "truncated"),
    "wav-data-3-gib": (_put(WAV, DATA, "<I", 3 << 30), "truncated"),
    "wav-noise-behind": (WAV + NOISE, f"100 {BEHIND}"),
    "wav-channels": (_put(WAV, 22, "<H", 2), "header contradicts itself: 2 channels"),
    "wav-rate": (_put(WAV, 24, "<I", 48_000), "contradicts itself: .* 48000 Hz"),
    "wav-rate-zero": (_put(WAV, 24, "<I", 0), "cannot be read as audio"),
    "wav-rate-4-ghz": (_put(WAV, 24, "<I", 4_000_000_000), "cannot be read as audio"),
    "wav-byte-rate": (_put(WAV, 28, "<I", 8_000), "contradicts itself: .* 2 and 8000"),
    "wav-align": (_put(WAV, 32, "<H", 4), "contradicts itself: .* 4 and 16000"),
    "wav-bits": (_put(WAV, 34, "<H", 8), "contradicts itself: .* of 8 bits"),
    "gsm-rate-2-ghz": (_put(GSM, 24, "<I", 2**31 - 1), "over the highest, 768000 Hz"),
    "rf64-data-half": (_put(RF64, RF64_DATA, "<Q", 1_600), BEHIND),
    "rf64-data-huge": (_put(RF64, RF64_DATA, "<Q", 2**60), "truncated"),
    "w64-data-half": (_put(W64, W64_DATA, "<Q", 1_624), BEHIND),
    "w64-data-huge": (_put(W64, W64_DATA, "<Q", 2**60), "truncated"),
    "w64-noise-behind": (W64 + NOISE, BEHIND),
    "w64-rate": (_put(W64, 68, "<I", 16_000), "contradicts itself: .* 16000 Hz"),
    "aiff-frames-half": (_put(AIFF, COMM, ">I", 800), "says 800 samples, .* 1600"),
    "aiff-frames-double": (_put(AIFF, COMM, ">I", 3_200), "truncated: .* 3200 samples"),
    "aiff-data-half": (_put(AIFF, SSND, ">I", 1_608), "truncated: .* 1600 samples"),
    "aiff-data-double": (_put(AIFF, SSND, ">I", 6_408), "truncated"),
    "aiff-noise-behind": (AIFF + NOISE, BEHIND),
    "au-data-half": (_put(AU, 8, ">I", 1_600), BEHIND),
    "au-data-double": (_put(AU, 8, ">I", 6_400), "truncated"),
    "au-noise-behind": (AU + NOISE, BEHIND),
    "sphere-half": (_sphere(SPHERE, "800"), "says 800 samples, the file holds 1600"),
    "sphere-double": (_sphere(SPHERE, "3200"), "truncated: header says 3200 samples"),
    "sphere-negative": (_sphere(SPHERE, "-1"), "header says -1 samples"),
    "sphere-noise-behind": (SPHERE + NOISE, "says 1600 samples, the file holds 1650"),
    "flac-length-unknown": (_flac_length(FLAC, 0), "does not say how long it is"),
    "flac-length-huge": (_flac_length(FLAC, 2**36 - 1), "does not say how long it is"),
    "flac-length-half": (_flac_length(FLAC, 800), "damaged: .* MD5"),
    "flac-length-double": (_flac_length(FLAC, 3_200), "truncated or damaged"),
    "flac-md5": (_put(FLAC, 30, "<I", 7), "damaged: .* MD5"),
    "ogg-noise-behind": (VORBIS + NOISE, f"100 {BEHIND}"),
    "ogg-page-lost": (VORBIS[: PAGES[-3]] + VORBIS[PAGES[-2] :], "page .* is missing"),
    "ogg-page-damaged": (
        VORBIS[: PAGES[-4] + 99] + NOISE + VORBIS[PAGES[-4] + 199 :],
        "truncated: expected 80000 samples",
    ),
    "ogg-chained": (VORBIS + _stored("OGG", "OPUS"), "several Ogg streams"),
    "ogg-twice": (VORBIS + VORBIS, "several Ogg streams"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_is_refused(tmp_path: Path, lie: str) -> None:
    raw, reason = LIES[lie]
    path = tmp_path / "a"
    path.write_bytes(raw)
    with pytest.raises(AudioError, match=f"a: .*{reason}"):
        read_audio(path, channel=0)


CHUNK = b"LIST" + struct.pack("<I", 12) + b"INFOISFT\0\0\0\0"
ODD = {
    "wav-unknown-length": (_put(WAV, DATA, "<I", 0xFFFF_FFFF), LENGTH),
    "wav-unknown-length-of-sox": (_put(WAV, DATA, "<I", 0x7FFF_F000), LENGTH),
    "wav-riff-size": (_put(WAV, 4, "<I", 0), LENGTH),
    "wav-chunk-behind": (WAV + CHUNK, LENGTH),
    "wav-chunk-before": (WAV[: DATA - 4] + CHUNK + WAV[DATA - 4 :], LENGTH),
    "wav-zeros-behind": (WAV + bytes(500), LENGTH),
    "wav-sizes-not-said": (_put(_put(WAV, 28, "<I", 0), 32, "<H", 0), LENGTH),
    "wav-odd-data-unpadded": (_stored("WAV", "ULAW", 1_601)[:-1] + CHUNK, 1_601),
    "w64-unknown-length": (_put(W64, W64_DATA, "<Q", 2**63 - 1), LENGTH),
    "aiff-unknown-length": (_put(AIFF, SSND, ">I", 0xFFFF_FFFF), LENGTH),
    "au-unknown-length": (_put(AU, 8, ">I", 0xFFFF_FFFF), LENGTH),
    "flac-without-md5": (FLAC[:26] + bytes(16) + FLAC[42:], LENGTH),
    "ogg-zeros-behind": (VORBIS + bytes(500), 80_000),
}


@pytest.mark.parametrize("case", ODD)
def test_what_is_odd_but_no_lie_is_read_whole(tmp_path: Path, case: str) -> None:
    raw, length = ODD[case]
    path = tmp_path / "a"
    path.write_bytes(raw)
    samples, _ = read_audio(path)
    assert probe(path).num_samples == len(samples) == length
    assert np.corrcoef(samples, _wave(length))[0, 1] > 0.95


def test_a_big_endian_wav_is_read(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", _wave(), RATE, "PCM_16", endian="BIG")
    assert (tmp_path / "a.wav").read_bytes()[:4] == b"RIFX"
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav")[0], _wave(), atol=1e-4)


@pytest.mark.parametrize("blocks", [1, 2, 5, 6, 251])
def test_gsm_has_no_block_of_padding_or_of_what_follows(tmp_path, blocks: int) -> None:
    raw = _stored("WAV", "GSM610", 320 * blocks)
    path = tmp_path / "a.wav"
    for behind in (b"", CHUNK):
        path.write_bytes(raw + behind)
        assert len(read_audio(path)[0]) == probe(path).num_samples == 320 * blocks


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
@pytest.mark.parametrize("seconds", [1.0, 12.0])
def test_an_mp3_without_a_count_of_frames(tmp_path: Path, mode, seconds) -> None:
    length = round(seconds * RATE)
    path = tmp_path / "a.mp3"
    # silence after loud noise: a variable rate is not that of the first frames
    wave = np.where(np.arange(length) < length // 3, 3 * _wave(length), 0.0)
    options = {"bitrate_mode": mode, "compression_level": 0.5}
    soundfile.write(path, wave.clip(-1, 1), RATE, **options)
    raw = path.read_bytes()
    assert len(read_audio(path)[0]) == length
    assert b"Xing" in raw[:60] or b"Info" in raw[:60]
    frames = raw[raw.index(raw[:2], 60) :]  # from the second frame on
    path.write_bytes(frames)
    if mode == "CONSTANT":
        samples, _ = read_audio(path)
        assert length <= len(samples) <= length + 4 * 576
        assert probe(path).num_samples == len(samples)
        # libsndfile takes the tag for frames, and the file for longer
        path.write_bytes(b"ID3\3\0\0" + bytes([0, 0, 16, 0]) + bytes(2_048) + frames)
        np.testing.assert_allclose(read_audio(path)[0], samples, atol=1e-6)
    else:
        with pytest.raises(AudioError, match=r"its frames hold .* Xing or Info frame"):
            read_audio(path)
    path.write_bytes(frames[: len(frames) * 2 // 3])
    with pytest.raises(AudioError, match="truncated"):
        probe(path)
    for tag in (b"TAG" + bytes(125), b"APETAGEX" + bytes(24)):
        path.write_bytes(raw + tag)
        assert len(read_audio(path)[0]) == length


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A number for every walk over a file's frames, which goes on as it is."""
    done: list[int] = []
    walk = mpeg.walk_frames

    def counted(raw) -> tuple[int, int, bool]:
        done.append(len(raw))
        return walk(raw)

    monkeypatch.setattr(mpeg, "walk_frames", counted)
    return done


def test_many_segments_of_an_mp3_walk_its_frames_once(tmp_path: Path, walks) -> None:
    path = tmp_path / "a.mp3"
    soundfile.write(path, _wave(5 * RATE), RATE)
    os.utime(path, (1e9, 1e9))
    for start in range(4):
        assert probe(path).num_samples == 5 * RATE
        read_audio(path, segment=(start, start + 1))
    assert len(walks) == 1


@pytest.mark.parametrize("changed", ["time", "size", "file", "just now"])
def test_an_mp3_that_changed_is_walked_again(tmp_path: Path, changed: str) -> None:
    path, other = tmp_path / "a.mp3", tmp_path / "b.mp3"
    soundfile.write(path, _wave(5 * RATE), RATE)
    raw = path.read_bytes()
    when = time.time_ns() if changed == "just now" else 10**18
    os.utime(path, ns=(when, when))
    probe(path)
    damaged = raw[: len(raw) // 2] + bytes(len(raw) - len(raw) // 2)
    if changed == "file":
        other.write_bytes(damaged)
        other.rename(path)
    else:
        path.write_bytes(raw[: len(raw) // 2] if changed == "size" else damaged)
    when += changed == "time"
    os.utime(path, ns=(when, when))
    with pytest.raises(AudioError, match=r"a\.mp3: "):
        probe(path)


def test_metadata_behind_does_not_make_an_mp3_longer() -> None:
    """The first frame, which only counts the others, is no sound with or without."""
    raw = _stored("MP3", "MPEG_LAYER_III", 5 * RATE)
    total, end, is_counted = mpeg.walk_frames(raw)
    assert is_counted
    assert mpeg.walk_frames(raw + b"TAG" + bytes(125)) == (total, end, True)


@pytest.mark.parametrize(
    ("container", "codec"),
    [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)],
)
def test_a_segment_of_a_coded_file_is_the_slice_of_the_whole(
    tmp_path: Path, container: str, codec: str | None
) -> None:
    path = tmp_path / "a"
    soundfile.write(path, _wave(5 * RATE), RATE, codec, format=container)
    whole, _ = read_audio(path)
    for start, stop in ((0.0, 1.0), (0.5, 1.25), (3.01, 3.5), (4.2, 4.5), (4.9, 5.0)):
        part, _ = read_audio(path, segment=(start, stop))
        want = whole[round(start * RATE) : round(stop * RATE)]
        np.testing.assert_allclose(part, want, atol=1e-6)


@pytest.mark.parametrize("codec", ["PCM_S8", "PCM_16", "PCM_24"])
@pytest.mark.parametrize("channels", [1, 2])
def test_the_md5_of_a_flac_file_fits_every_width(tmp_path, codec, channels) -> None:
    path = tmp_path / "a.flac"
    loud = np.random.default_rng(0).uniform(-1, 1, (3_000, channels))
    soundfile.write(path, loud, RATE, subtype=codec)
    assert any(path.read_bytes()[26:42])
    stored, _ = soundfile.read(path, dtype="float32", always_2d=True)
    for channel in range(channels):
        samples, _ = read_audio(path, channel=channel)
        np.testing.assert_array_equal(samples, stored[:, channel])
