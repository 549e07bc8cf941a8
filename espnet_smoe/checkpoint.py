"""Checkpoint files: reading, and strict loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from espnet2.torch_utils.safe_torch_load import safe_torch_load

from espnet_smoe.config import ConfigError
from espnet_smoe.files import MODEL_FILE
from espnet_smoe.model import SMoEModel
from espnet_smoe.task import SMoETask

__all__ = ["load_model", "read_checkpoint"]


def read_checkpoint(
    config: Path, checkpoint: Path
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read a model's options and tensors, also of a model of the host's.

    Args:
        config: ``config.yaml`` of the experiment.
        checkpoint: a model file of it.

    Raises:
        ConfigError: a file is missing, unreadable or holds something else.
    """
    for path, what in ((config, "config"), (checkpoint, "checkpoint")):
        if not path.is_file():
            raise ConfigError(f"{what} {path} is missing; stage 11 makes it")
    try:
        conf = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"config {config} is no YAML: {reason}") from None
    if not isinstance(conf, dict):
        raise ConfigError(
            f"config {config} holds a {type(conf).__name__}; expected options and "
            "their values"
        )
    try:
        state = safe_torch_load(checkpoint, map_location="cpu")
    except Exception as error:  # torch's readers raise many kinds
        reason = " ".join(str(error).split())
        raise ConfigError(f"checkpoint {checkpoint} is unreadable: {reason}") from error
    if not isinstance(state, dict) or not all(map(torch.is_tensor, state.values())):
        raise ConfigError(
            f"checkpoint {checkpoint} holds no model: expected named tensors, as in "
            f"<epoch>epoch.pth or {MODEL_FILE}"
        )
    return conf, state


def load_model(config: Path, checkpoint: Path) -> tuple[SMoEModel, Path]:
    """Build a trained model.

    The host loads with ``strict=False``, so that another model's file would pass in
    silence; here every tensor must fit.

    Args:
        config: ``config.yaml`` of the experiment.
        checkpoint: a model file of it.

    Returns:
        The model on the CPU, and the path of its sentencepiece model: the one beside
        the config if there, for folders that were moved.

    Raises:
        ConfigError: a file is missing, or the checkpoint is of another model (names
            the first tensors that differ).
    """
    conf, state = read_checkpoint(config, checkpoint)
    if "guides" not in conf:
        raise ConfigError(f"config {config} is not one of espnet_smoe: no key 'guides'")
    model, args = SMoETask.build_model_from_file(config)
    own = model.state_dict()
    missing, extra = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    shapes = [k for k in own if k in state and own[k].shape != state[k].shape]
    if missing or extra or shapes:
        raise ConfigError(
            f"{checkpoint} is of another model than {config}: {len(missing)} tensors "
            f"missing {missing[:3]}, {len(extra)} unknown {extra[:3]}, "
            f"{len(shapes)} of another shape {shapes[:3]}"
        )
    model.load_state_dict(state)
    beside = config.parent / "bpe.model"
    return model, beside if beside.is_file() else Path(args.bpemodel)
