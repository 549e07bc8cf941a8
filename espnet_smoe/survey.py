"""Survey of a corpus: the bandwidth each utterance is said to have, and sounds like.

Stage 1 reads every utterance once and keeps its ``Evidence``, no samples. When all
are read, ``judge`` gives each utterance its label:

    header   what is declared: the corpus's own word or, without one, the native rate
    check    the same; an utterance that sounds unlike its label is a conflict
    detect   what it sounds like, or what is declared where that is unknown; the
             corpus's own word stays, if need be as a conflict

A short utterance is weak evidence, and one channel of a file is nearly always one kind
of recording. So the utterances of a channel of a file pool their evidence: if one
bandwidth has at least 80 % of the seconds of those that are not unknown, all of them
sound like it. In a more mixed file (callers in a broadcast) each stands for itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from espnet_smoe.audio import MODEL_RATE, NARROWBAND_RATE, bandwidth_of_rate
from espnet_smoe.bandwidth import UNKNOWN, BandwidthEstimate, detect_bandwidth
from espnet_smoe.quality import check_quality

__all__ = [
    "MODES",
    "Entry",
    "Evidence",
    "Finding",
    "SurveyError",
    "check_mode",
    "examine",
    "judge",
]

MODES = ("header", "detect", "check")

_HEARD = ("nb", "wb")  # what the detector can tell apart
_MAJORITY = 0.8  # of the seconds of a recording


class SurveyError(ValueError):
    """A survey was asked for in a mode that there is not."""


@dataclass(frozen=True)
class Evidence:
    """What the samples of one utterance say.

    Args:
        seconds: duration.
        estimate: the detector's; None where it was not asked (``header``).
        warnings: what is wrong with the samples, one sentence each.
    """

    seconds: float
    estimate: BandwidthEstimate | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One utterance of the survey.

    Args:
        id: of the utterance.
        split: data directory it goes to.
        rate: native rate, Hz.
        word: the corpus's own word on its bandwidth; None = it says nothing.
        recording: file and channel it was cut out of; its evidence is pooled.
        evidence: of its samples.
    """

    id: str
    split: str
    rate: int
    word: str | None
    recording: tuple[str, int]
    evidence: Evidence

    @property
    def declared(self) -> str | None:
        """The corpus's word, else that of the rate; None between 8 and 16 kHz."""
        if self.word is not None:
            return self.word
        if NARROWBAND_RATE < self.rate < MODEL_RATE:
            return None
        return bandwidth_of_rate(self.rate)


@dataclass(frozen=True)
class Finding:
    """Verdict on one utterance.

    Args:
        entry: the utterance.
        detected: ``nb``, ``wb`` or ``unknown``: what its recording sounds like;
            None where the detector was not asked.
        label: its bandwidth from here on; None where nothing tells.
    """

    entry: Entry
    detected: str | None
    label: str | None

    @property
    def conflict(self) -> bool:
        """Whether it sounds unlike its label."""
        return {self.detected, self.label} == set(_HEARD)

    @property
    def relabelled(self) -> bool:
        """Whether its label is not what was declared."""
        return self.entry.declared is not None and self.label != self.entry.declared


def check_mode(mode: str) -> None:
    """Refuse a mode that there is not, before anything is read.

    Raises:
        SurveyError: ``mode`` is none of ``MODES``.
    """
    if mode not in MODES:
        raise SurveyError(
            f"unknown way {mode!r} to label bandwidths; known: {', '.join(MODES)}"
        )


def examine(samples: np.ndarray, rate: int, mode: str) -> Evidence:
    """Evidence of one utterance.

    Args:
        samples: (S,) float, full scale 1.0.
        rate: Hz.
        mode: of ``MODES``; ``header`` does not ask the detector.
    """
    estimate = None if mode == "header" else detect_bandwidth(samples, rate)
    return Evidence(len(samples) / rate, estimate, tuple(check_quality(samples)))


def judge(entries: Sequence[Entry], mode: str) -> list[Finding]:
    """Label of each utterance, in the order of ``entries``; see the module's text."""
    pooled = _pool(entries)
    findings = []
    for entry in entries:
        estimate = entry.evidence.estimate
        own = estimate.bandwidth if estimate else None
        detected = pooled.get(entry.recording, own)
        heeded = mode == "detect" and entry.word is None and detected in _HEARD
        findings.append(
            Finding(entry, detected, detected if heeded else entry.declared)
        )
    return findings


def _pool(entries: Sequence[Entry]) -> dict[tuple[str, int], str]:
    """Recording -> its bandwidth, for those where a clear majority tells."""
    seconds: dict[tuple[str, int], Counter[str]] = {}
    for entry in entries:
        estimate = entry.evidence.estimate
        if estimate and estimate.bandwidth != UNKNOWN:
            votes = seconds.setdefault(entry.recording, Counter())
            votes[estimate.bandwidth] += entry.evidence.seconds
    majorities = ((r, v.most_common(1)[0], v.total()) for r, v in seconds.items())
    return {r: b for r, (b, most), total in majorities if most >= _MAJORITY * total}
