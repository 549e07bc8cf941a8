"""The places of a network whose gradients are compared: FFNs and their neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from espnet_smoe.experts import ExpertFFNBank
from espnet_smoe.model import SMoEModel

__all__ = ["FFNS", "PARTS", "SHARED", "Place", "apart", "places_of"]

PARTS = {
    "encoder": {
        "macaron": "feed_forward_macaron",
        "attention": "self_attn",
        "convolution": "conv_module",
        "final": "feed_forward",
    },
    "decoder": {
        "self_attention": "self_attn",
        "cross_attention": "src_attn",
        "ffn": "feed_forward",
    },
}
"""Stack -> part of a block -> attribute, in the order of computation."""

FFNS = ("macaron", "final", "ffn")
"""The parts that can have experts."""

SHARED = "shared"
"""The part that a shared expert is, beside the FFN that it belongs to."""


@dataclass(frozen=True)
class Place:
    """A part of a block without its layer norm, its shared expert, or all FFNs of a
    stack together.

    Args:
        name: ``<stack>.<block>.<part>``, ``<stack>.<block>.<part>.shared`` for the
            shared expert of an FFN, or ``<stack>.ffn`` for all FFNs.
        block: from 0; None = all blocks.
        tensors: which of the list of parameters are its own.
        guided: whether guides pick its parameters, from several experts.
    """

    name: str
    stack: str
    block: int | None
    part: str
    tensors: tuple[int, ...]
    guided: bool


def places_of(model: SMoEModel) -> tuple[list[torch.nn.Parameter], list[Place]]:
    """The places of a model and the parameters they consist of, encoder first."""
    tensors: list[torch.nn.Parameter] = []
    places: list[Place] = []
    for stack, parts in PARTS.items():
        blocks = (
            model.encoder.encoders if stack == "encoder" else model.decoder.decoders
        )
        of_stack = []
        for block, layer in enumerate(blocks):
            for part, attribute in parts.items():
                if (module := getattr(layer, attribute)) is None:
                    continue  # a block without a macaron FFN
                first = len(tensors)
                tensors += module.parameters()
                own = tuple(range(first, len(tensors)))
                name = f"{stack}.{block}.{part}"
                bank = isinstance(module, ExpertFFNBank)
                guided = bank and len(module.experts) > 1
                of_stack.append(Place(name, stack, block, part, own, guided))
                if bank and module.shared is not None:
                    # all guides train it, also those that the experts keep apart
                    inner = set(map(id, module.shared.parameters()))
                    own = tuple(n for n in own if id(tensors[n]) in inner)
                    name += ".shared"
                    of_stack.append(Place(name, stack, block, SHARED, own, False))
        ffns = [p for p in of_stack if p.part in FFNS]
        together = tuple(n for p in ffns for n in p.tensors)
        guided = any(p.guided for p in ffns)
        places += of_stack
        places.append(Place(f"{stack}.ffn", stack, None, "ffn", together, guided))
    return tensors, places


def apart(model: SMoEModel, place: Place, axis: str, a: str, b: str) -> str | None:
    """Why two guides cannot be compared at a place: they have different experts.

    Returns:
        The reason, or None where they can.
    """
    stack = model.encoder if place.stack == "encoder" else model.decoder
    routed = stack.expert_map
    if not place.guided or axis not in routed.axes:
        return None
    column, known = routed.axes.index(axis), model.guides.axis(axis)
    experts = [
        {e for ids, e in routed.table.items() if ids[column] == known.index(guide)}
        for guide in (a, b)
    ]
    if experts[0] & experts[1]:
        return None
    return f"guided by {axis}: {a} and {b} train different experts"
