"""Dense models in the host's own names: what S-MoE models come from and go to.

A *route* of an S-MoE model (one guide on every axis) uses one FFN of each bank, so it
is a dense Conformer-Transformer of the host.
"""

from __future__ import annotations

import itertools
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from espnet2.asr.decoder.transformer_decoder import TransformerDecoder
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
from espnet2.asr.frontend.default import DefaultFrontend

from espnet_smoe.checkpoint import read_checkpoint
from espnet_smoe.config import ConfigError
from espnet_smoe.counterparts import (
    NORMALIZERS,
    PARTS,
    SurgeryError,
    expert_key,
    expert_maps,
    host_options,
    stock_options,
)
from espnet_smoe.files import MODEL_FILE
from espnet_smoe.folder import STATISTICS, write_statistics
from espnet_smoe.guide import GuideTable, token
from espnet_smoe.tokens import guide_token_ids

__all__ = [
    "DenseModel",
    "extract_route",
    "file_of",
    "read_dense",
    "routes_of",
]

State = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class DenseModel:
    """A dense checkpoint in the host's names.

    Args:
        name: where it came from, for messages.
        tokens: its vocabulary.
        options: ``encoder``, ``decoder``, ``frontend`` -> every option of the host's
            module; no ``decoder`` for a model of another kind of decoder.
        normalize: class and options of the feature normalisation.
        state: the host's names -> tensors.
        left: names of the checkpoint that were left out of ``state``.
    """

    name: str
    tokens: tuple[str, ...]
    options: Mapping[str, Mapping[str, Any]]
    normalize: tuple[str | None, Mapping[str, Any]]
    state: State
    left: tuple[str, ...] = ()

    def encode(
        self, speech: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The host's front end, normalisation and encoder with this model's weights.

        Args:
            speech: (B, S) float32 at 16 kHz, zero in the padding.
            lengths: (B,) int64, samples.

        Returns:
            (B, T, D) and (B,) int64 frames, as in inference.
        """
        frontend = DefaultFrontend(**self.options["frontend"])
        feats, lengths = self._load("frontend", frontend)(speech, lengths)
        if self.normalize[0] is not None:
            feats, lengths = self._load("normalize", self._normalizer())(feats, lengths)
        encoder = ConformerEncoder(
            input_size=frontend.output_size(), **self.options["encoder"]
        )
        encoded, lengths, _ = self._load("encoder", encoder)(feats, lengths)
        return encoded, lengths

    def _normalizer(self) -> torch.nn.Module:
        kind, options = self.normalize
        if kind != "global_mvn":
            return NORMALIZERS[kind](**options)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / STATISTICS
            write_statistics(self.state, path)
            return NORMALIZERS[kind](**{**options, "stats_file": path})

    def decoder(self) -> TransformerDecoder:
        """The host's decoder with this model's weights, for inference."""
        decoder = TransformerDecoder(
            vocab_size=len(self.tokens),
            encoder_output_size=self.options["encoder"]["output_size"],
            **self.options["decoder"],
        )
        return self._load("decoder", decoder)

    def _load(self, part: str, module: torch.nn.Module) -> torch.nn.Module:
        prefix = f"{part}."
        own = {
            k.removeprefix(prefix): v
            for k, v in self.state.items()
            if k.startswith(prefix)
        }
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise SurgeryError(
                f"{self.name} does not fit its config: {reason}"
            ) from None
        return module.eval()


def file_of(experiment: Path) -> Path:
    """Checkpoint of an experiment: the file named, or ``MODEL_FILE`` of the folder
    named.

    Raises:
        ConfigError: there is no such file.
    """
    if not experiment.is_dir():
        if not experiment.is_file():
            raise ConfigError(
                f"{experiment} is missing; expected an experiment folder or a "
                "checkpoint with its config.yaml beside"
            )
        return experiment
    checkpoint = experiment / MODEL_FILE
    if not checkpoint.is_file():
        raise ConfigError(
            f"{experiment} holds no {MODEL_FILE}; name another checkpoint in it"
        )
    return checkpoint


def read_dense(experiment: Path) -> DenseModel:
    """Read a dense checkpoint: ours with hard sharing, or a stock Conformer-
    Transformer of ESPnet's ASR or S2T task.

    Args:
        experiment: experiment folder, or a checkpoint with its ``config.yaml`` beside.

    Raises:
        ConfigError: a file is missing or broken.
        SurgeryError: the model is not of these kinds; names what it is.
    """
    checkpoint = file_of(experiment)
    conf, state = read_checkpoint(checkpoint.parent / "config.yaml", checkpoint)
    if "guides" in conf:
        return _from_ours(experiment, conf, state)
    return _from_stock(experiment, conf, state)


def _from_ours(experiment: Path, conf: Mapping[str, Any], state: State) -> DenseModel:
    for stack in ("encoder", "decoder"):
        if experts := conf[f"{stack}_conf"].get("experts"):
            raise SurgeryError(
                f"{experiment} is no dense model: its {stack} has experts {experts}; "
                "smoe_extract makes a dense model of one route"
            )
    guides = GuideTable.from_mapping(conf["guides"])
    first = {axis.name: axis.guides[0] for axis in guides.axes}  # all are alike
    return extract_route(str(experiment), conf, state, first)


def _from_stock(experiment: Path, conf: Mapping[str, Any], state: State) -> DenseModel:
    wanted = {"encoder": "conformer", "frontend": "default"}
    for key, kind in wanted.items():
        if conf.get(key) != kind:
            raise SurgeryError(
                f"{experiment} has {key} {conf.get(key)!r}; expected {kind!r}"
            )
    for key in ("preencoder", "postencoder"):
        if conf.get(key) is not None:
            raise SurgeryError(f"{experiment} has {key} {conf[key]!r}; expected none")
    parts = ["encoder", "frontend"]
    if conf.get("decoder") == "transformer":
        parts.append("decoder")
    options = {part: host_options(part, conf[f"{part}_conf"] or {}) for part in parts}
    # a loss in training only; the outputs of inference stay one tensor without it
    options["encoder"]["interctc_layer_idx"] = []
    return DenseModel(
        name=str(experiment),
        tokens=tuple(conf["token_list"]),
        options=options,
        normalize=(conf.get("normalize"), conf.get("normalize_conf") or {}),
        state=dict(_new_names(state)),
    )


def routes_of(guides: GuideTable) -> list[dict[str, str]]:
    """Every route of a model: axis -> guide."""
    names = [axis.name for axis in guides.axes]
    choices = itertools.product(*(axis.guides for axis in guides.axes))
    return [dict(zip(names, choice, strict=True)) for choice in choices]


def _new_names(state: State) -> Iterator[tuple[str, torch.Tensor]]:
    """ESPnet 202611's names; before it, the subsampling's last layer was a list."""
    for name, tensor in state.items():
        yield re.sub(r"^encoder\.embed\.out\.0\.", "encoder.embed.out.", name), tensor


def extract_route(
    name: str, conf: Mapping[str, Any], state: State, route: Mapping[str, str]
) -> DenseModel:
    """The dense model that an S-MoE model is on one route.

    Args:
        name: of the S-MoE model, for messages.
        conf: its config.
        state: its tensors.
        route: axis -> guide, all axes.

    Raises:
        GuideError: the model has no such route; lists the guides that it has.
    """
    guides = GuideTable.from_mapping(conf["guides"])
    chosen = {
        stack: experts.expert(guides, route)
        for stack, experts in expert_maps(conf).items()
    }
    keys = {k: expert_key(k) for k in state}
    sizes = Counter(key.dense for key in keys.values() if key)
    dense = {}
    for k, tensor in state.items():
        key = keys[k]
        if key is None:
            if not re.match(r"(encoder|decoder)\.split\.|decoder\.added\.", k):
                dense[k] = tensor
        elif key.expert == (chosen[key.stack] if sizes[key.dense] > 1 else 0):
            dense[key.dense] = tensor
    tokens = list(conf["token_list"])
    added = conf.get("added_guides") or []
    ids = guide_token_ids(guides, tokens, added)
    for axis, guide in route.items():
        if guide not in added:
            continue
        # the host has no tokens behind the list: the place of one that this route
        # never reads, nor any route emits, is free
        place = min(ids[axis])
        embedding = dense["decoder.embed.0.weight"].clone()
        embedding[place] = state[f"decoder.added.{guide}"]
        dense["decoder.embed.0.weight"] = embedding
        if token(guide) in tokens:
            tokens[tokens.index(token(guide))] = tokens[place]
        tokens[place] = token(guide)
    return DenseModel(
        name=name,
        tokens=tuple(tokens),
        options={part: stock_options(part, conf[f"{part}_conf"]) for part in PARTS},
        normalize=(conf["normalize"], conf.get("normalize_conf") or {}),
        state=dense,
    )
