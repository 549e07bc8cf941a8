"""Guide embedding, a baseline: guides enter as vectors, not as experts.

Source: bandwidth embeddings, arXiv 1909.02667; added rather than concatenated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from espnet_smoe.config import ConfigError
from espnet_smoe.guide import TASK, GuideTable

__all__ = ["GuideEmbedding"]


class GuideEmbedding(torch.nn.Module):
    """A learned vector per guide; those of several axes add up.

    All vectors are zero at first, so that training starts from the model without
    them (same seed, same parameters, same output) and every difference is learnt.

    Args:
        guides: every axis of the model.
        axes: names of the utterance axes to embed.
        width: width D.

    Raises:
        ConfigError: no list of distinct axes, or the task among them.
        GuideError: an unknown axis; lists the known ones.
    """

    def __init__(self, guides: GuideTable, axes: Sequence[str], width: int) -> None:
        super().__init__()
        if (
            isinstance(axes, str)
            or not isinstance(axes, Sequence)
            or not axes
            or len(set(map(str, axes))) != len(axes)
        ):
            raise ConfigError(
                f"guide_embedding must be a list of distinct axes, got {axes!r}"
            )
        if TASK in axes:
            raise ConfigError(
                "the encoder runs once per utterance: guide_embedding cannot hold "
                f"{TASK!r}"
            )
        self.tables = torch.nn.ModuleDict(
            {
                axis: torch.nn.Embedding.from_pretrained(
                    torch.zeros(len(guides.axis(axis).guides), width), freeze=False
                )
                for axis in axes
            }
        )

    def forward(self, guide_ids: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Embed the guides of a batch.

        Args:
            guide_ids: axis -> (B,) int64, guide ids; further axes are not read.

        Returns:
            (B, D), sum over the embedded axes.
        """
        vectors = [
            table(guide_ids[axis].to(table.weight.device))
            for axis, table in self.tables.items()
        ]
        return torch.stack(vectors).sum(0)
