"""Names and options of our modules and of the host's dense ones, side by side."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from espnet2.asr.decoder.transformer_decoder import TransformerDecoder
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
from espnet2.asr.frontend.default import DefaultFrontend
from espnet2.layers.global_mvn import GlobalMVN
from espnet2.layers.utterance_mvn import UtteranceMVN

from espnet_smoe.audio import MODEL_RATE
from espnet_smoe.config import ExpertConfig
from espnet_smoe.decoder import SMoETransformerDecoder
from espnet_smoe.encoder import SMoEConformerEncoder
from espnet_smoe.guide import ExpertMap, GuideTable

__all__ = [
    "NORMALIZERS",
    "PARTS",
    "ExpertKey",
    "SurgeryError",
    "expert_key",
    "expert_maps",
    "host_options",
    "normalizer_options",
    "stock_options",
]

# what our stacks are, in the host's options; the rest has the same names on both sides
_FIXED = {
    "encoder": {
        "normalize_before": True,
        "concat_after": False,
        "positionwise_layer_type": "linear",
        "rel_pos_type": "latest",
        "pos_enc_layer_type": "rel_pos",
        "selfattention_layer_type": "rel_selfattn",
        "activation_type": "swish",
        "use_cnn_module": True,
        "zero_triu": False,
        "interctc_use_conditioning": False,
        "qk_norm": False,
    },
    "decoder": {
        "input_layer": "embed",
        "use_output_layer": True,
        "normalize_before": True,
        "concat_after": False,
        "qk_norm": False,
    },
    "frontend": {"fs": MODEL_RATE, "center": False},
}
_OURS = {
    "encoder": SMoEConformerEncoder,
    "decoder": SMoETransformerDecoder,
    "frontend": DefaultFrontend,
}
_HOSTS = {
    "encoder": ConformerEncoder,
    "decoder": TransformerDecoder,
    "frontend": DefaultFrontend,
}
PARTS = tuple(_OURS)
NORMALIZERS = {"global_mvn": GlobalMVN, "utterance_mvn": UtteranceMVN}
"""YAML ``normalize`` -> class, the host's on both sides."""

# arguments that a stack's builder gives, and ours that the host does not have
_NOT_OPTIONS = {
    "input_size", "vocab_size", "encoder_output_size", "guides", "guide_token_ids",
    "experts", "split_after", "added_guides",
}  # fmt: skip
_EXPERT = re.compile(r"(?P<bank>.+)\.experts\.(?P<expert>\d+)(?P<tensor>\..+)")


class SurgeryError(ValueError):
    """A checkpoint cannot be turned into what was asked for."""


@dataclass(frozen=True)
class ExpertKey:
    """Name of an expert's tensor, taken apart.

    Args:
        stack: ``encoder`` or ``decoder``.
        dense: name of the tensor in the host's dense model.
        expert: number of the expert.
    """

    stack: str
    dense: str
    expert: int


def expert_key(name: str) -> ExpertKey | None:
    """Take the name of a tensor apart; None if it is no expert's.

    >>> expert_key("decoder.decoders.0.feed_forward.experts.2.w_1.bias")
    ExpertKey(stack='decoder', dense='decoder.decoders.0.feed_forward.w_1.bias', \
expert=2)
    """
    found = _EXPERT.fullmatch(name)
    if found is None:
        return None
    stack = name.split(".", 1)[0]
    return ExpertKey(stack, found["bank"] + found["tensor"], int(found["expert"]))


def expert_maps(conf: Mapping[str, Any]) -> dict[str, ExpertMap]:
    """Which experts of the encoder and decoder of a training config serve whom.

    Raises:
        SurgeryError: experts behind a learned gate or beside a shared one.
    """
    guides = GuideTable.from_mapping(conf["guides"])
    maps = {}
    for stack in ("encoder", "decoder"):
        experts = conf[f"{stack}_conf"].get("experts")
        for key in ("gate", "shared"):
            if experts and experts.get(key):
                raise SurgeryError(
                    f"{stack}_conf.experts.{key} {experts[key]!r}: its experts are no "
                    "dense model's FFNs; expected experts with an axis alone"
                )
        maps[stack] = (
            ExpertMap.unguided()
            if experts is None
            else ExpertConfig.from_mapping(experts).expert_map(guides)
        )
    return maps


def stock_options(part: str, conf: Mapping[str, Any]) -> dict[str, Any]:
    """Every option of the host's module that equals one of ours.

    Args:
        part: ``encoder``, ``decoder`` or ``frontend``.
        conf: our ``<part>_conf``.

    Raises:
        SurgeryError: it asks for what the host's module does not have.
    """
    options = {**_defaults(_OURS[part]), **_FIXED[part], **conf}
    if axes := options.pop("guide_embedding", None):
        raise SurgeryError(
            f"{part}_conf.guide_embedding {list(axes)}: a dense model of the host has "
            "no such embedding"
        )
    options = {k: v for k, v in options.items() if k not in _NOT_OPTIONS}
    return _rate_in_hz(options)


def host_options(part: str, conf: Mapping[str, Any]) -> dict[str, Any]:
    """Every option of the host's module.

    Args:
        part: ``encoder``, ``decoder`` or ``frontend``.
        conf: the host's ``<part>_conf``.
    """
    return _rate_in_hz({**_defaults(_HOSTS[part]), **conf})


def normalizer_options(kind: str | None, conf: Mapping[str, Any]) -> dict[str, Any]:
    """Every option of a normalisation but the file of its statistics.

    The statistics themselves are among the tensors of a checkpoint.

    Args:
        kind: YAML ``normalize``, None = none.
        conf: YAML ``normalize_conf``.
    """
    options = {} if kind is None else {**_defaults(NORMALIZERS[kind]), **conf}
    return {k: v for k, v in options.items() if k != "stats_file"}


def _defaults(kind: Callable) -> dict[str, Any]:
    parameters = inspect.signature(kind).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in _NOT_OPTIONS}


def _rate_in_hz(options: dict[str, Any]) -> dict[str, Any]:
    if isinstance(options.get("fs"), str):
        import humanfriendly

        options["fs"] = humanfriendly.parse_size(options["fs"])
    return options
