"""Dense checkpoints -> an S-MoE checkpoint that begins with their output.

Every expert starts as a copy of a dense FFN: of the one model, or of the model named
for a guide that the expert serves. Source: sparse upcycling (arXiv 2212.05055), here
with experts by guide.
"""

from __future__ import annotations

import dataclasses
import math
import os
from argparse import Namespace
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from espnet_smoe.compare_route import compare_dense
from espnet_smoe.counterparts import SurgeryError, expert_key, expert_maps
from espnet_smoe.dense import DenseModel, read_dense, routes_of
from espnet_smoe.files import write_atomically
from espnet_smoe.fit import check_fit
from espnet_smoe.folder import (
    EXPERIMENT_FILES,
    STATISTICS,
    check_target,
    write_experiment,
    write_report,
    write_statistics,
)
from espnet_smoe.guide import GuideError, GuideTable

__all__ = ["upcycle"]

_REPORT = "upcycle.json"
_TOLERANCE = 1e-5  # largest difference of outputs; sums may run in another order

Experts = Mapping[str, Sequence[DenseModel]]
"""``encoder``, ``decoder`` -> the model that each expert comes from."""


def upcycle(
    config: Path,
    token_dir: Path,
    shared: Path | None,
    sources: Mapping[str, Path],
    encoder_only: bool,
    out_dir: Path,
) -> dict[str, Any]:
    """Write an experiment folder and ``upcycle.json``.

    Nothing is written before every route has given the output of its dense model.

    Args:
        config: training YAML of the S-MoE model.
        token_dir: holds ``bpe.model`` and ``tokens.txt``.
        shared: dense experiment that all but the experts of ``sources`` comes from;
            None = the mean of all sources.
        sources: guide -> dense experiment that its experts come from.
        encoder_only: leave decoder and CTC fresh, so that vocabularies may differ.
        out_dir: appears complete or not at all.

    Returns:
        The report, as ``upcycle.json`` holds it.

    Raises:
        SurgeryError: models or vocabularies do not fit each other (names both sides),
            or outputs differ.
        ValueError: the YAML or an experiment is missing or broken, or ``out_dir``
            holds anything but an earlier result.
    """
    from espnet_smoe.task import SMoETask
    from espnet_smoe.train import read_options

    paths = [*([] if shared is None else [shared]), *sources.values()]
    check_target(out_dir, _REPORT, EXPERIMENT_FILES, [*paths, config, token_dir])
    options = read_options(config, token_dir, out_dir)
    parts = ("encoder", "frontend", "normalize")
    parts += () if encoder_only else ("decoder", "ctc")
    dense = {path: _only(read_dense(path), parts) for path in dict.fromkeys(paths)}
    if not dense:
        raise SurgeryError("name a dense experiment to begin with")
    warnings = []
    for model in dense.values():
        warnings += check_fit(model, options, config, parts)
    base = _mean(list(dense.values())) if shared is None else dense[shared]
    named = {guide: dense[path] for guide, path in sources.items()}
    with write_atomically(out_dir) as folder:
        if options.normalize == "global_mvn":
            write_statistics(base.state, folder / STATISTICS)
            options.normalize_conf = {
                **options.normalize_conf,
                "stats_file": os.fspath(folder / STATISTICS),
            }
        torch.manual_seed(options.seed)  # of what stays fresh
        model = SMoETask.build_model(options)
        own = model.state_dict()
        experts = _experts(options, own, named, base, parts)
        state, report = _fill(own, base, experts, dense.values())
        model.load_state_dict(state)
        report["routes"] = _prove(model.eval(), options, base, experts)
        write_experiment(folder, out_dir, vars(options), state, token_dir / "bpe.model")
        report = {
            "shared": None if shared is None else str(shared),
            "experts": {guide: str(path) for guide, path in sources.items()},
            "warnings": warnings,
            **report,
        }
        write_report(folder / _REPORT, report)
    return report


def _only(model: DenseModel, parts: Sequence[str]) -> DenseModel:
    state = {k: v for k, v in model.state.items() if k.split(".", 1)[0] in parts}
    left = [k for k in model.state if k not in state]
    return dataclasses.replace(model, state=state, left=tuple(left))


def _mean(models: Sequence[DenseModel]) -> DenseModel:
    """Mean of the floats; whole numbers (batches that batch norm saw) of the first."""
    first = models[0]
    for model in models[1:]:
        if other := sorted(set(first.state) ^ set(model.state)):
            raise SurgeryError(
                f"{first.name} and {model.name} have no common mean: only one has "
                f"{other[:3]}"
            )
    state = {
        key: torch.stack([m.state[key].double() for m in models]).mean(0).to(value)
        if value.is_floating_point()
        else value
        for key, value in first.state.items()
    }
    name = f"the mean of {', '.join(m.name for m in models)}"
    return dataclasses.replace(first, name=name, state=state)


def _experts(
    options: Namespace,
    own: Collection[str],
    sources: Mapping[str, DenseModel],
    base: DenseModel,
    parts: Sequence[str],
) -> Experts:
    """The model that each expert of each stack comes from.

    Args:
        own: names of the S-MoE model's tensors.
    """
    guides = GuideTable.from_mapping(options.guides)
    known = [g for axis in guides.axes for g in axis.guides]
    if unknown := sorted(set(sources) - set(known)):
        raise GuideError(f"unknown guides {unknown}; known: {known}")
    # one FFN for all guides comes from the base, whatever guides are named
    with_experts = {key.stack for key in map(expert_key, own) if key and key.expert > 0}
    chosen, used = {}, set()
    for stack, experts in expert_maps(vars(options)).items():
        if stack not in parts:
            continue
        models: list[DenseModel] = []
        for expert in range(experts.num_experts):
            served = {
                guides.axis(axis).guides[i]
                for key, e in experts.table.items()
                if e == expert
                for axis, i in zip(experts.axes, key, strict=True)
            }
            named = sorted(served & set(sources))
            if len({sources[g].name for g in named}) > 1:
                raise SurgeryError(
                    f"{stack} expert {expert} serves {named}, which name different "
                    f"models: {[sources[g].name for g in named]}"
                )
            used |= set(named) if stack in with_experts else set()
            models.append(sources[named[0]] if named else base)
        chosen[stack] = models
    if idle := sorted(set(sources) - used):
        raise SurgeryError(
            f"no expert that is copied serves the guides {idle}: the model has experts "
            f"for {sorted(used) or 'none of the guides named'}"
        )
    return chosen


def _fill(
    own: Mapping[str, torch.Tensor],
    base: DenseModel,
    experts: Experts,
    models: Sequence[DenseModel],
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Fill a fresh model's tensors; says where each came from."""
    keys = {name: expert_key(name) for name in own}
    sizes = Counter(key.dense for key in keys.values() if key)
    parts = {name.split(".", 1)[0] for name in base.state}
    state = {}
    copied, fresh, copies, used = [], [], Counter(), set()
    for name, tensor in own.items():
        if name.endswith(".split.batches_left"):
            # experts that begin apart are apart
            state[name] = torch.full_like(tensor, -math.inf)
            continue
        if name.split(".", 1)[0] not in parts:
            state[name] = tensor
            fresh.append(name)
            continue
        key, source, dense = keys[name], base, name
        if key is not None:
            dense = key.dense
            if sizes[dense] > 1:
                source = experts[key.stack][key.expert]
            copies[dense] += 1
        else:
            copied.append(name)
        theirs = source.state.get(dense)
        if theirs is None or theirs.shape != tensor.shape:
            shape = None if theirs is None else tuple(theirs.shape)
            raise SurgeryError(
                f"{name} has the shape {tuple(tensor.shape)}, but {dense} of "
                f"{source.name} has {shape}"
            )
        state[name] = theirs.clone()
        used.add((source.name, dense))
        if source is base:
            used |= {(m.name, dense) for m in models if base.name not in _names(models)}
    unused = [
        f"{m.name}: {name}"
        for m in models
        for name in (*m.state, *m.left)
        if (m.name, name) not in used
    ]
    report = {
        "copied": copied,
        "copied_to_experts": dict(copies),
        "fresh": fresh,
        "unused": unused,
    }
    return state, report


def _names(models: Sequence[DenseModel]) -> set[str]:
    return {m.name for m in models}


def _prove(
    model: torch.nn.Module, options: Namespace, base: DenseModel, experts: Experts
) -> list[dict[str, Any]]:
    """Run every route and the dense model that it must equal; differences."""
    guides = GuideTable.from_mapping(options.guides)
    maps = expert_maps(vars(options))
    rows = []
    for route in routes_of(guides):
        state = dict(base.state)
        for stack, models in experts.items():
            source = models[maps[stack].expert(guides, route)]
            banks = {
                key.dense
                for key in map(expert_key, model.state_dict())
                if key and key.stack == stack and key.expert > 0
            }
            state |= {name: source.state[name] for name in banks}
        # check_fit warns of centred frames
        front = {**base.options["frontend"], "center": False}
        parts = {**base.options, "frontend": front}
        dense = dataclasses.replace(base, state=state, options=parts)
        row = compare_dense(model, dense, route, "decoder" in experts)
        rows.append({"route": route, **row})
    found = [v for row in rows for k, v in row.items() if k != "route"]
    # a NaN is under no bound; max() could lose it
    if not all(difference <= _TOLERANCE for difference in found):
        raise SurgeryError(
            f"the outputs of the S-MoE model and of {base.name} differ by {found} "
            f"(routes and stacks in turn); expected at most {_TOLERANCE}"
        )
    return rows
