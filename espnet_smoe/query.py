"""What is asked of the API -> samples at 16 kHz, guides and tasks, all checked."""

from __future__ import annotations

import logging
import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from espnet_smoe.audio import (
    FULL_SCALE,
    AudioError,
    bandwidth_of_rate,
    check_samples,
    read_audio,
    to_model_rate,
)
from espnet_smoe.bandwidth import UNKNOWN, detect_bandwidth
from espnet_smoe.config import ConfigError
from espnet_smoe.guide import BANDWIDTH, TASK, GuideTable
from espnet_smoe.quality import check_quality

__all__ = ["Query", "Speech", "make_query"]

logger = logging.getLogger(__name__)

Speech = str | os.PathLike | np.ndarray | torch.Tensor

_AUTO = "auto"  # as a bandwidth: the detector says


@dataclass(frozen=True)
class Query:
    """One utterance and what is asked of it.

    Args:
        samples: (S,) float32 at 16 kHz, as ``audio.to_model_rate`` makes it.
        guides: utterance axis -> guide.
        tasks: the tasks wanted.
    """

    samples: np.ndarray
    guides: Mapping[str, str]
    tasks: Sequence[str]


def make_query(
    table: GuideTable,
    speech: Speech,
    fs: int | None,
    task: str | Sequence[str],
    bandwidth: str | None,
    channel: int | None,
    guides: Mapping[str, str] | None,
) -> Query:
    """Read, check and resample one utterance; see ``Speech2Text.__call__``.

    Clipping and other faults that do not keep it from being decoded are logged.

    Raises:
        ValueError: unusable audio, an array without ``fs``, a task, bandwidth or axis
            that the model does not have.
    """
    tasks = (task,) if isinstance(task, str) else tuple(task or ())
    if not tasks or len(set(tasks)) != len(tasks):
        raise ConfigError(f"task must be a task or distinct tasks, got {task!r}")
    for name in tasks:
        table.axis(TASK).index(name)
    if fs is not None:
        try:
            fs = operator.index(fs)
        except TypeError:
            raise AudioError(f"fs must be a whole number of Hz, got {fs!r}") from None
    if isinstance(speech, (str, os.PathLike)):
        name = os.fspath(speech)
        samples, rate = read_audio(speech, channel=channel)
        if fs not in (None, rate):
            raise AudioError(f"{speech} has {rate} Hz, not fs={fs}")
    else:
        name = "the array"
        samples, rate = _from_array(speech), fs
        if rate is None:
            raise AudioError("an array of samples needs its rate: pass fs= in Hz")
    if guides is not None and BANDWIDTH in guides:
        raise ConfigError("pass the bandwidth as bandwidth=, not among guides=")
    for fault in check_quality(samples):
        logger.warning("%s: %s", name, fault)
    if bandwidth is None:
        bandwidth = bandwidth_of_rate(rate)
    elif bandwidth == _AUTO:
        bandwidth = _detected(samples, rate, name)
    guides = {**(guides or {}), BANDWIDTH: bandwidth}
    if missing := [a.name for a in table.utterance_axes if a.name not in guides]:
        raise ConfigError(f"the model needs guides of the axes {missing}: pass guides=")
    for name, guide in guides.items():
        table.axis(name).index(guide)
    return Query(to_model_rate(samples, rate), guides, tasks)


def _detected(samples: np.ndarray, rate: int, name: str) -> str:
    """What the detector hears, else what the rate says, and then a warning."""
    estimate = detect_bandwidth(samples, rate)
    if estimate.bandwidth != UNKNOWN:
        return estimate.bandwidth
    bandwidth = bandwidth_of_rate(rate)
    logger.warning(
        "%s: bandwidth unknown (%s); decoded as %s, which its rate of %d Hz says",
        *(name, estimate.reason, bandwidth, rate),
    )
    return bandwidth


def _from_array(speech: np.ndarray | torch.Tensor) -> np.ndarray:
    if isinstance(speech, torch.Tensor):
        speech = speech.detach().cpu().numpy()
    samples = np.asarray(speech)
    if samples.dtype == np.int16:
        samples = samples / np.float32(FULL_SCALE)
    if samples.dtype.kind != "f":
        raise AudioError(
            f"samples must be float in [-1, 1] or int16, got {samples.dtype}"
        )
    samples = samples.astype(np.float32)
    check_samples(samples, "the array")
    return samples
