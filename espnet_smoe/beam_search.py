"""Joint CTC/attention beam search: the host's, with a step of our own.

Entry, limits of length, ranking and the second try of an empty search are the host's.
Ours is the loop. It keeps the hypotheses of a row together, goes on from the first one
alone, scores with CTC only what the decoder likes best, ends a row where its n-best is
known, and lets rows that are done leave the batch. No n-best list changes by it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from espnet2.asr.ctc import CTC

from espnet_smoe.cache import DecoderCache, places_of
from espnet_smoe.ctc_prefix import Posteriors, Prefixes
from espnet_smoe.decoder import SMoETransformerDecoder
from espnet_smoe.host import (
    BatchBeamSearch,
    CTCPrefixScorer,
    Hypothesis,
    LengthBonus,
)

__all__ = ["SMoEBeamSearch"]


@dataclass(frozen=True)
class _Beam:
    """K hypotheses of each of P rows; those of a row stand together.

    Args:
        yseq: (P * K, L) int64, prompts included.
        decoder: (P, K) float, log probabilities; minus infinity where a hypothesis has
            ended or never was one.
        score: (P, K) float, what they are ranked by.
        cache: the decoder's.
        prefixes: of CTC, before the last token; None = without CTC.
        parents: (P, K) int64, which of the prefixes each hypothesis continues.
        ctc: (P, K) double, log probabilities; None = without CTC.
    """

    yseq: torch.Tensor
    decoder: torch.Tensor
    score: torch.Tensor
    cache: DecoderCache
    prefixes: Prefixes | None = None
    parents: torch.Tensor | None = None
    ctc: torch.Tensor | None = None

    def of_rows(self, rows: torch.Tensor) -> _Beam:
        """The hypotheses of some rows, (P',) int64."""

        def pick(x: torch.Tensor | None) -> torch.Tensor | None:
            return None if x is None else x[rows]

        per_row = self.score.size(1)
        kept = torch.arange(per_row, device=rows.device) + per_row * rows[:, None]
        return _Beam(
            self.yseq[kept.view(-1)],
            pick(self.decoder),
            pick(self.score),
            self.cache.of_rows(rows, kept.view(-1)),
            None if self.prefixes is None else self.prefixes.of_rows(rows),
            pick(self.parents),
            pick(self.ctc),
        )


class SMoEBeamSearch(BatchBeamSearch):
    """Search over a batch of rows, each ended where its n-best is known.

    Scores only fall as a hypothesis grows, unless tokens are rewarded or scores are
    divided by their number. So a row is done when its n-th best ended hypothesis is
    as good as the best that still runs; the host's own criterion comes steps later.

    Args:
        nbest: hypotheses wanted of each row.
        decoder: scores every token.
        ctc: scores what the decoder likes best; None = attention alone.
        ctc_weight: weight of CTC against the decoder, in [0, 1).
        penalty: added for every token.
        beam_size: hypotheses kept of each row, K.
        vocab_size: V.
        sos, eos: ids.
        normalize_length: rank finished hypotheses by score per token.
        banned: ids of tokens that are no text, so that none is ever emitted: blank,
            unknown, guiding tokens.
    """

    def __init__(
        self,
        nbest: int,
        decoder: SMoETransformerDecoder,
        ctc: CTC | None,
        ctc_weight: float,
        penalty: float,
        beam_size: int,
        vocab_size: int,
        sos: int,
        eos: int,
        normalize_length: bool,
        banned: Sequence[int],
    ) -> None:
        super().__init__(
            scorers={
                "decoder": decoder,
                "ctc": None if ctc is None else CTCPrefixScorer(ctc, eos),
                "length_bonus": LengthBonus(vocab_size),
            },
            weights={
                "decoder": 1.0 - ctc_weight,
                "ctc": ctc_weight,
                "length_bonus": penalty,
            },
            beam_size=beam_size,
            vocab_size=vocab_size,
            sos=sos,
            eos=eos,
            token_list=None,
            pre_beam_score_key="full",
            normalize_length=normalize_length,
        )
        self.nbest = nbest
        self.decoder, self.ctc = decoder, ctc
        mask = torch.zeros(vocab_size)
        mask[list(banned)] = -torch.inf
        self.register_buffer("mask", mask, persistent=False)
        self.scores_fall = penalty <= 0.0 and not normalize_length

    @staticmethod
    def _replicate_over_beam(
        x: torch.Tensor, *_: object
    ) -> tuple[torch.Tensor, None, None, None]:
        return x, None, None, None  # the decoder keeps what it needs of a row once

    def _search_loop(
        self,
        x: torch.Tensor,
        x_lengths: torch.Tensor,
        xs: torch.Tensor,
        xs_mask: None,
        pre_xs: None,
        pre_xs_mask: None,
        maxlens: list[int],
        minlens: list[int],
        maxlenratio: float,
        n_utt: int,
        batched: bool,
    ) -> list[list[Hypothesis]]:
        """All hypotheses that ended, of each row; arguments are the host's."""
        ended: list[list[Hypothesis]] = [[] for _ in range(n_utt)]
        rows = list(range(n_utt))
        beam = self._start(x, x_lengths)
        for i in range(max(maxlens)):
            beam = self._extend(beam)
            last = beam.yseq[:, -1].tolist()
            running = self._collect(beam, last, i, rows, maxlens, minlens, ended)
            done = [
                self._is_done(ended[row], best, i, maxlenratio)
                for row, best in zip(rows, running, strict=True)
            ]
            if all(done):
                break
            if any(done) or self.eos in last:
                beam = self._without_ended(beam, done)
            # what stays is copied: not for the sake of a few
            if done.count(False) <= 0.75 * len(rows):
                left = [place for place, it_is in enumerate(done) if not it_is]
                rows = [rows[place] for place in left]
                beam = beam.of_rows(torch.tensor(left, device=x.device))
        return ended

    def _start(self, x: torch.Tensor, x_lengths: torch.Tensor) -> _Beam:
        """One hypothesis a row: the prompt."""
        score = x.new_zeros(len(x), 1, dtype=torch.float32)
        beam = _Beam(
            torch.stack(self._primers(len(x), x.device)),
            score,
            score,
            self.decoder.batch_init_state(x, x_lengths),
        )
        if self.ctc is None:
            return beam
        posteriors = Posteriors.of(self.ctc.log_softmax(x), x_lengths.to(x.device))
        return dataclasses.replace(beam, prefixes=Prefixes.empty(posteriors))

    def _extend(self, beam: _Beam) -> _Beam:
        """The K best continuations of each row."""
        logp, cache = self.decoder.score_next(beam.yseq, beam.cache)
        logp = (logp.float() + self.mask).unflatten(0, beam.score.shape)
        decoder = beam.decoder[:, :, None] + logp
        labels = ctc = prefixes = None
        if self.ctc is None:
            score = decoder
        else:
            prefixes = beam.prefixes
            if beam.parents is not None:
                last = beam.yseq[:, -1].view(beam.score.shape)
                prefixes = prefixes.extend(beam.parents, last)
            decoder, labels = self._pre_beam(decoder)
            ctc = prefixes.scores(labels, self.eos)
            score = (
                self.weights["decoder"] * decoder + self.weights["ctc"] * ctc.float()
            )
        tokens = beam.yseq.size(1) + 1 - self._primer_length()
        score = score + self.weights["length_bonus"] * tokens

        best, places = score.flatten(1).topk(self.beam_size)
        parents = places.div(score.size(2), rounding_mode="floor")
        if labels is None:
            tokens = places % self.n_vocab
        else:
            tokens = labels.flatten(1).gather(1, places)
            ctc = ctc.flatten(1).gather(1, places)
        hyps = places_of(parents, beam.score.size(1))
        return _Beam(
            torch.cat([beam.yseq[hyps], tokens.view(-1, 1)], 1),
            decoder.flatten(1).gather(1, places),
            best,
            cache.select(hyps),
            prefixes,
            parents,
            ctc,
        )

    def _pre_beam(self, decoder: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the decoder likes best, (P, K, V) -> scores and labels, (P, K, S + 1).

        ``<eos>`` always is a candidate, and never twice.
        """
        best, labels = decoder.topk(min(self.pre_beam_size, self.n_vocab))
        best = best.masked_fill(labels == self.eos, -torch.inf)
        best = torch.cat([best, decoder[:, :, self.eos, None]], 2)
        return best, torch.nn.functional.pad(labels, (0, 1), value=self.eos)

    def _without_ended(self, beam: _Beam, done: Sequence[bool]) -> _Beam:
        """Never go on with hypotheses that have ended, or with rows that are done."""
        has_ended = (beam.yseq[:, -1] == self.eos).view(beam.score.shape)
        is_done = torch.tensor(done, device=has_ended.device)[:, None]
        decoder = beam.decoder.masked_fill(has_ended | is_done, -torch.inf)
        return dataclasses.replace(beam, decoder=decoder)

    def _collect(
        self,
        beam: _Beam,
        last: Sequence[int],
        i: int,
        rows: Sequence[int],
        maxlens: Sequence[int],
        minlens: Sequence[int],
        ended: Sequence[list[Hypothesis]],
    ) -> list[float]:
        """Take the hypotheses that have ended at step ``i``.

        At the limit of its length every hypothesis ends, and the host appends an
        ``<eos>`` for nothing, to one that has just ended by itself too.

        Args:
            last: last tokens of the P * K hypotheses.
            rows: of the whole batch, which the P rows of the beam are.
            maxlens, minlens: limits of the whole batch's rows, tokens.
            ended: of the whole batch's rows, to which they are added.

        Returns:
            The best score that runs on of each of the P rows.
        """
        parts = {"decoder": beam.decoder.tolist()}
        if beam.ctc is not None:
            parts["ctc"] = beam.ctc.tolist()
        running, per_row = [], beam.score.size(1)
        for place, (row, scores) in enumerate(
            zip(rows, beam.score.tolist(), strict=True)
        ):
            at_limit, best = i == maxlens[row] - 1, -torch.inf
            for k, score in enumerate(scores):
                hyp = place * per_row + k
                if score == -torch.inf:
                    continue
                if not at_limit and last[hyp] != self.eos:
                    best = max(best, score)
                elif i >= minlens[row]:
                    yseq = beam.yseq[hyp].clone()  # a slice would keep the whole batch
                    if at_limit:
                        yseq = self.append_token(yseq, self.eos)
                    by_name = {name: values[place][k] for name, values in parts.items()}
                    if "length_bonus" in self.scorers:
                        by_name["length_bonus"] = i + 1.0
                    ended[row].append(Hypothesis(yseq, score, by_name))
            running.append(best)
        return running

    def _is_done(
        self, ended: Sequence[Hypothesis], running: float, i: int, maxlenratio: float
    ) -> bool:
        """Whether nothing that runs on can be among the n-best of a row."""
        if running == -torch.inf:
            return True
        if self.scores_fall and len(ended) >= self.nbest:
            scores = sorted((hyp.score for hyp in ended), reverse=True)
            if scores[self.nbest - 1] >= running:
                return True
        return maxlenratio == 0.0 and bool(ended) and self.end_detected(ended, i)
