"""Keys and values that the decoder keeps during a beam search.

The host's batched search hands back whatever ``batch_score`` returned, asks for
``batch_select_state`` while its grid of hypotheses keeps its size and for
``select_state`` per hypothesis otherwise; so a cache of all hypotheses is one
object, picking hypotheses only composes an index, and the one copy a step is made
when the next token is scored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = ["DecoderCache", "HypothesisRef", "KeyValue", "hypotheses_of", "merge"]

KeyValue = tuple[torch.Tensor, torch.Tensor]


def hypotheses_of(rows: torch.Tensor, per_row: int) -> torch.Tensor:
    """(P',) int64 rows -> (P' * per_row,) places of their hypotheses."""
    return (rows[:, None] * per_row + torch.arange(per_row).to(rows)).view(-1)


@dataclass(frozen=True)
class DecoderCache:
    """State of N hypotheses of P rows, hypotheses of a row standing together.

    Args:
        cross: per layer, keys and values of the memory, (P, h, T, D/h) each.
        cross_mask: (P, 1, 1, T) float, 0 on valid frames, minus infinity elsewhere;
            None = all are valid.
        past: per layer, keys and values of the L positions so far,
            (M, h, L, D/h) each; None before the first.
        expert_ids: (P,) int64 on CPU, read from the prompt; None before that.
        pending: (N,) int64, hypotheses of ``past`` to go on with; None = all M.
    """

    cross: Sequence[KeyValue]
    cross_mask: torch.Tensor | None
    past: Sequence[KeyValue] | None = None
    expert_ids: torch.Tensor | None = None
    pending: torch.Tensor | None = None

    @property
    def num_rows(self) -> int:
        """Number of rows P."""
        return len(self.cross[0][0])

    @property
    def num_hypotheses(self) -> int:
        """Number of hypotheses N; P before the first token."""
        if self.pending is not None:
            return len(self.pending)
        return self.num_rows if self.past is None else len(self.past[0][0])

    def select(self, ids: torch.Tensor) -> DecoderCache:
        """The cache of some of the hypotheses, (N',) int64; copies nothing."""
        pending = ids if self.pending is None else self.pending[ids]
        return dataclasses.replace(self, pending=pending)

    def of_rows(self, rows: torch.Tensor, hyps: torch.Tensor) -> DecoderCache:
        """The cache of some rows, (P',) int64, and their hypotheses, (N',) int64."""
        on_device = rows.to(self.cross[0][0].device)
        return dataclasses.replace(
            self.select(hyps.to(on_device.device)),
            cross=[(k[on_device], v[on_device]) for k, v in self.cross],
            cross_mask=None if self.cross_mask is None else self.cross_mask[on_device],
            expert_ids=None if self.expert_ids is None else self.expert_ids[rows],
        )

    def selected_past(self) -> Sequence[KeyValue] | None:
        """``past`` of the hypotheses to go on with: the only copy of a step."""
        if self.past is None or self.pending is None:
            return self.past
        return [
            (k.index_select(0, self.pending), v.index_select(0, self.pending))
            for k, v in self.past
        ]


@dataclass(frozen=True)
class HypothesisRef:
    """One hypothesis of a cache."""

    cache: DecoderCache
    index: int


def merge(
    states: DecoderCache | Sequence[DecoderCache | HypothesisRef],
) -> DecoderCache:
    """One cache from what the host hands to ``batch_score``."""
    if isinstance(states, DecoderCache):
        return states
    first = states[0]
    if isinstance(first, DecoderCache):  # before the first token: N times the same
        return first
    device = first.cache.cross[0][0].device
    return first.cache.select(torch.tensor([s.index for s in states], device=device))
