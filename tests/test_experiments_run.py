"""The runner as a process of its own, on a recipe whose stages only wait."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_jobs import runs, wait_for

from espnet_smoe.bin.smoe_experiments import main

RUN_SH = """#!/usr/bin/env bash
for word in "$@"; do
    case ${word} in
        --train_config=*) name=$(basename "${word#*=}" .yaml) ;;
        --dry_run=true) dry=true ;;
    esac
done
if [ -z "${dry:-}" ]; then
    echo $$ >job.pid
    exec sleep 300
fi
echo "dump=dump/raw
train_dir=dump/raw/train
valid_dir=dump/raw/dev
test_sets=test
tokens=tokens
stats=exp/smoe_stats
experiment=exp/smoe_${name}
decoding=exp/smoe_${name}/decode
inference_config=decode.yaml"
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> Path:
    """A recipe's folder with two lists of the same systems."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.sh").write_text(RUN_SH)
    (tmp_path / "run.sh").chmod(0o755)
    (tmp_path / "dense.yaml").write_text("guides: {bandwidth: [nb], task: [asr]}\n")
    systems = "systems: {dense: {train_config: dense.yaml}}\n"
    for name in ("one", "other", "smoe_demo", "smoe_dense"):
        text = f"baseline: dense\nseeds: [0]\n{systems}"
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


@pytest.fixture
def runner(recipe):
    """The tool on the list ``one``, and the process id of its first job."""
    command = ["-m", "espnet_smoe.bin.smoe_experiments", "--list", "one.yaml"]
    process = subprocess.Popen([sys.executable, *command])
    pid = recipe / "job.pid"
    wait_for(lambda: pid.is_file() and pid.read_text().strip())
    job = int(pid.read_text())
    yield process, job
    process.terminate()
    process.wait()
    subprocess.run(["kill", "-9", str(job)], capture_output=True)


def test_another_list_of_the_same_folder_waits_and_sigterm_ends_the_job(
    runner, recipe, capsys
):
    process, job = runner
    (recipe / "job.pid").unlink()
    assert main(["--list", "other.yaml"]) == 1
    assert "is locked: a list is run in exp already" in capsys.readouterr().err
    assert not (recipe / "job.pid").exists()
    assert runs(job)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert not runs(job)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smoe_demo", "exp/smoe_demo holds checkpoint.pth; expected"),
        ("smoe_dense", "smoe_dense.yaml is named as a folder that it trains"),
    ],
)
def test_results_never_replace_an_experiment(recipe, capsys, name, message):
    checkpoint = recipe / "exp/smoe_demo/checkpoint.pth"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    assert main(["--list", f"{name}.yaml"]) == 1
    assert message in capsys.readouterr().err
    assert not (recipe / "job.pid").exists()  # before anything is run
    assert checkpoint.exists()
