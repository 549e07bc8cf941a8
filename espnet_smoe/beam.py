"""What a beam search goes on with: rows and their hypotheses."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from espnet_smoe.cache import DecoderCache
from espnet_smoe.ctc_prefix import Prefixes
from espnet_smoe.host import Hypothesis

__all__ = ["Beam", "SearchedRow"]


@dataclass
class SearchedRow:
    """A row of the batch.

    Args:
        number: place in the batch, from 0.
        maxlen, minlen: limits of its text, tokens; a shorter one is dropped.
        ended: hypotheses that have ended so far.
    """

    number: int
    maxlen: int
    minlen: int
    ended: list[Hypothesis] = field(default_factory=list)


@dataclass(frozen=True)
class Beam:
    """K hypotheses of each of P rows; those of a row stand together.

    Args:
        yseq: (P * K, L) int64, prompts included.
        decoder: (P, K) float, log probabilities; minus infinity where a hypothesis has
            ended or never was one.
        cache: the decoder's.
        prefixes: of CTC; None = without CTC.
    """

    yseq: torch.Tensor
    decoder: torch.Tensor
    cache: DecoderCache
    prefixes: Prefixes | None

    def of_rows(self, rows: torch.Tensor) -> Beam:
        """The hypotheses of some rows, (P',) int64 on CPU."""
        here = rows.to(self.yseq.device)
        per_row = self.decoder.size(1)
        kept = torch.arange(per_row, device=here.device) + per_row * here[:, None]
        return Beam(
            self.yseq[kept.view(-1)],
            self.decoder[here],
            self.cache.of_rows(rows, kept.view(-1)),
            None if self.prefixes is None else self.prefixes.of_rows(here),
        )
