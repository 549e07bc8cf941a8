"""Keys and values that the decoder keeps during a beam search.

Those of all hypotheses of a row lie together, in the order in which they were made, and
stay there: a hypothesis is a list of which of them it sees. So when hypotheses are
picked, doubled and dropped, only these lists are copied, and attention of the K
hypotheses of a row to all keys of the row is one product.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from espnet_smoe.experts import Route

__all__ = [
    "DecoderCache",
    "KeyValue",
    "KeyValueStore",
    "Projection",
    "places_of",
]

KeyValue = tuple[torch.Tensor, torch.Tensor]
Projection = tuple[torch.Tensor, torch.Tensor]


def places_of(items: torch.Tensor, per_row: int) -> torch.Tensor:
    """Places in a flat list of what is counted within each row.

    Args:
        items: (P, K) int64, each in [0, per_row).

    Returns:
        (P * K,) int64.
    """
    if len(items) == 1:
        return items.view(-1)
    first = torch.arange(0, len(items) * per_row, per_row, device=items.device)
    return (items + first[:, None]).view(-1)


@dataclass
class KeyValueStore:
    """Keys and values of self attention, written behind one another.

    The caches of successive steps share it. One that is no longer the last gets a
    store of its own when it goes on, so none ever overwrites what another reads.
    Entries of hypotheses that were dropped stay: attention of K hypotheses after L
    steps is to K * L entries.

    Args:
        tensor: (P, layers, 2, h, room, D/h).
        used: entries written, of ``room``.
    """

    tensor: torch.Tensor
    used: int = 0

    def extended(self, length: int, count: int) -> KeyValueStore:
        """A store whose first ``length`` entries are these, with ``count`` to write."""
        room = self.tensor.size(4)
        if self.used == length and length + count <= room:
            self.used += count
            return self
        sizes = list(self.tensor.shape)
        sizes[4] = max(room, 2 * (length + count))
        tensor = self.tensor.new_empty(sizes)
        tensor[:, :, :, :, :length] = self.tensor[:, :, :, :, :length]
        return KeyValueStore(tensor, length + count)


@dataclass(frozen=True)
class DecoderCache:
    """State of N hypotheses of P rows, hypotheses of a row standing together.

    Args:
        projections: of each layer, weight (3D, D) and bias (3D,) that make queries,
            keys and values of self attention in one product.
        cross: of each layer, keys and values of the memory, (P, h, T, D/h) each.
        cross_mask: (P, 1, 1, T) float, 0 on valid frames, minus infinity elsewhere;
            None = all are valid.
        store: keys and values of all positions of all hypotheses so far.
        visible: (N, M) float, 0 where one of the M entries of the store is of the
            hypothesis, minus infinity elsewhere.
        expert_ids: (P,) int64 on CPU.
        route: of the P rows.
        length: positions so far, the same of all hypotheses.
    """

    projections: Sequence[Projection]
    cross: Sequence[KeyValue]
    cross_mask: torch.Tensor | None
    store: KeyValueStore
    visible: torch.Tensor
    expert_ids: torch.Tensor
    route: Route
    length: int = 0

    @classmethod
    def of(
        cls,
        projections: Sequence[Projection],
        cross: Sequence[KeyValue],
        cross_mask: torch.Tensor | None,
        expert_ids: torch.Tensor,
        num_experts: int,
    ) -> DecoderCache:
        """The cache of one hypothesis a row, before its first position."""
        key = cross[0][0]
        rows, heads, _, width = key.shape
        return cls(
            projections,
            cross,
            cross_mask,
            KeyValueStore(key.new_empty(rows, len(cross), 2, heads, 0, width)),
            key.new_zeros(rows, 0),
            expert_ids,
            Route.of(expert_ids, num_experts, key.device),
        )

    @property
    def num_rows(self) -> int:
        """Number of rows P."""
        return len(self.cross[0][0])

    def select(self, ids: torch.Tensor) -> DecoderCache:
        """The cache of N' hypotheses, (N',) int64, the same number of each row."""
        return dataclasses.replace(self, visible=self.visible.index_select(0, ids))

    def of_rows(self, rows: torch.Tensor, hyps: torch.Tensor) -> DecoderCache:
        """The cache of some rows, (P',) int64 on CPU, and their hypotheses, (N',)."""
        here, expert_ids = rows.to(hyps.device), self.expert_ids[rows]
        return dataclasses.replace(
            self.select(hyps),
            cross=[(k[here], v[here]) for k, v in self.cross],
            cross_mask=None if self.cross_mask is None else self.cross_mask[here],
            store=KeyValueStore(
                self.store.tensor.index_select(0, here), self.visible.size(1)
            ),
            expert_ids=expert_ids,
            route=Route.of(expert_ids, len(self.route.counts), here.device),
        )

    def mask_of(self, positions: int) -> torch.Tensor:
        """What the newest positions see: the past of their hypothesis and themselves.

        Args:
            positions: Q, of each hypothesis.

        Returns:
            (P, N / P * Q, M + N / P * Q) float to be added to scores of attention;
            queries and new entries stand by hypothesis, then by position.
        """
        before = self.visible.unflatten(0, (self.num_rows, -1))
        per_row = before.size(1)
        if positions > 1:
            before = before.repeat_interleave(positions, 1)
        shape = (per_row, positions, per_row, positions)
        new = before.new_full(shape, -torch.inf)
        causal = new.new_full((positions, positions), -torch.inf).triu(1)
        new.diagonal(dim1=0, dim2=2).copy_(causal[:, :, None])
        new = new.flatten(2).flatten(0, 1)
        return torch.cat([before, new.expand(self.num_rows, -1, -1)], 2)
