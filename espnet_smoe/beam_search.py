"""The host's batched beam search: tokens that are no text masked, ended in time.

Ours are the mask, the end of a row where its n-best is known, and that rows which are
done leave the batch. The latter two change no n-best list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from espnet_smoe.cache import hypotheses_of
from espnet_smoe.host import BatchBeamSearch, BatchHypothesis, Hypothesis

__all__ = ["SMoEBeamSearch"]


class SMoEBeamSearch(BatchBeamSearch):
    """The host's search over a batch of rows, each ended where its n-best is known.

    Scores only fall as a hypothesis grows, unless tokens are rewarded or scores are
    divided by their number. So a row is done when its n-th best ended hypothesis is
    as good as the best that still runs; the host's own criterion comes steps later.

    Args:
        nbest: hypotheses wanted of each row.
        scorers, weights: name -> scorer, its weight; see the host's class.
        sos, eos: ids.
        banned: ids of tokens that are no text, so that none is ever emitted: blank,
            unknown, guiding tokens.
    """

    def __init__(
        self,
        nbest: int,
        scorers: dict[str, Any],
        weights: dict[str, float],
        beam_size: int,
        vocab_size: int,
        sos: int,
        eos: int,
        normalize_length: bool,
        banned: Sequence[int],
    ) -> None:
        super().__init__(
            scorers=scorers,
            weights=weights,
            beam_size=beam_size,
            vocab_size=vocab_size,
            sos=sos,
            eos=eos,
            token_list=None,
            pre_beam_score_key="full",
            normalize_length=normalize_length,
        )
        self.nbest = nbest
        mask = torch.zeros(vocab_size)
        mask[list(banned)] = -torch.inf
        self.register_buffer("mask", mask, persistent=False)
        self.scores_fall = weights["length_bonus"] <= 0.0 and not normalize_length

    def score_full(
        self,
        hyp: BatchHypothesis,
        x: torch.Tensor,
        pre_x: torch.Tensor | None = None,
        xs_mask: torch.Tensor | None = None,
        pre_xs_mask: torch.Tensor | None = None,
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The host's scores, masked; arguments are its own."""
        scores, states = super().score_full(hyp, x, pre_x, xs_mask, pre_xs_mask)
        return {**scores, "decoder": scores["decoder"] + self.mask}, states

    def post_process(
        self,
        i: int,
        maxlen: list[int],
        minlen: list[int],
        maxlenratio: float,
        running_hyps: BatchHypothesis,
        ended_hyps: list[list[Hypothesis]],
    ) -> BatchHypothesis:
        """The host's step, then the end of what is decided; arguments are its own."""
        running = super().post_process(
            i, maxlen, minlen, maxlenratio, running_hyps, ended_hyps
        )
        enough = any(len(ended) >= self.nbest for ended in ended_hyps)
        if not (self.scores_fall and enough and len(running)):
            return running
        active = running.active_mask().cpu()
        scores = running.score.cpu().masked_fill(~active, -torch.inf)
        best = scores.view(running.n_utt, -1).amax(1).tolist()
        was_done = running.done_mask().tolist()
        done = [
            was or (len(ended) >= self.nbest and self._last(ended) >= score)
            for was, ended, score in zip(was_done, ended_hyps, best, strict=True)
        ]
        return running.replace(done=torch.tensor(done))

    def _search_loop(
        self,
        x: torch.Tensor,
        x_lengths: torch.Tensor,
        xs: torch.Tensor,
        xs_mask: torch.Tensor | None,
        pre_xs: None,
        pre_xs_mask: None,
        maxlens: list[int],
        minlens: list[int],
        maxlenratio: float,
        n_utt: int,
        batched: bool,
    ) -> list[list[Hypothesis]]:
        """The host's loop, but rows that are done leave the batch.

        They leave when they are a quarter of it, for the rest is copied then.
        """
        ended: list[list[Hypothesis]] = [[] for _ in range(n_utt)]
        rows = list(range(n_utt))
        running = self.init_hyp(x, x_lengths)
        for i in range(max(maxlens)):
            running = self.post_process(
                i,
                [maxlens[row] for row in rows],
                [minlens[row] for row in rows],
                maxlenratio,
                self.search(running, xs, xs_mask=xs_mask),
                [ended[row] for row in rows],
            )
            left = (~running.done_mask()).nonzero().view(-1)
            if not len(left):
                break
            # the host keeps the hypotheses of a single row in another way
            if 1 < len(left) <= 0.75 * len(rows):
                rows = [rows[place] for place in left.tolist()]
                hyps = hypotheses_of(left, running.n_hyp_per_utt)
                running = _of_rows(running, left, hyps)
                xs = xs[hyps.to(xs.device)]
                xs_mask = None if xs_mask is None else xs_mask[hyps.to(xs.device)]
        return ended

    def _last(self, ended: Sequence[Hypothesis]) -> float:
        """Score of the n-th best."""
        return sorted((h.score for h in ended), reverse=True)[self.nbest - 1]

    @staticmethod
    def _release(hyp: Hypothesis) -> Hypothesis:
        # nothing reads the caches again, and each pins those of a whole step; the
        # score is read at every step
        return BatchBeamSearch._release(hyp._replace(states={}, score=float(hyp.score)))


def _of_rows(
    running: BatchHypothesis, rows: torch.Tensor, hyps: torch.Tensor
) -> BatchHypothesis:
    """Go on with rows that are not done: (P',) int64, and their hypotheses, (N',)."""

    def pick(x: torch.Tensor) -> torch.Tensor:
        return x[hyps.to(x.device)]

    return BatchHypothesis(
        yseq=pick(running.yseq),
        score=pick(running.score),
        length=pick(running.length),
        scores={name: pick(score) for name, score in running.scores.items()},
        states={
            name: [state[hyp] for hyp in hyps.tolist()]
            if isinstance(state, list)
            else state.of_rows(rows, hyps)
            for name, state in running.states.items()
        },
        n_utt=len(rows),
        active=pick(running.active_mask()),
    )
