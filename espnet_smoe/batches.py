"""Batches of a training: drawn by ``sampling``, dealt to the processes."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from espnet2.iterators.sequence_iter_factory import RawSampler, SequenceIterFactory
from espnet2.tasks.abs_task import IteratorOptions

from espnet_smoe.config import ConfigError
from espnet_smoe.files import read_table
from espnet_smoe.guide import GuideTable
from espnet_smoe.sampling import (
    ConditionSampler,
    SamplingConfig,
    deal,
    read_conditions,
)

__all__ = ["build_batches", "check_batches"]

Build = Callable[[argparse.Namespace, IteratorOptions, str], SequenceIterFactory]


def check_batches(args: argparse.Namespace) -> None:
    """Refuse options of sampling and accumulation that do not fit together.

    Raises:
        ConfigError: names the option, its value and what was expected.
    """
    if args.num_iters_per_epoch and args.num_iters_per_epoch % args.accum_grad:
        raise ConfigError(
            f"num_iters_per_epoch {args.num_iters_per_epoch} must be a multiple of "
            f"accum_grad {args.accum_grad}: the host would carry the gradient of the "
            "last batches over into the next epoch"
        )
    if args.sampling is None:
        return
    SamplingConfig.from_mapping(args.sampling, GuideTable.from_mapping(args.guides))
    needed = {
        "batch_type": "numel", "iterator_type": "sequence",
        "multiple_iterator": False, "shuffle_within_batch": False,
    }  # fmt: skip
    for name, value in needed.items():
        if getattr(args, name) != value:
            raise ConfigError(
                f"sampling needs {name} {value}, got {getattr(args, name)}"
            )


def build_batches(
    build: Build, args: argparse.Namespace, iter_options: IteratorOptions, mode: str
) -> SequenceIterFactory:
    """The host's batches, or those of ``sampling``; each process gets its share.

    Args:
        build: the host's ``build_sequence_iter_factory``.
        args: the task's options.
        iter_options: the host's options of this data set.
        mode: ``train``, ``valid`` or ``plot_att``, as the host says.

    Raises:
        ConfigError: a batch has fewer utterances than there are processes.
    """
    distributed = iter_options.distributed
    if not iter_options.train or not (distributed or args.sampling):
        return build(args, iter_options, mode)
    rank, ranks = 0, 1
    if distributed:
        rank = torch.distributed.get_rank()
        ranks = torch.distributed.get_world_size()
    # the host deals by length only; it gives us whole batches to deal
    whole = argparse.Namespace(**vars(args))
    whole.min_batch_size = max(ranks, args.min_batch_size)
    factory = build(whole, dataclasses.replace(iter_options, distributed=False), mode)
    guides = GuideTable.from_mapping(args.guides)
    files = {n: path for path, n, _ in iter_options.data_path_and_name_and_type}
    conditions = read_conditions(files, guides)
    if args.sampling:
        config = SamplingConfig.from_mapping(args.sampling, guides)
        shapes = read_table(Path(iter_options.shape_files[0]))
        factory.sampler = ConditionSampler(
            {name: int(length) for name, length in shapes.items()},
            conditions,
            config,
            iter_options.batch_bins,
            rank,
            ranks,
        )
        logging.info(factory.sampler.summary(guides))
    else:
        batches = list(factory.sampler)
        if (fewest := min(map(len, batches))) < ranks:
            raise ConfigError(
                f"a batch of {fewest} utterances cannot feed {ranks} processes"
            )
        factory.sampler = RawSampler(
            [deal(batch, conditions, rank, ranks) for batch in batches]
        )
    return factory
