"""One block of the S-MoE decoder: whole sequences, or the newest positions.

    y += SelfAttn(LN y); y += CrossAttn(LN y); y += FFN[e](LN y)

Source: Transformer decoder as in ESPnet; experts arXiv 2508.10009.
"""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from espnet_smoe.cache import KeyValue
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

    def step(
        self,
        x: torch.Tensor,
        past: KeyValue | None,
        cross: KeyValue,
        cross_mask: torch.Tensor | None,
        route: Route,
    ) -> tuple[torch.Tensor, KeyValue]:
        """The block for the newest Q positions of N hypotheses (no dropout).

        Args:
            x: (N, Q, D) float.
            past: keys and values of the L earlier positions, (N, h, L, D/h) each.
            cross: keys and values of the memory, (P, h, T, D/h) each; N is a
                multiple of P and the hypotheses of a row stand together.
            cross_mask: (P, 1, 1, T) float, see ``DecoderCache``.
            route: which hypotheses, in the caller's order, go to which expert.

        Returns:
            (N, Q, D), keys and values of all L + Q positions.
        """
        attention, y = self.self_attn, self.norm1(x)
        key, value = key_value(attention, y)
        if past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        mask = None
        if x.size(1) > 1:  # the prompt: a position sees itself and what came before
            mask = x.new_ones(x.size(1), key.size(2), dtype=torch.bool)
            mask = mask.tril(key.size(2) - x.size(1))
        query = _heads(attention.linear_q(y), attention.h)
        y = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + attention.linear_out(y.transpose(1, 2).flatten(2))

        # the hypotheses of a row are so many queries: its keys are not repeated
        attention = self.src_attn
        query = attention.linear_q(self.norm2(x)).view(len(cross[0]), -1, x.size(2))
        y = scaled_dot_product_attention(
            _heads(query, attention.h), *cross, attn_mask=cross_mask
        )
        x = x + attention.linear_out(y.transpose(1, 2).reshape(x.shape))
        y = self.feed_forward(route.sort(self.norm3(x)), route)
        return x + route.restore(y), (key, value)


def _heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(N, Q, D) -> (N, h, Q, D/h)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def key_value(attention: MultiHeadedAttention, x: torch.Tensor) -> KeyValue:
    """(N, Q, D) -> keys and values, (N, h, Q, D/h) each."""
    return (
        _heads(attention.linear_k(x), attention.h),
        _heads(attention.linear_v(x), attention.h),
    )
