"""Learned-gate bank, a baseline: each frame picks its experts, no guide does.

    p = softmax(W x);  y = sum over the K best e of g_e FFN_e(x)

Source: Switch Transformer (arXiv 2101.03961) for one expert a frame, g_e = p_e, and
for the load-balancing loss; GShard (arXiv 2006.16668) for several, g_e = p_e over
their sum. Unlike theirs, no expert has a capacity: no frame is ever dropped.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from espnet_smoe.config import GateConfig
from espnet_smoe.experts import Route

__all__ = ["GatedFFNBank", "balance_loss"]


class GatedFFNBank(torch.nn.Module):
    """Send every valid frame through the ``top_k`` experts that its gate scores best.

    Cost per frame is ``top_k`` dense FFNs and the gate. The gate computes in the
    precision of its weights, also under autocast.

    Args:
        make_ffn: builds one expert, a module (N, D) -> (N, D).
        width: width D of a frame.
        config: experts, experts a frame, weight of the load-balancing loss.
    """

    def __init__(
        self, make_ffn: Callable[[], torch.nn.Module], width: int, config: GateConfig
    ) -> None:
        super().__init__()
        self.experts = torch.nn.ModuleList(
            make_ffn() for _ in range(config.num_experts)
        )
        self.gate = torch.nn.Linear(width, config.num_experts, bias=False)
        self.top_k = config.top_k
        self.balance_weight = config.balance_weight

    def forward(self, x: torch.Tensor, route: Route) -> torch.Tensor:
        """Route each frame by itself.

        Args:
            x: (B, T, D) float; padding may hold anything, even NaN.
            route: names the valid frames and takes the load-balancing loss; its
                grouping of rows means nothing here.

        Returns:
            (B, T, D), zero in the padding.
        """
        flat = x.flatten(0, 1)
        valid = flat if route.frames is None else flat.index_select(0, route.frames)
        with torch.autocast(x.device.type, enabled=False):
            scores = self.gate(valid.to(self.gate.weight.dtype)).softmax(-1)
        weights, chosen = scores.topk(self.top_k, dim=-1)
        if route.balance is not None:
            loss = balance_loss(scores, chosen)
            route.balance.append(self.balance_weight * loss)
        if self.top_k > 1:
            weights = weights / weights.sum(-1, keepdim=True)

        order = chosen.flatten().argsort(stable=True)  # (N * K,), by expert
        # waits for the device, which guided experts never do
        counts = chosen.flatten().bincount(minlength=len(self.experts)).tolist()
        groups = valid.index_select(0, order // self.top_k).split(counts)
        # an idle expert does not run: no cost, and no gradient that would move it
        y = [ffn(g) for ffn, g in zip(self.experts, groups, strict=True) if len(g)]
        y = torch.cat(y).index_select(0, order.argsort()).unflatten(0, chosen.shape)
        y = (y * weights[:, :, None]).sum(1).to(x.dtype)  # (N, D)
        if route.frames is not None:
            y = torch.zeros_like(flat).index_copy(0, route.frames, y)
        return y.view_as(x)


def balance_loss(scores: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Load-balancing loss of one bank: 1 when balanced, up to E when one takes all.

        E sum over e of f_e P_e,  f_e the share of choices that fell on expert e,
        P_e the mean score of expert e over the frames

    Only P_e has a gradient. Source: arXiv 2101.03961, equations 4 to 6; with K
    experts a frame, f_e counts all K choices.

    Args:
        scores: (N, E) float, softmax of the gate on the valid frames.
        chosen: (N, K) int64, experts of each frame.

    Returns:
        () float.
    """
    num_experts = scores.size(1)
    share = chosen.flatten().bincount(minlength=num_experts) / chosen.numel()
    return num_experts * (share.to(scores.dtype) * scores.mean(0)).sum()
