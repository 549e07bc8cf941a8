"""Does a dense model compute what the S-MoE model of a config computes?"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from espnet_smoe.counterparts import (
    SurgeryError,
    normalizer_options,
    stock_options,
)
from espnet_smoe.dense import DenseModel
from espnet_smoe.tokens import read_token_list

__all__ = ["check_fit"]

# options that change nothing in inference
_TRAINING_ONLY = {
    "dropout_rate", "positional_dropout_rate", "attention_dropout_rate",
    "self_attention_dropout_rate", "src_attention_dropout_rate", "use_sdpa",
    "use_flash_attn", "stochastic_depth_rate", "layer_drop_rate", "padding_idx",
    "max_pos_emb_len", "ctc_trim", "interctc_layer_idx", "gradient_checkpoint_layers",
    "pos_enc_class", "positionwise_conv_kernel_size",
}  # fmt: skip


def check_fit(
    model: DenseModel, options: Namespace, config: Path, parts: Sequence[str]
) -> list[str]:
    """Refuse a dense model whose weights the S-MoE model of a config cannot take.

    Args:
        options: the task's options, read from ``config``.
        config: training YAML of the S-MoE model, for messages.
        parts: ``encoder``, ``decoder``, ... that are taken.

    Returns:
        Warnings: what differs and may matter little.

    Raises:
        SurgeryError: sizes, kinds or vocabularies differ; names both sides.
    """
    warnings = []
    for part in ("encoder", "decoder", "frontend"):
        if part not in parts:
            continue
        if part not in model.options:
            raise SurgeryError(
                f"{model.name} has no Transformer decoder, but {config} has one; "
                "--encoder_only leaves it fresh"
            )
        theirs = model.options[part]
        ours = stock_options(part, getattr(options, f"{part}_conf"))
        other = _other(theirs, ours)
        if list(other) == ["center"]:
            warnings.append(
                f"{model.name} centred its frames; here they are not, so that the "
                "first and last frames of an utterance are new to it"
            )
        elif other:
            raise SurgeryError(
                f"the {part} of {model.name} is not that of {config}: "
                f"{', '.join(other.values())}"
            )
    if model.normalize[0] != options.normalize:
        raise SurgeryError(
            f"{model.name} has normalize {model.normalize[0]!r}, but {config} has "
            f"{options.normalize!r}"
        )
    theirs = normalizer_options(*model.normalize)
    ours = normalizer_options(options.normalize, options.normalize_conf)
    if other := _other(theirs, ours):
        raise SurgeryError(
            f"the {options.normalize} of {model.name} is not that of {config}: "
            f"{', '.join(other.values())}"
        )
    if "decoder" in parts:
        _check_vocabulary(model, options, config)
    return warnings


def _other(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, str]:
    """Options that differ and matter in inference -> both sides."""
    return {
        k: f"{k} {theirs[k]!r} there and {ours[k]!r} here"
        for k in sorted(set(theirs) & set(ours) - _TRAINING_ONLY)
        if theirs[k] != ours[k]
    }


def _check_vocabulary(model: DenseModel, options: Namespace, config: Path) -> None:
    ours = read_token_list(options.token_list)
    if list(model.tokens) != ours:
        pairs = zip(model.tokens, ours, strict=False)
        place = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        where = ""
        if place is not None:
            where = f": token {place} is {model.tokens[place]!r} and {ours[place]!r}"
        raise SurgeryError(
            f"{model.name} has a vocabulary of {len(model.tokens)} tokens, "
            f"{options.token_list} one of {len(ours)}{where}; --encoder_only leaves "
            "decoder and CTC fresh"
        )
