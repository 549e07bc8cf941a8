"""A run killed at any moment of saving resumes."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from dummies import MIXED, batch, build
from two_processes import share_of, train, without_batch_norm

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


def descent(folder: Path, *epochs: list[dict], accum_grad: int = 1) -> dict:
    """How epochs of plain gradient descent of rate 1 change the parameters."""
    model = without_batch_norm(build())
    before = {k: v.clone() for k, v in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    options = {"accum_grad": accum_grad, "grad_clip": 1e9}
    for batches in epochs:
        train(model, batches, folder, optimizer, **options)
    return {k: v.detach() - before[k] for k, v in model.named_parameters()}


def assert_alike(got: dict, want: dict) -> None:
    for key in want:
        torch.testing.assert_close(got[key], want[key], rtol=1e-6, atol=1e-6, msg=key)


def test_accumulated_gradients_are_those_of_the_large_batch(tmp_path: Path) -> None:
    # the two halves hold one bandwidth each: the other's experts are idle in it
    large = batch()
    assert large["bandwidth"].view(-1).tolist() == [1, 0, 1, 0]
    halves = [share_of(large, n, 2) for n in (0, 1)]
    want = descent(tmp_path, [large])
    assert_alike(descent(tmp_path, halves, accum_grad=2), want)


def test_accumulated_batches_count_alike_whatever_their_size(tmp_path: Path) -> None:
    # as batches without accumulation do: each is a mean over its own utterances
    parts = [batch(MIXED[:3]), batch(MIXED[3:], seed=1)]
    one, other = (descent(tmp_path, [part]) for part in parts)
    want = {k: (one[k] + other[k]) / 2 for k in one}
    assert_alike(descent(tmp_path, parts, accum_grad=2), want)


def test_P10_batches_without_an_update_do_not_reach_the_next_epoch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, two, three = (batch(seed=n) for n in range(3))
    got = descent(tmp_path, [one, two, three], [one, two], accum_grad=2)
    told = [m for m in caplog.messages if "the last 1 of an epoch's 3 batches" in m]
    assert len(told) == 1
    want = descent(tmp_path, [one, two], [one, two], accum_grad=2)
    for key in want:
        assert torch.equal(got[key], want[key]), key
