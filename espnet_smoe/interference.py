"""Where do tasks and bandwidths pull a layer apart? Cosines between their gradients.

Per place of the network (an FFN, an attention, a convolution) and pair of guides:

    g_a = sum over utterances of the gradient of the loss of a   (g_b likewise)
    cosine = g_a . g_b / (|g_a| |g_b|)       1 = the same pull, below 0 = opposite

A sum over utterances points where their mean does. Two figures come of it: ``mean``,
the cosine within a batch averaged over batches, with its standard error; and
``total``, the cosine of the gradients summed over all batches, which does not depend
on how the utterances were grouped. Losses are those of training but for what is
random there (dropout, SpecAugment), and batch norm uses its running statistics.

Two tasks are compared on the utterances that have both references, so that only the
task differs. Two bandwidths never share an utterance: their gradients differ by chance
too. Hence the ``control``, the same utterances parted at random into sides of the same
sizes, each with equal shares of both bandwidths; what the bandwidths lie below it is
theirs.

Source: gradient cosines between tasks as in PCGrad (arXiv 2001.06782).
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from espnet_smoe.config import ConfigError
from espnet_smoe.guide_pairs import ATTENTION, Condition, GuidePair, Skipped
from espnet_smoe.model import SMoEModel
from espnet_smoe.piece import CTC, Piece, losses_of
from espnet_smoe.places import Place, apart, places_of

__all__ = ["Row", "measure"]


@dataclass(frozen=True)
class Row:
    """The cosine of one pair of guides at one place.

    Args:
        block: number of the block, None = all blocks together.
        mean, error: over batches, and its standard error; None = too few batches.
        batches: those in which both sides have a gradient.
        total: of the gradients summed over all batches; None = a side has none.
    """

    axis: str
    a: str
    b: str
    loss: str
    control: bool
    matched: bool
    place: str
    stack: str
    block: int | None
    part: str
    mean: float | None
    error: float | None
    batches: int
    total: float | None


def measure(
    model: SMoEModel,
    batches: Iterable[Sequence[Piece]],
    pairs: Sequence[GuidePair],
) -> tuple[list[Row], list[Skipped]]:
    """The cosine of every pair at every place.

    Kept are two gradients per condition, of a batch and of all so far, whatever the
    number of batches. Parameters, their ``grad`` and buffers stay as they are.

    Args:
        model: in evaluation mode.
        batches: the pieces of each.

    Returns:
        The rows, and what is guided already: an expert that one guide of a pair
        alone trains has no gradient of the other.

    Raises:
        ConfigError: the model is in training mode, or a loss is not finite.
    """
    if model.training:
        raise ConfigError("gradients are compared in evaluation mode: call eval()")
    tensors, places = places_of(model)
    asked: dict[GuidePair, list[Place]] = {}
    skipped: dict[Skipped, None] = {}
    for compared, place in itertools.product(pairs, places):
        pair = (compared.axis, compared.a, compared.b)
        if guided := apart(model, place, *pair):
            skipped[Skipped(*pair, place.name, guided)] = None
        elif place.stack == "encoder" or compared.loss == ATTENTION:
            asked.setdefault(compared, []).append(place)
    conditions = list(dict.fromkeys(side for c in asked for side in c.sides))
    sums = {c: _Gradient(len(tensors)) for c in conditions}
    values: dict[tuple[GuidePair, str], list[float]] = {
        (c, place.name): [] for c, where in asked.items() for place in where
    }
    for batch in batches:
        of_batch = {c: _Gradient(len(tensors)) for c in conditions}
        for piece in batch:
            _add_piece(of_batch, model, tensors, piece)
        for compared, where in asked.items():
            cosines = _cosines(*(of_batch[side] for side in compared.sides), where)
            for place, value in zip(where, cosines, strict=True):
                values[compared, place.name] += [] if value is None else [value]
        for condition, gradient in of_batch.items():
            sums[condition].add(gradient.tensors, 1.0)
    rows = []
    for compared, where in asked.items():
        totals = _cosines(*(sums[side] for side in compared.sides), where)
        rows += [
            _row(compared, place, values[compared, place.name], total)
            for place, total in zip(where, totals, strict=True)
        ]
    return rows, list(skipped)


class _Gradient:
    """A sum of gradients; a tensor that no loss depends on stays None."""

    def __init__(self, number: int) -> None:
        self.tensors: list[torch.Tensor | None] = [None] * number

    def add(self, gradient: Sequence[torch.Tensor | None], weight: float) -> None:
        for n, g in enumerate(gradient):
            if g is not None and self.tensors[n] is None:
                self.tensors[n] = g * weight
            elif g is not None:
                self.tensors[n].add_(g, alpha=weight)


def _add_piece(
    gradients: Mapping[Condition, _Gradient],
    model: SMoEModel,
    tensors: Sequence[torch.Tensor],
    piece: Piece,
) -> None:
    """Add the gradients of a piece to those of the conditions that it meets."""
    met = [c for c in gradients if c.meets(piece.guides, piece.tasks, piece.rank)]
    for name, loss in losses_of(model, piece).items():
        weights = {c: _weight(model, c, name) for c in met}
        if not any(weights.values()):
            continue
        gradient = torch.autograd.grad(
            loss, tensors, retain_graph=True, allow_unused=True
        )
        for condition, weight in weights.items():
            if weight:
                gradients[condition].add(gradient, weight)


def _weight(model: SMoEModel, condition: Condition, loss: str) -> float:
    """Weight of a loss in a condition, in training's proportions."""
    if loss == CTC:
        return model.ctc_weight if condition.ctc else 0.0
    if loss not in condition.tasks:
        return 0.0
    weight = model.task_weights[model.guides.tasks.index(loss)]
    return weight * (1 - model.ctc_weight) if condition.ctc else weight


def _row(
    compared: GuidePair, place: Place, values: Sequence[float], total: float | None
) -> Row:
    error = None
    if len(values) > 1:
        error = statistics.stdev(values) / math.sqrt(len(values))
    return Row(
        axis=compared.axis,
        a=compared.a,
        b=compared.b,
        loss=compared.loss,
        control=compared.control,
        matched=compared.matched,
        place=place.name,
        stack=place.stack,
        block=place.block,
        part=place.part,
        mean=statistics.fmean(values) if values else None,
        error=error,
        batches=len(values),
        total=total,
    )


def _cosines(a: _Gradient, b: _Gradient, places: Sequence[Place]) -> list[float | None]:
    """Cosine at each place; None where a side does not pull at all."""
    products = [_products(x.tensors, y.tensors) for x, y in ((a, b), (a, a), (b, b))]
    cosines = []
    for place in places:
        dot, square_a, square_b = (sum(p[n] for n in place.tensors) for p in products)
        norms = math.sqrt(square_a) * math.sqrt(square_b)
        cosines.append(dot / norms if norms else None)
    return cosines


def _products(
    a: Sequence[torch.Tensor | None], b: Sequence[torch.Tensor | None]
) -> list[float]:
    """Inner product of each tensor, 0 where a side has none."""
    products = [0.0] * len(a)
    pairs = enumerate(zip(a, b, strict=True))
    some = [(n, x, y) for n, (x, y) in pairs if x is not None and y is not None]
    if some:
        # one wait for the device, not one a tensor
        found = torch.stack([(x * y).sum() for _, x, y in some]).tolist()
        for (n, _, _), value in zip(some, found, strict=True):
            products[n] = value
    return products
