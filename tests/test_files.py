"""Tables survive a round trip; folders appear complete or not at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_smoe.files import DataDirError, read_table, write_atomically, write_table

CONTENT = st.dictionaries(
    st.text("abc", min_size=1, max_size=3), st.binary(max_size=20), max_size=4
)
LETTER = st.characters(exclude_categories=("Z", "C"))
# the first and last characters of a value are no blanks
VALUE = st.from_regex(r"[^\s\x00-\x1f\x85](.*[^\s\x00-\x1f\x85])?", fullmatch=True)
TABLE = st.dictionaries(
    st.text(LETTER, min_size=1),
    VALUE.filter(lambda v: not set(v) & set("\r\n")).filter(lambda v: v == v.strip()),
    min_size=1,
)

# Replaces a folder and dies just before the step the third argument counts to.
KILLED = """
import os, sys
from pathlib import Path
from espnet_smoe.files import write_atomically

left = int(sys.argv[2])

def die_at(event, args):
    global left
    if event in ("os.mkdir", "os.rename", "os.rmdir", "os.remove", "shutil.rmtree"):
        if left == 0:
            os._exit(9)
        left -= 1

sys.addaudithook(die_at)
with write_atomically(Path(sys.argv[1])) as folder:
    (folder / "new").write_text("new")
"""


def fill(folder: Path, content: dict[str, bytes]) -> None:
    for name, data in content.items():
        (folder / name).write_bytes(data)


def held(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def interrupted(path: Path, content: dict[str, bytes]) -> None:
    with write_atomically(path) as folder:
        fill(folder, content)
        raise KeyboardInterrupt


# ------------------------------------------------------------------ folders


@given(st.none() | CONTENT, CONTENT)
@settings(max_examples=30, deadline=None)
def test_success_replaces_the_folder_as_a_whole(old, new) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "a" / "b"
        if old is not None:
            path.mkdir(parents=True)
            fill(path, old)
        with write_atomically(path) as folder:
            fill(folder, new)
            assert path.exists() == (old is not None)
        assert held(path) == new
        assert names(path.parent) == ["b"]


@given(st.none() | CONTENT, CONTENT)
@settings(max_examples=30, deadline=None)
def test_failure_leaves_what_was_there(old, new) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "b"
        if old is not None:
            path.mkdir()
            fill(path, old)
        with pytest.raises(KeyboardInterrupt):
            interrupted(path, new)
        assert names(Path(place)) == ([] if old is None else ["b"])
        assert old is None or held(path) == old


def test_a_rename_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "b"
    path.mkdir()
    fill(path, {"a": b"old"})
    with pytest.raises(FileNotFoundError), write_atomically(path) as folder:
        folder.rmdir()
    assert held(path) == {"a": b"old"}
    assert names(tmp_path) == ["b"]


def test_a_kill_at_any_step_loses_neither_folder_and_the_next_run_goes_well(
    tmp_path: Path,
) -> None:
    old, new, states = {"old": b"old"}, {"new": b"new"}, []
    for step in range(20):
        path = tmp_path / str(step) / "b"
        path.mkdir(parents=True)
        fill(path, old)
        command = [sys.executable, "-c", KILLED, str(path), str(step)]
        status = subprocess.run(command, env=dict(os.environ)).returncode
        assert status in (0, 9)
        states.append(held(path) if path.exists() else None)
        with pytest.raises(KeyError), write_atomically(path):
            raise KeyError  # a failure after the kill
        # old until the new one is complete, never a mixture and never nothing
        assert held(path) == (new if states[-1] == new else old)
        with write_atomically(path) as folder:
            fill(folder, {"next": b"next"})
        assert held(path) == {"next": b"next"}
        assert names(path.parent) == ["b"]
        if status == 0:
            break
    # every state was met: old, between the renames, new
    assert [s for i, s in enumerate(states) if i == 0 or s != states[i - 1]] == [
        old,
        None,
        new,
    ]


def test_a_link_to_a_folder_stays_one(tmp_path: Path) -> None:
    disk, path = tmp_path / "disk", tmp_path / "recipe" / "dump"
    disk.mkdir()
    path.parent.mkdir()
    path.symlink_to(disk)
    for content in ({"a": b"1"}, {"b": b"2"}, {"c": b"3"}):
        with write_atomically(path) as folder:
            fill(folder, content)
        assert path.is_symlink()
        assert held(disk) == content
    assert names(tmp_path) == ["disk", "recipe"]
    shutil.rmtree(disk)
    with write_atomically(path) as folder:  # a link to nothing yet
        fill(folder, {"d": b"4"})
    assert held(disk) == {"d": b"4"}


# ------------------------------------------------------------------ tables


@given(TABLE)
@settings(max_examples=50, deadline=None)
def test_a_table_reads_back_as_written_and_is_sorted(table) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "text"
        write_table(path, table)
        assert read_table(path) == table
        assert list(read_table(path)) == sorted(table)


def test_an_empty_table_writes_no_file_and_numbers_are_written_as_text(
    tmp_path: Path,
) -> None:
    write_table(tmp_path / "a", {})
    assert not (tmp_path / "a").exists()
    write_table(tmp_path / "a", {"u2": 16_000, "u1": 0.9})
    assert (tmp_path / "a").read_text() == "u1 0.9\nu2 16000\n"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (None, "a is missing"),
        (b"u1 x\nu2\n", r"a:2: expected '<id> <value>', got 'u2'"),
        (b"u1 x\n\nu2 y\n", r"a:2: expected '<id> <value>', got ''"),
        (b"u1 x\nu2 y\nu1 x\n", "a:3: id 'u1' comes twice"),
        (b"u1 M\xfcller\n", "a: expected UTF-8 text"),
    ],
    ids=["missing", "no value", "blank", "twice", "latin-1"],
)
def test_a_bad_table_is_refused_by_file_and_line(
    tmp_path: Path, raw: bytes | None, message: str
) -> None:
    path = tmp_path / "a"
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(DataDirError, match=message) as caught:
        read_table(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
