"""Training of what serves some tasks alone, while all else stays as it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from espnet_smoe.config import ConfigError
from espnet_smoe.decoder import SMoETransformerDecoder
from espnet_smoe.experts import ExpertFFNBank
from espnet_smoe.guide import TASK, GuideTable

__all__ = ["freeze"]


def freeze(
    model: torch.nn.Module,
    decoder: SMoETransformerDecoder,
    guides: GuideTable,
    tasks: Sequence[str],
) -> None:
    """Let only tokens and decoder experts learn that serve no task but the named.

    Args:
        model: its parameters' ``requires_grad`` is set.
        decoder: ``model.decoder``.
        guides: of the model.
        tasks: the tasks to train.

    Raises:
        ConfigError: nothing serves these tasks alone.
        GuideError: the model has no such task.
    """
    for task in tasks:
        guides.axis(TASK).index(task)
    learning = [f"decoder.added.{task}" for task in tasks]
    learning += [
        f"decoder.{name}.experts.{expert}"
        for name, bank in decoder.named_modules()
        if isinstance(bank, ExpertFFNBank) and len(bank.experts) > 1
        for expert in decoder.experts_only_of(tasks)
    ]
    for name, parameter in model.named_parameters():
        parameter.requires_grad = f"{name}.".startswith(
            tuple(f"{part}." for part in learning)
        )
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError(
            f"train_only {list(tasks)}: no token or decoder expert serves these tasks "
            "alone; smoe_add_task makes them"
        )
