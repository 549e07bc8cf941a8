"""Dense models to make S-MoE models of, untrained but with decided scores."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import torch
import yaml
from espnet2.tasks.asr import ASRTask
from tiny_experiment import CONF, Experiment, write_conf

from espnet_smoe.counterparts import stock_options
from espnet_smoe.task import SMoETask
from espnet_smoe.train import read_options

DENSE = {
    f"{stack}_conf": {k: v for k, v in CONF[f"{stack}_conf"].items() if k != "experts"}
    for stack in ("encoder", "decoder")
}


def decide(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Random weights that no two modules share, batch statistics that matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
        for m in model.modules():
            if isinstance(m, torch.nn.BatchNorm1d):
                m.running_mean.normal_(0.0, 0.1, generator=generator)
                m.running_var.uniform_(0.5, 2.0, generator=generator)
                m.num_batches_tracked.fill_(seed)
    return model


def save(folder: Path, model: torch.nn.Module, conf: dict) -> Path:
    """An experiment folder as the host leaves it."""
    folder.mkdir(parents=True)
    torch.save(model.state_dict(), folder / "valid.acc.ave.pth")
    (folder / "config.yaml").write_text(yaml.safe_dump(conf, sort_keys=False))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, to see that it stays as it is."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def few_files(folder: Path, experiment: Experiment, *names: str) -> Path:
    """An experiment of which nothing but the files named was kept."""
    folder.mkdir()
    for name in ("config.yaml", *names):
        (folder / name).write_bytes((experiment.exp / name).read_bytes())
    return folder


def make_dense(folder: Path, experiment: Experiment, seed: int = 0, **changes) -> Path:
    """Hard sharing of ours."""
    conf = write_conf(folder.with_suffix(".yaml"), **{**DENSE, **changes})
    options = read_options(conf, experiment.tokens, folder)
    model = decide(SMoETask.build_model(options), seed)
    return save(folder, model, vars(options))


def make_stock(
    folder: Path, experiment: Experiment, tokens: list[str] | None = None, **changes
) -> Path:
    """A model of the host's ASR task with our sizes."""
    if tokens is None:
        tokens = (experiment.tokens / "tokens.txt").read_text().splitlines()
    parts = {
        f"{p}_conf": stock_options(p, {**CONF, **DENSE}[f"{p}_conf"])
        for p in ("encoder", "decoder", "frontend")
    }
    for name, change in changes.items():
        parts[name] |= change
    conf = {
        **vars(ASRTask.get_parser().parse_args([])),
        **parts,
        "token_list": tokens,
        "encoder": "conformer",
        "decoder": "transformer",
        "normalize": "utterance_mvn",
        "model_conf": {"ctc_weight": 0.3, "report_cer": False, "report_wer": False},
    }
    model = decide(ASRTask.build_model(Namespace(**conf)), seed=9)
    return save(folder, model, conf)
