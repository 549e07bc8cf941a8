"""CTC prefix scores of all hypotheses at once, without a loop over frames.

The host's scorer walks the frames in Python, for each hypothesis with each candidate
label. But a candidate's score is a plain sum over frames; only the forward
probabilities of a prefix are recursive, and only the prefixes that the search keeps
need them. The recursion

    z[t] = x[t] + log(exp z[t-1] + exp a[t-1])

is a cumulative log-sum-exp: with X the running sum of x,

    z[t] = X[t] + log sum_{s <= t} exp(a[s-1] - X[s-1]).

Source: Watanabe et al., "Hybrid CTC/attention architecture for end-to-end speech
recognition" (IEEE JSTSP 2017), algorithm 2; the host's ``CTCPrefixScorer`` computes
the same and is the reference in the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from espnet_smoe.cache import hypotheses_of
from espnet_smoe.host import CTCPrefixScorer

__all__ = ["ParallelCTCPrefixScorer"]

BLANK = 0  # the host's
LOG_ZERO = -1e10  # as the host has it; infinities would turn into NaN


@dataclass(frozen=True)
class Posteriors:
    """What CTC says of P rows of T frames; the state before the first label.

    Args:
        logp: (T, P, V) float; in the padding blank is certain.
        last_frame: (P,) int64.
    """

    logp: torch.Tensor
    last_frame: torch.Tensor

    def of_rows(self, rows: torch.Tensor) -> Posteriors:
        """Those of some rows, (P',) int64."""
        return Posteriors(self.logp[:, rows], self.last_frame[rows])

    def row_of(self, hyps: torch.Tensor, num_hyps: int) -> torch.Tensor:
        """The row of some of N hypotheses, of which those of a row stand together."""
        per_row = num_hyps // self.logp.size(1)
        return torch.div(hyps, per_row, rounding_mode="floor")


@dataclass(frozen=True)
class Prefixes:
    """Forward probabilities of N prefixes. Entry t is after t frames.

    In double precision, for a score is the difference of two sums over all frames.

    Args:
        last: (N,) int64, their last labels.
        silent: (T + 1, N) double, log probability of the prefix with blank at the end.
        reached: (T + 1, N) double, of the prefix with either at the end.
        score: (N,) double, log probability of all texts that begin with the prefix.
    """

    last: torch.Tensor
    silent: torch.Tensor
    reached: torch.Tensor
    score: torch.Tensor

    def select(self, hyps: torch.Tensor) -> Prefixes:
        """Some of them, (N',) int64."""
        return Prefixes(
            self.last[hyps],
            self.silent[:, hyps],
            self.reached[:, hyps],
            self.score[hyps],
        )

    def before(self, labels: torch.Tensor) -> torch.Tensor:
        """Log probability of what each of S labels can follow, (T, N, S) double.

        A label that is repeated needs a blank between.

        Args:
            labels: (N, S) int64.
        """
        repeated = labels == self.last[:, None]
        silent, reached = self.silent[:-1, :, None], self.reached[:-1, :, None]
        return torch.where(repeated, silent, reached)


@dataclass(frozen=True)
class Scored:
    """Prefixes and their continuations: (N, V) double, log probability of all texts
    that begin with the prefix and a label, or for ``<eos>`` are the prefix."""

    posteriors: Posteriors
    prefixes: Prefixes
    scores: torch.Tensor


@dataclass(frozen=True)
class Picked:
    """The continuations that the search goes on with: (N',) int64 each."""

    scored: Scored
    hyps: torch.Tensor
    labels: torch.Tensor

    def advance(self) -> Prefixes:
        """Their forward probabilities."""
        posteriors, prefixes = self.scored.posteriors, self.scored.prefixes
        rows = posteriors.row_of(self.hyps, len(prefixes.last))
        spoken = posteriors.logp[:, rows, self.labels]
        before = prefixes.select(self.hyps).before(self.labels[:, None])[:, :, 0]
        label = _recursion(spoken, before)
        silent = _recursion(posteriors.logp[:, rows, BLANK], label[:-1])
        return Prefixes(
            self.labels,
            silent,
            torch.logaddexp(label, silent),
            self.scored.scores[self.hyps, self.labels],
        )

    def of_rows(self, rows: torch.Tensor, hyps: torch.Tensor) -> Picked:
        """Those of some rows, (P',) int64, at the places ``hyps``, (N',) int64."""
        rows, hyps = rows.to(self.hyps.device), hyps.to(self.hyps.device)
        old = self.scored
        num_hyps = len(old.scores)
        kept = hypotheses_of(rows, num_hyps // old.posteriors.logp.size(1))
        scored = Scored(
            old.posteriors.of_rows(rows), old.prefixes.select(kept), old.scores[kept]
        )
        moved_to = kept.new_zeros(num_hyps)
        moved_to[kept] = torch.arange(len(kept), device=kept.device)
        return Picked(scored, moved_to[self.hyps[hyps]], self.labels[hyps])


@dataclass(frozen=True)
class PickedOne:
    """One hypothesis of those picked; or of those scored, continued by ``label``."""

    state: Picked | Scored
    index: int
    label: int | None = None


class ParallelCTCPrefixScorer(CTCPrefixScorer):
    """The host's exact scorer, for its ``BatchBeamSearch``."""

    def batch_init_state(
        self, x: torch.Tensor, xs_lengths: torch.Tensor | None = None
    ) -> Posteriors:
        """(T, D) or (P, T, D) encoder output and its (P,) lengths -> first state."""
        logp = self.ctc.log_softmax(x if x.dim() == 3 else x[None]).float()
        logp = logp.transpose(0, 1)
        if xs_lengths is None:
            xs_lengths = torch.full((logp.size(1),), len(logp))
        lengths = xs_lengths.to(x.device)
        padding = torch.arange(len(logp), device=x.device)[:, None] >= lengths
        certain = logp.new_full(logp.shape[2:], LOG_ZERO)
        certain[BLANK] = 0.0
        logp = torch.where(padding[:, :, None], certain, logp)
        return Posteriors(logp, lengths - 1)

    def batch_score_partial(
        self,
        y: torch.Tensor,
        ids: torch.Tensor,
        state: Posteriors | Picked | Sequence[Posteriors | PickedOne],
        x: torch.Tensor,
    ) -> tuple[torch.Tensor, Scored]:
        """Score candidate labels.

        Args:
            y: (N, L) int64, prefixes; only their number is read.
            ids: (N, S) or (S,) int64, candidates.
            state: what ``batch_init_state`` or a selection returned.
            x: not read.

        Returns:
            (N, V) log probabilities given the prefix, about -1e10 for what is no
            candidate, and the new state.
        """
        state = _merge(state)
        if isinstance(state, Posteriors):
            posteriors, prefixes = state, _no_labels(state, len(y))
        else:
            posteriors, prefixes = state.scored.posteriors, state.advance()
        hyps = torch.arange(len(y), device=ids.device)
        rows = posteriors.row_of(hyps, len(y))
        ids, logp = ids.expand(len(y), -1), posteriors.logp

        spoken = logp[:, rows[:, None], ids]
        sums = (prefixes.before(ids) + spoken).logsumexp(0)
        scores = sums.new_full((len(y), logp.size(2)), LOG_ZERO).scatter(1, ids, sums)
        scores[:, self.eos] = prefixes.reached[posteriors.last_frame[rows] + 1, hyps]
        scores[:, BLANK] = LOG_ZERO
        found = (scores - prefixes.score[:, None]).to(logp)
        return found, Scored(posteriors, prefixes, scores)

    def batch_select_state(self, state: Scored, best_ids: torch.Tensor) -> Picked:
        """Go on with (P, K) int64 ``hypothesis * V + label`` of each row."""
        num_hyps, vocab_size = state.scores.shape
        rows = torch.arange(len(best_ids), device=best_ids.device)[:, None]
        hyps = torch.div(best_ids, vocab_size, rounding_mode="floor")
        hyps = hyps + rows * (num_hyps // len(best_ids))
        return Picked(state, hyps.view(-1), (best_ids % vocab_size).view(-1))

    def select_state(
        self,
        state: Scored | Picked | Sequence[PickedOne],
        i: int,
        new_id: int | None = None,
    ) -> PickedOne:
        """Go on with hypothesis ``i``, continued by ``new_id`` if just scored."""
        if isinstance(state, (Scored, Picked)):
            return PickedOne(state, i, new_id)
        return state[i]


def _merge(
    state: Posteriors | Picked | Sequence[Posteriors | PickedOne],
) -> Posteriors | Picked:
    """One state from what the host hands to ``batch_score_partial``."""
    if isinstance(state, (Posteriors, Picked)):
        return state
    first = state[0]
    if isinstance(first, Posteriors):  # before the first label: N times the same
        return first
    picked = first.state
    scored = picked if isinstance(picked, Scored) else picked.scored
    device = scored.scores.device
    hyps = torch.tensor([one.index for one in state], device=device)
    if picked is scored:
        labels = torch.tensor([one.label for one in state], device=device)
        return Picked(scored, hyps, labels)
    return Picked(scored, picked.hyps[hyps], picked.labels[hyps])


def _no_labels(posteriors: Posteriors, num_hyps: int) -> Prefixes:
    """N times the empty prefix: nothing but blanks so far."""
    logp = posteriors.logp
    hyps = torch.arange(num_hyps, device=logp.device)
    blanks = logp[:, posteriors.row_of(hyps, num_hyps), BLANK].double().cumsum(0)
    silent = torch.nn.functional.pad(blanks, (0, 0, 1, 0))
    return Prefixes(hyps.new_full((num_hyps,), -1), silent, silent, silent[0])


def _recursion(x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """z[0] = log 0, z[t + 1] = x[t] + log(exp z[t] + exp a[t]).

    Args:
        x: (T, N) float; a: (T, N) double.

    Returns:
        (T + 1, N) double.
    """
    sums = torch.nn.functional.pad(x.double().cumsum(0), (0, 0, 1, 0))
    z = sums[1:] + torch.logcumsumexp(a - sums[:-1], dim=0)
    return torch.nn.functional.pad(z, (0, 0, 1, 0), value=LOG_ZERO)
