"""The runner on a recipe whose statistics are empty and whose other stages wait."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_jobs import runs, wait_for
from tiny_experiment import write_dump

from espnet_smoe.bin.smoe_experiments import main
from espnet_smoe.datadir import read_datadir

RUN_SH = """#!/usr/bin/env bash
for word in "$@"; do
    case ${word} in
        --train_config=*) name=$(basename "${word#*=}" .yaml) ;;
        --dumpdir=*) dump=${word#*=} ;;
        --smoe_stats_dir=*) stats=${word#*=} ;;
        --stage=*) stage=${word#*=} ;;
        --dry_run=true) dry=true ;;
    esac
done
dump=${dump:-dump} stats=${stats:-exp/smoe_stats}
case ${dry:-${stage}} in
    true) ;;
    10)
        mkdir -p "${stats}/train" "${stats}/valid"
        touch "${stats}/train/speech_shape" "${stats}/valid/speech_shape"
        echo "${stats}" >>stage10
        exit
        ;;
    *)
        echo $$ >job.pid
        exec sleep "${SLEEP:-300}"
        ;;
esac
echo "dump=${dump}/raw
train_dir=${dump}/raw/train
valid_dir=${dump}/raw/dev
test_sets=test
tokens=tokens
stats=${stats}
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
    for name, bandwidths in (("dense", "nb, wb"), ("single", "nb")):
        guides = f"guides: {{bandwidth: [{bandwidths}], task: [asr]}}\n"
        (tmp_path / f"{name}.yaml").write_text(guides)
    systems = """systems:
      dense: {train_config: dense.yaml}
      parts: [{train_config: single.yaml}]
"""
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
    try:
        wait_for(lambda: pid.is_file() and pid.read_text().strip(), 300)
        yield process, int(pid.read_text())
    finally:
        process.kill()
        process.wait()
        if pid.is_file():
            subprocess.run(["kill", "-9", pid.read_text().strip()], capture_output=True)


def test_another_list_of_the_same_folder_waits_and_sigterm_ends_the_job(
    runner, recipe, capsys
):
    process, job = runner
    assert main(["--list", "other.yaml"]) == 1
    assert "is locked: a list is run in exp already" in capsys.readouterr().err
    assert int((recipe / "job.pid").read_text()) == job
    assert runs(job)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert not runs(job)


def test_a_part_and_its_statistics_follow_the_data(recipe, monkeypatch):
    monkeypatch.setenv("SLEEP", "0")
    (recipe / "tokens").mkdir()
    for name in ("bpe.model", "tokens.txt"):
        (recipe / "tokens" / name).touch()
    whole, part = recipe / "dump/raw", recipe / "dump/part_nb_asr/raw"
    whole_stats, part_stats = "exp/smoe_stats", "exp/smoe_stats_part_nb_asr"

    def write(seed: int, drop: tuple = ()) -> None:
        for name in ("train", "dev", "test"):
            shutil.rmtree(whole / name, ignore_errors=True)
            write_dump(whole / name, seed, drop)

    def made() -> list[str]:
        """Statistics that a run makes; it ends without scores."""
        log = recipe / "stage10"
        log.write_text("")
        assert main(["--list", "one.yaml"]) == 1
        for name in ("train", "dev", "test"):
            kept = read_datadir(part / name)
            assert kept == [
                dataclasses.replace(utt, texts={"asr": utt.texts["asr"]})
                for utt in read_datadir(whole / name)
                if utt.guides["bandwidth"] == "nb" and "asr" in utt.texts
            ]
        return log.read_text().split()

    write(0, drop=((1, "asr"),))
    assert made() == [whole_stats, part_stats]
    assert made() == []
    write(1)
    assert made() == [whole_stats, part_stats]
    # the references of one set alone
    text = whole / "dev/text.asr"
    text.write_text(text.read_text().replace("dog", "frog"))
    assert made() == [part_stats]
    assert made() == []


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
