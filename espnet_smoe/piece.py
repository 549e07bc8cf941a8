"""Like utterances of a batch, and their losses, one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from espnet_smoe.config import ConfigError
from espnet_smoe.model import SMoEModel
from espnet_smoe.rows import IGNORE

__all__ = ["CTC", "Piece", "losses_of"]

CTC = "ctc"
"""Name of the CTC loss beside those of the tasks."""


@dataclass(frozen=True)
class Piece:
    """Utterances of a batch that are alike.

    A condition takes all of a piece or nothing of it, and gradients add up: so there
    is one backward pass per loss of a piece, however many conditions there are.

    Args:
        data: what ``SMoEModel.forward`` takes, on the model's device.
        guides: utterance axis -> guide.
        tasks: the references that every utterance has.
        rank: in [0, 1), of any of them: where in a random order of all utterances
            with the same guides and tasks they stand. No control parts them.
    """

    data: Mapping[str, torch.Tensor]
    guides: Mapping[str, str]
    tasks: frozenset[str]
    rank: float


def losses_of(model: SMoEModel, piece: Piece) -> dict[str, torch.Tensor]:
    """The losses of a piece, summed over its utterances, from one encoding.

    Returns:
        task -> its decoder loss, and ``ctc`` if the model has it and the utterances
        have transcripts; () each, without the weights of training.

    Raises:
        ConfigError: a loss is not finite.
    """
    data, table = piece.data, model.guides
    guide_ids = {a.name: data[a.name].view(-1).cpu() for a in table.utterance_axes}
    encoded, frames = model.encode(data["speech"], data["speech_lengths"], guide_ids)
    losses = {}
    for number, task in enumerate(table.tasks):
        if task in piece.tasks:
            # one task at a time: its gradient does not pass through the others' rows
            wanted = torch.zeros(len(table.tasks), len(encoded), dtype=torch.bool)
            wanted[number] = True
            rows = model.rows_of(guide_ids, wanted)
            losses[task] = model.decoder_loss(encoded, frames, rows, data)[0].sum()
    if model.ctc is not None and "asr" in piece.tasks:
        losses[CTC] = _ctc_loss(model, encoded, frames, data)
    for name, loss in losses.items():
        if not bool(loss.isfinite()):
            raise ConfigError(
                f"the {name} loss of {len(encoded)} utterances of {dict(piece.guides)} "
                f"is {loss.item()}; expected a finite one"
            )
    return losses


def _ctc_loss(
    model: SMoEModel,
    encoded: torch.Tensor,
    frames: torch.Tensor,
    data: Mapping[str, torch.Tensor],
) -> torch.Tensor:
    text, lengths = data["text_asr"], data["text_asr_lengths"]
    # the host's CTC.forward would drop out here, in evaluation mode too
    scores = model.ctc.ctc_lo(encoded).transpose(0, 1)
    loss = model.ctc.loss_fn(scores, text[text != IGNORE], frames, lengths)
    return loss.sum() * len(lengths)  # the host's is a mean
