"""S-MoE Transformer decoder: the task guide in the prompt picks the FFNs.

    y += SelfAttn(LN y); y += CrossAttn(LN y); y += FFN[e](LN y)

Source: Transformer decoder as in ESPnet; experts arXiv 2508.10009. Parameter names
are the host's but for ``feed_forward.experts.<e>``. In a search, keys and values are
kept per hypothesis (self attention) and per row (cross attention), see ``cache.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from espnet2.asr.decoder.transformer_decoder import BaseTransformerDecoder
from torch.nn.functional import scaled_dot_product_attention

from espnet_smoe.cache import DecoderCache, HypothesisRef, KeyValue, merge
from espnet_smoe.experts import ConfigError, ExpertConfig, ExpertFFNBank, Route
from espnet_smoe.guide import GuideError, GuideTable
from espnet_smoe.host import (
    DecoderLayer,
    MultiHeadedAttention,
    PositionwiseFeedForward,
)
from espnet_smoe.mask import valid_mask
from espnet_smoe.stack import ExpertStack

__all__ = ["SMoETransformerDecoder", "SMoETransformerLayer"]


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
            cross_mask: (P, 1, 1, T) bool, true on valid frames; None = all are.
            route: which hypotheses, in the caller's order, go to which expert.

        Returns:
            (N, Q, D), keys and values of all L + Q positions.
        """
        attention, y = self.self_attn, self.norm1(x)
        key, value = _key_value(attention, y)
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


def _key_value(attention: MultiHeadedAttention, x: torch.Tensor) -> KeyValue:
    """(N, Q, D) -> keys and values, (N, h, Q, D/h) each."""
    return (
        _heads(attention.linear_k(x), attention.h),
        _heads(attention.linear_v(x), attention.h),
    )


class SMoETransformerDecoder(ExpertStack, BaseTransformerDecoder):
    """Transformer decoder whose FFNs are chosen by the prompt ``<sos> <guides>``.

    Args:
        vocab_size: vocabulary V.
        encoder_output_size: width D.
        guides: axis -> guides of the model (YAML ``guides``).
        guide_token_ids: axis -> vocabulary ids of its guiding tokens, in guide order.
        attention_heads: number of heads; divides D.
        linear_units: inner width H of every expert.
        num_blocks: number of blocks.
        dropout_rate, positional_dropout_rate, self_attention_dropout_rate,
            src_attention_dropout_rate: in [0, 1).
        use_sdpa: torch's fused self attention in training.
        experts: see ``ExpertConfig``; None = one FFN for all (hard sharing).
        split_after: training batches before the late split, see ``ExpertSplit``.

    Raises:
        ConfigError: an option is out of range.
    """

    def __init__(
        self,
        vocab_size: int,
        encoder_output_size: int,
        guides: Mapping[str, Sequence[str]],
        guide_token_ids: Mapping[str, Sequence[int]],
        attention_heads: int = 4,
        linear_units: int = 2048,
        num_blocks: int = 6,
        dropout_rate: float = 0.1,
        positional_dropout_rate: float = 0.1,
        self_attention_dropout_rate: float = 0.0,
        src_attention_dropout_rate: float = 0.0,
        use_sdpa: bool = False,
        experts: Mapping[str, Any] | None = None,
        split_after: int = 0,
    ) -> None:
        super().__init__(
            vocab_size, encoder_output_size, dropout_rate, positional_dropout_rate
        )
        config = None if experts is None else ExpertConfig.from_mapping(experts)
        if config is not None and config.ffn != "both":
            raise ConfigError(
                f"a decoder block has one FFN; experts.ffn: {config.ffn} is for encoders"
            )
        table = GuideTable.from_mapping(guides)
        self.init_experts(table, config, split_after)
        self._axes = tuple(a.name for a in table.axes)
        self._guide_of_token = {
            axis: {t: g for g, t in enumerate(guide_token_ids[axis])}
            for axis in self._axes
        }
        width = encoder_output_size
        make_ffn = partial(PositionwiseFeedForward, width, linear_units, dropout_rate)

        def make_layer(block: int) -> SMoETransformerLayer:
            num_experts = self.experts_of(config, block, num_blocks, "final")
            self_attn = MultiHeadedAttention(
                attention_heads, width, self_attention_dropout_rate, use_sdpa=use_sdpa
            )
            src_attn = MultiHeadedAttention(
                attention_heads, width, src_attention_dropout_rate
            )
            bank = ExpertFFNBank(make_ffn, num_experts)
            return SMoETransformerLayer(width, self_attn, src_attn, bank, dropout_rate)

        self.decoders = torch.nn.ModuleList(make_layer(b) for b in range(num_blocks))

    def expert_ids_of_prompt(self, prompts: torch.Tensor) -> torch.Tensor:
        """Expert of each row, from its prompt.

        Args:
            prompts: (P, A) int64 on CPU, one token per axis, without ``<sos>``.

        Returns:
            (P,) int64 on CPU.

        Raises:
            GuideError: a token that is no guide of the axis at its place.
        """
        guide_ids = {}
        for axis, column in zip(self._axes, prompts.t().tolist(), strict=True):
            known = self._guide_of_token[axis]
            if bad := sorted(set(column) - set(known)):
                raise GuideError(
                    f"prompt tokens {bad} are no {axis} guides; known: {sorted(known)}"
                )
            guide_ids[axis] = torch.tensor([known[t] for t in column])
        return self.expert_ids_of(guide_ids)

    def forward(
        self,
        hs_pad: torch.Tensor,
        hlens: torch.Tensor,
        ys_in_pad: torch.Tensor,
        ys_in_lens: torch.Tensor,
        prompts: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Teacher forcing.

        Args:
            hs_pad: (P, T, D) float, the memory of each row.
            hlens: (P,) int64, frames.
            ys_in_pad: (P, U) int64, ``<sos>``, the prompt, the text; any padding id.
            ys_in_lens: (P,) int64, tokens.
            prompts: (P, A) int64 on CPU, the prompt tokens of ``ys_in_pad`` for a
                caller who has them there; None reads them off the device.

        Returns:
            (P, U, V) scores before the softmax, (P,) lengths as given.

        Raises:
            GuideError: the prompt holds a token that is no guide.
        """
        if prompts is None:
            prompts = ys_in_pad[:, 1 : 1 + len(self._axes)].cpu()
        route = self.route(self.expert_ids_of_prompt(prompts), ys_in_pad.device)
        memory = route.sort(hs_pad)
        ys_mask = valid_mask(route.sort(ys_in_lens), ys_in_pad.size(1))[:, None, :]
        hs_mask = valid_mask(route.sort(hlens), hs_pad.size(1))[:, None, :]
        x = self.embed(route.sort(ys_in_pad))
        ys_mask = ys_mask & ys_mask.new_ones(x.size(1), x.size(1)).tril()
        for layer in self.decoders:
            x = layer(x, ys_mask, memory, hs_mask, route)
        return route.restore(self.output_layer(self.after_norm(x))), ys_in_lens

    # ---- the host's scorer interface -------------------------------------------

    def batch_init_state(
        self, x: torch.Tensor, xs_lengths: torch.Tensor | None = None
    ) -> DecoderCache:
        """Project the memory once per row.

        Args:
            x: (P, T, D) or, for one row, (T, D) float.
            xs_lengths: (P,) int64, frames; None = all of T.
        """
        x = x[None] if x.dim() == 2 else x
        mask = None
        if xs_lengths is not None and bool((xs_lengths < x.size(1)).any()):
            mask = valid_mask(xs_lengths.to(x.device), x.size(1))[:, None, None, :]
        cross = [_key_value(layer.src_attn, x) for layer in self.decoders]
        return DecoderCache(cross, mask)

    init_state = batch_init_state

    def select_state(
        self,
        state: DecoderCache | Sequence[HypothesisRef],
        i: int,
        new_id: int | None = None,
    ) -> HypothesisRef:
        """Hypothesis ``i`` of a state."""
        return HypothesisRef(state, i) if isinstance(state, DecoderCache) else state[i]

    def batch_select_state(
        self, state: DecoderCache, top_ids: torch.Tensor
    ) -> DecoderCache:
        """Go on with the best hypotheses of each row.

        Args:
            top_ids: (P, K) int64, ``hypothesis * V + token`` within each row.
        """
        rows = torch.arange(len(top_ids), device=top_ids.device)[:, None]
        per_row = state.num_hypotheses // len(top_ids)
        picked = torch.div(
            top_ids, self.output_layer.out_features, rounding_mode="trunc"
        )
        return state.select((picked + rows * per_row).view(-1))

    def batch_score(
        self,
        ys: torch.Tensor,
        states: DecoderCache | Sequence[DecoderCache | HypothesisRef],
        xs: torch.Tensor,
        xs_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, DecoderCache]:
        """Score the next token of N hypotheses; only new positions are computed.

        Args:
            ys: (N, L) int64, the whole prefixes, prompt included.
            states: what ``batch_init_state`` or the last call returned.
            xs, xs_mask: memory and its mask; not read, its projections are cached.

        Returns:
            (N, V) log probabilities and the new state.

        Raises:
            GuideError: the first call's prefixes do not hold the whole prompt.
        """
        cache = merge(states)
        past = cache.selected_past()
        done = 0 if past is None else past[0][0].size(2)
        if past is None:
            prompts = ys[:: len(ys) // cache.num_rows, 1 : 1 + len(self._axes)].cpu()
            if prompts.size(1) != len(self._axes):
                raise GuideError(
                    f"prefixes of {ys.size(1)} tokens do not hold <sos> and the prompt "
                    f"of {len(self._axes)} guiding tokens"
                )
            expert_ids = self.expert_ids_of_prompt(prompts)
            cache = dataclasses.replace(cache, expert_ids=expert_ids)
        ids = cache.expert_ids.repeat_interleave(len(ys) // cache.num_rows)
        route = Route.of(ids, self.expert_map.num_experts, ys.device)

        positions = self.embed[1]
        positions.extend_pe(xs.new_zeros(()).expand(1, ys.size(1)))
        x = self.embed[0](ys[:, done:]) * positions.xscale
        x = x + positions.pe[:, done : ys.size(1)]
        new = []
        for n, layer in enumerate(self.decoders):
            x, key_value = layer.step(
                x,
                None if past is None else past[n],
                cache.cross[n],
                cache.cross_mask,
                route,
            )
            new.append(key_value)
        logp = torch.log_softmax(self.output_layer(self.after_norm(x[:, -1])), -1)
        return logp, dataclasses.replace(cache, past=new, pending=None)

    def score(
        self, ys: torch.Tensor, state: DecoderCache, x: torch.Tensor
    ) -> tuple[torch.Tensor, DecoderCache]:
        """``batch_score`` for one hypothesis: (L,), state, (T, D) -> (V,), state."""
        logp, state = self.batch_score(ys[None], state, x[None])
        return logp[0], state
