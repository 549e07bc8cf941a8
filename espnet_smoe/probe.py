"""Fixed random input and what a model makes of it on one route: surgery compares it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from espnet_smoe.audio import MODEL_RATE
from espnet_smoe.model import SMoEModel
from espnet_smoe.tokens import special_ids

__all__ = [
    "Outputs",
    "outputs_of",
    "prompt_of",
    "random_speech",
    "random_text",
    "route_ids",
    "score_text",
]


class Outputs(NamedTuple):
    """What two utterances give.

    Args:
        memory: (2, T, D) float32, encoder output.
        frames: (2,) int64, valid frames of it.
        scores: (2, U, V) float32, of the decoder before the softmax.
    """

    memory: torch.Tensor
    frames: torch.Tensor
    scores: torch.Tensor


def random_speech() -> tuple[torch.Tensor, torch.Tensor]:
    """Two utterances of 3 and 2 s, (2, S) float32, and (2,) int64 samples."""
    generator = torch.Generator().manual_seed(0)
    speech = 0.1 * torch.randn(2, 3 * MODEL_RATE, generator=generator)
    lengths = torch.tensor([3 * MODEL_RATE, 2 * MODEL_RATE])
    speech[1, lengths[1] :] = 0.0
    return speech, lengths


def random_text(model: SMoEModel) -> torch.Tensor:
    """Texts of two utterances behind their prompts, (2, 12) int64."""
    generator = torch.Generator().manual_seed(1)
    first = len(special_ids(model.token_list))
    return torch.randint(first, model.eos, (2, 12), generator=generator)


def route_ids(model: SMoEModel, route: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Guide ids of two utterances, utterance axis -> (2,) int64.

    Args:
        route: axis -> guide, all axes.
    """
    axes = model.guides.utterance_axes
    return {a.name: torch.full((2,), a.index(route[a.name])) for a in axes}


def prompt_of(model: SMoEModel, route: Mapping[str, str]) -> list[int]:
    """Ids of ``<sos>`` and the guiding tokens of a route."""
    axes = model.guides.axes
    guides = [model.guide_token_ids[a.name][a.index(route[a.name])] for a in axes]
    return [model.sos, *guides]


def score_text(
    decoder: torch.nn.Module,
    prompt: list[int],
    text: torch.Tensor,
    memory: torch.Tensor,
    frames: torch.Tensor,
) -> torch.Tensor:
    """Scores of a decoder, ours or the host's, before the softmax: (2, U, V)."""
    ys = torch.cat([torch.tensor([prompt] * 2), text], dim=1)
    return decoder(memory, frames, ys, torch.full((2,), ys.size(1)))[0]


def outputs_of(model: SMoEModel, route: Mapping[str, str]) -> Outputs:
    """Run a model in evaluation mode on ``random_speech`` and ``random_text``."""
    memory, frames = model.encode(*random_speech(), route_ids(model, route))
    text, prompt = random_text(model), prompt_of(model, route)
    scores = score_text(model.decoder, prompt, text, memory, frames)
    return Outputs(memory, frames, scores)
