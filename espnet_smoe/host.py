"""The seam with ESPnet 202611: layers that move between releases, registration.

Nothing else in this package imports ``espnet2.legacy``.
"""

from __future__ import annotations

from espnet2.legacy.nets.batch_beam_search import BatchBeamSearch
from espnet2.legacy.nets.beam_search import Hypothesis
from espnet2.legacy.nets.pytorch_backend.conformer.convolution import ConvolutionModule
from espnet2.legacy.nets.pytorch_backend.conformer.encoder_layer import EncoderLayer
from espnet2.legacy.nets.pytorch_backend.nets_utils import get_activation
from espnet2.legacy.nets.pytorch_backend.transformer.attention import (
    MultiHeadedAttention,
    RelPositionMultiHeadedAttention,
)
from espnet2.legacy.nets.pytorch_backend.transformer.decoder_layer import DecoderLayer
from espnet2.legacy.nets.pytorch_backend.transformer.embedding import (
    RelPositionalEncoding,
)
from espnet2.legacy.nets.pytorch_backend.transformer.layer_norm import LayerNorm
from espnet2.legacy.nets.pytorch_backend.transformer.positionwise_feed_forward import (
    PositionwiseFeedForward,
)
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import (
    Conv2dSubsampling,
    Conv2dSubsampling6,
    Conv2dSubsampling8,
    check_short_utt,
)
from espnet2.legacy.nets.scorers.ctc import CTCPrefixScorer
from espnet2.legacy.nets.scorers.length_bonus import LengthBonus
from espnet2.train.class_choices import ClassChoices

__all__ = [
    "BatchBeamSearch",
    "CTCPrefixScorer",
    "Conv2dSubsampling",
    "Conv2dSubsampling6",
    "Conv2dSubsampling8",
    "ConvolutionModule",
    "DecoderLayer",
    "EncoderLayer",
    "Hypothesis",
    "LayerNorm",
    "LengthBonus",
    "MultiHeadedAttention",
    "PositionwiseFeedForward",
    "RelPositionMultiHeadedAttention",
    "RelPositionalEncoding",
    "check_short_utt",
    "get_activation",
    "register",
]


def register(choices: ClassChoices, name: str, cls: type) -> None:
    """Make ``--<choices.name> <name>`` select ``cls``. Safe to call twice.

    Call it before a task builds its parser: the host copies the choices then.

    Raises:
        ValueError: ``name`` is not lower case (the host finds only such keys) or
            already names another class.
        TypeError: ``cls`` is not of the type that the host asks for in this slot.
    """
    if name != name.lower():
        raise ValueError(f"name must be lower case, got {name!r}")
    if choices.base_type is not None and not issubclass(cls, choices.base_type):
        raise TypeError(f"{cls.__name__} is not a {choices.base_type.__name__}")
    if choices.classes.setdefault(name, cls) is not cls:
        raise ValueError(f"--{choices.name} {name} is already {choices.classes[name]}")
