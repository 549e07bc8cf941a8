"""One route of an S-MoE model -> a plain dense model of ESPnet, without the plugin.

The decoder reads its prompt ``<sos> <bandwidth> <task>``, which the host's ASR task
cannot give it; its S2T task can: ``<sos> <lang_sym> <task_sym>``. So the extracted
model is an S2T model whose language symbol is our bandwidth token. Its timestamp rules
do our mask's work: ``notime_symbol`` is the task's token, which is always in the
prompt, so that the range ``first_time_symbol`` to ``last_time_symbol``, here all
special tokens, is never emitted.
"""

from __future__ import annotations

import os
import shutil
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from espnet_smoe.audio import MODEL_RATE
from espnet_smoe.checkpoint import load_model
from espnet_smoe.compare_route import compare_decoding, compare_outputs, host_search
from espnet_smoe.counterparts import SurgeryError
from espnet_smoe.dense import DenseModel, extract_route, file_of
from espnet_smoe.files import write_atomically
from espnet_smoe.folder import (
    STATISTICS,
    check_target,
    write_report,
    write_statistics,
    write_yaml,
)
from espnet_smoe.guide import BANDWIDTH, TASK, read_guides, token
from espnet_smoe.model import SMoEModel
from espnet_smoe.tokens import BLANK, SOS_EOS, UNK, special_ids

__all__ = ["extract", "route_of"]

_REPORT = "extract.json"
_FILES = ("config.yaml", "model.pth", "bpe.model", STATISTICS)

# the host's prompt: <sos> <lang> <task> and, if asked for, <notimestamps>
_MAX_AXES = 3


def route_of(
    experiment: Path, bandwidth: str, task: str, others: Sequence[str]
) -> dict[str, str]:
    """The route that a command line names.

    Args:
        experiment: a checkpoint with its ``config.yaml`` beside.
        others: ``<axis>=<guide>`` of further axes.

    Returns:
        axis -> guide, in the order of the model's axes.

    Raises:
        SurgeryError: an axis comes twice, is missing or is not the model's.
        GuideError: the config is missing or broken.
    """
    pairs = [(BANDWIDTH, bandwidth), *(o.split("=", 1) for o in others), (TASK, task)]
    if bad := [p for p in pairs if len(p) != 2]:
        raise SurgeryError(f"expected AXIS=GUIDE, got {bad[0][0]!r}")
    given = dict(pairs)
    axes = [a.name for a in read_guides(experiment.parent / "config.yaml").axes]
    if sorted(given) != sorted(axes) or len(pairs) != len(axes):
        raise SurgeryError(
            f"a route of {experiment.parent} is a guide on each of its axes {axes}, "
            f"got {given}"
        )
    return {axis: given[axis] for axis in axes}


def extract(
    experiment: Path,
    route: Mapping[str, str],
    out_dir: Path,
    data_dir: Path | None = None,
) -> dict[str, Any]:
    """Write ``config.yaml``, ``model.pth``, ``bpe.model`` and ``extract.json``.

    Nothing is written before the host's model, built from these very files, has given
    the same encoder output and the same decoder scores to the bit.

    Args:
        experiment: experiment folder, or a checkpoint with its ``config.yaml`` beside.
        route: axis -> guide, all axes.
        out_dir: appears complete or not at all.
        data_dir: dumped data directory; its utterances on this route are decoded by
            both models, to compare hypotheses and speed.

    Returns:
        The report, as ``extract.json`` holds it.

    Raises:
        SurgeryError: the host cannot express the model, or its output differs.
        GuideError: the model has no such route; lists what it has.
        ConfigError: the experiment is broken, or ``out_dir`` holds anything but an
            earlier result.
    """
    check_target(out_dir, _REPORT, _FILES, [experiment])
    checkpoint = file_of(experiment)
    config = checkpoint.parent / "config.yaml"
    model, bpemodel = load_model(config, checkpoint)
    conf = yaml.safe_load(config.read_text(encoding="utf-8"))
    _check_axes(experiment, model, route)
    dense = extract_route(str(experiment), conf, model.state_dict(), route)
    with write_atomically(out_dir) as folder:
        shutil.copyfile(bpemodel, folder / "bpe.model")
        if dense.normalize[0] == "global_mvn":
            write_statistics(dense.state, folder / STATISTICS)
        write_yaml(folder / "config.yaml", _host_config(dense, model, route, folder))
        torch.save(dict(dense.state), folder / "model.pth")
        host = _build_host(folder)
        report = {
            "experiment": str(experiment),
            "route": dict(route),
            "prompt": [SOS_EOS, *(token(g) for g in route.values())],
            "parameters_before": sum(p.numel() for p in model.parameters()),
            "parameters_after": sum(p.numel() for p in host.parameters()),
            **compare_outputs(model.eval(), host, route),
            "usage": _usage(model, route, out_dir),
        }
        for stack in ("encoder", "decoder"):
            if (difference := report[f"difference_{stack}"]) != 0.0:  # nor is a NaN
                raise SurgeryError(
                    f"the {stack} of the host's model of {experiment} differs from "
                    f"ours by {difference}; expected no difference at all"
                )
        if data_dir is not None:
            decoded = compare_decoding(checkpoint, folder, route, data_dir)
            report["decoding"] = decoded
        write_yaml(folder / "config.yaml", _host_config(dense, model, route, out_dir))
        write_report(folder / _REPORT, report)
    return report


def _check_axes(experiment: Path, model: SMoEModel, route: Mapping[str, str]) -> None:
    axes = [axis.name for axis in model.guides.axes]
    for axis in model.guides.axes:
        axis.index(route[axis.name])
    if not 2 <= len(axes) <= _MAX_AXES:
        raise SurgeryError(
            f"the host's prompt holds 2 or {_MAX_AXES} tokens, but a prompt of "
            f"{experiment} holds {len(axes)}: {axes}"
        )
    special = special_ids(model.token_list)
    if special != list(range(len(special))):
        raise SurgeryError(
            f"the special tokens of {experiment} have the ids {special}; the host can "
            f"ban only a range from 0"
        )


def _host_config(
    dense: DenseModel, model: SMoEModel, route: Mapping[str, str], folder: Path
) -> dict[str, Any]:
    """``config.yaml`` of the host's S2T task, for files in ``folder``."""
    from espnet2.tasks.s2t import S2TTask

    special = special_ids(dense.tokens)
    normalize, normalize_conf = dense.normalize
    if "stats_file" in normalize_conf:
        normalize_conf = {
            **normalize_conf, "stats_file": os.fspath(folder / STATISTICS)
        }  # fmt: skip
    return {
        # the command line reads more keys than the model does
        **vars(S2TTask.get_parser().parse_args([])),
        "token_list": list(dense.tokens),
        "token_type": "bpe",
        "bpemodel": os.fspath(folder / "bpe.model"),
        "frontend": "default",
        "frontend_conf": dict(dense.options["frontend"]),
        "normalize": normalize,
        "normalize_conf": dict(normalize_conf),
        "encoder": "conformer",
        "encoder_conf": dict(dense.options["encoder"]),
        "decoder": "transformer",
        "decoder_conf": dict(dense.options["decoder"]),
        "ctc_conf": {},
        "model": "espnet",
        "model_conf": {
            # the host builds no CTC for weight 0
            "ctc_weight": 0.0 if model.ctc is None else model.ctc_weight,
            "lsm_weight": model.lsm_weight,
            "report_cer": False,
            "report_wer": False,
            "sym_blank": BLANK,
            "sym_sos": SOS_EOS,
            "sym_eos": SOS_EOS,
            # no route has a text before the prompt
            "sym_sop": UNK,
            "sym_na": UNK,
        },
        "use_preprocessor": False,  # the command line would cut audio twice
        "preprocessor_conf": {
            "notime_symbol": token(route[TASK]),
            "first_time_symbol": dense.tokens[special[0]],
            "last_time_symbol": dense.tokens[special[-1]],
            "fs": MODEL_RATE,
            # the host pads or cuts all audio to one length, which ours was never
            # trained on; minus one sample, the least that it can be told, cuts only
            # the last one off
            "speech_length": -1 / MODEL_RATE,
        },
    }


def _build_host(folder: Path) -> torch.nn.Module:
    """The host's model from the files written; every tensor must fit."""
    from espnet2.tasks.s2t import S2TTask

    options = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    model = S2TTask.build_model(Namespace(**options))
    state = torch.load(folder / "model.pth", weights_only=True)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise SurgeryError(f"the host's model has other tensors: {reason}") from None
    return model.eval()


def _usage(model: SMoEModel, route: Mapping[str, str], folder: Path) -> str:
    """How the host decodes the model."""
    of_model, of_call = (
        ", ".join(f"{k}={v!r}" for k, v in options.items())
        for options in host_search(model, route)
    )
    return (
        "import numpy, soundfile; "
        "samples, _ = soundfile.read('16kHz.wav', dtype='float32'); "
        "from espnet2.bin.s2t_inference import Speech2Text; s2t = Speech2Text("
        f"'{folder}/config.yaml', '{folder}/model.pth', {of_model}); "
        f"print(s2t(numpy.append(samples, 0), {of_call})[0][3])"
    )
