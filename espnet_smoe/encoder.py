"""S-MoE Conformer encoder: the bandwidth guide picks the FFNs of a block.

    x += 1/2 FFN_macaron[e](LN x); x += MHSA(LN x); x += Conv(LN x);
    x += 1/2 FFN[e](LN x); LN

Source: Conformer (arXiv 2005.08100) as in ESPnet; experts arXiv 2508.10009.
Parameter names are the host's but for ``feed_forward*.experts.<e>``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from espnet2.asr.encoder.abs_encoder import AbsEncoder

from espnet_smoe.config import ConfigError, ExpertConfig
from espnet_smoe.embedding import GuideEmbedding
from espnet_smoe.experts import Route
from espnet_smoe.guide import GuideError, GuideTable
from espnet_smoe.host import (
    Conv2dSubsampling,
    Conv2dSubsampling6,
    Conv2dSubsampling8,
    ConvolutionModule,
    EncoderLayer,
    LayerNorm,
    PositionwiseFeedForward,
    RelPositionalEncoding,
    RelPositionMultiHeadedAttention,
    check_short_utt,
    get_activation,
)
from espnet_smoe.mask import valid_mask
from espnet_smoe.stack import ExpertStack

__all__ = ["SMoEConformerEncoder", "SMoEConformerLayer"]

_SUBSAMPLING = {
    "conv2d": (Conv2dSubsampling, 4),
    "conv2d6": (Conv2dSubsampling6, 6),
    "conv2d8": (Conv2dSubsampling8, 8),
}


class SMoEConformerLayer(EncoderLayer):
    """The host's Conformer block with expert banks in place of its FFNs."""

    def forward(
        self,
        x: torch.Tensor,
        pos_emb: torch.Tensor,
        mask: torch.Tensor,
        route: Route,
    ) -> torch.Tensor:
        """One block.

        Args:
            x: (B, T, D) float, rows in the route's order.
            pos_emb: (1, 2T - 1, D) relative position embedding.
            mask: (B, 1, T) bool, true on valid frames.
            route: which rows go to which expert.

        Returns:
            (B, T, D)
        """
        if self.feed_forward_macaron is not None:
            y = self.feed_forward_macaron(self.norm_ff_macaron(x), route)
            x = x + self.ff_scale * self.dropout(y)
        y = self.norm_mha(x)
        x = x + self.dropout(self.self_attn(y, y, y, pos_emb, mask))
        x = x + self.dropout(self.conv_module(self.norm_conv(x), mask_pad=mask))
        y = self.feed_forward(self.norm_ff(x), route)
        x = x + self.ff_scale * self.dropout(y)
        return self.norm_final(x)


class SMoEConformerEncoder(ExpertStack, AbsEncoder):
    """Conformer whose FFNs are chosen by utterance guides.

    Pre-norm, relative positions in the host's padding-invariant ``latest`` form.

    Args:
        input_size: width of a feature frame F.
        guides: axis -> guides of the model (YAML ``guides``).
        output_size: width D.
        attention_heads: number of heads; divides D.
        linear_units: inner width H of every expert.
        num_blocks: number of blocks.
        dropout_rate, positional_dropout_rate, attention_dropout_rate: in [0, 1).
        input_layer: ``conv2d`` (4 x fewer frames), ``conv2d6`` or ``conv2d8``.
        macaron_style: two half-step FFNs a block, not one.
        cnn_module_kernel: odd length of the depthwise convolution, frames.
        use_sdpa: torch's fused attention.
        experts: see ``ExpertConfig``; None = one FFN for all (hard sharing).
        guide_embedding: utterance axes whose guides are added as learned vectors to
            the subsampled frames, see ``GuideEmbedding``; None = none.
        split_after: training batches before the late split, see ``ExpertSplit``.

    Raises:
        ConfigError: an option is out of range or the stack is routed by the task.
    """

    def __init__(
        self,
        input_size: int,
        guides: Mapping[str, Sequence[str]],
        output_size: int = 256,
        attention_heads: int = 4,
        linear_units: int = 1024,
        num_blocks: int = 12,
        dropout_rate: float = 0.1,
        positional_dropout_rate: float = 0.1,
        attention_dropout_rate: float = 0.0,
        input_layer: str = "conv2d",
        macaron_style: bool = True,
        cnn_module_kernel: int = 31,
        use_sdpa: bool = False,
        experts: Mapping[str, Any] | None = None,
        guide_embedding: Sequence[str] | None = None,
        split_after: int = 0,
    ) -> None:
        super().__init__()
        if input_layer not in _SUBSAMPLING:
            raise ConfigError(
                f"input_layer must be one of {sorted(_SUBSAMPLING)}, got "
                f"{input_layer!r}"
            )
        config = None if experts is None else ExpertConfig.from_mapping(experts)
        table = GuideTable.from_mapping(guides)
        self.init_experts(table, config, split_after)
        if "task" in self.expert_map.axes:
            raise ConfigError(
                "the encoder runs once per utterance and cannot be routed by 'task'"
            )
        activation = get_activation("swish")
        positions = RelPositionalEncoding(output_size, positional_dropout_rate)
        embed, self._subsampling = _SUBSAMPLING[input_layer]
        self.embed = embed(input_size, output_size, dropout_rate, positions)
        self.guide_embedding = None
        if guide_embedding is not None:
            self.guide_embedding = GuideEmbedding(table, guide_embedding, output_size)

        def make_ffn(hidden: int) -> PositionwiseFeedForward:
            return PositionwiseFeedForward(
                output_size, hidden, dropout_rate, activation
            )

        def make_layer(block: int) -> SMoEConformerLayer:
            make_bank = partial(
                self.make_bank,
                make_ffn,
                output_size,
                linear_units,
                config,
                block=block,
                num_blocks=num_blocks,
            )
            return SMoEConformerLayer(
                output_size,
                RelPositionMultiHeadedAttention(
                    attention_heads,
                    output_size,
                    attention_dropout_rate,
                    False,
                    use_sdpa,
                ),
                make_bank(ffn="final"),
                make_bank(ffn="macaron") if macaron_style else None,
                ConvolutionModule(output_size, cnn_module_kernel, activation),
                dropout_rate,
            )

        self.encoders = torch.nn.ModuleList(make_layer(b) for b in range(num_blocks))
        self.after_norm = LayerNorm(output_size)
        self._output_size = output_size

    def output_size(self) -> int:
        """Width D of a frame."""
        return self._output_size

    def min_frames(self) -> int:
        """Fewest feature frames it takes: two encoded ones, for batch norm's sake."""
        return check_short_utt(self.embed, 0)[1] + self._subsampling

    def forward(
        self,
        xs_pad: torch.Tensor,
        ilens: torch.Tensor,
        expert_ids: torch.Tensor,
        guide_ids: Mapping[str, torch.Tensor] | None = None,
        balance: list[torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Encode features.

        Args:
            xs_pad: (B, T0, F) float; what lies in the padding is never read.
            ilens: (B,) int64, frames.
            expert_ids: (B,) int64 on CPU, see ``expert_ids_of``.
            guide_ids: axis -> (B,) int64 on CPU, for ``guide_embedding``.
            balance: list for the losses of learned gates, see ``Route``.

        Returns:
            (B, T, D), (B,) int64 frames, None (the host's third output).

        Raises:
            ValueError: expert ids do not fit the batch or the stack, an utterance is
                too short for the subsampling (names its frames), or guide ids to
                embed are missing.
        """
        if self.guide_embedding is not None and guide_ids is None:
            raise GuideError(
                "the encoder embeds guides of "
                f"{list(self.guide_embedding.tables)}, but got no guide_ids"
            )
        if xs_pad.size(1) < self.min_frames():
            raise ValueError(
                f"{xs_pad.size(1)} frames are too few; the encoder needs "
                f"{self.min_frames()}"
            )
        route = self.route(expert_ids, xs_pad.device)
        lengths = route.sort(ilens)
        mask = valid_mask(lengths, xs_pad.size(1))
        # padding may hold anything, even NaN, which attention would spread (0 x NaN)
        x = route.sort(xs_pad).masked_fill(~mask[:, :, None], 0.0)
        (x, pos_emb), mask = self.embed(x, mask[:, None, :])
        if self.guide_embedding is not None:
            # behind the input layer's scale and dropout, so that every block sees the
            # guide in its residual stream whole and no layer comes before it
            x = x + route.sort(self.guide_embedding(guide_ids))[:, None, :]
        route = self.with_frames(route, mask[:, 0], balance)
        for layer in self.encoders:
            x = layer(x, pos_emb, mask, route)
        x = self.after_norm(x)
        return route.restore(x), route.restore(mask.squeeze(1).sum(1)), None
