"""A run killed at any moment of saving resumes."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest
import torch

from espnet_smoe.bin import smoe_train
from espnet_smoe.trainer import BACKUP

pytest_plugins = ["fixtures_exp"]


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def truncate(path: Path, share: float) -> None:
    os.truncate(path, int(path.stat().st_size * share))


def resume(experiment, exp: Path, *extra: str) -> int:
    return smoe_train.main([*experiment.train_command(exp), "--resume", "true", *extra])


def assert_finished(experiment, exp: Path) -> None:
    for name in ("1epoch.pth", "2epoch.pth", "valid.acc.ave.pth"):
        one, other = load(exp / name), load(experiment.exp / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[k], other[k]) for k in one), name


def test_backup_is_the_complete_checkpoint_of_the_epoch_before(experiment) -> None:
    backup = load(experiment.exp / BACKUP)
    first = load(experiment.exp / "1epoch.pth")
    assert backup["reporter"]["epoch"] == 1
    assert all(torch.equal(backup["model"][k], first[k]) for k in first)
    assert {"model", "optimizers", "schedulers", "scaler"} <= set(backup)


@pytest.mark.parametrize(
    "name, share",
    [
        ("checkpoint.pth", 0.0),
        ("checkpoint.pth", 0.5),
        ("checkpoint.pth", 0.999),
        ("2epoch.pth", 0.5),
    ],
)
def test_P10_run_killed_while_saving_resumes_to_the_same_parameters(
    experiment,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    share: float,
) -> None:
    exp = experiment.copy(tmp_path / "exp")
    truncate(exp / name, share)
    if name == "checkpoint.pth":
        (exp / "2epoch.pth").unlink()  # saved after it
    with caplog.at_level(logging.INFO):
        assert resume(experiment, exp) == 0
    told = [m for m in caplog.messages if "is incomplete: resuming from" in m]
    assert len(told) == 1
    assert BACKUP in told[0]
    assert_finished(experiment, exp)


def test_P10_killed_between_the_two_files_resumes(experiment, tmp_path: Path) -> None:
    exp = experiment.copy(tmp_path / "exp")
    (exp / "2epoch.pth").unlink()
    assert resume(experiment, exp) == 0
    assert_finished(experiment, exp)


def test_P10_killed_while_saving_twice_still_resumes(
    experiment, tmp_path: Path
) -> None:
    # the second run must not back up the broken file over the good one
    exp = experiment.copy(tmp_path / "exp")
    truncate(exp / "checkpoint.pth", 0.5)
    backup = (exp / BACKUP).read_bytes()
    command = [*experiment.train_command(exp), "--resume", "true"]
    assert smoe_train.main([*command, "--optim_conf", "lr=0.02"]) == 0
    assert (exp / BACKUP).read_bytes() == backup
    truncate(exp / "checkpoint.pth", 0.5)
    assert smoe_train.main(command) == 0
    assert_finished(experiment, exp)


def test_P10_killed_while_saving_the_first_epoch_starts_anew(
    experiment, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exp = tmp_path / "exp"
    exp.mkdir()
    shutil.copy(experiment.exp / BACKUP, exp / "checkpoint.pth")
    truncate(exp / "checkpoint.pth", 0.5)
    with caplog.at_level(logging.INFO):
        assert resume(experiment, exp) == 0
    assert len([m for m in caplog.messages if "training starts anew" in m]) == 1
    assert_finished(experiment, exp)


def test_nothing_left_to_resume_from_is_refused_in_one_line(
    experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exp = experiment.copy(tmp_path / "exp")
    truncate(exp / "checkpoint.pth", 0.5)
    (exp / BACKUP).unlink()
    before = {p.name: p.stat().st_mtime_ns for p in exp.glob("*.pth")}
    capsys.readouterr()
    assert resume(experiment, exp) == 1
    assert "is a complete checkpoint" in capsys.readouterr().err.splitlines()[-1]
    assert {p.name: p.stat().st_mtime_ns for p in exp.glob("*.pth")} == before


def test_new_run_in_an_old_folder_forgets_the_old_backup(
    experiment, tmp_path: Path
) -> None:
    exp = experiment.copy(tmp_path / "exp")
    assert smoe_train.main([*experiment.train_command(exp), "--max_epoch", "1"]) == 0
    assert not (exp / BACKUP).exists()
