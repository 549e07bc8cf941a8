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

from dataclasses import dataclass

import torch

from espnet_smoe.cache import places_of

__all__ = ["Posteriors", "Prefixes"]

BLANK = 0  # the host's
LOG_ZERO = -1e10  # as the host has it; infinities would turn into NaN


@dataclass(frozen=True)
class Posteriors:
    """What CTC says of P rows of T frames; in their padding blank is certain.

    Args:
        logp: (P, V, T) float, so that the frames of a label lie together.
        blanks: (P, 1, T + 1) double, log probability of nothing but blanks until t.
    """

    logp: torch.Tensor
    blanks: torch.Tensor

    @classmethod
    def of(cls, logp: torch.Tensor, lengths: torch.Tensor) -> Posteriors:
        """Read what the softmax of CTC gives.

        Args:
            logp: (P, T, V) float; what lies in the padding is never read.
            lengths: (P,) int64, frames.
        """
        logp = logp.float().transpose(1, 2)
        padding = torch.arange(logp.size(2), device=logp.device) >= lengths[:, None]
        certain = logp.new_full((logp.size(1), 1), LOG_ZERO)
        certain[BLANK] = 0.0
        logp = torch.where(padding[:, None, :], certain, logp)
        return cls(logp.contiguous(), _running_sum(logp[:, BLANK, None]))

    def of_rows(self, rows: torch.Tensor) -> Posteriors:
        """Those of some rows, (P',) int64."""
        return Posteriors(self.logp[rows], self.blanks[rows])

    def of_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Log probability of some labels, (P, ...) int64 -> (P, ..., T) float."""
        places = places_of(labels.flatten(1), self.logp.size(1))
        spoken = self.logp.flatten(0, 1).index_select(0, places)
        return spoken.unflatten(0, labels.shape)


@dataclass(frozen=True)
class Prefixes:
    """Forward probabilities of K prefixes of each of P rows. Entry t: after t frames.

    In double precision, for a score is the difference of two sums over all frames.

    Args:
        posteriors: of the rows.
        last: (P, K) int64, last labels.
        silent: (P, K, T + 1) double, log probability of the prefix with blank at the
            end.
        reached: (P, K, T + 1) double, of the prefix with either at the end.
    """

    posteriors: Posteriors
    last: torch.Tensor
    silent: torch.Tensor
    reached: torch.Tensor

    @classmethod
    def empty(cls, posteriors: Posteriors) -> Prefixes:
        """The empty prefix of each row (K = 1): nothing but blanks so far."""
        blanks = posteriors.blanks
        last = torch.full(blanks.shape[:2], -1, device=blanks.device)
        return cls(posteriors, last, blanks, blanks)

    def of_rows(self, rows: torch.Tensor) -> Prefixes:
        """Those of some rows, (P',) int64."""
        parts = (self.last, self.silent, self.reached)
        return Prefixes(self.posteriors.of_rows(rows), *(part[rows] for part in parts))

    def scores(self, labels: torch.Tensor, eos: int) -> torch.Tensor:
        """Log probability of all texts that begin with a prefix and a label.

        Args:
            labels: (P, K, S) int64, continuations of each prefix, no blanks; ``eos``
                means that the prefix is the whole text.

        Returns:
            (P, K, S) double.
        """
        # a label that is repeated needs a blank between
        repeated = (labels == self.last[:, :, None])[..., None]
        silent, reached = (z[:, :, None, :-1] for z in (self.silent, self.reached))
        before = torch.where(repeated, silent, reached)
        begun = (before + self.posteriors.of_labels(labels)).logsumexp(-1)
        # behind the last frame of a row everything stays as it is
        return torch.where(labels == eos, self.reached[:, :, -1:], begun)

    def extend(self, hyps: torch.Tensor, labels: torch.Tensor) -> Prefixes:
        """Prefixes with one more label.

        Args:
            hyps: (P, K') int64, which of the K prefixes.
            labels: (P, K') int64, continuations.
        """
        places = places_of(hyps, self.last.size(1))
        last, silent, reached = (
            z.flatten(0, 1).index_select(0, places).unflatten(0, hyps.shape)
            for z in (self.last, self.silent, self.reached)
        )
        before = torch.where((labels == last)[..., None], silent, reached)
        spoken = _running_sum(self.posteriors.of_labels(labels))
        label = _recursion(spoken, before[..., :-1])
        silent = _recursion(self.posteriors.blanks, label[..., :-1])
        reached = torch.logaddexp(label, silent)
        return Prefixes(self.posteriors, labels, silent, reached)


def _running_sum(x: torch.Tensor) -> torch.Tensor:
    """(..., T) float -> (..., T + 1) double, from 0."""
    return torch.nn.functional.pad(x.double().cumsum(-1), (1, 0))


def _recursion(sums: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """z[0] = log 0, z[t + 1] = x[t] + log(exp z[t] + exp a[t]).

    Args:
        sums: (..., T + 1) double, running sums of x from 0.
        a: (..., T) double.

    Returns:
        (..., T + 1) double.
    """
    z = sums[..., 1:] + torch.logcumsumexp(a - sums[..., :-1], dim=-1)
    return torch.nn.functional.pad(z, (1, 0), value=LOG_ZERO)
