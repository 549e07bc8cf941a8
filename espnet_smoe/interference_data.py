"""Dumped data directory and trained model -> gradient cosines of its guides."""

from __future__ import annotations

import bisect
import itertools
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet2.train.collate_fn import CommonCollateFn

from espnet_smoe.checkpoint import load_model
from espnet_smoe.config import ConfigError, check_device
from espnet_smoe.datadir import Utterance, read_datadir
from espnet_smoe.dump import load_dumped
from espnet_smoe.guide_pairs import Skipped, cuts_of, pairs_of
from espnet_smoe.interference import Row, measure
from espnet_smoe.piece import Piece
from espnet_smoe.preprocess import SMoEPreprocessor, make_targets
from espnet_smoe.progress import progress
from espnet_smoe.rows import IGNORE

__all__ = ["Card", "Measured", "alike", "deal", "measure_datadir"]

logger = logging.getLogger(__name__)

Card = tuple[float, Utterance]
"""An utterance and its rank, see ``Piece``."""


@dataclass(frozen=True)
class Measured:
    """What came of one run.

    Args:
        skipped: what was not compared.
        utterances, batches: how many were used.
    """

    rows: list[Row]
    skipped: list[Skipped]
    utterances: int
    batches: int


def deal(
    utterances: Sequence[Utterance], batch_size: int, seed: int
) -> list[list[Card]]:
    """Batches of like composition.

    Utterances of the same guides and tasks are shuffled, ranked, and dealt out in
    turn. The rank of an utterance does not depend on ``batch_size``.

    Args:
        batch_size: utterances a batch, at most.
    """
    shuffled = sorted(utterances, key=lambda utt: utt.id)
    random.Random(seed).shuffle(shuffled)
    kinds: dict[tuple, list[Utterance]] = {}
    for utt in shuffled:
        kinds.setdefault(_kind(utt), []).append(utt)
    cards = [
        ((n + 0.5) / len(utts), utt)
        for _, utts in sorted(kinds.items(), key=lambda item: str(item[0]))
        for n, utt in enumerate(utts)
    ]
    number = -(-len(cards) // batch_size)
    return [cards[n::number] for n in range(number)]


def alike(batch: Sequence[Card], cuts: Sequence[float]) -> list[list[Card]]:
    """The cards of a batch in groups of the same guides and tasks that no cut parts.

    Args:
        cuts: ranks, in order.
    """

    def group(card: Card) -> tuple:
        return _kind(card[1]), bisect.bisect_right(cuts, card[0])

    # cards of a kind stand together, in the order of their ranks
    return [list(cards) for _, cards in itertools.groupby(batch, group)]


def _kind(utt: Utterance) -> tuple:
    return (*sorted(utt.guides.items()), *sorted(utt.texts))


def measure_datadir(
    exp_dir: Path,
    inference_model: str,
    data_dir: Path,
    num_batches: int | None,
    batch_size: int,
    seed: int,
    device: str,
) -> Measured:
    """Compare the guides of a model on a dumped set.

    Args:
        exp_dir: experiment folder; inference_model: checkpoint in it.
        data_dir: dumped data directory, audio at 16 kHz.
        num_batches: use so many batches at most; None = all utterances.
        batch_size: utterances a batch.
        seed: of the shuffling of utterances.
        device: ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ValueError: an input is missing or refused, a number is below 1, or no two
            guides of an axis have utterances.
    """
    for name, number in (("num_batches", num_batches), ("batch_size", batch_size)):
        if number is not None and number < 1:
            raise ConfigError(f"{name} must be at least 1, got {number}")
    for folder, stage in ((exp_dir, "stage 11"), (data_dir, "stages 3 and 4")):
        if not folder.is_dir():
            raise ConfigError(f"{folder} is missing; run {stage} first")
    check_device(device)
    model, bpemodel = load_model(exp_dir / "config.yaml", exp_dir / inference_model)
    # what train_only keeps from training has gradients too
    model.to(device).eval().requires_grad_(True)
    utterances = read_datadir(data_dir)
    guides = {axis.name: axis.guides for axis in model.guides.axes}
    targets = make_targets(utterances, model.guides)
    preprocess = SMoEPreprocessor(False, model.token_list, str(bpemodel), guides)
    collate = CommonCollateFn(float_pad_value=0.0, int_pad_value=IGNORE)
    dealt = deal(utterances, batch_size, seed)[:num_batches]
    used = [utt for batch in dealt for _, utt in batch]
    pairs, lacking = pairs_of(model, [(utt.guides, utt.texts) for utt in used])
    if not pairs:
        reasons = "; ".join(f"{s.axis}: {s.reason}" for s in lacking)
        raise ConfigError(
            f"nothing to compare in {len(used)} utterances of {data_dir}: "
            f"{reasons or 'the model has one guide on every axis'}"
        )
    cuts = cuts_of(pairs)

    def make(cards: Sequence[Card]) -> Piece:
        items = []
        for _, utt in cards:
            data = {"speech": load_dumped(utt), "targets": targets[utt.id]}
            data |= {axis: utt.guides[axis] for axis in list(guides)[:-1]}
            items.append((utt.id, preprocess(utt.id, data)))
        _, tensors = collate(items)
        tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        rank, first = cards[0]
        return Piece(tensors, first.guides, frozenset(first.texts), rank)

    batches = (
        [make(cards) for cards in alike(batch, cuts)]
        for batch in progress(dealt, len(dealt), f"gradients on {data_dir.name}")
    )
    rows, guided = measure(model, batches, pairs)
    if not rows:
        raise ConfigError(f"every place of {exp_dir} is guided: nothing to compare")
    logger.info("%d utterances in %d batches", len(used), len(dealt))
    return Measured(rows, lacking + guided, len(used), len(dealt))
