"""What an S-MoE encoder and decoder share: guides -> expert ids, late split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from espnet_smoe.config import ExpertConfig
from espnet_smoe.experts import ExpertFFNBank, ExpertSplit, Route
from espnet_smoe.guide import ExpertMap, GuideTable

__all__ = ["ExpertStack"]


class ExpertStack(torch.nn.Module):
    """Mixin of a stack of layers with expert banks.

    Attributes:
        expert_map: which expert serves which guides.
        split: the late split's counter.
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
        # hard sharing is routing by no axis: the one combination has expert 0
        self.expert_map = (
            ExpertMap((), {(): 0}) if config is None else config.expert_map(guides)
        )
        self.split = ExpertSplit(split_after)
        self.register_state_dict_pre_hook(_complete_experts)

    def experts_of(
        self, config: ExpertConfig | None, block: int, num_blocks: int, ffn: str
    ) -> int:
        """Number of experts of one FFN of one block."""
        if config is None or config.ffn not in (ffn, "both"):
            return 1
        return (
            self.expert_map.num_experts if config.has_experts(block, num_blocks) else 1
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

    def banks(self) -> Iterator[ExpertFFNBank]:
        """Every expert bank of the stack."""
        return (m for m in self.modules() if isinstance(m, ExpertFFNBank))

    def train(self, mode: bool = True) -> ExpertStack:
        """Switch mode; what leaves training has complete experts."""
        if self.training and not mode:
            self.split.complete(self.banks())
        return super().train(mode)


def _complete_experts(stack: ExpertStack, *_: object) -> None:
    stack.split.complete(stack.banks())
