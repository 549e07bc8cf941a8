"""The hypotheses that a beam search goes on with."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from espnet_smoe.cache import DecoderCache
from espnet_smoe.ctc_prefix import Prefixes

__all__ = ["Beam"]


@dataclass(frozen=True)
class Beam:
    """K hypotheses of each of P rows; those of a row stand together.

    Args:
        yseq: (P * K, L) int64, prompts included.
        decoder: (P, K) float, log probabilities; minus infinity where a hypothesis has
            ended or never was one.
        score: (P, K) float, what they are ranked by.
        cache: the decoder's.
        prefixes: of CTC; None = without CTC.
        ctc: (P, K) double, log probabilities; None = without CTC.
    """

    yseq: torch.Tensor
    decoder: torch.Tensor
    score: torch.Tensor
    cache: DecoderCache
    prefixes: Prefixes | None = None
    ctc: torch.Tensor | None = None

    def of_rows(self, rows: torch.Tensor) -> Beam:
        """The hypotheses of some rows, (P',) int64."""

        def pick(x: torch.Tensor | None) -> torch.Tensor | None:
            return None if x is None else x[rows]

        per_row = self.score.size(1)
        kept = torch.arange(per_row, device=rows.device) + per_row * rows[:, None]
        return Beam(
            self.yseq[kept.view(-1)],
            pick(self.decoder),
            pick(self.score),
            self.cache.of_rows(rows, kept.view(-1)),
            None if self.prefixes is None else self.prefixes.of_rows(rows),
            pick(self.ctc),
        )
