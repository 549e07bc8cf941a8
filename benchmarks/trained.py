"""A trained model, its test set, and the host's models extracted from it."""

from __future__ import annotations

import argparse
import logging
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from side_by_side import DEVICE, DifferenceError, check_equal

from espnet_smoe.compare_route import HostDecoder
from espnet_smoe.config import ConfigError
from espnet_smoe.datadir import read_datadir
from espnet_smoe.dense import file_of
from espnet_smoe.dump import load_dumped
from espnet_smoe.extract import extract
from espnet_smoe.guide import TASK
from espnet_smoe.host import Hypothesis
from espnet_smoe.inference import Speech2Text
from espnet_smoe.query import Query

__all__ = ["BATCH_SIZE", "Host", "add_options", "check_hypotheses", "load", "queries"]

RECIPE = Path(__file__).parent.parent / "egs2/smoe_asr_st"
BATCH_SIZE = 32  # the fastest for either side on two CPU cores


def add_options(parser: argparse.ArgumentParser) -> None:
    """Where the trained model and its test set are."""
    exp_dir = RECIPE / "exp/smoe_demo"
    data_dir = RECIPE / "dump/raw/test"
    parser.add_argument("--exp_dir", type=Path, default=exp_dir)
    parser.add_argument("--data_dir", type=Path, default=data_dir)


def load(
    args: argparse.Namespace, beam_size: int = 5, batch_size: int = BATCH_SIZE
) -> Speech2Text:
    """Our side, with its defaults but for these; CTC weight 0.3 for ASR.

    Raises:
        ConfigError: there is no trained model or test set.
    """
    for path in (args.exp_dir, args.data_dir / "wav.scp"):
        if not path.exists():
            raise ConfigError(f"{path} is missing; `make demo` makes it")
    checkpoint = file_of(args.exp_dir)
    logging.disable(logging.WARNING)  # the host writes ten lines an utterance
    return Speech2Text(
        checkpoint.parent / "config.yaml",
        checkpoint,
        device=DEVICE,
        beam_size=beam_size,
        batch_size=batch_size,
    )


def queries(data_dir: Path, number: int, tasks: Sequence[str]) -> list[Query]:
    """Some utterances of the test set, always the same, in every task named."""
    utterances = [u for u in read_datadir(data_dir) if set(tasks) <= set(u.texts)]
    chosen = random.Random(0).sample(utterances, min(number, len(utterances)))
    return [Query(load_dumped(u), u.guides, tasks) for u in chosen]


class Host:
    """The host's dense models of the routes that some utterances take.

    Args:
        exp_dir: of the S-MoE model.
        ours: the same, loaded.
        asked: the utterances and their tasks.
        folder: where the extracted models go.
    """

    def __init__(
        self, exp_dir: Path, ours: Speech2Text, asked: Sequence[Query], folder: Path
    ) -> None:
        self._axes = [axis.name for axis in ours.model.guides.axes]
        self._decoders: dict[tuple[str, ...], HostDecoder] = {}
        for key in sorted({self._route(q, t) for q in asked for t in q.tasks}):
            route = dict(zip(self._axes, key, strict=True))
            out = folder / "-".join(key)
            extract(file_of(exp_dir), route, out)
            self._decoders[key] = HostDecoder(out, ours.model, route, DEVICE)

    def _route(self, query: Query, task: str) -> tuple[str, ...]:
        return tuple({**query.guides, TASK: task}[axis] for axis in self._axes)

    def decode(self, query: Query, task: str) -> Hypothesis:
        """The best hypothesis of one utterance, by the host's ``Speech2Text``."""
        return self._decoders[self._route(query, task)](query.samples)[4]

    @torch.no_grad()
    def decode_batched(
        self, asked: Sequence[Query], task: str, batch_size: int
    ) -> list[Hypothesis]:
        """The best hypotheses, by the host's batched search.

        The host's ``batch_decode`` takes padding for speech. Its encoder and its
        search take lengths, so here they get them: the most that its classes do.
        """
        found: list[Hypothesis | None] = [None] * len(asked)
        order = sorted(range(len(asked)), key=lambda i: -len(asked[i].samples))
        for key, decoder in self._decoders.items():
            places = [i for i in order if self._route(asked[i], task) == key]
            for start in range(0, len(places), batch_size):
                batch = places[start : start + batch_size]
                samples = [torch.from_numpy(asked[i].samples) for i in batch]
                for i, hyp in zip(batch, _search(decoder, samples), strict=True):
                    found[i] = hyp
        return found


def _search(decoder: HostDecoder, samples: list[torch.Tensor]) -> list[Hypothesis]:
    host = decoder.speech2text
    lengths = torch.tensor([len(s) for s in samples], device=DEVICE)
    speech = torch.nn.utils.rnn.pad_sequence(samples, batch_first=True)
    symbols = [host.converter.token2id[s] for s in (host.lang_sym, host.task_sym)]
    host.beam_search.set_hyp_primer([[host.s2t_model.sos, *symbols]] * len(samples))
    encoded, frames = host.s2t_model.encode(speech.to(DEVICE), lengths)
    nbests = host.beam_search(
        encoded,
        x_lengths=frames,
        maxlenratio=host.maxlenratio,
        minlenratio=host.minlenratio,
    )
    return [nbest[0] for nbest in nbests]


def check_hypotheses(
    what: str, ours: Sequence[Hypothesis], theirs: Sequence[Hypothesis]
) -> None:
    """The same tokens and scores for every utterance.

    Raises:
        DifferenceError: they differ; says of how many.
    """
    pairs = list(zip(ours, theirs, strict=True))
    if other := sum(a.yseq.tolist() != b.yseq.tolist() for a, b in pairs):
        raise DifferenceError(
            f"{what}: {other} of {len(pairs)} utterances have another text"
        )
    scores = [torch.tensor([float(h.score) for h in side]) for side in (ours, theirs)]
    check_equal(f"{what}: scores", *scores, 1e-4)
