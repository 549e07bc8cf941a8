"""Part of a data directory: guides kept, other texts dropped, mistakes named."""

from __future__ import annotations

from pathlib import Path

import pytest

from espnet_smoe.bin import smoe_subset
from espnet_smoe.datadir import Utterance, read_datadir, write_datadir
from espnet_smoe.dump import load_dumped
from espnet_smoe.files import DataDirError
from espnet_smoe.guide import GuideTable
from espnet_smoe.preprocess import make_targets
from espnet_smoe.subset import keep_guides

pytest_plugins = ["fixtures_exp"]

# id -> bandwidth, line, tasks
ALL = {
    "a": ("nb", "phone", ("asr", "st_de")),
    "b": ("wb", "mic", ("asr",)),
    "c": ("nb", "mic", ("st_de",)),
    "d": ("wb", "mic", ("asr", "st_de", "st_es")),
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_datadir(
        tmp_path / "train",
        [
            Utterance(
                id=name,
                audio=f"/audio/{name}.ark:7",
                speaker=f"s{name}",
                fs=8000 if bandwidth == "nb" else 44_100,
                num_samples=9000,
                guides={"bandwidth": bandwidth, "line": line},
                texts={task: f"{task} of {name}" for task in tasks},
            )
            for name, (bandwidth, line, tasks) in ALL.items()
        ],
    )
    return tmp_path / "train"


@pytest.mark.parametrize(
    "keep, want",
    [
        ({"bandwidth": ["nb"]}, {"a": ["asr", "st_de"], "c": ["st_de"]}),
        ({"task": ["asr"]}, {"a": ["asr"], "b": ["asr"], "d": ["asr"]}),
        ({"bandwidth": ["nb"], "task": ["asr"]}, {"a": ["asr"]}),
        (
            {"task": ["st_de", "st_es"], "line": ["mic"]},
            {"c": ["st_de"], "d": ["st_de", "st_es"]},
        ),
        (
            {"bandwidth": ["nb", "wb"]},
            {name: sorted(tasks) for name, (_, _, tasks) in ALL.items()},
        ),
    ],
    ids=["bandwidth", "task", "both", "two-of-a-task", "all"],
)
def test_what_is_kept_is_exactly_what_was_asked_for(
    data: Path, keep: dict, want: dict
) -> None:
    before = {u.id: u for u in read_datadir(data)}
    keep_guides(data, data.with_name("part"), keep)
    part = read_datadir(data.with_name("part"))
    assert {u.id: sorted(u.texts) for u in part} == want
    for utt in part:
        old = before[utt.id]
        assert all(old.texts[task] == text for task, text in utt.texts.items())
        for name in ("audio", "speaker", "fs", "num_samples", "guides"):
            assert getattr(utt, name) == getattr(old, name)
    assert {u.id: u for u in read_datadir(data)} == before


def test_a_part_of_a_dump_feeds_a_model_of_one_condition(
    experiment, tmp_path: Path
) -> None:
    command = [
        "--in_dir", str(experiment.train), "--out_dir", str(tmp_path / "part"),
        "--keep", "bandwidth=nb", "--keep", "task=asr",
    ]  # fmt: skip
    assert smoe_subset.main(command) == 0
    part = read_datadir(tmp_path / "part")
    guides = GuideTable.from_mapping({"bandwidth": ["nb"], "task": ["asr"]})
    targets = make_targets(part, guides)  # refuses other guides, and other texts only
    assert targets.keys() == {u.id for u in part} == {"u1", "u3", "u7"}
    assert not (tmp_path / "part" / "text.st_de").exists()
    whole = {u.id: u for u in read_datadir(experiment.train)}
    for utt in part:
        assert (load_dumped(utt) == load_dumped(whole[utt.id])).all()


@pytest.mark.parametrize(
    "keep, message",
    [
        (
            {"room": ["x"]},
            r"has no axis 'room'; known: .'bandwidth', 'line', 'ta",
        ),
        ({"bandwidth": ["uwb"]}, r"no bandwidth 'uwb'; known: \['nb', 'wb'\]"),
        ({"task": ["asr", "mt"]}, r"no task 'mt'; known: \['asr', 'st_de', 'st_es'\]"),
        (
            {"bandwidth": ["nb"], "task": ["st_es"]},
            "no utterance has all of: bandwidth nb; task st_es",
        ),
        ({}, "no guides of .* to keep"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(
    data: Path, keep: dict, message: str
) -> None:
    with pytest.raises(DataDirError, match=message):
        keep_guides(data, data.with_name("part"), keep)
    assert not data.with_name("part").exists()


def test_folders_must_be_there_and_two(data: Path) -> None:
    with pytest.raises(DataDirError, match="is missing"):
        keep_guides(data.with_name("none"), data.with_name("p"), {"task": ["asr"]})
    with pytest.raises(DataDirError, match="both input and output"):
        keep_guides(data, data / ".." / "train", {"task": ["asr"]})


def test_command_line_refuses_in_one_line(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--in_dir", str(data), "--out_dir", str(data.with_name("part"))]
    assert smoe_subset.main([*command, "--keep", "bandwidth=uwb"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("smoe_subset: ")
    assert "no bandwidth 'uwb'" in error
    for wrong in (["--keep", "bandwidth"], ["--keep", "=nb"], []):
        with pytest.raises(SystemExit) as exit_:
            smoe_subset.main([*command, *wrong])
        assert exit_.value.code == 2
