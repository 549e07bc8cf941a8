"""Manifest corpus: what is written, and that every mistake is named at once."""

import json
import logging

import numpy as np
import pytest
import soundfile

from espnet_smoe.audio import read_audio, resample
from espnet_smoe.bandwidth import detect_bandwidth
from espnet_smoe.bin.smoe_data import main
from espnet_smoe.corpora.demo_speech import Delivery, Engine, Voice
from espnet_smoe.corpora.manifest import ManifestError, prepare_manifest
from espnet_smoe.datadir import read_datadir
from espnet_smoe.dump import dump, load_dumped
from espnet_smoe.files import read_table
from espnet_smoe.guide import GuideTable

GUIDES = GuideTable.from_mapping({"bandwidth": ["nb", "wb"], "task": ["asr", "st_de"]})


def write_wav(path, seconds=0.5, rate=16_000, channels=1, **options):
    rng = np.random.default_rng(int(rate * seconds))
    samples = rng.uniform(-0.3, 0.3, (round(seconds * rate), channels))
    soundfile.write(path, samples, rate, **options)


def entry(name="a", **changes):
    line = {"id": name, "audio": "a.wav", "split": "train", "texts": {"asr": "yes"}}
    return {k: v for k, v in {**line, **changes}.items() if v != "drop"}


@pytest.fixture
def prepare(tmp_path):
    """Write lines (dicts or raw text) and prepare them; a.wav is there."""
    write_wav(tmp_path / "a.wav")

    def call(*lines, splits=("train",), guides=GUIDES, nj=1, **options):
        manifest = tmp_path / "all.jsonl"
        text = [ln if isinstance(ln, str) else json.dumps(ln) for ln in lines]
        manifest.write_text("\n".join(text) + "\n", encoding="utf-8")
        prepare_manifest(manifest, tmp_path / "data", guides, splits, nj, **options)
        return {s: read_datadir(tmp_path / "data" / s) for s in splits}

    return call


def test_a_full_line_arrives_field_by_field(prepare, tmp_path):
    write_wav(tmp_path / "call.wav", 2.0, 8000, channels=2)
    line = entry(
        "u1",
        audio="call.wav",
        texts={"asr": " Good \t morning,\nDr. Who! ", "st_de": "Guten Morgen"},
        start=0.25,
        end=1.5,
        channel=1,
        speaker="ann",
        bandwidth="nb",
    )
    (utt,) = prepare(line)["train"]
    assert (utt.id, utt.speaker, utt.fs, utt.channel) == ("u1", "ann", 8000, 1)
    assert utt.audio == str(tmp_path / "call.wav")
    assert utt.segment == (0.25, 1.5)
    assert utt.num_samples == 10_000
    assert utt.guides == {"bandwidth": "nb"}
    assert utt.texts == {"asr": "Good morning, Dr. Who!", "st_de": "Guten Morgen"}


def test_the_speaker_is_the_id_unless_given(prepare):
    assert prepare(entry("u1"))["train"][0].speaker == "u1"


@pytest.mark.parametrize(
    "rate, bandwidth", [(8000, "nb"), (16_000, "wb"), (22_050, "wb"), (48_000, "wb")]
)
def test_the_bandwidth_follows_from_the_native_rate(prepare, tmp_path, rate, bandwidth):
    write_wav(tmp_path / "x.wav", 0.1, rate)
    (utt,) = prepare(entry(audio="x.wav"))["train"]
    assert (utt.fs, utt.guides["bandwidth"]) == (rate, bandwidth)
    assert utt.num_samples == round(0.1 * rate)


@pytest.mark.parametrize("rate", [11_025, 16_000])
def test_the_line_may_say_another_bandwidth(prepare, tmp_path, rate):
    write_wav(tmp_path / "x.wav", 0.1, rate)
    (utt,) = prepare(entry(audio="x.wav", bandwidth="nb"))["train"]
    assert utt.guides["bandwidth"] == "nb"


def test_lines_go_to_their_splits_in_any_format_of_libsndfile(prepare, tmp_path):
    write_wav(tmp_path / "b.flac", 0.2)
    write_wav(tmp_path / "c.wav", 0.2, 8000, subtype="ULAW")
    lines = [
        entry("a", audio=str(tmp_path / "a.wav")),
        entry("b", audio="b.flac", split="dev"),
        entry("c", audio="c.wav", texts={"st_de": "ja"}),
    ]
    sets = prepare(*lines, splits=("train", "dev"), nj=2)
    assert [u.id for u in sets["train"]] == ["a", "c"]
    assert [u.id for u in sets["dev"]] == ["b"]
    assert sets["train"][1].texts == {"st_de": "ja"}


def test_utterances_of_one_file_are_segments_of_one_recording(prepare):
    lines = [entry("a", end=0.2), entry("b", start=0.2), entry("c", start=0.1, end=0.3)]
    utts = prepare(*lines)["train"]
    assert [u.segment for u in utts] == [(0.0, 0.2), (0.2, 0.5), (0.1, 0.3)]
    assert [u.num_samples for u in utts] == [3200, 4800, 3200]
    assert len({u.recording for u in utts}) == 1
    assert not {u.recording for u in utts} & {"a", "b", "c"}


def test_files_of_the_same_name_in_two_folders_are_two_recordings(prepare, tmp_path):
    for folder in ("x y", "z"):
        (tmp_path / folder).mkdir()
        write_wav(tmp_path / folder / "a b.wav")
    utts = prepare(
        entry("a", audio="x y/a b.wav", end=0.2), entry("b", audio="z/a b.wav", end=0.2)
    )["train"]
    assert len({u.recording for u in utts}) == 2
    assert utts[0].audio == str(tmp_path / "x y" / "a b.wav")


def test_one_file_spelled_in_three_ways_is_one_recording(prepare, recordings):
    (recordings / "wav").mkdir()
    (recordings / "call.wav").rename(recordings / "wav/call.wav")
    (recordings / "link.wav").symlink_to("wav/call.wav")
    ways = {"a": "wav/call.wav", "b": "wav/../wav/call.wav", "c": "link.wav"}
    spans = {"a": (0.0, 6.0), "b": (0.5, 0.53), "c": (1.0, 1.03)}
    lines = [
        entry(n, audio=ways[n], start=start, end=end)
        for n, (start, end) in spans.items()
    ]
    utts = prepare(*lines, bandwidth="detect")["train"]
    assert {u.audio for u in utts} == {str(recordings / "wav/call.wav")}
    assert len({u.recording for u in utts}) == 1
    assert labels(utts) == dict.fromkeys("abc", "nb")  # the short ones by the long
    # but two files of one sound are two
    (recordings / "copy.wav").write_bytes((recordings / "wav/call.wav").read_bytes())
    lines[1]["audio"] = "copy.wav"
    found = labels(prepare(*lines, bandwidth="detect")["train"])
    assert found == {"a": "nb", "b": "wb", "c": "nb"}


def test_links_in_a_circle_are_a_missing_file(prepare, tmp_path):
    for one, other in (("x.wav", "y.wav"), ("y.wav", "x.wav")):
        (tmp_path / one).symlink_to(other)
    with pytest.raises(ManifestError, match=r"line 1 \(a\): .*missing"):
        prepare(entry(audio="x.wav"))


def test_a_further_axis_of_the_guides_is_a_key_of_the_line(prepare):
    conf = {"language": ["en", "fr"], "bandwidth": ["nb", "wb"], "task": ["asr"]}
    guides = GuideTable.from_mapping(conf)
    (utt,) = prepare(entry(language="fr"), guides=guides)["train"]
    assert utt.guides == {"language": "fr", "bandwidth": "wb"}
    with pytest.raises(ManifestError, match="missing key 'language'"):
        prepare(entry(), guides=guides)
    with pytest.raises(ManifestError, match=r'unknown language "de"; known: en, fr'):
        prepare(entry(language="de"), guides=guides)


def test_an_axis_named_like_a_key_is_refused(prepare):
    conf = {"channel": ["gsm"], "bandwidth": ["nb", "wb"], "task": ["asr"]}
    with pytest.raises(ManifestError, match="'channel'"):
        prepare(entry(), guides=GuideTable.from_mapping(conf))


@pytest.mark.parametrize(
    "line, reason",
    [
        pytest.param(
            '{"id": "a",', r"no valid JSON: Expecting .* at character 13", id="json"
        ),
        pytest.param('{"id": "a"} b', "Extra data at character 13", id="two-values"),
        pytest.param('{"id": "a", "id": "b"}', "key 'id' comes twice", id="two-keys"),
        pytest.param("[1]", "expected a JSON object", id="not-an-object"),
        pytest.param(entry(txt="x"), r'unknown key "txt"; known: id, audio', id="key"),
        pytest.param(entry(id="drop"), "missing key 'id'", id="no-id"),
        pytest.param(entry(audio="drop"), "missing key 'audio'", id="no-audio"),
        pytest.param(entry(split="drop"), "missing key 'split'", id="no-split"),
        pytest.param(entry(texts="drop"), "missing key 'texts'", id="no-texts"),
        pytest.param(entry(id=7), "id must be one word, got 7", id="id-type"),
        pytest.param(entry(id="a b"), 'id must be one word, got "a b"', id="two-words"),
        pytest.param(entry(id=""), "id must be one word", id="empty-id"),
        pytest.param(entry(id="\ud800"), "id must be one word", id="surrogate"),
        pytest.param(entry(speaker="a b"), "speaker must be one word", id="speaker"),
        pytest.param(entry(audio=["a.wav"]), "audio must be a path", id="audio-type"),
        pytest.param(entry(audio="a.wav\n"), "a line of text can hold", id="newline"),
        pytest.param(entry(split="test"), 'unknown split "test"; asked', id="split"),
        pytest.param(entry(texts="yes"), "texts must map tasks", id="texts-type"),
        pytest.param(entry(texts={}), "at least one", id="no-text"),
        pytest.param(entry(texts={"asr": " "}), "asr text is empty", id="empty-text"),
        pytest.param(
            entry(texts={"asr": "yes", "st_de": ""}), "st_de text is empty", id="one-of"
        ),
        pytest.param(entry(texts={"asr": 1}), "asr text must be a string", id="text"),
        pytest.param(
            entry(texts={"st_fr": "oui"}),
            'unknown task "st_fr"; known: asr, st_de',
            id="task",
        ),
        pytest.param(
            entry(bandwidth="swb"), 'unknown bandwidth "swb"; known: nb, wb', id="band"
        ),
        pytest.param(entry(bandwidth=None), "unknown bandwidth null", id="null"),
        pytest.param(entry(start="0"), "start must be seconds", id="start-type"),
        pytest.param(entry(start=-1), "start must be seconds", id="negative"),
        pytest.param(entry(end=float("nan")), "end must be seconds", id="nan"),
        pytest.param(entry(end=10**400), "end must be seconds", id="huge"),
        pytest.param(entry(end=0.6), "(?i)end|outside|segment", id="past-the-end"),
        pytest.param(entry(start=0.3, end=0.3), "must be before end", id="no-length"),
        pytest.param(entry(start=9), "must be before end", id="starts-after-the-end"),
        pytest.param(entry(channel="left"), "channel must be an integer", id="channel"),
        pytest.param(entry(channel=True), "channel must be an integer", id="bool"),
        pytest.param(entry(channel=1), "(?i)channel 1", id="no-such-channel"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_written(prepare, tmp_path, line, reason):
    good = entry("good")
    with pytest.raises(ManifestError, match=reason) as error:
        prepare(good, line)
    assert "line 2" in str(error.value)
    assert "line 1" not in str(error.value)
    assert not (tmp_path / "data").exists()


def damage(path, kind):
    write_wav(path, 0.5, 7999 if kind == "rate" else 16_000, subtype="FLOAT")
    if kind == "missing":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("this is no audio\n" * 50)
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-4000])
    elif kind == "zero-length":
        soundfile.write(path, np.zeros(0), 16_000)
    elif kind == "silent":
        soundfile.write(path, np.zeros(8000), 16_000)
    elif kind == "offset-only":
        soundfile.write(path, np.full(8000, 0.25), 16_000)
    elif kind in ("nan", "inf"):
        samples = np.zeros(8000, np.float32)
        samples[7000] = float(kind)
        soundfile.write(path, samples, 16_000, subtype="FLOAT")
    elif kind == "stereo":
        write_wav(path, channels=2)
    elif kind == "11k":
        write_wav(path, 0.5, 11_025)


@pytest.mark.parametrize(
    "kind",
    [
        *("missing", "empty", "text", "truncated", "zero-length", "nan", "inf"),
        *("rate", "stereo", "11k", "silent", "offset-only"),
    ],
)
def test_audio_that_cannot_be_used_is_named(prepare, tmp_path, kind):
    damage(tmp_path / "bad.wav", kind)
    with pytest.raises(ManifestError, match=r"line 2 \(b\): .") as error:
        prepare(entry("a"), entry("b", audio="bad.wav"))
    assert str(error.value).count("line ") == 1
    assert not (tmp_path / "data").exists()


def test_all_mistakes_come_in_one_report_in_line_order(prepare, tmp_path):
    damage(tmp_path / "bad.wav", "truncated")
    with pytest.raises(ManifestError) as error:
        prepare(
            entry("a", audio="bad.wav"),
            entry("b"),
            "{",
            entry("b", colour="red", texts={"asr": ""}),
            splits=("train", "dev"),
        )
    head, *reasons = str(error.value).split("\n")
    assert "6 mistakes" in head
    assert [r.split(":")[0] for r in reasons] == [
        "no utterance for split 'dev';",
        "line 1 (a)",
        "line 3",
        *["line 4 (b)"] * 3,
    ]
    assert "already that of line 2" in reasons[-1]


def test_a_long_report_ends_in_a_count(prepare):
    with pytest.raises(ManifestError, match="and 7 more") as error:
        prepare(*(entry(f"u{i}", split="x") for i in range(26)))
    assert "27 mistakes" in str(error.value)  # 26 lines and a split without any


def test_a_late_mistake_leaves_the_old_data_as_it_was(prepare, tmp_path):
    prepare(entry("old"))
    with pytest.raises(ManifestError):
        prepare(entry("new"), entry("new"))
    assert [u.id for u in read_datadir(tmp_path / "data/train")] == ["old"]


def test_a_new_survey_never_stands_beside_old_labels(prepare, tmp_path):
    def survey():
        return (tmp_path / "data/survey/bandwidth.tsv").read_text()

    splits = {"splits": ("train", "dev")}
    prepare(entry("old"), entry("dev", split="dev"), **splits)
    before = survey()
    # a file where the last split would be made: the run ends there
    stopper = tmp_path / "data/.dev.tmp"
    stopper.write_text("x")
    lines = entry("new"), entry("dev", split="dev", bandwidth="nb")
    with pytest.raises(FileExistsError):
        prepare(*lines, **splits)
    assert labels(read_datadir(tmp_path / "data/dev")) == {"dev": "wb"}
    assert survey() == before
    stopper.unlink()
    assert labels(prepare(*lines, **splits)["dev"]) == {"dev": "nb"}
    assert "new" in survey()


@pytest.mark.parametrize("splits", [(), ("train", "train"), ("../x",), ("",)])
def test_splits_that_are_no_folder_names_are_refused(prepare, splits):
    with pytest.raises(ManifestError, match="splits must be"):
        prepare(entry(), splits=splits)


def test_a_split_cannot_have_the_name_of_the_survey(prepare):
    with pytest.raises(ManifestError, match="'survey'"):
        prepare(entry(split="survey"), splits=("survey",))


def test_blank_lines_and_a_byte_order_mark_do_no_harm(prepare):
    assert len(prepare("\ufeff" + json.dumps(entry()), "", "  ")["train"]) == 1


# ------------------------------------------------------------------ sound and label


@pytest.fixture(scope="module")
def speech():
    """Three sentences, 16 kHz: (S,) float."""
    engine, rng = Engine(), np.random.default_rng(0)
    spoken = engine.speak(
        "this is the first sentence she saw six of the big ships in the sea and "
        "that is how it was then we sat there for a while to see the sun set",
        *(Voice("en-us", "f2"), Delivery(words_per_minute=180), 0),
    )
    samples = resample(spoken / (1 << 15), engine.rate, 16_000)
    return samples + 0.001 * rng.standard_normal(len(samples))


@pytest.fixture
def recordings(tmp_path, speech):
    """wide.wav; call.wav, the same from 8 kHz; short.wav, which nobody can tell."""
    call = resample(resample(speech, 16_000, 8000), 8000, 16_000)[: len(speech)]
    soundfile.write(tmp_path / "wide.wav", speech, 16_000)
    soundfile.write(tmp_path / "call.wav", call, 16_000)
    soundfile.write(tmp_path / "both.wav", np.stack([call, speech], 1), 16_000)
    soundfile.write(tmp_path / "short.wav", speech[8000:8480], 16_000)
    soundfile.write(
        tmp_path / "11k.wav", resample(speech, 16_000, 11_025), 11_025, subtype="PCM_24"
    )
    return tmp_path


def labels(utts):
    return {u.id: u.guides["bandwidth"] for u in utts}


@pytest.mark.parametrize("mode", ["header", "check", "detect"])
def test_a_call_stored_at_16_khz_is_found_out(prepare, recordings, caplog, mode):
    lines = [
        entry("wide", audio="wide.wav"),
        entry("call", audio="call.wav"),
        entry("said", audio="wide.wav", bandwidth="nb"),
        entry("short", audio="short.wav"),
    ]
    found = labels(prepare(*lines, bandwidth=mode)["train"])
    call = "nb" if mode == "detect" else "wb"
    assert found == {"wide": "wb", "call": call, "said": "nb", "short": "wb"}
    clashes = {
        "header": "",
        "check": "2 utterances sound unlike their bandwidth label (call, said)",
        "detect": "1 utterances sound unlike their bandwidth label (said)",
    }
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == bool(clashes[mode])
    assert clashes[mode] in "".join(warnings)


def test_the_survey_has_every_line_and_the_detectors_own_score(prepare, recordings):
    prepare(
        entry("b", audio="wide.wav"), entry("a", audio="call.wav", split="dev"),
        entry("c", audio="short.wav"), splits=("train", "dev"),
    )  # fmt: skip
    lines = (recordings / "data/survey/bandwidth.tsv").read_text().splitlines()
    head, *rows = (line.split("	") for line in lines)
    rows = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert list(rows) == ["b", "a", "c"]
    for name, file in {"b": "wide", "a": "call"}.items():
        samples = soundfile.read(recordings / f"{file}.wav", dtype="float32")[0]
        estimate = detect_bandwidth(samples, 16_000)
        assert rows[name]["score_db"] == f"{estimate.score:.1f}"
        assert rows[name]["heard"] == estimate.bandwidth
    assert rows["c"]["detected"] == "unknown"


def test_a_short_segment_sounds_like_its_channel(prepare, recordings):
    long, short = {"start": 0.1, "end": 6.0}, {"start": 0.5, "end": 0.53}
    lines = [
        entry(f"{kind}{channel}", audio="both.wav", channel=channel, **span)
        for channel in (0, 1)
        for kind, span in {"long": long, "short": short}.items()
    ]
    found = labels(prepare(*lines, bandwidth="detect")["train"])
    assert found == {"long0": "nb", "short0": "nb", "long1": "wb", "short1": "wb"}


def test_a_rate_that_does_not_tell_is_labelled_by_sound_only(prepare, recordings):
    line = entry(audio="11k.wav")
    estimate = detect_bandwidth(*read_audio(recordings / "11k.wav"))
    assert labels(prepare(line, bandwidth="detect")["train"]) == {
        "a": estimate.bandwidth
    }
    for mode in ("header", "check"):
        with pytest.raises(ManifestError, match=r"line 1 \(a\): 11025 Hz .*detect"):
            prepare(line, bandwidth=mode)


def test_a_rate_and_a_sound_that_do_not_tell_are_a_mistake(prepare, recordings):
    short = soundfile.read(recordings / "11k.wav")[0][5000:5300]
    soundfile.write(recordings / "short.wav", short, 11_025)
    with pytest.raises(ManifestError, match=r"line 1 .*sound does not tell .*say"):
        prepare(entry(audio="short.wav"), bandwidth="detect")


def test_a_bandwidth_heard_that_the_model_lacks_is_a_mistake(prepare, recordings):
    guides = GuideTable.from_mapping({"bandwidth": ["wb"], "task": ["asr"]})
    line = entry(audio="call.wav")
    prepare(line, guides=guides, bandwidth="check")
    with pytest.raises(ManifestError, match=r"its sound means bandwidth 'nb'.*: wb"):
        prepare(line, guides=guides, bandwidth="detect")


def test_a_label_of_the_rate_is_never_blamed_on_the_sound(prepare, recordings):
    guides = GuideTable.from_mapping({"bandwidth": ["nb"], "task": ["asr"]})
    line = entry(audio="wide.wav")  # sounds like what its rate says
    for mode in ("header", "check"):
        with pytest.raises(ManifestError, match=r"\(a\): 16000 Hz means .*'wb'"):
            prepare(line, guides=guides, bandwidth=mode)
    with pytest.raises(ManifestError, match=r"\(a\): its sound means .*'wb'"):
        prepare(line, guides=guides, bandwidth="detect")
    line = entry(audio="short.wav")  # nobody can tell: the rate is heeded
    with pytest.raises(ManifestError, match=r"\(a\): 16000 Hz means .*'wb'"):
        prepare(line, guides=guides, bandwidth="detect")


@pytest.mark.parametrize("mode", ["header", "check", "detect"])
def test_a_file_of_8_khz_cannot_be_called_wideband(prepare, tmp_path, mode):
    for rate in (8000, 8001):
        write_wav(tmp_path / f"{rate}.wav", rate=rate)
    lines = [entry(f"u{r}", audio=f"{r}.wav", bandwidth="wb") for r in (8001, 8000)]
    with pytest.raises(ManifestError, match=r"line 2 \(u8000\): .*'wb'.* 8000 Hz"):
        prepare(*lines, bandwidth=mode)
    assert not (tmp_path / "data").exists()
    lines[1]["bandwidth"] = "nb"
    found = labels(prepare(*lines, bandwidth=mode)["train"])
    assert found == {"u8000": "nb", "u8001": "wb"}


def test_a_silent_channel_names_the_one_that_is_not(prepare, tmp_path):
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 8000)
    channels = np.stack([noise, np.zeros(8000), np.full(8000, 0.1), noise], 1)
    soundfile.write(tmp_path / "four.wav", channels, 16_000)
    with pytest.raises(ManifestError) as error:
        prepare(*(entry(f"c{c}", audio="four.wav", channel=c) for c in range(4)))
    _, first, second = str(error.value).splitlines()
    assert "line 2 (c1)" in first
    assert "four.wav: channel 1 is silent, all 8000 samples are 0" in first
    assert "not so channel 0, 3" in first
    assert "line 3 (c2)" in second
    assert "channel 2 is silent" in second


def test_flawed_audio_is_used_and_reported(prepare, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    noise = np.random.default_rng(0).standard_normal(16_000) * 0.3
    for name, samples in {
        "offset": noise / 3 + 0.2,
        "clipped": np.clip(noise, -0.4, 0.4),
        "beyond": noise * 5,
        "fine": noise / 3,
    }.items():
        path = tmp_path / f"{name}.wav"
        soundfile.write(path, samples, 16_000, subtype="FLOAT")
    names = ("offset", "clipped", "beyond", "fine")
    utts = prepare(*(entry(n, audio=f"{n}.wav") for n in names))["train"]
    assert len(utts) == 4
    lines = (tmp_path / "data/survey/bandwidth.tsv").read_text().splitlines()[1:]
    warnings = {ln.split("	")[0]: ln.split("	")[-1] for ln in lines}
    assert "DC offset" in warnings["offset"]
    assert "clipped" in warnings["clipped"]
    assert "beyond full scale" in warnings["beyond"]
    assert warnings["fine"] == "-"
    assert "3 with warnings" in caplog.text


# ------------------------------------------------------------------ narrowband twins


def test_each_wideband_utterance_gets_a_narrowband_twin(prepare, recordings):
    lines = [
        entry("a", audio="wide.wav", speaker="ann", texts={"asr": "x", "st_de": "y"}),
        entry("b", audio="wide.wav", speaker="bob", split="dev", bandwidth="nb"),
        entry("c", audio="both.wav", channel=1, start=1, end=2, split="dev"),
    ]
    sets = prepare(*lines, splits=("train", "dev"), narrowband_twins=True)
    one, twin = sets["train"]
    assert (twin.id, twin.speaker) == ("tel-a", "tel-ann")
    assert (one.telephone, one.guides["bandwidth"]) == (None, "wb")
    assert twin.guides == {"bandwidth": "nb"}
    assert twin.telephone is not None
    for same in ("audio", "fs", "num_samples", "texts", "segment", "channel"):
        assert getattr(one, same) == getattr(twin, same)
    assert [u.id for u in sets["dev"]] == ["b", "c", "tel-c"]
    assert sets["dev"][2].segment == (1.0, 2.0)
    assert sets["dev"][2].telephone != twin.telephone
    order = read_table(recordings / "data/train/utt2spk")
    assert list(order.values()) == sorted(order.values())


def test_what_sounds_narrowband_gets_no_twin(prepare, recordings):
    lines = [entry("a", audio="wide.wav"), entry("b", audio="call.wav")]
    utts = prepare(*lines, bandwidth="detect", narrowband_twins=True)["train"]
    assert [u.id for u in utts] == ["a", "b", "tel-a"]


def test_the_call_of_a_twin_depends_on_its_id_alone(prepare, recordings):
    lines = [entry(n, audio="wide.wav") for n in "abc"]
    first = prepare(*lines, nj=1, narrowband_twins=True)["train"]
    again = prepare(*lines[:0:-1], nj=2, narrowband_twins=True)["train"]
    calls = {u.id: u.telephone for u in first if u.telephone is not None}
    assert len(set(calls.values())) == 3
    assert {u.id: u.telephone for u in again if u.telephone is not None}.items() < (
        calls.items()
    )


def test_a_dumped_twin_sounds_like_its_guide(prepare, recordings):
    utts = [entry(f"u{k}", audio="wide.wav", start=k, end=k + 3.5) for k in range(3)]
    prepare(*utts, narrowband_twins=True)
    dump(recordings / "data/train", recordings / "dump", nj=1)
    for utt in read_datadir(recordings / "dump"):
        heard = detect_bandwidth(load_dumped(utt), 16_000).bandwidth
        assert heard == utt.guides["bandwidth"]
        assert (heard == "nb") == utt.id.startswith("tel-")


def test_an_id_that_is_that_of_a_twin_is_a_mistake(prepare):
    lines = [entry("tel-a"), entry("b"), entry("a")]
    prepare(*lines)
    with pytest.raises(ManifestError, match=r"line 1 \(tel-a\): .*line 3 \(a\)"):
        prepare(*lines, narrowband_twins=True)


def test_a_speaker_that_is_that_of_a_twin_is_a_mistake(prepare):
    lines = [
        entry("a", speaker="ann"),
        entry("b", speaker="bob"),
        entry("c", speaker="tel-ann"),
        entry("tel-bob"),
    ]
    assert len(prepare(*lines)["train"]) == 4
    with pytest.raises(ManifestError) as error:
        prepare(*lines, narrowband_twins=True)
    head, *reasons = str(error.value).splitlines()
    assert "2 mistakes" in head
    assert "line 3 (c): the speaker tel-ann" in reasons[0]
    assert "line 1 (ann)" in reasons[0]
    assert "line 4 (tel-bob): the speaker tel-bob" in reasons[1]
    assert "line 2 (bob)" in reasons[1]


def test_a_twins_id_that_is_also_its_speaker_is_one_mistake(prepare):
    with pytest.raises(ManifestError, match=r"1 mistake, .*\n.*the id tel-a "):
        prepare(entry("a"), entry("tel-a"), narrowband_twins=True)


def test_the_survey_counts_the_twins(prepare, recordings):
    lines = [
        *(entry(f"u{k}", audio="wide.wav", start=k, end=k + 2) for k in range(3)),
        entry("d", audio="wide.wav", split="dev"),
        entry("n", audio="wide.wav", split="dev", bandwidth="nb"),
    ]
    for twins in (True, False):
        sets = prepare(*lines, splits=("train", "dev"), narrowband_twins=twins)
        made = [u for s in sets.values() for u in s if u.telephone is not None]
        assert len(made) == 4 * twins
        text = (recordings / "data/survey/survey.md").read_text()
        assert f"not counted above: {len(made)}." in text


def test_twins_of_a_model_without_narrowband_are_refused(prepare):
    guides = GuideTable.from_mapping({"bandwidth": ["wb"], "task": ["asr"]})
    with pytest.raises(ManifestError, match=r"need the bandwidth guide 'nb'.* wb"):
        prepare(entry(), guides=guides, narrowband_twins=True)


def run_tool(tmp_path, *extra, conf="guides: {bandwidth: [nb, wb], task: [asr]}"):
    write_wav(tmp_path / "a.wav")
    (tmp_path / "all.jsonl").write_text(json.dumps(entry()) + "\n")
    (tmp_path / "train.yaml").write_text(conf)
    options = {
        "--corpus": "manifest",
        "--manifest": str(tmp_path / "all.jsonl"),
        "--datadir": str(tmp_path / "data"),
        "--train_config": str(tmp_path / "train.yaml"),
        "--splits": "train",
        **dict(zip(extra[::2], extra[1::2], strict=True)),
    }
    return main([word for pair in options.items() if pair[1] for word in pair])


def test_the_tool_writes_the_data_directory(tmp_path):
    assert run_tool(tmp_path) == 0
    assert [u.id for u in read_datadir(tmp_path / "data/train")] == ["a"]


def test_the_tool_passes_its_options_on(tmp_path):
    assert (
        run_tool(tmp_path, "--narrowband_twins", "true", "--bandwidth", "header") == 0
    )
    assert [u.id for u in read_datadir(tmp_path / "data/train")] == ["a", "tel-a"]
    assert "--bandwidth header" in (tmp_path / "data/survey/survey.md").read_text()


@pytest.mark.parametrize("option", ["--bandwidth", "--narrowband_twins"])
def test_a_value_that_there_is_not_is_wrong_usage(tmp_path, option):
    with pytest.raises(SystemExit, match="2"):
        run_tool(tmp_path, option, "maybe")


@pytest.mark.parametrize(
    "extra, conf, reason",
    [
        pytest.param((), "encoder: x", "train.yaml lacks the key 'guides'", id="key"),
        pytest.param((), "guides: [", "train.yaml: while parsing", id="yaml"),
        pytest.param((), "guides: {task: [asr]}", "guides need the axis", id="axes"),
        pytest.param(
            (), "guides: {bandwidth: [nb], task: [asr]}", "known: nb", id="bandwidth"
        ),
        pytest.param(("--train_config", "no.yaml"), "", "config no.yaml: ", id="conf"),
        pytest.param(
            ("--manifest", "no.jsonl"), None, "no.jsonl is missing", id="file"
        ),
        pytest.param(("--corpus", "x"), None, "known: demo, manifest", id="corpus"),
        pytest.param(("--corpus", "demo"), None, "go together", id="both"),
        pytest.param(
            ("--corpus", "demo", "--manifest", "", "--narrowband_twins", "true"),
            None,
            "has a telephone half",
            id="demo-twins",
        ),
        pytest.param(
            ("--corpus", "demo", "--manifest", "", "--bandwidth", "detect"),
            None,
            "the demo corpus knows its bandwidths: --bandwidth check or header",
            id="demo-detect",
        ),
    ],
)
def test_the_tool_refuses_in_one_line_with_status_1(
    tmp_path, capsys, extra, conf, reason
):
    conf = "guides: {bandwidth: [nb, wb], task: [asr]}" if conf is None else conf
    assert run_tool(tmp_path, *extra, conf=conf) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("smoe_data: ")
    assert reason in last
    assert not (tmp_path / "data").exists()
