"""Optimiser state of experts that have just parted: copied from the tied one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch

from espnet_smoe.stack import ExpertStack

__all__ = ["copy_moments", "moments_follow"]


def copy_moments(
    optimizer: torch.optim.Optimizer, stacks: Iterable[ExpertStack]
) -> None:
    """Give parted experts without optimiser state a copy of the first expert's.

    A tied expert has no gradient and so no state: its absence marks experts that
    have just parted, and every process of a distributed training sees the same. A
    second call changes nothing. State keeps its precision (Adam's: float32).

    Args:
        optimizer: any that keeps its state by parameter, as torch's do.
        stacks: what was tied at first; those that still are stay as they are.
    """
    state = optimizer.state
    for bank in (b for s in stacks if s.split.parted for b in s.banks()):
        first, *others = (list(e.parameters()) for e in bank.experts)
        for other in others:
            for source, target in zip(first, other, strict=True):
                if source in state and target not in state:
                    state[target] = {
                        key: value.clone() if torch.is_tensor(value) else value
                        for key, value in state[source].items()
                    }


@contextmanager
def moments_follow(
    model: torch.nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> Iterator[None]:
    """Copy the moments of stacks that part inside, before the update that follows.

    At the end the copy is made in any case: a checkpoint saved then is complete, even
    if gradients were still being accumulated.

    Args:
        model: of any kind, wrapped for several processes or not; its stacks with
            ``experts.copy_moments`` are concerned.
        optimizers: those that update it.
    """
    tied = [
        m
        for m in model.modules()
        if isinstance(m, ExpertStack) and m.copy_moments and not m.split.parted
    ]
    hooks = [
        optimizer.register_step_pre_hook(lambda o, *_: copy_moments(o, tied))
        for optimizer in optimizers
    ]
    try:
        yield
        for optimizer in optimizers:
            copy_moments(optimizer, tied)
    finally:
        for hook in hooks:
            hook.remove()
