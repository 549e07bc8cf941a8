"""Joint CTC/attention beam search: the host's, with a step of our own.

Entry, limits of length, ranking and the second try of an empty search are the host's.
Ours is the loop. It keeps the hypotheses of a row together, goes on from the first one
alone, scores with CTC only what the decoder likes best, ends a row where its n-best is
known, and lets rows that are done leave the batch. No n-best list changes by it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from espnet2.asr.ctc import CTC

from espnet_smoe.beam import Beam, SearchedRow
from espnet_smoe.cache import places_of
from espnet_smoe.ctc_prefix import Posteriors, Prefixes
from espnet_smoe.decoder import SMoETransformerDecoder
from espnet_smoe.host import BatchBeamSearch, Hypothesis

__all__ = ["SMoEBeamSearch"]


class SMoEBeamSearch(BatchBeamSearch):
    """Search over a batch of rows, each ended where its n-best is known.

    It takes encoder output (P, T, D) with lengths; the host's takes (T, D) too.

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
            scorers={},  # the host's loop would ask them
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
        limits = zip(maxlens, minlens, strict=True)
        batch = [SearchedRow(number, *pair) for number, pair in enumerate(limits)]
        rows, beam = batch, self._start(x, x_lengths)
        for i in range(max(maxlens)):
            beam, score, ctc = self._extend(beam)
            running = self._collect(beam, score, ctc, i, rows)
            done = [
                self._is_done(row, best, i, maxlenratio)
                for row, best in zip(rows, running, strict=True)
            ]
            if all(done):
                break
            beam = self._without_ended(beam, done)
            # what stays is copied: not for the sake of a few
            if done.count(False) <= 0.75 * len(rows):
                left = [place for place, it_is in enumerate(done) if not it_is]
                rows = [rows[place] for place in left]
                beam = beam.of_rows(torch.tensor(left))
        return [row.ended for row in batch]

    def _start(self, x: torch.Tensor, x_lengths: torch.Tensor) -> Beam:
        """One hypothesis a row: ``<sos>`` and the prompt."""
        primers = torch.tensor(self.hyp_primer)
        decoder = x.new_zeros(len(x), 1, dtype=torch.float32)
        cache = self.decoder.start_search(x, x_lengths, primers[:, 1:])
        prefixes = None
        if self.ctc is not None:
            logp = self.ctc.log_softmax(x)
            prefixes = Prefixes.empty(Posteriors.of(logp, x_lengths.to(x.device)))
        return Beam(primers.to(x.device), decoder, cache, prefixes)

    def _extend(self, beam: Beam) -> tuple[Beam, torch.Tensor, torch.Tensor | None]:
        """The K best continuations of each row.

        Returns:
            They, (P, K) float what they are ranked by, and (P, K) double their log
            probabilities by CTC, None = without CTC.
        """
        logp, cache = self.decoder.score_next(beam.yseq, beam.cache)
        logp = (logp.float() + self.mask).unflatten(0, beam.decoder.shape)
        decoder = beam.decoder[:, :, None] + logp
        labels = ctc = prefixes = None
        if self.ctc is None:
            score = decoder
        else:
            decoder, labels = self._pre_beam(decoder)
            ctc = beam.prefixes.scores(labels, self.eos)
            score = (
                self.weights["decoder"] * decoder + self.weights["ctc"] * ctc.float()
            )
        num_tokens = beam.yseq.size(1) + 1 - self._primer_length()
        score = score + self.weights["length_bonus"] * num_tokens

        candidates = score.flatten(1)
        best, places = candidates.topk(min(self.beam_size, candidates.size(1)))
        parents = places.div(score.size(2), rounding_mode="floor")
        if labels is None:
            tokens = places % self.n_vocab
        else:
            tokens = labels.flatten(1).gather(1, places)
            ctc = ctc.flatten(1).gather(1, places)
            prefixes = beam.prefixes.extend(parents, tokens)
        hyps = places_of(parents, beam.decoder.size(1))
        extended = Beam(
            torch.cat([beam.yseq[hyps], tokens.view(-1, 1)], 1),
            decoder.flatten(1).gather(1, places),
            cache.select(hyps),
            prefixes,
        )
        return extended, best, ctc

    def _pre_beam(self, decoder: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the decoder likes best, (P, K, V) -> scores and labels, (P, K, S + 1).

        ``<eos>`` always is a candidate, and never twice.
        """
        best, labels = decoder.topk(min(self.pre_beam_size, self.n_vocab))
        best = best.masked_fill(labels == self.eos, -torch.inf)
        best = torch.cat([best, decoder[:, :, self.eos, None]], 2)
        return best, torch.nn.functional.pad(labels, (0, 1), value=self.eos)

    def _without_ended(self, beam: Beam, done: Sequence[bool]) -> Beam:
        """Never go on with hypotheses that have ended, or with rows that are done."""
        has_ended = (beam.yseq[:, -1] == self.eos).view(beam.decoder.shape)
        is_done = torch.tensor(done, device=has_ended.device)[:, None]
        decoder = beam.decoder.masked_fill(has_ended | is_done, -torch.inf)
        return dataclasses.replace(beam, decoder=decoder)

    def _collect(
        self,
        beam: Beam,
        score: torch.Tensor,
        ctc: torch.Tensor | None,
        i: int,
        rows: Sequence[SearchedRow],
    ) -> list[float]:
        """Take the hypotheses that have ended at step ``i``, as ``_extend`` gave them.

        At the limit of its length every hypothesis ends, and the host appends an
        ``<eos>`` for nothing, to one that has just ended by itself too.

        Those of more labels than CTC has frames for stay, at about -1e10 times its
        weight, as they do in the host.

        Returns:
            The best score that runs on of each of the P rows.

        Raises:
            ValueError: a score is not a number.
        """
        parts = {"decoder": beam.decoder}
        if ctc is not None:
            parts["ctc"] = ctc
        last = beam.yseq[:, -1].view(beam.decoder.shape)
        # the one transfer to the host of a step; doubles hold ids exactly
        tensors = (last, score, *parts.values())
        last, scores, *values = torch.stack([x.double() for x in tensors]).tolist()
        parts = dict(zip(parts, values, strict=True))
        running, per_row = [], beam.decoder.size(1)
        for place, row in enumerate(rows):
            at_limit, best = i == row.maxlen - 1, -torch.inf
            for k, score in enumerate(scores[place]):
                if math.isnan(score):
                    raise ValueError(
                        f"row {row.number} of the batch has a score that is no number: "
                        "the model's weights or the encoder's output hold NaN"
                    )
                if score == -torch.inf:
                    continue
                if not at_limit and last[place][k] != self.eos:
                    best = max(best, score)
                elif i >= row.minlen:
                    # a copy: a slice would keep the whole batch
                    yseq = beam.yseq[place * per_row + k].clone()
                    if at_limit:
                        yseq = self.append_token(yseq, self.eos)
                    by_name = {name: value[place][k] for name, value in parts.items()}
                    if self.weights["length_bonus"]:
                        by_name["length_bonus"] = i + 1.0
                    row.ended.append(Hypothesis(yseq, score, by_name))
            running.append(best)
        return running

    def _is_done(
        self, row: SearchedRow, running: float, i: int, maxlenratio: float
    ) -> bool:
        """Whether nothing that runs on can be among the n-best of a row."""
        ended = row.ended
        if running == -torch.inf:
            return True
        if self.scores_fall and len(ended) >= self.nbest:
            scores = sorted((hyp.score for hyp in ended), reverse=True)
            if scores[self.nbest - 1] >= running:
                return True
        return maxlenratio == 0.0 and bool(ended) and self.end_detected(ended, i)
