"""Dumped data directory and trained model -> gradient cosines of its guides."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet2.train.collate_fn import CommonCollateFn

from espnet_smoe.checkpoint import load_model
from espnet_smoe.comparison import Skipped, compare
from espnet_smoe.config import ConfigError, check_device
from espnet_smoe.datadir import Utterance, read_datadir
from espnet_smoe.dump import load_dumped
from espnet_smoe.interference import Piece, Row, measure
from espnet_smoe.preprocess import SMoEPreprocessor, make_targets
from espnet_smoe.progress import progress
from espnet_smoe.rows import IGNORE

__all__ = ["Alike", "Measured", "deal", "measure_datadir"]

logger = logging.getLogger(__name__)

Alike = tuple[int, list[Utterance]]
"""A half of the control, and utterances of the same guides and tasks."""


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
) -> list[list[Alike]]:
    """Batches of like composition, each as groups of utterances that are alike.

    Utterances of the same guides and tasks are shuffled, halved, and dealt out in
    turn. Which half an utterance belongs to does not depend on ``batch_size``.

    Args:
        batch_size: utterances a batch, at most.
    """
    shuffled = sorted(utterances, key=lambda utt: utt.id)
    random.Random(seed).shuffle(shuffled)
    kinds: dict[tuple, list[Utterance]] = {}
    for utt in shuffled:
        kind = (*sorted(utt.guides.items()), *sorted(utt.texts))
        kinds.setdefault(kind, []).append(utt)
    cards = [
        (kind, half, utt)
        for kind, utts in sorted(kinds.items(), key=lambda item: str(item[0]))
        for half in (0, 1)
        for utt in utts[half::2]
    ]
    number = -(-len(cards) // batch_size)
    return [
        [
            (half, [utt for _, _, utt in alike])
            for (_, half), alike in itertools.groupby(cards[n::number], lambda c: c[:2])
        ]
        for n in range(number)
    ]


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
    model.to(device).eval()
    utterances = read_datadir(data_dir)
    guides = {axis.name: axis.guides for axis in model.guides.axes}
    targets = make_targets(utterances, model.guides)
    preprocess = SMoEPreprocessor(False, model.token_list, str(bpemodel), guides)
    collate = CommonCollateFn(float_pad_value=0.0, int_pad_value=IGNORE)
    dealt = deal(utterances, batch_size, seed)[:num_batches]
    used = [utt for batch in dealt for _, alike in batch for utt in alike]
    comparisons, lacking = compare(model, [(utt.guides, utt.texts) for utt in used])
    if not comparisons:
        pairs = "; ".join(f"{s.axis}: {s.reason}" for s in lacking)
        raise ConfigError(
            f"nothing to compare in {len(used)} utterances of {data_dir}: "
            f"{pairs or 'the model has one guide on every axis'}"
        )

    def make(half: int, alike: Sequence[Utterance]) -> Piece:
        items = []
        for utt in alike:
            data = {"speech": load_dumped(utt), "targets": targets[utt.id]}
            data |= {axis: utt.guides[axis] for axis in list(guides)[:-1]}
            items.append((utt.id, preprocess(utt.id, data)))
        _, tensors = collate(items)
        tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        return Piece(tensors, alike[0].guides, frozenset(alike[0].texts), half)

    batches = (
        [make(half, alike) for half, alike in batch]
        for batch in progress(dealt, len(dealt), f"gradients on {data_dir.name}")
    )
    rows, guided = measure(model, batches, comparisons)
    if not rows:
        raise ConfigError(f"every place of {exp_dir} is guided: nothing to compare")
    logger.info("%d utterances in %d batches", len(used), len(dealt))
    return Measured(rows, lacking + guided, len(used), len(dealt))
