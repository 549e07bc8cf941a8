"""Speed perturbation (stage 2): copies that play faster or slower when dumped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from espnet_smoe.audio import MODEL_RATE
from espnet_smoe.datadir import Utterance, write_datadir
from espnet_smoe.dump import DumpError, read_stage
from espnet_smoe.guide import BANDWIDTH
from espnet_smoe.telephone import call_seed

__all__ = ["perturb_speed"]

_SPEEDS = (0.7, 1.4)  # slower, and wideband would no longer be wideband
# Hz; the detector listens from 4.5 kHz on and needs 400 Hz of it: with less, nothing
# tells a wideband copy from narrowband. 11.025 kHz at 0.9 has 4961 Hz.
_LEAST_WIDE_BAND = 4_900


def perturb_speed(in_dir: Path, out_dir: Path, factors: Sequence[float]) -> None:
    """Write each utterance once per speed factor; audio changes when dumped.

    Ids and speakers of a copy start with ``sp<factor>-``; factor 1.0 keeps them.
    Guides and texts stay. ``utt2num_samples`` is still that of the stored audio. The
    copy of a narrowband twin is a call of its own, with the seed of its id.

    Args:
        in_dir: data directory of stage 1.
        out_dir: data directory to write.
        factors: distinct, each in [0.7, 1.4]; below 1.0 is slower and lower.

    Raises:
        DumpError: ``in_dir`` is missing or already perturbed, a bad factor, or one
            that leaves a slow wideband utterance no band above 4.5 kHz.
        DataDirError: ``in_dir`` is no data directory.
    """
    utterances = read_stage(in_dir, out_dir, 1)
    low, high = _SPEEDS
    if not factors or not all(low <= f <= high for f in factors):
        raise DumpError(
            f"speed factors must lie in {low}..{high}, got {list(factors)}: the band "
            "of the audio scales with them, its bandwidth guide does not"
        )
    names = ["" if f == 1.0 else f"sp{f:g}-" for f in factors]
    if len(set(names)) != len(names):
        raise DumpError(f"speed factors must be distinct, got {list(factors)}")
    for utt in utterances:
        if utt.speed != 1.0:
            raise DumpError(f"{in_dir}: {utt.id} already has speed {utt.speed}")
        _check_band(utt, min(factors))
    write_datadir(
        out_dir,
        (
            _at_speed(u, name, float(factor))
            for name, factor in zip(names, factors, strict=True)
            for u in utterances
        ),
    )


def _check_band(utt: Utterance, factor: float) -> None:
    """Refuse to slow wideband so much that its high band is gone."""
    if factor >= 1.0 or utt.guides[BANDWIDTH] != "wb":
        return
    # wideband is sure to fill the band of 16 kHz, not that of a higher rate
    band = factor * min(utt.fs, MODEL_RATE) / 2
    if band < _LEAST_WIDE_BAND:
        raise DumpError(
            f"utterance {utt.id}: wideband of {utt.fs} Hz slowed by the factor "
            f"{factor:g} ends at {band:.0f} Hz, expected {_LEAST_WIDE_BAND} Hz or "
            "more: leave the factor out"
        )


def _at_speed(utt: Utterance, name: str, factor: float) -> Utterance:
    """The copy whose id and speaker start with ``name``; without one, the original."""
    if not name:
        return utt
    call = None if utt.telephone is None else call_seed(name + utt.id)
    return replace(
        utt,
        id=name + utt.id,
        speaker=name + utt.speaker,
        speed=factor,
        telephone=call,
    )
