"""S-MoE Transformer decoder: the task guide in the prompt picks the FFNs.

    y += SelfAttn(LN y); y += CrossAttn(LN y); y += FFN[e](LN y)

Source: Transformer decoder as in ESPnet; experts arXiv 2508.10009. Parameter names
are the host's but for ``feed_forward.experts.<e>``. In a search, keys and values are
kept per hypothesis (self attention) and per row (cross attention), see ``cache.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from espnet2.asr.decoder.transformer_decoder import BaseTransformerDecoder

from espnet_smoe.cache import DecoderCache
from espnet_smoe.config import ConfigError, ExpertConfig
from espnet_smoe.decoder_layer import SMoETransformerLayer, key_value
from espnet_smoe.guide import TASK, GuideError, GuideTable
from espnet_smoe.host import MultiHeadedAttention, PositionwiseFeedForward
from espnet_smoe.mask import valid_mask
from espnet_smoe.stack import ExpertStack

__all__ = ["SMoETransformerDecoder"]


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
        added_guides: guides whose tokens have the ids V, V + 1, ...: each has a vector
            of its own and no output, so that nothing else notices it was added.

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
        added_guides: Sequence[str] = (),
    ) -> None:
        super().__init__(
            vocab_size, encoder_output_size, dropout_rate, positional_dropout_rate
        )
        config = None if experts is None else ExpertConfig.from_mapping(experts)
        if config is not None and config.ffn != "both":
            raise ConfigError(
                f"a decoder block has one FFN, but experts.ffn is {config.ffn!r}"
            )
        table = GuideTable.from_mapping(guides)
        self.init_experts(table, config, split_after)
        self._guides = table
        self._axes = tuple(a.name for a in table.axes)
        self._guide_of_token = {
            axis: {t: g for g, t in enumerate(guide_token_ids[axis])}
            for axis in self._axes
        }
        width = encoder_output_size
        self.added = torch.nn.ParameterDict(
            {guide: torch.randn(width) for guide in added_guides}
        )

        def make_ffn(hidden: int) -> PositionwiseFeedForward:
            return PositionwiseFeedForward(width, hidden, dropout_rate)

        def make_layer(block: int) -> SMoETransformerLayer:
            self_attn = MultiHeadedAttention(
                attention_heads, width, self_attention_dropout_rate, use_sdpa=use_sdpa
            )
            src_attn = MultiHeadedAttention(
                attention_heads, width, src_attention_dropout_rate
            )
            bank = self.make_bank(
                make_ffn,
                width,
                linear_units,
                config,
                block=block,
                num_blocks=num_blocks,
                ffn="final",
            )
            return SMoETransformerLayer(width, self_attn, src_attn, bank, dropout_rate)

        self.decoders = torch.nn.ModuleList(make_layer(b) for b in range(num_blocks))

    def _embed(self, ys: torch.Tensor) -> torch.Tensor:
        """Token ids -> vectors, without positions: (N, L) -> (N, L, D)."""
        vocab = self.output_layer.out_features
        x = self.embed[0](ys.clamp(max=vocab - 1) if self.added else ys)
        for n, vector in enumerate(self.added.values()):
            x = torch.where((ys == vocab + n)[..., None], vector, x)
        return x

    def vector_of(self, token_id: int) -> torch.Tensor:
        """Embedding of a token, (D,), also of one behind the token list."""
        return self._embed(
            torch.tensor([token_id], device=self.embed[0].weight.device)
        )[0]

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

    def experts_only_of(self, tasks: Sequence[str]) -> list[int]:
        """Ids of the experts that serve no task but these."""
        return self.expert_map.only_of(self._guides, TASK, tasks)

    def forward(
        self,
        hs_pad: torch.Tensor,
        hlens: torch.Tensor,
        ys_in_pad: torch.Tensor,
        ys_in_lens: torch.Tensor,
        prompts: torch.Tensor | None = None,
        balance: list[torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Teacher forcing.

        Args:
            hs_pad: (P, T, D) float, the memory of each row.
            hlens: (P,) int64, frames.
            ys_in_pad: (P, U) int64, ``<sos>``, the prompt, the text; any padding id.
            ys_in_lens: (P,) int64, tokens.
            prompts: (P, A) int64 on CPU, the prompt tokens of ``ys_in_pad`` for a
                caller who has them there; None reads them off the device.
            balance: list for the losses of learned gates, see ``Route``.

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
        route = self.with_frames(route, ys_mask[:, 0], balance)
        x = self.embed[1](self._embed(route.sort(ys_in_pad)))
        ys_mask = ys_mask & ys_mask.new_ones(x.size(1), x.size(1)).tril()
        for layer in self.decoders:
            x = layer(x, ys_mask, memory, hs_mask, route)
        return route.restore(self.output_layer(self.after_norm(x))), ys_in_lens

    def start_search(
        self, memory: torch.Tensor, frames: torch.Tensor, prompts: torch.Tensor
    ) -> DecoderCache:
        """What a search needs of each row once: its route, its projected memory.

        Args:
            memory: (P, T, D) float; padding has no weight, but must be finite.
            frames: (P,) int64.
            prompts: (P, A) int64 on CPU, one guiding token per axis.

        Raises:
            GuideError: a token that is no guide of the axis at its place, or another
                number of tokens.
        """
        if prompts.size(1) != len(self._axes):
            raise GuideError(
                f"prompts of {prompts.size(1)} tokens do not hold one guiding token of "
                f"each of the axes {list(self._axes)}"
            )
        frames, mask = frames.to(memory.device), None
        if bool((frames < memory.size(1)).any()):
            valid = valid_mask(frames, memory.size(1))[:, None, None, :]
            # a mask of truth values would be turned into this one at every step
            mask = torch.where(valid, 0.0, -torch.inf).to(memory.dtype)
        return DecoderCache.of(
            [layer.self_projection() for layer in self.decoders],
            [key_value(layer.src_attn, memory) for layer in self.decoders],
            mask,
            self.expert_ids_of_prompt(prompts),
            self.expert_map.num_experts,
        )

    def score_next(
        self, ys: torch.Tensor, cache: DecoderCache
    ) -> tuple[torch.Tensor, DecoderCache]:
        """Score the next token of N hypotheses; only new positions are computed.

        Args:
            ys: (N, L) int64, the whole prefixes: ``<sos>``, prompt, text.
            cache: what ``start_search``, ``select`` or the last call returned.

        Returns:
            (N, V) log probabilities and the new cache.
        """
        positions = self.embed[1]
        positions.extend_pe(cache.visible.new_zeros(()).expand(1, ys.size(1)))
        x = self._embed(ys[:, cache.length :]) * positions.xscale
        x = x + positions.pe[:, cache.length : ys.size(1)]

        num_hyps, new, width = x.shape
        x = x.view(cache.num_rows, -1, width)
        mask = cache.mask_of(new)
        store = cache.store.extended(cache.visible.size(1), x.size(1))
        for n, layer in enumerate(self.decoders):
            x = layer.step(
                x,
                store.tensor[:, n],
                mask[:, None],
                cache.projections[n],
                cache.cross[n],
                cache.cross_mask,
                cache.route,
            )
        # the last new position of each hypothesis
        x = x.view(num_hyps, new, width)[:, -1]
        visible = mask.view(num_hyps, new, -1)[:, -1]
        logp = torch.log_softmax(self.output_layer(self.after_norm(x)), -1)
        return logp, dataclasses.replace(
            cache, store=store, visible=visible, length=ys.size(1)
        )

    # ---- the host's scorer interface, plain: each call reads the whole prefixes ----

    def batch_score(
        self,
        ys: torch.Tensor,
        states: Sequence[None],
        xs: torch.Tensor,
        xs_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Sequence[None]]:
        """Score the next token, as ``score_next`` does, without a cache.

        Args:
            ys: (N, L) int64, the whole prefixes.
            states: handed back.
            xs: (N, T, D) float, the memory of each hypothesis.
            xs_mask: (N, 1, T) bool, true on valid frames; None = all are.

        Returns:
            (N, V) log probabilities, and ``states``.
        """
        frames = ys.new_full((len(xs),), xs.size(1))
        if xs_mask is not None:
            frames = xs_mask.sum((1, 2))
        lengths = ys.new_full((len(ys),), ys.size(1))
        logits, _ = self(xs, frames, ys, lengths)
        return logits[:, -1].log_softmax(-1), states

    def score(
        self, ys: torch.Tensor, state: None, x: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        """``batch_score`` for one hypothesis: (L,), None, (T, D) -> (V,), None."""
        logp, _ = self.batch_score(ys[None], [state], x[None])
        return logp[0], state
