"""One more task for a trained model, which leaves all it did before as it was.

The new task gets a guiding token behind the token list (a vector of its own, no
output: the old scores are normalised over the old vocabulary) and experts in the
decoder, copies of those of a task that it is like. With ``train_only`` only these
learn.
"""

from __future__ import annotations

import copy
import math
import os
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from espnet_smoe.checkpoint import load_model
from espnet_smoe.counterparts import SurgeryError, expert_key
from espnet_smoe.dense import file_of, routes_of
from espnet_smoe.files import MODEL_FILE, write_atomically
from espnet_smoe.folder import (
    EXPERIMENT_FILES,
    check_target,
    write_experiment,
    write_report,
    write_yaml,
)
from espnet_smoe.guide import TASK, ExpertMap
from espnet_smoe.model import SMoEModel
from espnet_smoe.probe import outputs_of

__all__ = ["add_task"]

_REPORT = "add_task.json"

# of a training: its data, folders and history
_OF_ONE_RUN = {
    "config", "output_dir", "token_list", "bpemodel", "init_param", "resume", "ngpu",
    "print_config", "dry_run", "collect_stats", "version", "required",
    "espnet_smoe_version",
}  # fmt: skip


def add_task(experiment: Path, task: str, like: str, out_dir: Path) -> dict[str, Any]:
    """Write an experiment folder, ``add_task.json``, and ``train_<task>.yaml`` to
    train the new task with: the recipe names an experiment after its YAML.

    Nothing is written before old and new model have given the same output to the bit
    on every old route, and the new task that of the task it is like.

    Args:
        experiment: experiment folder, or a checkpoint with its ``config.yaml`` beside.
        task: the new guide, ``st_XX``.
        like: the task whose token and experts it begins with.
        out_dir: appears complete or not at all.

    Returns:
        ``experts``: number of tensors of new experts; ``difference``: largest one of
        all outputs compared, 0.0; ``parameters``: number of those that will learn.

    Raises:
        SurgeryError: the model has the task already, or has no experts by task.
        GuideError: ``like`` is unknown, or the new name is no task.
        ConfigError: the experiment is broken, or ``out_dir`` holds anything but an
            earlier result for this task.
    """
    training = f"train_{task}.yaml"
    check_target(out_dir, _REPORT, (*EXPERIMENT_FILES, training), [experiment])
    checkpoint = file_of(experiment)
    config = checkpoint.parent / "config.yaml"
    old, bpemodel = load_model(config, checkpoint)
    conf = yaml.safe_load(config.read_text(encoding="utf-8"))
    tasks = old.guides.tasks
    if task in tasks:
        raise SurgeryError(
            f"{experiment} has the task {task!r} already; its tasks are {list(tasks)}"
        )
    old.guides.axis(TASK).index(like)
    if TASK not in old.decoder.expert_map.axes:
        raise SurgeryError(
            f"the decoder of {experiment} has no experts by task, so that {task!r} "
            f"cannot get one: decoder_conf.experts is "
            f"{conf['decoder_conf'].get('experts')}"
        )
    new_conf = _new_conf(conf, task)
    model = _build(new_conf)
    origin = _origins(model, old.decoder.expert_map, task, like)
    state = _fill(model, old, origin, task, like)
    model.load_state_dict(state)
    difference = _prove(old.eval(), model.eval(), task, like)
    with write_atomically(out_dir) as folder:
        written = write_experiment(folder, out_dir, new_conf, state, bpemodel)
        train = _training_yaml(written)
        train["init_param"] = [os.fspath(out_dir / MODEL_FILE)]
        write_yaml(folder / training, train)
        report = {
            "experiment": str(experiment),
            "task": task,
            "like": like,
            "experts": sum(
                k not in old.state_dict() for k in state if ".experts." in k
            ),
            "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "difference": difference,
        }
        write_report(folder / _REPORT, report)
    return report


def _new_conf(conf: Mapping[str, Any], task: str) -> dict[str, Any]:
    new = copy.deepcopy(dict(conf))
    new["guides"][TASK] = [*conf["guides"][TASK], task]
    new["added_guides"] = [*(conf.get("added_guides") or []), task]
    experts = new["decoder_conf"]["experts"]
    if experts.get("map"):
        experts["map"][task] = 1 + max(experts["map"].values())
    new["model_conf"]["train_only"] = [task]
    # a mean of more than two equal numbers is not always that number
    new["keep_nbest_models"] = 1
    return new


def _build(conf: Mapping[str, Any]) -> SMoEModel:
    from espnet_smoe.task import SMoETask

    return SMoETask.build_model(Namespace(**copy.deepcopy(dict(conf))))


def _origins(model: SMoEModel, old: ExpertMap, task: str, like: str) -> dict[int, int]:
    """Decoder expert of the new model -> that of the old one it is a copy of."""
    experts = model.decoder.expert_map
    place = experts.axes.index(TASK)
    new_id, like_id = (model.guides.axis(TASK).index(name) for name in (task, like))
    return {
        expert: old.table[
            tuple(
                like_id if n == place and guide == new_id else guide
                for n, guide in enumerate(key)
            )
        ]
        for key, expert in experts.table.items()
    }


def _fill(
    model: SMoEModel, old: SMoEModel, origin: Mapping[int, int], task: str, like: str
) -> dict[str, torch.Tensor]:
    own, before = model.state_dict(), old.state_dict()
    sizes = Counter(k.dense for k in map(expert_key, own) if k)
    state = {}
    for name, tensor in own.items():
        key = expert_key(name)
        if name.endswith(".split.batches_left"):
            # experts stay apart: tied, the new one would never run
            state[name] = torch.full_like(tensor, -math.inf)
        elif name == f"decoder.added.{task}":
            place = old.guide_token_ids[TASK][old.guides.axis(TASK).index(like)]
            state[name] = old.decoder.vector_of(place).detach().clone()
        elif key and key.stack == "decoder" and sizes[key.dense] > 1:
            bank, rest = name.split(f".experts.{key.expert}.")
            state[name] = before[f"{bank}.experts.{origin[key.expert]}.{rest}"].clone()
        else:
            state[name] = before[name]
    return state


@torch.no_grad()
def _prove(old: SMoEModel, new: SMoEModel, task: str, like: str) -> float:
    """Largest difference of the outputs of all old routes and of the new task's: 0."""
    differences = []
    for route in routes_of(old.guides):
        before = outputs_of(old, route)
        asked = [route, {**route, TASK: task}] if route[TASK] == like else [route]
        for after in (outputs_of(new, wanted) for wanted in asked):
            pairs = ((before.memory, after.memory), (before.scores, after.scores))
            differences += [float((a - b).abs().max()) for a, b in pairs]
    # a NaN is no zero either; max() could lose it
    if wrong := [d for d in differences if d != 0.0]:
        raise SurgeryError(
            f"outputs differ by {wrong} after {task!r} was added; expected not at all"
        )
    return max(differences)


def _training_yaml(conf: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a training that are not the host's defaults."""
    from espnet_smoe.task import SMoETask

    defaults = vars(SMoETask.get_parser().parse_args([]))
    conf = copy.deepcopy(dict(conf))
    if conf["scheduler"] == "onecyclelr":  # smoe_train works it out
        conf["scheduler_conf"].pop("total_steps", None)
    return {
        key: value
        for key, value in conf.items()
        if key in defaults
        and value != defaults[key]
        and key not in _OF_ONE_RUN
        and not key.endswith(("_data_path_and_name_and_type", "_shape_file"))
        and not key.startswith("dist_")
    }
