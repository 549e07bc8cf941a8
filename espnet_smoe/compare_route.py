"""An S-MoE model on one route against the host's model made of it: output and speed."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from espnet_smoe.counterparts import SurgeryError
from espnet_smoe.datadir import read_datadir
from espnet_smoe.dense import DenseModel
from espnet_smoe.dump import load_dumped
from espnet_smoe.guide import TASK, token
from espnet_smoe.inference import Speech2Text
from espnet_smoe.model import SMoEModel
from espnet_smoe.probe import (
    outputs_of,
    prompt_of,
    random_speech,
    random_text,
    score_text,
)
from espnet_smoe.query import Query
from espnet_smoe.search import SearchConfig

__all__ = [
    "HostDecoder",
    "compare_decoding",
    "compare_dense",
    "compare_outputs",
    "host_search",
]

_UTTERANCES = 20  # enough to tell the speeds apart


@torch.no_grad()
def compare_outputs(
    model: SMoEModel, host: torch.nn.Module, route: Mapping[str, str]
) -> dict[str, float]:
    """Run both on random audio and text.

    Args:
        model: ours, in evaluation mode.
        host: an S2T model, in evaluation mode.
        route: axis -> guide, all axes.

    Returns:
        ``difference_encoder`` and ``difference_decoder``: largest difference of the
        encoder's output and of the decoder's scores before the softmax.

    Raises:
        SurgeryError: the encoders give different numbers of frames.
    """
    ours, frames, scores = outputs_of(model, route)
    theirs, host_frames = host.encode(*random_speech())
    if not torch.equal(frames, host_frames):
        raise SurgeryError(
            f"{frames.tolist()} encoded frames, but {host_frames.tolist()} by the host"
        )
    symbols = [host.token_list.index(token(guide)) for guide in route.values()]
    prompt = [host.sos, *symbols]
    host_scores = score_text(host.decoder, prompt, random_text(model), theirs, frames)
    return {
        "difference_encoder": _largest(ours - theirs, frames),
        "difference_decoder": float((scores - host_scores).abs().max()),
    }


@torch.no_grad()
def compare_dense(
    model: SMoEModel, dense: DenseModel, route: Mapping[str, str], with_decoder: bool
) -> dict[str, float]:
    """Run an S-MoE model on one route and a dense model on random audio and text.

    Args:
        model: in evaluation mode.
        dense: the model that it must equal on this route, its frames not centred.
        route: axis -> guide, all axes.
        with_decoder: whether the dense model has the same vocabulary.

    Returns:
        ``difference_encoder`` and, with a decoder, ``difference_decoder``, see
        ``compare_outputs``.
    """
    ours, frames, scores = outputs_of(model, route)
    theirs, _ = dense.encode(*random_speech())
    found = {"difference_encoder": _largest(ours - theirs, frames)}
    if with_decoder:
        text, prompt = random_text(model), prompt_of(model, route)
        others = score_text(dense.decoder(), prompt, text, theirs, frames)
        found["difference_decoder"] = float((scores - others).abs().max())
    return found


def _largest(difference: torch.Tensor, frames: torch.Tensor) -> float:
    """Largest absolute entry of (B, T, D) in the frames that are valid."""
    # max() of a list could lose a NaN
    valid = [difference[i, : int(n)] for i, n in enumerate(frames)]
    return float(torch.cat(valid).abs().max())


def host_search(
    model: SMoEModel, route: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the host's ``Speech2Text`` and of its call, to decode one route as
    ours does by default.

    Args:
        model: ours.
        route: axis -> guide, all axes; the host's prompt holds two or three.
    """
    search = SearchConfig()
    language, task, *others = (token(guide) for guide in route.values())
    # translations are searched without CTC
    with_ctc = route[TASK] == "asr" and model.ctc is not None
    options = {
        "lang_sym": language,
        "task_sym": task,
        "ctc_weight": search.ctc_weight if with_ctc else 0.0,
        "beam_size": search.beam_size,
    }
    # a third token takes the place of "<notimestamps>"
    return options, {"predict_time": not others}


class HostDecoder:
    """The host's ``Speech2Text`` for an extracted route, with our defaults.

    Args:
        folder: of the extracted model.
        model: ours that it was extracted from.
        route: axis -> guide, all axes.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
    """

    def __init__(
        self,
        folder: Path,
        model: SMoEModel,
        route: Mapping[str, str],
        device: str = "cpu",
    ) -> None:
        from espnet2.bin.s2t_inference import Speech2Text as HostSpeech2Text

        options, self._of_call = host_search(model, route)
        self.speech2text = HostSpeech2Text(
            str(folder / "config.yaml"),
            str(folder / "model.pth"),
            bpemodel=str(folder / "bpe.model"),
            device=device,
            **options,
        )

    def __call__(self, samples: np.ndarray) -> tuple:
        """(S,) float32 at 16 kHz -> the host's best result, see its class."""
        # the host cuts off the last sample
        speech = torch.nn.functional.pad(torch.from_numpy(samples), (0, 1))
        return self.speech2text(speech, **self._of_call)[0]


def compare_decoding(
    checkpoint: Path, folder: Path, route: Mapping[str, str], data_dir: Path
) -> dict[str, Any]:
    """Decode the first utterances of a route by both, one by one, with our defaults.

    Those of less than ``min_samples`` are left out: our model adds silence to them,
    the host refuses them.

    Args:
        checkpoint: of the S-MoE model, its ``config.yaml`` beside.
        folder: of the extracted model.
        route: axis -> guide, all axes.
        data_dir: dumped data directory.

    Returns:
        Numbers of ``utterances``, of those with the ``same_text`` and the largest
        ``difference_score``; seconds an utterance of both: ``seconds_before`` (ours),
        ``seconds_before_batched`` (ours, all in one batch), ``seconds_after`` (host).

    Raises:
        SurgeryError: no utterance has the guides of the route and that length.
        DataDirError: the data directory is broken.
    """
    guides = {axis: guide for axis, guide in route.items() if axis != TASK}
    ours = Speech2Text(
        checkpoint.parent / "config.yaml", checkpoint, batch_size=_UTTERANCES
    )
    shortest = ours.model.min_samples
    utterances = [  # the data may have axes that the model does not
        u
        for u in read_datadir(data_dir)
        if guides.items() <= u.guides.items() and u.num_samples >= shortest
    ][:_UTTERANCES]
    if not utterances:
        raise SurgeryError(
            f"no utterance of {data_dir} has the guides {guides} and at least "
            f"{shortest} samples"
        )
    queries = [Query(load_dumped(u), guides, (route[TASK],)) for u in utterances]
    host = HostDecoder(folder, ours.model, route)
    # the host's search writes ten lines an utterance, and one about the cut
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        results, host_results = [], []
        times = [time.perf_counter()]
        for query in queries:
            results.append(ours.decode([query])[0][route[TASK]][0])
        times.append(time.perf_counter())
        ours.decode(queries)
        times.append(time.perf_counter())
        host_results = [host(query.samples) for query in queries]
        times.append(time.perf_counter())
    finally:
        logging.disable(disabled)
    pairs = list(zip(results, host_results, strict=True))
    seconds = [(b - a) / len(queries) for a, b in itertools.pairwise(times)]
    return {
        "utterances": len(queries),
        "same_text": sum(a[0] == b[3].strip() for a, b in pairs),
        "difference_score": max(abs(float(a[3].score - b[4].score)) for a, b in pairs),
        "seconds_before": seconds[0],
        "seconds_before_batched": seconds[1],
        "seconds_after": seconds[2],
    }
