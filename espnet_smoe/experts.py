"""Expert bank: one position-wise FFN per guide, no learned gate; late split.

Source: arXiv 2508.10009 (S-MoE, an FFN per guiding token). The late split, in
which a stack trains as one FFN before its experts part ways, is ours.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from espnet_smoe.config import ConfigError

__all__ = ["ExpertFFNBank", "ExpertSplit", "Route"]


@dataclass(frozen=True)
class Route:
    """Rows of a batch grouped by expert.

    Args:
        counts: rows per expert, E numbers that add up to the batch size.
        order: (B,) int64, the rows in expert order; None when they already are.
        inverse: (B,) int64, where each row of the caller went; None likewise.
        frames: (N,) int64, places of the valid frames among all B * T, for learned
            gates; None = all are valid.
        balance: list to which every learned gate appends its weighted load-balancing
            loss, (); None = not wanted.
    """

    counts: tuple[int, ...]
    order: torch.Tensor | None = None
    inverse: torch.Tensor | None = None
    frames: torch.Tensor | None = None
    balance: list[torch.Tensor] | None = None

    @classmethod
    def of(
        cls, expert_ids: torch.Tensor, num_experts: int, device: torch.device
    ) -> Route:
        """Group rows by expert.

        Args:
            expert_ids: (B,) int64 on CPU (no device sync here), each in [0, E).
            num_experts: E.
            device: of the batch that ``sort`` and ``restore`` will see.

        Raises:
            ValueError: ids are not (B,) or leave [0, E).
        """
        if expert_ids.dim() != 1 or not len(expert_ids):
            raise ValueError(f"expert ids must be (B,), got {tuple(expert_ids.shape)}")
        ids = expert_ids.tolist()  # a search comes here at every step: few tensor calls
        low, high = min(ids), max(ids)
        if low < 0 or high >= num_experts:
            raise ValueError(
                f"expert ids must lie in [0, {num_experts}), got [{low}, {high}]"
            )
        found = Counter(ids)
        counts = tuple(found[expert] for expert in range(num_experts))
        if ids == sorted(ids):
            return cls(counts)
        order = torch.argsort(expert_ids, stable=True)
        return cls(counts, order.to(device), torch.argsort(order).to(device))

    def sort(self, x: torch.Tensor) -> torch.Tensor:
        """Bring (B, ...) from the caller's order into expert order."""
        return x if self.order is None else x.index_select(0, self.order)

    def restore(self, x: torch.Tensor) -> torch.Tensor:
        """Bring (B, ...) from expert order back into the caller's order."""
        return x if self.inverse is None else x.index_select(0, self.inverse)


class ExpertFFNBank(torch.nn.Module):
    """Send every frame of a row through the one expert that its guide names.

    Cost per row is one dense FFN, whatever the number of experts; parameters grow
    linearly with it. With one expert the bank equals the host's FFN exactly.

    A shared expert, if any, sees every row, and its output is added to that of the
    guided one. The stack gives both half the inner width: the FFN's hidden units are
    then divided between what all guides share and what each has of its own, as
    DeepSeekMoE divides them, and the cost per row is still that of one FFN.

    Args:
        make_ffn: builds one expert, a module (B, T, D) -> (B, T, D).
        num_experts: number of guided experts E, at least 1.
        shared: whether there is a shared expert beside them.

    Raises:
        ConfigError: ``num_experts`` < 1.

    Source:
        arXiv:2508.10009 (S-MoE, routing by guiding tokens); arXiv:2401.06066
        (DeepSeekMoE, shared experts).
    """

    def __init__(
        self,
        make_ffn: Callable[[], torch.nn.Module],
        num_experts: int,
        shared: bool = False,
    ) -> None:
        super().__init__()
        if num_experts < 1:
            raise ConfigError(f"num_experts must be >= 1, got {num_experts}")
        self.experts = torch.nn.ModuleList(make_ffn() for _ in range(num_experts))
        self.shared = make_ffn() if shared else None

    def forward(self, x: torch.Tensor, route: Route) -> torch.Tensor:
        """Apply each expert to its rows, and the shared one to all.

        Args:
            x: (B, T, D) float, rows in the route's expert order.
            route: grouping of the rows; its ``order`` is not applied here, the
                stack sorts once for all its layers.

        Returns:
            (B, T, D), in the same order as ``x``.

        Raises:
            ValueError: the route covers another number of rows or experts.
        """
        y = self._guided(x, route)
        return y if self.shared is None else y + self.shared(x)

    def _guided(self, x: torch.Tensor, route: Route) -> torch.Tensor:
        if len(self.experts) == 1:
            return self.experts[0](x)
        if len(route.counts) != len(self.experts) or sum(route.counts) != len(x):
            raise ValueError(
                f"route of {sum(route.counts)} rows and {len(route.counts)} experts "
                f"for {len(x)} rows and a bank of {len(self.experts)} experts"
            )
        if max(route.counts) == len(x):  # one guide: no split, no copy
            return self.experts[route.counts.index(len(x))](x)
        # an idle expert does not run: no cost, and no gradient that would move it
        groups = zip(self.experts, x.split(route.counts), strict=True)
        return torch.cat([expert(rows) for expert, rows in groups if len(rows)])

    @torch.no_grad()
    def copy_first(self) -> None:
        """Make every guided expert an exact copy of the first."""
        first = self.experts[0].state_dict()
        for expert in self.experts[1:]:
            expert.load_state_dict(first)


class ExpertSplit(torch.nn.Module):
    """Late split of a stack: tied to the first expert, then parted for good.

    While tied, training sends every row through expert 0 and the other experts are
    idle (no gradient). They are brought up to date as copies of expert 0 before
    anything reads them: on leaving training mode and on saving. So a checkpoint is
    complete at any moment: resuming, averaging over the split and decoding before
    and after it need no special case, and outside training routing is always on.
    The copies start without optimiser state, unless ``moments.py`` copies it too.

    Args:
        batches: training batches to stay tied; 0 = parted from the start.

    Attributes:
        batches_left: () float buffer, saved: training batches left to stay tied;
            minus infinity = parted, so that an average with a parted checkpoint is
            parted. The saved value wins over ``batches`` when training is resumed.
    """

    def __init__(self, batches: int) -> None:
        super().__init__()
        if batches < 0:
            raise ConfigError(f"batches must be >= 0, got {batches}")
        # on the host, so that training never waits for the device to read the buffer
        self._left = float(batches) if batches else -math.inf
        # whether experts other than the first lag behind it: not so once loaded
        self._stale = batches > 0
        self.register_load_state_dict_post_hook(_read_buffer)
        self.register_buffer("batches_left", torch.tensor(self._left))

    @property
    def parted(self) -> bool:
        """Whether the experts have parted ways, or never were tied."""
        return self._left == -math.inf

    def train_batch(self, banks: Iterable[ExpertFFNBank]) -> bool:
        """Count one training batch; part the experts when the time has come.

        Returns:
            Whether this batch is still tied to the first expert.
        """
        if self.parted:
            return False
        tied = self._left >= 1
        if tied:
            self._left, self._stale = self._left - 1, True
        else:
            self.complete(banks)
            self._left = -math.inf
        self.batches_left.fill_(self._left)
        return tied

    def complete(self, banks: Iterable[ExpertFFNBank]) -> None:
        """Bring experts that lag behind the first up to date."""
        if self._stale:
            for bank in banks:
                bank.copy_first()
        self._stale = False


def _read_buffer(split: ExpertSplit, *_: object) -> None:
    split._left, split._stale = float(split.batches_left), False
