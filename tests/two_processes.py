"""Two processes that train together on the CPU, and what one process does instead."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from dummies import batch, build
from espnet2.train.distributed_utils import DistributedOption
from espnet2.train.reporter import Reporter
from espnet2.train.trainer import TrainerOptions
from espnet2.utils.build_dataclass import build_dataclass

from espnet_smoe.task import SMoETask
from espnet_smoe.trainer import SMoETrainer

RANKS = 2


def share_of(data: dict, rank: int, ranks: int) -> dict:
    """The utterances of one process, as the host deals and pads them."""
    mine = {name: value[rank::ranks] for name, value in data.items()}
    for name in mine:
        if f"{name}_lengths" in mine:
            mine[name] = mine[name][:, : int(mine[f"{name}_lengths"].max())]
    return mine


def without_batch_norm(model: torch.nn.Module) -> torch.nn.Module:
    """Batch norm out of the way: its statistics are those of one process."""
    for layer in model.encoder.encoders:
        layer.conv_module.norm = torch.nn.Identity()
    return model


def train(
    model: torch.nn.Module,
    batches: list[dict],
    folder: Path,
    optimizer: torch.optim.Optimizer,
    rank: int | None = None,
    **changes: object,
) -> dict[str, list[float]]:
    """One epoch of the host's trainer; returns each statistic of each batch.

    Args:
        rank: of this process, in an initialised process group; None = alone.
        changes: options of the host that differ from its defaults.
    """
    args = SMoETask.get_parser().parse_args(["--output_dir", str(folder)])
    for name, value in changes.items():
        assert hasattr(args, name), name
        setattr(args, name, value)
    options = build_dataclass(TrainerOptions, args)
    distributed = DistributedOption(distributed=rank is not None, dist_rank=rank)
    wrapped = model
    if rank is not None:
        batches = [share_of(b, rank, RANKS) for b in batches]
        # as in the host's Trainer.run
        wrapped = torch.nn.parallel.DistributedDataParallel(
            model,
            find_unused_parameters=options.unused_parameters,
            gradient_as_bucket_view=options.gradient_as_bucket_view,
        )
    reporter = Reporter(epoch=1)
    names = [["utt"] * len(b["speech"]) for b in batches]
    with reporter.observe("train") as steps:
        SMoETrainer.train_one_epoch(
            model=wrapped,
            iterator=list(zip(names, batches, strict=True)),
            optimizers=[optimizer],
            schedulers=[None],
            scaler=None,
            reporter=steps,
            summary_writer=None,
            options=options,
            distributed_option=distributed,
        )
        return {k: [float(v.value) for v in vs] for k, vs in steps.stats.items()}


def trained(
    batches: list[list[tuple]],
    folder: Path,
    rank: int | None = None,
    *,
    optimizer: str = "plain",
    model: dict | None = None,
    **changes: object,
) -> tuple[dict[str, torch.Tensor], dict[str, list[float]]]:
    """Parameters and statistics after an epoch on batches of such utterances.

    Plain gradient descent of rate 1: with one batch, what it takes off the
    parameters is their gradient. The others have a momentum and a weight decay, so
    that they move parameters of gradient zero, too.
    """
    net = without_batch_norm(build(**(model or {})))
    made = {
        "plain": partial(torch.optim.SGD, lr=1.0),
        "momentum": partial(torch.optim.SGD, lr=1e-3, momentum=0.9, weight_decay=0.1),
        "adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
    }[optimizer](net.parameters())
    data = [batch(utterances, seed=n) for n, utterances in enumerate(batches)]
    changes = {"grad_clip": 1e9, **changes}
    stats = train(net, data, folder, made, rank, **changes)
    return {k: v.clone() for k, v in net.state_dict().items()}, stats


def _work(rank: int, folder: Path, function: Callable, jobs: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    for name, job in jobs.items():
        try:
            result = function(rank, f"file://{folder / name}.rendezvous", job)
        except Exception:
            result = traceback.format_exc()
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
        torch.save(result, folder / f"{name}.{rank}.pth")


def start(folder: Path, function: Callable, jobs: dict[str, Any]) -> dict[str, list]:
    """Run every job on two new processes, one job after the other.

    Args:
        function: (rank, init method of the process group, job) -> result; a function
            of a module, run by both processes.
        jobs: name -> what it is to do.

    Returns:
        name -> result of each rank, the traceback where it raised.
    """
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_work, args=(rank, folder, function, jobs), daemon=True)
        for rank in range(RANKS)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=900)
        assert worker.exitcode == 0, f"exit status {worker.exitcode}"
    return {
        name: [
            torch.load(folder / f"{name}.{rank}.pth", weights_only=True)
            for rank in range(RANKS)
        ]
        for name in jobs
    }
