"""Statistics of a batch as ratios of sums, over all processes of a training."""

from __future__ import annotations

from collections.abc import Mapping

import torch

__all__ = ["Sums", "condition_sums", "global_ratios"]

Sums = dict[str, tuple[torch.Tensor | float, torch.Tensor | float]]
"""Name of a statistic -> numerator and denominator, () each."""


def condition_sums(
    conditions: Mapping[str, torch.Tensor],
    losses: torch.Tensor,
    correct: torch.Tensor,
    tokens: torch.Tensor,
) -> Sums:
    """``loss_<name>``, a row, and ``acc_<name>``, a token, of some of the rows.

    Args:
        conditions: name -> (P,) bool on CPU, the rows that count.
        losses, correct, tokens: (P,) each: loss, correct and all tokens of a row.
    """
    sums: Sums = {}
    for name, rows in conditions.items():
        here = rows.to(losses.device)
        sums[f"loss_{name}"] = ((losses * here).sum(), here.sum())
        sums[f"acc_{name}"] = ((correct * here).sum(), (tokens * here).sum())
    return sums


def global_ratios(sums: Sums, device: torch.device) -> dict[str, torch.Tensor]:
    """Numerator / denominator of each statistic, summed over the processes first.

    The host averages what each process reports with the number of its utterances as
    weight, so a mean over the rows of one bandwidth would come out wrong when ranks
    hold different numbers of them. Here every rank reports the ratio of the whole
    batch; averaging equal numbers changes nothing.

    Every process must call this equally often: it waits for the others.

    Args:
        sums: of this process.

    Returns:
        name -> () float64 on ``device``; 0 / 0 = NaN marks a statistic without data,
        which the host's reporter skips.
    """
    # float64 counts exactly; filling a number in on the device waits for nothing
    table = torch.empty(len(sums), 2, dtype=torch.float64, device=device)
    for row, pair in zip(table, sums.values(), strict=True):
        for cell, value in zip(row, pair, strict=True):
            if isinstance(value, torch.Tensor):
                cell.copy_(value)
            else:
                cell.fill_(value)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(table)
    return dict(zip(sums, table[:, 0] / table[:, 1], strict=True))
