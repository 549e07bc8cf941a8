"""One block of the S-MoE decoder: whole sequences, or the newest positions.

    y += SelfAttn(LN y); y += CrossAttn(LN y); y += FFN[e](LN y)

Source: Transformer decoder as in ESPnet; experts arXiv 2508.10009.
"""

from __future__ import annotations

import torch
from torch.nn.functional import linear, scaled_dot_product_attention

from espnet_smoe.cache import KeyValue, Projection
from espnet_smoe.experts import Route
from espnet_smoe.host import DecoderLayer, MultiHeadedAttention

__all__ = ["SMoETransformerLayer", "key_value"]


class SMoETransformerLayer(DecoderLayer):
    """The host's pre-norm decoder block with an expert bank in place of its FFN."""

    def forward(
        self,
        tgt: torch.Tensor,
        tgt_mask: torch.Tensor,
        memory: torch.Tensor,
        memory_mask: torch.Tensor,
        route: Route,
    ) -> torch.Tensor:
        """One block over whole sequences (training, teacher forcing).

        Args:
            tgt: (P, U, D) float, rows in the route's order.
            tgt_mask: (P, U, U) bool, true where attention may look.
            memory: (P, T, D) float.
            memory_mask: (P, 1, T) bool, true on valid frames.
            route: which rows go to which expert.

        Returns:
            (P, U, D)
        """
        y = self.norm1(tgt)
        x = tgt + self.dropout(self.self_attn(y, y, y, tgt_mask))
        y = self.src_attn(self.norm2(x), memory, memory, memory_mask)
        x = x + self.dropout(y)
        return x + self.dropout(self.feed_forward(self.norm3(x), route))

    def self_projection(self) -> Projection:
        """Weight (3D, D) and bias (3D,) of self attention's three projections."""
        attention = self.self_attn
        parts = (attention.linear_q, attention.linear_k, attention.linear_v)
        weight = torch.cat([part.weight for part in parts])
        return weight, torch.cat([part.bias for part in parts])

    def step(
        self,
        x: torch.Tensor,
        past: torch.Tensor,
        mask: torch.Tensor,
        projection: Projection,
        cross: KeyValue,
        cross_mask: torch.Tensor | None,
        route: Route,
    ) -> torch.Tensor:
        """The block for the newest positions of a search (no dropout).

        Args:
            x: (P, R, D) float, the R newest positions of all hypotheses of a row.
            past: (P, 2, h, room, D/h), keys and values of the row's M - R positions
                before; those of the newest are written behind them.
            mask: (P, 1, R, M) float, see ``DecoderCache.mask_of``.
            projection: see ``self_projection``.
            cross: keys and values of the memory, (P, h, T, D/h) each.
            cross_mask: (P, 1, 1, T) float, see ``DecoderCache``.
            route: which rows, in the caller's order, go to which expert.

        Returns:
            (P, R, D)
        """
        made = linear(self.norm1(x), *projection)
        made = made.unflatten(-1, (3, past.size(2), -1)).transpose(1, 3)
        end = mask.size(3)
        past[:, :, :, end - x.size(1) : end] = made[:, :, 1:].transpose(1, 2)
        key, value = past[:, :, :, :end].unbind(1)
        y = scaled_dot_product_attention(made[:, :, 0], key, value, attn_mask=mask)
        x = x + self.self_attn.linear_out(y.transpose(1, 2).flatten(2))

        attention = self.src_attn
        query = _heads(attention.linear_q(self.norm2(x)), attention.h)
        y = scaled_dot_product_attention(query, *cross, attn_mask=cross_mask)
        x = x + attention.linear_out(y.transpose(1, 2).flatten(2))
        y = self.feed_forward(route.sort(self.norm3(x)), route)
        return x + route.restore(y)


def _heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(N, Q, D) -> (N, h, Q, D/h)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def key_value(attention: MultiHeadedAttention, x: torch.Tensor) -> KeyValue:
    """(N, Q, D) -> keys and values, (N, h, Q, D/h) each."""
    return (
        _heads(attention.linear_k(x), attention.h),
        _heads(attention.linear_v(x), attention.h),
    )
