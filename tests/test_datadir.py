"""Kaldi-style data directories: what is written is read back, or refused."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from espnet_smoe.datadir import Utterance, read_datadir, write_datadir
from espnet_smoe.files import DataDirError, read_table, write_atomically, write_table
from espnet_smoe.telephone import call_seed


def utterance(name="a", **changes):
    fields = {
        "id": name,
        "audio": f"/audio/{name}.wav",
        "speaker": "ann",
        "fs": 8000,
        "num_samples": 4000,
        "guides": {"bandwidth": "nb"},
        "texts": {"asr": "good morning"},
    }
    return Utterance(**{**fields, **changes})


words = st.text(
    st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8
).filter(lambda w: w.split() == [w])
texts = st.lists(words, min_size=1, max_size=4).map(" ".join)


@st.composite
def utterances(draw):
    ids = draw(st.lists(words, min_size=1, max_size=5, unique=True))
    made = []
    for i in ids:
        tasks = draw(st.sets(st.sampled_from(["asr", "st_de"]), min_size=1))
        call = draw(st.none() | st.integers(0, 2**32 - 1))
        made.append(
            utterance(
                i,
                audio="/" + draw(texts),
                speaker=draw(words),
                fs=draw(st.sampled_from([8000, 16_000, 44_100])),
                num_samples=draw(st.integers(1, 10**9)),
                guides={
                    "bandwidth": draw(
                        st.sampled_from(["nb", "wb"] if call is None else ["nb"])
                    ),
                    "language": draw(st.sampled_from(["en", "fr"])),
                },
                texts={task: draw(texts) for task in tasks},
                channel=draw(st.none() | st.integers(0, 7)),
                speed=draw(st.sampled_from([0.9, 1.0, 1.1])),
                telephone=call,
            )
        )
    return made


@settings(
    max_examples=60,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(made=utterances())
def test_what_is_written_is_read_back_sorted_by_id(tmp_path, made):
    write_datadir(tmp_path / "data", made)
    assert read_datadir(tmp_path / "data") == sorted(made, key=lambda u: u.id)


def test_segments_share_a_recording_and_are_read_back(tmp_path):
    made = [
        utterance("a", audio="/call.wav", segment=(0.0, 1.25), recording="call"),
        utterance("b", audio="/call.wav", segment=(1.25, 2.0), recording="call"),
    ]
    write_datadir(tmp_path / "data", made)
    assert read_table(tmp_path / "data/wav.scp") == {"call": "/call.wav"}
    assert read_datadir(tmp_path / "data") == made
    assert [u.recording for u in read_datadir(tmp_path / "data")] == ["call"] * 2


def test_a_whole_file_beside_segments_becomes_a_segment_of_its_length(tmp_path):
    part = utterance("a", segment=(0.0, 0.25), recording="rec")
    write_datadir(tmp_path / "data", [part, utterance("b")])
    assert read_datadir(tmp_path / "data")[1].segment == (0.0, 0.5)


def test_the_files_are_kaldis(tmp_path):
    write_datadir(
        tmp_path / "data", [utterance("b"), utterance("a"), utterance("c", speaker="b")]
    )
    folder = tmp_path / "data"
    assert (folder / "utt2spk").read_text() == "a ann\nb ann\nc b\n"
    assert (folder / "spk2utt").read_text() == "ann a b\nb c\n"
    assert (folder / "text.asr").read_text().startswith("a good morning\n")
    assert not (folder / "segments").exists()
    assert not (folder / "utt2telephone").exists()


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"id": "two words"}, id="id"),
        pytest.param({"id": ""}, id="no-id"),
        pytest.param({"speaker": "ann smith"}, id="speaker"),
        pytest.param({"guides": {}}, id="no-bandwidth"),
        pytest.param({"guides": {"bandwidth": "wb"}, "telephone": 0}, id="wide-call"),
        pytest.param({"telephone": -1}, id="seed"),
        pytest.param({"guides": {"bandwidth": "nb", "channel": "gsm"}}, id="axis-name"),
        pytest.param({"texts": {}}, id="no-text"),
        pytest.param({"texts": {"asr": "yes", "st_de": " "}}, id="empty-text"),
        pytest.param({"fs": 0}, id="rate"),
        pytest.param({"num_samples": 0}, id="length"),
    ],
)
def test_an_utterance_that_cannot_be_stored_is_refused(changes):
    with pytest.raises(DataDirError):
        utterance(**changes)


def test_a_doubled_id_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(DataDirError, match="'a' comes twice"):
        write_datadir(tmp_path / "data", [utterance("a"), utterance("a")])
    assert list(tmp_path.iterdir()) == []


def test_an_empty_directory_is_refused_by_name(tmp_path):
    with pytest.raises(DataDirError, match="data: no utterance"):
        write_datadir(tmp_path / "data", [])


def test_a_recording_cannot_stand_for_two_files(tmp_path):
    made = [
        utterance(i, segment=(0.0, 0.1), recording="rec", audio=f"/{i}") for i in "ab"
    ]
    with pytest.raises(DataDirError, match="recording 'rec'"):
        write_datadir(tmp_path / "data", made)


@pytest.mark.parametrize(
    "name", ["utt2spk", "utt2fs", "utt2num_samples", "utt2bandwidth", "wav.scp"]
)
def test_a_missing_file_is_named(tmp_path, name):
    write_datadir(tmp_path / "data", [utterance()])
    (tmp_path / "data" / name).unlink()
    with pytest.raises(DataDirError, match=f"{name} is missing"):
        read_datadir(tmp_path / "data")


@pytest.mark.parametrize("name", ["utt2fs", "utt2bandwidth", "wav.scp"])
def test_a_file_that_lacks_an_utterance_is_named_with_it(tmp_path, name):
    write_datadir(tmp_path / "data", [utterance("a"), utterance("b")])
    table = read_table(tmp_path / "data" / name)
    write_table(tmp_path / "data" / name, {"a": table["a"]})
    with pytest.raises(DataDirError, match=f"{name} lacks.* b"):
        read_datadir(tmp_path / "data")


@pytest.mark.parametrize("name", ["utt2fs", "utt2channel", "utt2telephone", "text.asr"])
def test_a_file_that_names_a_foreign_utterance_is_refused(tmp_path, name):
    write_datadir(tmp_path / "data", [utterance("a", channel=0, telephone=0)])
    with (tmp_path / "data" / name).open("a") as file:
        file.write("zoe 1\n")
    with pytest.raises(DataDirError, match=f"{name} names .*zoe"):
        read_datadir(tmp_path / "data")


@pytest.mark.parametrize(
    "name, line",
    [
        pytest.param("utt2fs", "a 8k\n", id="no-number"),
        pytest.param("utt2telephone", "a x\n", id="no-seed"),
        pytest.param("utt2speed", "a fast\n", id="no-speed"),
        pytest.param("utt2num_samples", "a\n", id="no-value"),
        pytest.param("utt2spk", "a x\na y\n", id="doubled"),
    ],
)
def test_a_bad_line_is_refused_with_its_file(tmp_path, name, line):
    write_datadir(tmp_path / "data", [utterance()])
    (tmp_path / "data" / name).write_text(line)
    with pytest.raises(DataDirError, match=name):
        read_datadir(tmp_path / "data")


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(DataDirError, match="nowhere is missing"):
        read_datadir(tmp_path / "nowhere")


def test_a_failed_write_leaves_what_stood_there(tmp_path):
    write_datadir(tmp_path / "data", [utterance("old")])

    def interrupted():
        yield utterance("new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_datadir(tmp_path / "data", interrupted())
    assert [u.id for u in read_datadir(tmp_path / "data")] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_a_second_write_replaces_the_whole_folder(tmp_path):
    write_datadir(tmp_path / "data", [utterance("old", texts={"st_de": "ja"})])
    write_datadir(tmp_path / "data", [utterance("new")])
    assert [u.id for u in read_datadir(tmp_path / "data")] == ["new"]
    assert not (tmp_path / "data/text.st_de").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_the_final_name_appears_only_at_the_end(tmp_path):
    with write_atomically(tmp_path / "out") as folder:
        (folder / "file").write_text("x")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out/file").read_text() == "x"


def test_the_remains_of_a_killed_run_do_not_enter_the_next(tmp_path):
    killed = write_atomically(tmp_path / "out").__enter__()
    (killed / "half").write_text("x")
    with write_atomically(tmp_path / "out") as folder:
        (folder / "whole").write_text("y")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["whole"]


def test_utterances_compare_by_what_is_stored():
    assert replace(utterance(), recording="r") == utterance()
    assert replace(utterance(), speed=0.9) != utterance()
    assert replace(utterance(), telephone=0) != utterance()


def test_ids_have_call_seeds_of_their_own_that_never_change():
    seeds = [call_seed(f"{p}tel-{k}") for p in ("", "sp0.9-") for k in range(500)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 1 << 32 for seed in seeds)
    assert utterance(telephone=max(seeds)).telephone == max(seeds)
    # of SHA-256, not of Python's hash, which differs from run to run
    assert call_seed("abc") == 0xBA7816BF
