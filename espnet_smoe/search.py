"""Joint CTC/attention beam search over (utterance, task) rows.

Says which rows are searched how: ASR with CTC, others by the decoder alone, each from
its prompt. The search itself is in ``beam_search.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from espnet_smoe.beam_search import SMoEBeamSearch
from espnet_smoe.config import ConfigError, check_keys, check_number
from espnet_smoe.host import Hypothesis
from espnet_smoe.model import SMoEModel
from espnet_smoe.rows import Rows
from espnet_smoe.tokens import special_ids

__all__ = ["RowSearch", "SearchConfig"]


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Options of decoding (YAML ``decode.yaml``), under ESPnet's names."""

    beam_size: int = 5
    """Hypotheses kept per row."""

    ctc_weight: float = 0.3
    """Weight of CTC against the decoder in [0, 1) for task ``asr``; translations are
    not monotonic and get none."""

    penalty: float = 0.0
    """Added to the score for every token."""

    maxlenratio: float = 0.0
    """Longest hypothesis in tokens per encoder frame; 0 = the number of frames, and
    stop when longer ones cannot win; negative = that many tokens."""

    minlenratio: float = 0.0
    """Shortest hypothesis in tokens per encoder frame; negative = that many tokens."""

    normalize_length: bool = False
    """Rank finished hypotheses by score per token."""

    nbest: int = 1
    """Hypotheses returned per row."""

    batch_size: int = 32
    """Utterances encoded and searched together."""

    def __post_init__(self) -> None:
        for name in ("ctc_weight", "penalty", "maxlenratio", "minlenratio"):
            check_number(name, getattr(self, name))
        for name in ("beam_size", "nbest", "batch_size"):
            check_number(name, getattr(self, name), int)
        if not isinstance(self.normalize_length, bool):
            raise ConfigError(
                f"normalize_length must be true or false, got {self.normalize_length!r}"
            )
        if not 0.0 <= self.ctc_weight < 1.0:
            raise ConfigError(f"ctc_weight must lie in [0, 1), got {self.ctc_weight}")
        for name in ("beam_size", "nbest", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be >= 1, got {getattr(self, name)}")

    @classmethod
    def from_mapping(cls, conf: Mapping[str, Any]) -> SearchConfig:
        """Build from YAML.

        Raises:
            ConfigError: a key that is not known; lists the known ones.
        """
        names = [f.name for f in dataclasses.fields(cls)]
        check_keys("the decoding config", conf, names)
        return cls(**conf)

    @classmethod
    def from_yaml(cls, path: Path) -> SearchConfig:
        """Read ``decode.yaml``.

        Raises:
            ConfigError: the file is missing, no YAML mapping, or holds a bad key.
        """
        if not Path(path).is_file():
            raise ConfigError(f"decoding config {path} is missing")
        try:
            conf = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"{path} is no YAML: {reason}") from None
        try:
            return cls.from_mapping({} if conf is None else conf)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None


class RowSearch:
    """Decode the rows of a batch: with CTC where the task is ASR, without elsewhere.

    Args:
        model: in evaluation mode.
        config: options of decoding.
    """

    def __init__(self, model: SMoEModel, config: SearchConfig) -> None:
        self.model = model
        self.config = config
        self._with_ctc = None
        if model.ctc is not None and config.ctc_weight > 0.0:
            self._with_ctc = self._search(config.ctc_weight)
        self._without_ctc = self._search(0.0)

    def _search(self, ctc_weight: float) -> SMoEBeamSearch:
        model, config = self.model, self.config
        search = SMoEBeamSearch(
            nbest=config.nbest,
            decoder=model.decoder,
            ctc=model.ctc if ctc_weight else None,
            ctc_weight=ctc_weight,
            penalty=config.penalty,
            beam_size=config.beam_size,
            vocab_size=model.vocab_size,
            sos=model.sos,
            eos=model.eos,
            normalize_length=config.normalize_length,
            banned=special_ids(model.token_list),
        )
        return search.to(model.decoder.output_layer.weight.device).eval()

    @torch.inference_mode()
    def __call__(
        self, encoded: torch.Tensor, frames: torch.Tensor, rows: Rows
    ) -> list[list[Hypothesis]]:
        """Search.

        Args:
            encoded: (B, T, D) float.
            frames: (B,) int64.
            rows: the P (utterance, task) pairs to decode.

        Returns:
            P n-best lists, best first, of at most ``nbest`` hypotheses whose ``yseq``
            holds ``<sos>``, the prompt, the text and ``<eos>``.
        """
        asr = self.model.guides.tasks.index("asr") if self._with_ctc else -1
        results: list[list[Hypothesis]] = [[] for _ in rows.tasks]
        for search, chosen in (
            (self._with_ctc, rows.tasks == asr),
            (self._without_ctc, rows.tasks != asr),
        ):
            places = chosen.nonzero().view(-1)
            if not len(places):
                continue
            utterances = rows.utterances[places].to(encoded.device)
            lengths = frames[utterances]
            start = torch.full((len(places), 1), self.model.sos)
            prompts = torch.cat([start, rows.prompts[places]], dim=1)
            search.set_hyp_primer(prompts.tolist())
            nbests = search(
                encoded[utterances, : int(lengths.max())],
                x_lengths=lengths,
                maxlenratio=self.config.maxlenratio,
                minlenratio=self.config.minlenratio,
            )
            for place, nbest in zip(places.tolist(), nbests, strict=True):
                results[place] = nbest[: self.config.nbest]
        return results
