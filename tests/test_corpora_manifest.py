"""Manifest corpus: what is written, and that every mistake is named at once."""

import json

import numpy as np
import pytest
import soundfile

from espnet_smoe.bin.smoe_data import main
from espnet_smoe.corpora.manifest import ManifestError, prepare_manifest
from espnet_smoe.datadir import read_datadir
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

    def call(*lines, splits=("train",), guides=GUIDES, nj=1):
        manifest = tmp_path / "all.jsonl"
        text = [ln if isinstance(ln, str) else json.dumps(ln) for ln in lines]
        manifest.write_text("\n".join(text) + "\n", encoding="utf-8")
        prepare_manifest(manifest, tmp_path / "data", guides, splits, nj)
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
        pytest.param('{"id": "a",', "no valid JSON", id="json"),
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
        *("rate", "stereo", "11k"),
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


@pytest.mark.parametrize("splits", [(), ("train", "train"), ("../x",), ("",)])
def test_splits_that_are_no_folder_names_are_refused(prepare, splits):
    with pytest.raises(ManifestError, match="splits must be"):
        prepare(entry(), splits=splits)


def test_blank_lines_and_a_byte_order_mark_do_no_harm(prepare):
    assert len(prepare("\ufeff" + json.dumps(entry()), "", "  ")["train"]) == 1


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
    return main([word for pair in options.items() for word in pair if word])


def test_the_tool_writes_the_data_directory(tmp_path):
    assert run_tool(tmp_path) == 0
    assert [u.id for u in read_datadir(tmp_path / "data/train")] == ["a"]


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
