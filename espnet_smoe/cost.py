"""What a model costs: parameters, operations of one utterance, seconds of a step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from espnet_smoe.config import ConfigError

__all__ = ["SECONDS", "TOKENS", "Cost", "measure_cost"]

SECONDS = 10.0
"""Length of the utterance that operations are counted on, s."""

TOKENS = 40
"""Length of its text."""


@dataclass(frozen=True)
class Cost:
    """Cost of one model or, added up, of the models of one system.

    Args:
        parameters: numbers that training may change.
        active: those that one utterance in one task touches.
        flops: floating-point operations of this utterance, a multiplication and an
            addition being two; matrix products, convolutions and attention.
        step_seconds: wall time of a training step, mean over the epochs, s.
    """

    parameters: int
    active: int
    flops: int
    step_seconds: float


def measure_cost(experiment: Path) -> Cost:
    """Measure a finished training.

    The utterance is ``SECONDS`` long and has the first guide of every axis. It goes
    through front end, encoder, CTC (task ``asr``) and, with ``TOKENS`` tokens of text
    given, the decoder: the forward pass of the loss. A parameter is touched if the
    loss has a gradient for it; a table of embeddings counts whole.

    Args:
        experiment: folder of stage 11.

    Raises:
        ConfigError: a file is missing, or no epoch was recorded.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from espnet_smoe.audio import MODEL_RATE
    from espnet_smoe.task import SMoETask

    config = experiment / "config.yaml"
    if not config.is_file():
        raise ConfigError(f"{config} is missing; run stage 11 first")
    model, _ = SMoETask.build_model_from_file(config)
    model.eval()
    samples = round(SECONDS * MODEL_RATE)
    noise = torch.Generator().manual_seed(0)
    batch = {
        "speech": torch.randn(1, samples, generator=noise),
        "speech_lengths": torch.tensor([samples]),
    }
    for axis in model.guides.utterance_axes:
        batch[axis.name] = torch.zeros(1, 1, dtype=torch.long)
    for number, task in enumerate(model.guides.tasks):
        # the last ids before <sos/eos> are pieces of text
        batch[f"text_{task}"] = torch.full((1, TOKENS), model.vocab_size - 2)
        batch[f"text_{task}_lengths"] = torch.tensor([0 if number else TOKENS])
    with FlopCounterMode(display=False) as counter:
        loss = model(**batch)[0]
    loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    return Cost(
        parameters=sum(p.numel() for p in trained),
        active=sum(p.numel() for p in trained if p.grad is not None),
        flops=counter.get_total_flops(),
        step_seconds=_step_seconds(experiment / "checkpoint.pth"),
    )


def _step_seconds(checkpoint: Path) -> float:
    """Mean of what the host's reporter noted for each epoch, s."""
    from espnet2.torch_utils.safe_torch_load import safe_torch_load

    if not checkpoint.is_file():
        raise ConfigError(f"{checkpoint} is missing; run stage 11 first")
    states = safe_torch_load(checkpoint, map_location="cpu", mmap=True)
    epochs = states["reporter"]["stats"].values()
    if not epochs:
        raise ConfigError(f"{checkpoint} records no epoch; run stage 11 again")
    return float(np.mean([epoch["train"]["train_time"] for epoch in epochs]))
