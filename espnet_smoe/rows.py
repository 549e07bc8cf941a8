"""The decoder's rows: (utterance, task) pairs, their prompts, targets and loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = ["IGNORE", "Rows", "add_prompt", "row_texts", "smoothed_cross_entropy"]

IGNORE = -1  # the host's padding of token ids


@dataclass(frozen=True)
class Rows:
    """The (utterance, task) pairs of a batch, grouped by task.

    Args:
        utterances: (P,) int64 on CPU, utterance of each row.
        tasks: (P,) int64 on CPU, guide id on the task axis.
        prompts: (P, A) int64 on CPU, guiding tokens of each row.
    """

    utterances: torch.Tensor
    tasks: torch.Tensor
    prompts: torch.Tensor


def row_texts(
    rows: Rows, texts: Sequence[torch.Tensor], lengths: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference of each row.

    Args:
        texts: of each task (B, U_task) int64, padded with -1.
        lengths: of each task (B,) int64, tokens.

    Returns:
        (P, U) int64, U the longest U_task, padded with -1, and (P,) int64 tokens.
    """
    longest = max(text.size(1) for text in texts)
    padded = [
        torch.nn.functional.pad(text, (0, longest - text.size(1)), value=IGNORE)
        for text in texts
    ]
    device = texts[0].device
    tasks, utterances = rows.tasks.to(device), rows.utterances.to(device)
    return (
        torch.stack(padded)[tasks, utterances],
        torch.stack(tuple(lengths))[tasks, utterances],
    )


def add_prompt(
    text: torch.Tensor,
    lengths: torch.Tensor,
    prompts: torch.Tensor,
    sos: int,
    eos: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decoder input and target: the prompt is read, never predicted.

    Args:
        text: (P, U) int64, padded with -1.
        lengths: (P,) int64, tokens.
        prompts: (P, A) int64.
        sos, eos: vocabulary ids.

    Returns:
        ``<sos> <prompt> text`` padded with ``<eos>``, (P, 1 + A + U), and its
        target ``-1 ... text <eos>``, padded with -1, of the same shape.
    """
    num_rows, num_axes = prompts.shape
    start = text.new_full((num_rows, 1), sos)
    prompts = prompts.to(text.device)
    body = text.masked_fill(text == IGNORE, eos)
    blank = text.new_full((num_rows, num_axes), IGNORE)
    end = text.new_full((num_rows, 1), IGNORE)
    ys_out = torch.cat([blank, text, end], dim=1)
    ys_out.scatter_(1, (num_axes + lengths)[:, None], eos)
    return torch.cat([start, prompts, body], dim=1), ys_out


def smoothed_cross_entropy(
    logits: torch.Tensor, target: torch.Tensor, weight: float
) -> torch.Tensor:
    """Sum over a row's tokens of the KL divergence to the smoothed target.

    The host's ``LabelSmoothingLoss`` per row: the true token has 1 - w, each
    other token w / (V - 1).

    Args:
        logits: (P, U, V) float.
        target: (P, U) int64, -1 where nothing is to be learnt.
        weight: label smoothing w in [0, 1).

    Returns:
        (P,)
    """
    vocab = logits.size(-1)
    # torch spreads its weight over all V tokens, the true one included
    losses = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2).float(),
        target,
        ignore_index=IGNORE,
        reduction="none",
        label_smoothing=weight * vocab / (vocab - 1),
    )
    entropy = 0.0
    if weight > 0.0:
        entropy = -(1 - weight) * math.log(1 - weight)
        entropy -= weight * math.log(weight / (vocab - 1))
    return (losses - entropy * (target != IGNORE)).sum(1)
