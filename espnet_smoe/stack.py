"""What an S-MoE encoder and decoder share: banks, guides -> expert ids, late split."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch

from espnet_smoe.config import ConfigError, ExpertConfig
from espnet_smoe.experts import ExpertFFNBank, ExpertSplit, Route
from espnet_smoe.gated import GatedFFNBank
from espnet_smoe.guide import ExpertMap, GuideTable

__all__ = ["ExpertStack"]


class ExpertStack(torch.nn.Module):
    """Mixin of a stack of layers with expert banks.

    Attributes:
        expert_map: which expert serves which guides.
        split: the late split's counter.
        copy_moments: whether copies get the first expert's optimiser state.
    """

    def init_experts(
        self, guides: GuideTable, config: ExpertConfig | None, split_after: int
    ) -> None:
        """Set up routing; call it first in the constructor.

        Args:
            guides: every axis of the model.
            config: where experts sit; None = hard sharing (one expert for all).
            split_after: training batches to stay tied, see ``ExpertSplit``.
        """
        self.expert_map = (
            ExpertMap.unguided() if config is None else config.expert_map(guides)
        )
        self.split = ExpertSplit(split_after)
        self.copy_moments = config is not None and config.copy_moments
        self._gated = config is not None and config.gate is not None
        self.register_state_dict_pre_hook(_complete_experts)

    def make_bank(
        self,
        make_ffn: Callable[[int], torch.nn.Module],
        width: int,
        hidden: int,
        config: ExpertConfig | None,
        *,
        block: int,
        num_blocks: int,
        ffn: str,
    ) -> ExpertFFNBank | GatedFFNBank:
        """The bank in place of one FFN.

        Args:
            make_ffn: inner width -> FFN.
            width: width D.
            hidden: inner width H (YAML ``linear_units``).
            config: where experts sit; None = hard sharing.
            block: number of the block among ``num_blocks``, from 0.
            ffn: which FFN of the block, ``macaron`` or ``final``.

        Raises:
            ConfigError: a block that the stack does not have, or a shared expert and
                an odd inner width.
        """
        if (
            config is None
            or config.ffn not in (ffn, "both")
            or not config.has_experts(block, num_blocks)
        ):
            return ExpertFFNBank(partial(make_ffn, hidden), 1)
        if config.gate is not None:
            return GatedFFNBank(partial(make_ffn, hidden), width, config.gate)
        if config.shared:
            if hidden % 2:
                raise ConfigError(
                    "experts.shared halves linear_units, which must be even, got "
                    f"{hidden}"
                )
            hidden //= 2
        return ExpertFFNBank(
            partial(make_ffn, hidden), self.expert_map.num_experts, config.shared
        )

    def expert_ids_of(self, guide_ids: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Expert of each row.

        Args:
            guide_ids: axis -> (B,) int64 on CPU, guide ids of the rows.

        Returns:
            (B,) int64 on CPU.

        Raises:
            ValueError: an id that the axis does not have.
        """
        rows = len(next(iter(guide_ids.values())))
        columns = [guide_ids[axis].tolist() for axis in self.expert_map.axes]
        keys = list(zip(*columns, strict=True)) if columns else [()] * rows
        if bad := sorted(set(keys) - set(self.expert_map.table)):
            raise ValueError(
                f"guide ids {bad} of {self.expert_map.axes} have no expert; known: "
                f"{sorted(self.expert_map.table)}"
            )
        return torch.tensor([self.expert_map.table[k] for k in keys])

    def route(self, expert_ids: torch.Tensor, device: torch.device) -> Route:
        """Group the rows of a batch; counts the batch when training."""
        if self.training and self.split.train_batch(self.banks()):
            expert_ids = torch.zeros_like(expert_ids)
        return Route.of(expert_ids, self.expert_map.num_experts, device)

    def with_frames(
        self,
        route: Route,
        valid: torch.Tensor,
        balance: list[torch.Tensor] | None,
    ) -> Route:
        """What learned gates need besides, if the stack has any.

        Args:
            valid: (B, T) bool, true on valid frames, rows in the route's order.
            balance: see ``Route``.
        """
        if not self._gated:
            return route  # the places would have to wait for the device
        frames = valid.flatten().nonzero().view(-1)
        return dataclasses.replace(route, frames=frames, balance=balance)

    def banks(self) -> Iterator[ExpertFFNBank]:
        """Every bank of the stack whose experts are picked by guides."""
        return (m for m in self.modules() if isinstance(m, ExpertFFNBank))

    def train(self, mode: bool = True) -> ExpertStack:
        """Switch mode; what leaves training has complete experts."""
        if self.training and not mode:
            self.split.complete(self.banks())
        return super().train(mode)


def _complete_experts(stack: ExpertStack, *_: object) -> None:
    stack.split.complete(stack.banks())
