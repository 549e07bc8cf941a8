"""Hypotheses and references -> WER, CER, BLEU, chrF2, TER with intervals.

Words are what stands between blanks; the blanks between words are characters.
Counts are summed over utterances before a rate is taken; rates are never averaged.
Sources: jiwer (edit operations), sacrebleu 2.x (BLEU, chrF2, TER; its own bootstrap
makes the same draws as the one here).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import NamedTuple

import numpy as np

__all__ = [
    "RESAMPLES",
    "SEED",
    "ErrorCount",
    "Measure",
    "ScoreError",
    "bootstrap",
    "count_errors",
    "measure",
    "metrics_of",
    "resampled",
]

RESAMPLES = 1000
SEED = 12345

_ASR_METRICS = ("wer", "cer")
_ST_METRICS = ("bleu", "chrf2", "ter")


class ScoreError(ValueError):
    """Hypotheses and references do not fit, or one of them is missing."""


class ErrorCount(NamedTuple):
    """Edit operations against references of ``length`` units.

    Counts of several texts add up field by field; their rates do not.
    """

    substitutions: float
    deletions: float
    insertions: float
    length: float

    @property
    def rate(self) -> float:
        """Errors per reference unit in per cent, in [0, inf).

        Raises:
            ScoreError: the reference is empty, so there is no rate.
        """
        if not self.length:
            raise ScoreError(f"no rate against an empty reference: {self}")
        errors = self.substitutions + self.deletions + self.insertions
        return 100.0 * float(errors) / float(self.length)


@dataclasses.dataclass(frozen=True)
class Measure:
    """One metric on one cell, as counts that add.

    Args:
        counts: (N, K) float64, one line per utterance.
        rate: (K,) sum of lines -> score, per cent.
        reference_units: what the metric counts in the references: words (wer,
            ter), characters (cer, with blanks; chrf2, without), tokens (bleu).
        signature: how the score is made.
    """

    counts: np.ndarray
    rate: Callable[[np.ndarray], float]
    reference_units: int
    signature: str


def metrics_of(task: str) -> tuple[str, ...]:
    """Metrics of a task: word and character errors, or translation scores.

    Raises:
        ScoreError: neither ``asr`` nor ``st_XX``.
    """
    if task == "asr":
        return _ASR_METRICS
    if task.startswith("st_"):
        return _ST_METRICS
    raise ScoreError(f"no metric for task {task!r}; expected 'asr' or 'st_XX'")


def count_errors(reference: str, hypothesis: str, unit: str) -> ErrorCount:
    """Least edit operations from reference to hypothesis.

    Args:
        unit: ``word`` or ``char``.
    """
    import jiwer

    process = jiwer.process_words if unit == "word" else jiwer.process_characters
    out = process(reference, hypothesis)
    return ErrorCount(
        substitutions=out.substitutions,
        deletions=out.deletions,
        insertions=out.insertions,
        length=out.hits + out.substitutions + out.deletions,
    )


def measure(
    metric: str, references: Sequence[str], hypotheses: Sequence[str]
) -> Measure:
    """Count one metric on paired texts.

    Raises:
        ScoreError: an unknown metric, no text, or unequal numbers of texts.
    """
    if not references or len(references) != len(hypotheses):
        raise ScoreError(
            f"{metric}: expected one hypothesis for each reference, got "
            f"{len(hypotheses)} for {len(references)}"
        )
    if metric in _ASR_METRICS:
        return _edit_measure(metric, references, hypotheses)
    if metric in _ST_METRICS:
        return _sacrebleu_measure(metric, references, hypotheses)
    known = ", ".join(_ASR_METRICS + _ST_METRICS)
    raise ScoreError(f"unknown metric {metric!r}; known: {known}")


def _edit_measure(
    metric: str, references: Sequence[str], hypotheses: Sequence[str]
) -> Measure:
    unit = "word" if metric == "wer" else "char"
    counts = [
        count_errors(r, h, unit) for r, h in zip(references, hypotheses, strict=True)
    ]
    blanks = "" if metric == "wer" else "|blanks:counted"
    return Measure(
        counts=np.array(counts, dtype=np.float64),
        rate=lambda total: ErrorCount(*total).rate,
        reference_units=int(sum(c.length for c in counts)),
        signature=f"{metric}|unit:{unit}{blanks}|norm:none"
        f"|lib:jiwer{version('jiwer')}|bs:{RESAMPLES}|seed:{SEED}",
    )


def _sacrebleu_measure(
    metric: str, references: Sequence[str], hypotheses: Sequence[str]
) -> Measure:
    from sacrebleu.metrics import BLEU, CHRF, TER

    # no warning about blanks before full stops: it says nothing about a score
    scorer = {"bleu": lambda: BLEU(force=True), "chrf2": CHRF, "ter": TER}[metric]()
    # sacrebleu publishes mean and half-width only; its sentence statistics, which
    # its own significance tests read too, give the interval's true ends
    counts = scorer._extract_corpus_statistics(list(hypotheses), [list(references)])
    table = np.array(counts, dtype=np.float64)
    total = table.sum(axis=0)
    if metric == "chrf2":
        units = sum(len("".join(r.split())) for r in references)
    else:
        units = int(total[1])
    scorer.n_bootstrap, scorer.seed = RESAMPLES, SEED
    name = scorer._compute_score_from_stats(total).name
    return Measure(
        counts=table,
        rate=lambda sums: float(scorer._compute_score_from_stats(sums).score),
        reference_units=units,
        signature=f"{name}|{scorer.get_signature()}",
    )


def resampled(counts: np.ndarray, rate: Callable[[np.ndarray], float]) -> np.ndarray:
    """A score on each of the bootstrap's resamples, (RESAMPLES,) float64.

    The draws depend on the number of utterances alone: scores of the same utterances
    are paired.

    Args:
        counts: (N, K), one line per utterance.
        rate: (K,) sum of lines -> score.
    """
    rng = np.random.default_rng(SEED)
    lines = len(counts)
    return np.array(
        [
            rate(counts[rng.choice(lines, size=lines)].sum(axis=0))
            for _ in range(RESAMPLES)
        ]
    )


def bootstrap(
    counts: np.ndarray, rate: Callable[[np.ndarray], float]
) -> tuple[float, float]:
    """95 % interval of ``rate`` over utterances drawn with replacement.

    Args:
        counts: (N, K), one line per utterance.
        rate: (K,) sum of lines -> score.

    Returns:
        (low, high), per cent: the scores at ranks 26 and 975 of 1000.
    """
    scores = np.sort(resampled(counts, rate))
    cut = RESAMPLES // 40
    return float(scores[cut]), float(scores[-cut - 1])
