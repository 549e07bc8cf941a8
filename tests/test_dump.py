"""Stages 2 to 4: speed perturbation, dump, length filter."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile

from espnet_smoe import dump as stages
from espnet_smoe.audio import change_speed, narrow_band, read_audio, to_model_rate
from espnet_smoe.bin import smoe_dump, smoe_filter, smoe_perturb_speed
from espnet_smoe.datadir import Utterance, read_datadir, write_datadir
from espnet_smoe.dump import DumpError, dump, filter_by_length
from espnet_smoe.files import read_table
from espnet_smoe.speed import perturb_speed
from espnet_smoe.telephone import TelephoneLine, call_seed, through_telephone

RATES = {"a": 8000, "b": 16_000, "c": 44_100, "d": 48_000}


def make_utterance(folder, name, rate, seconds=0.3, peak=0.5, **changes):
    path = folder / f"{name}.wav"
    rng = np.random.default_rng(sum(map(ord, name)))
    samples = rng.uniform(-peak, peak, round(seconds * rate))
    soundfile.write(path, samples, rate, subtype="FLOAT")
    fields = {
        "id": name,
        "audio": str(path),
        "speaker": f"s{name}",
        "fs": rate,
        "num_samples": len(samples),
        "guides": {"bandwidth": "nb" if rate == 8000 else "wb"},
        "texts": {"asr": f"text of {name}", "st_de": "ja"},
    }
    return Utterance(**{**fields, **changes})


@pytest.fixture
def data(tmp_path):
    """data/train with one utterance per rate; the path has a blank in it."""
    folder = tmp_path / "my data"
    folder.mkdir()
    utts = [make_utterance(folder, n, r) for n, r in RATES.items()]
    write_datadir(folder / "train", utts)
    return folder / "train"


def load(folder):
    """Stored audio by kaldiio's own reader: id -> (rate, samples)."""
    return dict(kaldiio.load_scp(str(folder / "wav.scp")))


def test_stored_samples_are_those_of_the_one_resampler(data, tmp_path):
    dump(data, tmp_path / "org", nj=1)
    stored = load(tmp_path / "org")
    for utt in read_datadir(data):
        want = to_model_rate(*read_audio(utt.audio))
        rate, got = stored[utt.id]
        assert (rate, got.dtype) == (16_000, np.int16)
        np.testing.assert_array_equal(got / np.float32(32768), want)


def test_a_dump_keeps_what_was_known_and_counts_samples_at_16_khz(data, tmp_path):
    dump(data, tmp_path / "org", nj=1)
    before, after = read_datadir(data), read_datadir(tmp_path / "org")
    for old, new in zip(before, after, strict=True):
        assert (new.id, new.speaker, new.fs) == (old.id, old.speaker, old.fs)
        assert (new.guides, new.texts) == (old.guides, old.texts)
        assert abs(new.num_samples - 0.3 * 16_000) <= 1
        assert new.num_samples == len(load(tmp_path / "org")[new.id][1])


def test_wav_scp_names_the_final_folder(data, tmp_path):
    dump(data, tmp_path / "org", nj=1)
    for place in read_table(tmp_path / "org/wav.scp").values():
        ark, _, offset = place.rpartition(":")
        assert Path(ark) == tmp_path / "org/data_wav.1.ark"
        assert offset.isdigit()


def test_espnets_readers_hand_the_stored_integers_to_the_preprocessor(data, tmp_path):
    from espnet2.train.dataset import ESPnetDataset
    from espnet2.train.iterable_dataset import IterableESPnetDataset

    folder = tmp_path / "a b" / "org"
    dump(data, folder, nj=1)
    seen = []

    def preprocess(uid, arrays):
        seen.append((uid, arrays["speech"]))
        return arrays

    source = [(str(folder / "wav.scp"), "speech", "kaldi_ark")]
    indexed = ESPnetDataset(source, preprocess=preprocess)
    for utt in RATES:
        indexed[utt]
    list(IterableESPnetDataset(source, preprocess=preprocess))
    assert [utt for utt, _ in seen] == list(RATES) * 2
    for utt, got in seen:  # neither scaled nor float: whoever reads must divide
        assert got.dtype == np.int16
        np.testing.assert_array_equal(got, load(folder)[utt][1])


def folder_bytes(folder):
    return {
        p.name: p.read_bytes().replace(str(folder).encode(), b"")
        for p in sorted(folder.iterdir())
    }


def test_the_dump_does_not_depend_on_the_number_of_processes(
    data, tmp_path, monkeypatch
):
    monkeypatch.setattr(stages, "_SHARD", 2)
    dump(data, tmp_path / "one", nj=1)
    dump(data, tmp_path / "two", nj=2)
    assert folder_bytes(tmp_path / "one") == folder_bytes(tmp_path / "two")
    assert (tmp_path / "one/data_wav.2.ark").exists()


def test_a_second_dump_is_the_same_and_replaces_the_first(data, tmp_path):
    dump(data, tmp_path / "org", nj=1)
    first = folder_bytes(tmp_path / "org")
    (tmp_path / "org/leftover").write_text("x")
    dump(data, tmp_path / "org", nj=1)
    assert folder_bytes(tmp_path / "org") == first


def test_loud_audio_is_clipped_not_wrapped(tmp_path):
    utt = make_utterance(tmp_path, "loud", 16_000, peak=0.5)
    samples = np.array([1.0, -1.0, 0.999999, 0.0] * 100, np.float32)
    soundfile.write(utt.audio, samples, 16_000, subtype="FLOAT")
    write_datadir(tmp_path / "train", [utt])
    dump(tmp_path / "train", tmp_path / "org", nj=1)
    _, got = load(tmp_path / "org")["loud"]
    assert got[:4].tolist() == [32767, -32768, 32767, 0]


def test_a_segment_of_a_channel_is_cut_out(tmp_path):
    left, right = np.full(16_000, 0.25), np.linspace(-0.5, 0.5, 16_000)
    soundfile.write(tmp_path / "two.wav", np.stack([left, right], 1), 16_000)
    utt = make_utterance(
        tmp_path,
        "x",
        16_000,
        audio=str(tmp_path / "two.wav"),
        segment=(0.25, 0.75),
        channel=1,
        recording="two",
    )
    write_datadir(tmp_path / "train", [utt])
    dump(tmp_path / "train", tmp_path / "org", nj=1)
    _, got = load(tmp_path / "org")["x"]
    want = soundfile.read(tmp_path / "two.wav", dtype="int16")[0][4000:12_000, 1]
    np.testing.assert_array_equal(got, want)
    (dumped,) = read_datadir(tmp_path / "org")
    assert (dumped.segment, dumped.channel) == (None, None)


def test_speed_copies_have_names_of_their_own_and_all_else_stays(data, tmp_path):
    perturb_speed(data, tmp_path / "train_sp", [0.9, 1.0, 1.1])
    utts = {u.id: u for u in read_datadir(tmp_path / "train_sp")}
    assert set(utts) == {p + n for n in RATES for p in ("sp0.9-", "", "sp1.1-")}
    slow, same = utts["sp0.9-a"], utts["a"]
    assert (slow.speaker, slow.speed) == ("sp0.9-sa", 0.9)
    assert (same.speaker, same.speed) == ("sa", 1.0)
    assert slow.guides == {"bandwidth": "nb"}
    assert (slow.texts, slow.fs, slow.audio) == (same.texts, 8000, same.audio)


def test_the_dump_applies_the_speed_once(data, tmp_path):
    perturb_speed(data, tmp_path / "train_sp", [0.9, 1.1])
    dump(tmp_path / "train_sp", tmp_path / "org", nj=1)
    stored = load(tmp_path / "org")
    for utt in read_datadir(tmp_path / "org"):
        factor = float(utt.id[2:5])
        samples, rate = read_audio(str(data.parent / f"{utt.id[6:]}.wav"))
        want = to_model_rate(change_speed(samples, factor), rate)
        got = stored[utt.id][1]
        np.testing.assert_array_equal(got / np.float32(32768), want)
        assert abs(len(got) - 0.3 * 16_000 / factor) <= 2
        assert utt.speed == 1.0


@pytest.fixture
def calls(data):
    """Adds to ``data`` a twin of each utterance, to be sent through a telephone."""
    utts = read_datadir(data)
    twins = [
        replace(u, id=f"tel-{u.id}", telephone=k, guides={"bandwidth": "nb"})
        for k, u in enumerate(utts)
    ]
    write_datadir(data, [*utts, *twins])
    return data


def call_of(samples, rate, seed):
    """The model's samples of a telephone call."""
    rng = np.random.default_rng(seed)
    call = through_telephone(samples, rate, TelephoneLine(), rng)
    return to_model_rate(call / np.float32(32768), 8000)


def test_the_dump_makes_the_call_of_the_seed(calls, tmp_path):
    dump(calls, tmp_path / "org", nj=1)
    stored, dumped = load(tmp_path / "org"), read_datadir(tmp_path / "org")
    for k, name in enumerate(RATES):
        want = call_of(*read_audio(str(calls.parent / f"{name}.wav")), k)
        got = stored[f"tel-{name}"][1]
        np.testing.assert_array_equal(got / np.float32(32768), want)
        assert len(got) == pytest.approx(len(stored[name][1]), abs=2)
    for utt in dumped:  # done once, not again by who dumps the dump
        assert utt.telephone is None
        assert utt.num_samples == len(stored[utt.id][1])
        assert utt.fs == RATES[utt.id[-1]]
        narrow = utt.fs == 8000 or utt.id.startswith("tel-")
        assert utt.guides["bandwidth"] == ("nb" if narrow else "wb")


def test_calls_do_not_depend_on_the_number_of_processes(calls, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "_SHARD", 3)
    dump(calls, tmp_path / "one", nj=1)
    dump(calls, tmp_path / "two", nj=2)
    assert folder_bytes(tmp_path / "one") == folder_bytes(tmp_path / "two")


def test_speed_comes_before_the_telephone(calls, tmp_path):
    perturb_speed(calls, tmp_path / "train_sp", [0.9])
    dump(tmp_path / "train_sp", tmp_path / "org", nj=1)
    samples, rate = read_audio(str(calls.parent / "b.wav"))
    want = call_of(change_speed(samples, 0.9), rate, call_seed("sp0.9-tel-b"))
    got = load(tmp_path / "org")["sp0.9-tel-b"][1]
    np.testing.assert_array_equal(got / np.float32(32768), want)


def test_each_copy_of_a_twin_is_a_call_of_its_own(calls, tmp_path):
    seeds = {u.id: u.telephone for u in read_datadir(calls)}
    for out in ("once_sp", "again_sp"):
        perturb_speed(calls, tmp_path / out, [0.9, 1.0, 1.1])
        copies = {u.id: u.telephone for u in read_datadir(tmp_path / out)}
        for name in RATES:
            assert copies[f"tel-{name}"] == seeds[f"tel-{name}"]
            assert copies[f"sp0.9-{name}"] is None
            for prefix in ("sp0.9-tel-", "sp1.1-tel-"):
                assert copies[prefix + name] == call_seed(prefix + name)
    drawn = [seed for seed in copies.values() if seed is not None]
    assert len(set(drawn)) == len(drawn) == 3 * len(RATES)


def power(samples, low, high):
    """Mean power per frequency of 16 kHz samples between two frequencies (Hz), dB."""
    faded = samples * np.hanning(len(samples))  # no step at the ends
    powers = np.abs(np.fft.rfft(faded)) ** 2
    hertz = np.fft.rfftfreq(len(samples), 1 / 16_000)
    return 10 * np.log10(powers[(low <= hertz) & (hertz < high)].mean() + 1e-9)


@pytest.mark.parametrize(
    ("rate", "factor", "end"),
    [
        *((16_000, 0.7, None), (44_100, 0.7, None), (14_000, 0.7, None)),
        *((11_025, 0.9, None), (10_000, 1.1, None), (9_000, 1.0, None)),
        *((13_900, 0.7, 4865), (11_025, 0.85, 4686), (12_000, 0.8, 4800)),
    ],
)
def test_slow_wideband_keeps_a_high_band_or_is_refused(tmp_path, rate, factor, end):
    utt = make_utterance(tmp_path, "x", rate, 2.0)
    write_datadir(tmp_path / "train", [utt])
    slow = to_model_rate(change_speed(read_audio(utt.audio)[0], factor), rate)
    # what the detector hears of the least high band that it listens to
    left = power(slow, 4500, 4900) - power(slow, 1000, 4000)
    if end is None:
        assert left > -5 or factor >= 1
        perturb_speed(tmp_path / "train", tmp_path / "train_sp", [1.4, factor])
        return
    assert left < -5
    named = rf"x: .*{rate} Hz .*{factor} ends at {end} Hz, expected 4900 Hz"
    with pytest.raises(DumpError, match=named):
        perturb_speed(tmp_path / "train", tmp_path / "train_sp", [1.4, factor])
    assert not (tmp_path / "train_sp").exists()
    write_datadir(tmp_path / "train", [replace(utt, guides={"bandwidth": "nb"})])
    perturb_speed(tmp_path / "train", tmp_path / "train_sp", [1.4, factor])


@pytest.mark.parametrize("rate", [9_000, 16_000, 44_100])
def test_narrowband_played_faster_stays_below_4_khz(tmp_path, rate):
    utt = make_utterance(tmp_path, "x", rate, 2.0, guides={"bandwidth": "nb"})
    call = narrow_band(read_audio(utt.audio)[0], rate)
    soundfile.write(utt.audio, call, rate, subtype="FLOAT")
    write_datadir(tmp_path / "train", [utt])
    perturb_speed(tmp_path / "train", tmp_path / "train_sp", [0.9, 1.0, 1.4])
    dump(tmp_path / "train_sp", tmp_path / "org", nj=1)
    stored = {i: x.astype(float) for i, (_, x) in load(tmp_path / "org").items()}
    for name, factor in {"sp0.9-x": 0.9, "x": 1.0, "sp1.4-x": 1.4}.items():
        got = stored[name]
        assert abs(len(got) - 2.0 * 16_000 / factor) <= 2
        # the grid of 16 bits is at -70 dB
        assert power(got, 4050, 8000) < power(got, 500, 3000) - 60
    fast = to_model_rate(change_speed(call, 1.4), rate)
    assert power(fast, 4050, 4400) > power(fast, 500, 3000) - 60  # without a filter
    # what was there below stays as it was
    below = slice(round(500 * 2 / 1.4), round(3500 * 2 / 1.4))
    was, now = (np.fft.rfft(x)[below] for x in (fast * 32768, stored["sp1.4-x"]))
    assert np.abs(was - now).max() < 0.01 * np.abs(was).max()


@pytest.mark.parametrize(
    "factors",
    [[], [0.0], [-1.0], [0.5], [float("nan")], [0.9, 0.9], [1.0, 1.0]],
)
def test_speed_factors_that_are_no_factors_are_refused(data, tmp_path, factors):
    with pytest.raises(DumpError, match="speed factors must"):
        perturb_speed(data, tmp_path / "train_sp", factors)
    assert not (tmp_path / "train_sp").exists()


def test_perturbing_twice_is_refused(data, tmp_path):
    perturb_speed(data, tmp_path / "x_sp", [0.9])
    with pytest.raises(DumpError, match=r"sp0.9-a already has speed 0.9"):
        perturb_speed(tmp_path / "x_sp", tmp_path / "y_sp", [0.9])


@pytest.fixture
def org(tmp_path):
    """A dump with utterances of 0.1, 0.2, 0.3 and 0.4 s."""
    utts = [make_utterance(tmp_path, f"u{k}", 16_000, k / 10) for k in (1, 2, 3, 4)]
    write_datadir(tmp_path / "train", utts)
    dump(tmp_path / "train", tmp_path / "org", nj=1)
    return tmp_path / "org"


@pytest.mark.parametrize(
    "bounds, kept",
    [
        pytest.param((0.2, 0.3), ["u2", "u3"], id="both-bounds-included"),
        pytest.param((0.20001, 0.29999), None, id="none"),
        pytest.param((0.0, float("inf")), ["u1", "u2", "u3", "u4"], id="all"),
        pytest.param((0.25, 9.0), ["u3", "u4"], id="short-ones-out"),
    ],
)
def test_the_filter_keeps_durations_between_the_bounds(org, tmp_path, bounds, kept):
    if kept is None:
        with pytest.raises(DumpError, match=r"0.20001 to 0.29999 s.*0.10 s.*0.40 s"):
            filter_by_length(org, tmp_path / "out", *bounds)
        assert not (tmp_path / "out").exists()
        return
    filter_by_length(org, tmp_path / "out", *bounds)
    assert [u.id for u in read_datadir(tmp_path / "out")] == kept
    places, all_places = (read_table(d / "wav.scp") for d in (tmp_path / "out", org))
    assert places == {i: all_places[i] for i in kept}
    assert set(load(tmp_path / "out")) == set(kept)


@pytest.mark.parametrize(
    "bounds", [(1.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (float("nan"), 1.0)]
)
def test_bounds_that_are_no_interval_are_refused(org, tmp_path, bounds):
    with pytest.raises(DumpError, match="min_wav_duration < max_wav_duration"):
        filter_by_length(org, tmp_path / "out", *bounds)


def test_the_filter_logs_how_many_it_removed(org, tmp_path, caplog):
    with caplog.at_level("INFO"):
        filter_by_length(org, tmp_path / "out", 0.15, 0.25)
    assert "1 utterances kept, 1 removed as under 0.15 s, 2 as over 0.25 s" in (
        caplog.text
    )


def test_a_dump_whose_arks_are_gone_is_refused(org, tmp_path):
    (org / "data_wav.1.ark").unlink()
    with pytest.raises(DumpError, match=r"data_wav.1.ark, .* run stage 3 again"):
        filter_by_length(org, tmp_path / "out", 0, 9)


@pytest.mark.parametrize(
    "stage, call",
    [
        (1, lambda d, out: perturb_speed(d / "train", out, [0.9])),
        (1, lambda d, out: dump(d / "train", out, 1)),
        (2, lambda d, out: dump(d / "train_sp", out, 1)),
        (3, lambda d, out: filter_by_length(d / "org", out, 0, 9)),
    ],
    ids=["perturb", "dump", "dump-perturbed", "filter"],
)
def test_a_missing_input_says_which_stage_makes_it(tmp_path, stage, call):
    with pytest.raises(DumpError, match=f"is missing: run stage {stage} first"):
        call(tmp_path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_stage_never_writes_over_its_input(org):
    with pytest.raises(DumpError, match="both input and output"):
        filter_by_length(org, org.parent / "train" / ".." / "org", 0, 9)
    assert len(load(org)) == 4


@pytest.mark.parametrize("nj", [1, 2])
def test_bad_audio_names_the_utterance_and_leaves_nothing(
    data, tmp_path, monkeypatch, nj
):
    monkeypatch.setattr(stages, "_SHARD", 2)
    Path(read_datadir(data)[2].audio).write_bytes(b"no audio")
    with pytest.raises(DumpError, match=r"utterance c: .*c\.wav"):
        dump(data, tmp_path / "org", nj=nj)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["my data"]


def test_audio_changed_since_stage_1_is_refused(data, tmp_path):
    soundfile.write(read_datadir(data)[0].audio, np.zeros(8000), 16_000)
    with pytest.raises(DumpError, match=r"a: .* 16000 Hz, utt2fs says 8000 Hz"):
        dump(data, tmp_path / "org", nj=1)


def test_a_full_disk_leaves_nothing_and_says_so_in_one_line(data, tmp_path):
    # a file-size limit fails in the same place as a full disk, without root
    code = (
        "import resource, sys; from espnet_smoe.bin.smoe_dump import main;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
        "sys.exit(main(sys.argv[1:]))"
    )
    out = tmp_path / "dump/org"
    command = [sys.executable, "-c", code, "--in_dir", str(data), "--out_dir", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"smoe_dump: {out} cannot be written")
    assert "Traceback" not in done.stderr
    assert list(out.parent.iterdir()) == []


def test_the_tools_chain_from_stage_2_to_4(data, tmp_path):
    sp, org, out = (str(tmp_path / n) for n in ("train_sp", "org", "out"))
    options = ["--in_dir", str(data), "--out_dir", sp, "--factors", "0.9", "1.0"]
    assert smoe_perturb_speed.main(options) == 0
    assert smoe_dump.main(["--in_dir", sp, "--out_dir", org, "--nj", "1"]) == 0
    bounds = ["--min_wav_duration", "0.32", "--max_wav_duration", "1"]
    assert smoe_filter.main(["--in_dir", org, "--out_dir", out, *bounds]) == 0
    ids = [u.id for u in read_datadir(Path(out))]
    assert ids == [f"sp0.9-{n}" for n in sorted(RATES)]


@pytest.mark.parametrize("tool", [smoe_perturb_speed, smoe_dump, smoe_filter])
def test_a_tool_refuses_a_missing_folder_in_one_line(tmp_path, capsys, tool):
    options = ["--in_dir", str(tmp_path / "no"), "--out_dir", str(tmp_path / "x")]
    if tool is smoe_filter:
        options += ["--min_wav_duration", "0", "--max_wav_duration", "1"]
    assert tool.main(options) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"{tool.__name__.rpartition('.')[2]}: ")
    assert "run stage" in line
