"""Stage 11 in two processes on the CPU: sampling, statistics, killed and resumed."""

from __future__ import annotations

import logging
import shutil
from argparse import Namespace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import yaml
from tiny_experiment import write_conf
from two_processes import start

from espnet_smoe.config import ConfigError

pytestmark = pytest.mark.slow  # several processes, each imports the host

pytest_plugins = ["fixtures_exp"]

CELLS = ("asr", "st_de", "nb", "wb")


def smoe_train(rank: int, init_method: str, job: dict) -> tuple:
    """Run ``smoe_train`` as one of two nodes; returns status and what it wrote."""
    import espnet_smoe.train
    from espnet_smoe.bin import smoe_train
    from espnet_smoe.trainer import BACKUP

    if job["killed"]:
        # in epoch 2: the folder holds what the first epoch left
        torch.distributed.init_process_group(
            "gloo", f"{init_method}.copy", timedelta(minutes=5), 2, rank
        )
        if rank == 0:
            shutil.copytree(job["killed"], job["exp"], symlinks=True)
            shutil.move(job["exp"] / BACKUP, job["exp"] / "checkpoint.pth")
            (job["exp"] / "2epoch.pth").unlink()
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()

    written = []

    def noted(function, position):
        def call(*args, **kwargs):
            written.append(Path(args[position]).name)
            return function(*args, **kwargs)

        return call

    whole = torch.save, espnet_smoe.train.write_table
    torch.save = noted(whole[0], 1)
    espnet_smoe.train.write_table = noted(whole[1], 0)
    try:
        status = smoe_train.main(
            [
                *job["command"],
                *("--dist_world_size", "2", "--dist_rank", str(rank)),
                *("--dist_backend", "gloo", "--dist_init_method", init_method),
                *("--multiprocessing_distributed", "true"),
            ]
        )
    finally:
        torch.save, espnet_smoe.train.write_table = whole
    return status, written


@pytest.fixture(scope="module")
def runs(experiment, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Two epochs in a go, and the same killed in the second and resumed."""
    folder = tmp_path_factory.mktemp("runs")
    conf = write_conf(folder / "train.yaml", sampling={"weights": {"nb": 3.0}})
    jobs = {
        name: {
            "exp": folder / name,
            "killed": folder / "whole" if name == "resumed" else None,
            "command": [
                *experiment.train_command(folder / name, conf),
                *("--resume", "true"),
            ],
        }
        for name in ("whole", "resumed")
    }
    results = start(folder, smoe_train, jobs)
    return {name: (folder / name, results[name]) for name in jobs}


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("name", ["whole", "resumed"])
def test_both_processes_succeed_and_the_first_alone_writes(runs, name: str) -> None:
    exp, results = runs[name]
    for result in results:
        assert not isinstance(result, str), result
    assert [status for status, _ in results] == [0, 0]
    epochs = (1, 2) if name == "whole" else (2,)
    saved = [f for e in epochs for f in ("checkpoint.pth", f"{e}epoch.pth")]
    (_, first), (_, second) = results
    assert first == ["targets", "targets", *saved, "valid.acc.ave_2best.pth"]
    assert second == []
    assert (exp / "valid.acc.ave.pth").exists()


def test_P10_killed_and_resumed_is_as_if_in_a_go(runs) -> None:
    (whole, _), (resumed, _) = runs["whole"], runs["resumed"]
    for name in ("1epoch.pth", "2epoch.pth", "valid.acc.ave.pth"):
        one, other = load(whole / name), load(resumed / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[k], other[k]) for k in one), name


def test_late_split_comes_half_way_of_the_global_batches(runs) -> None:
    first, second = (load(runs["whole"][0] / f"{e}epoch.pth") for e in (1, 2))
    left = "encoder.split.batches_left"
    assert first[left] == 0  # three of six batches were tied
    assert second[left] == -torch.inf


def test_validation_statistics_are_those_of_one_process(runs) -> None:
    exp, _ = runs["whole"]
    stats = load(exp / "checkpoint.pth")["reporter"]["stats"][2]["valid"]
    for key in ("loss", "acc", *(f"{k}_{c}" for k in ("loss", "acc") for c in CELLS)):
        assert torch.isfinite(torch.tensor(stats[key])), key
    want = validate(exp)
    for key, value in want.items():
        assert stats[key] == pytest.approx(value, rel=1e-5), key


def batches_of(
    exp: Path, monkeypatch: pytest.MonkeyPatch, rank: int, ranks: int, **changes
) -> list[list[str]]:
    """The first epoch's batches of one process, as the task makes them."""
    from espnet2.train.distributed_utils import DistributedOption

    from espnet_smoe.task import SMoETask

    config = yaml.safe_load((exp / "config.yaml").read_text())
    args = Namespace(**{**config, "num_iters_per_epoch": None, **changes})
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: ranks)
    option = DistributedOption(distributed=ranks > 1)
    factory = SMoETask.build_iter_factory(args, option, "train")
    return list(factory.build_iter(1).batch_sampler)


def test_each_process_gets_its_share_of_the_hosts_batches(
    runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    exp, _ = runs["whole"]
    options = {"sampling": None, "batch_bins": 60000, "min_batch_size": 2}
    whole = batches_of(exp, monkeypatch, 0, 1, **options)
    parts = [batches_of(exp, monkeypatch, r, 2, **options) for r in (0, 1)]
    assert len(whole) > 1
    for batch, *shares in zip(whole, *parts, strict=True):
        assert sorted(batch) == sorted(shares[0] + shares[1])
        # u1, u3, ... are narrowband; u2 and u5 lack a task
        plain = [u for u in batch if u not in ("u2", "u5")]
        for odd in (0, 1):
            counts = [
                sum(int(u[1]) % 2 == odd for u in s if u in plain) for s in shares
            ]
            assert abs(counts[0] - counts[1]) <= 1


def test_sampling_sets_what_training_draws(
    runs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    exp, _ = runs["whole"]
    sampling = {"weights": {"nb": 4.0}}
    with caplog.at_level(logging.INFO):
        batches = batches_of(exp, monkeypatch, 0, 1, sampling=sampling)
    drawn = [u for b in batches for u in b]
    # 4.8 and 1.6 of nb's asr+st_de and st_de (u5), 1.2 and 0.4 of wb's asr+st_de and
    # asr (u2), in whole numbers and at least 1
    narrow = [u for u in drawn if int(u[1]) % 2]
    assert (len(narrow), narrow.count("u5")) == (7, 2)
    assert (len(drawn), drawn.count("u2")) == (9, 1)
    (told,) = [m for m in caplog.messages if m.startswith("sampling, ")]
    assert "nb st_de: 1 utterances, 12.5% of the data" in told


def test_too_few_utterances_for_the_processes_are_refused(
    runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    exp, _ = runs["whole"]
    with pytest.raises(ConfigError, match="of 8 utterances cannot feed 9 processes"):
        batches_of(exp, monkeypatch, 0, 9, sampling=None)


def validate(exp: Path) -> dict[str, float]:
    """The last model's validation statistics in this process, through the host."""
    from espnet2.train.distributed_utils import DistributedOption
    from espnet2.train.reporter import Reporter
    from espnet2.train.trainer import TrainerOptions
    from espnet2.utils.build_dataclass import build_dataclass

    from espnet_smoe.task import SMoETask

    model, args = SMoETask.build_model_from_file(
        exp / "config.yaml", exp / "2epoch.pth"
    )
    args.min_batch_size = 2  # the same batches as for two processes
    reporter = Reporter(epoch=1)
    with reporter.observe("valid") as steps:
        SMoETask.trainer.validate_one_epoch(
            model=model,
            iterator=SMoETask.build_iter_factory(
                args, DistributedOption(), "valid"
            ).build_iter(1),
            reporter=steps,
            options=build_dataclass(TrainerOptions, args),
            distributed_option=DistributedOption(),
        )
    stats = reporter.stats[1]["valid"]
    return {k: v for k, v in stats.items() if k.startswith(("loss", "acc"))}
