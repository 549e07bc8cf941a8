"""An S-MoE model, its dense twin of the same weights, and a batch for both.

Every expert is a copy of the dense FFN, so the two have one loss, and the experts'
gradients add up to the dense one's.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import yaml
from espnet2.tasks.abs_task import optim_classes
from side_by_side import DEVICE, check_equal

from espnet_smoe.audio import MODEL_RATE
from espnet_smoe.counterparts import expert_key
from espnet_smoe.files import MODEL_FILE
from espnet_smoe.guide import GuideTable
from espnet_smoe.model import SMoEModel
from espnet_smoe.task import SMoETask
from espnet_smoe.tokens import BLANK, SOS_EOS, UNK

__all__ = [
    "CONFIG",
    "LOSS_TOLERANCE",
    "UTTERANCES",
    "Batch",
    "check_gradients",
    "check_twins",
    "gradients",
    "in_double",
    "mixed_batch",
    "training_step",
    "twins",
    "write_dense",
]

Batch = dict[str, torch.Tensor]

CONFIG = Path(__file__).parent.parent / "conf/demo/train_smoe.yaml"
"""Sizes that two CPU cores train."""

UTTERANCES = 16
"""Of a batch: as many of 3 s as the demo's YAML trains with, 50 s."""

# the decoder's loss is computed in single precision throughout
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-6, 1e-5

SECONDS, TOKENS, VOCABULARY = 3.0, 16, 500
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def twins(config: Path, num_experts: int = 2) -> tuple[SMoEModel, SMoEModel]:
    """S-MoE model and hard-sharing twin of the same weights, in training mode.

    Args:
        config: training YAML; its sizes, without dropout and without late split.
        num_experts: bandwidths and tasks, hence experts of every bank, 2 to 27.
    """
    tasks = ["asr", *(f"st_a{letter}" for letter in _LETTERS[: num_experts - 1])]
    guides = {"bandwidth": [f"b{i}" for i in range(num_experts)], "task": tasks}
    smoe, dense = (
        SMoETask.build_model(_options(config, guides, experts)).train()
        for experts in (True, False)
    )
    state = {_dense_name(k): v for k, v in dense.state_dict().items()}
    smoe.load_state_dict({k: state[_dense_name(k)] for k in smoe.state_dict()})
    return smoe.to(DEVICE), dense.to(DEVICE)


def write_dense(dense: SMoEModel, config: Path, folder: Path) -> Path:
    """Write a hard-sharing twin as an experiment into an empty folder.

    Returns:
        Its checkpoint; ``config.yaml`` stands beside.
    """
    guides = {axis.name: list(axis.guides) for axis in dense.guides.axes}
    options = vars(_options(config, guides, experts=False))
    options["bpemodel"] = str(folder / "bpe.model")
    (folder / "bpe.model").touch()  # no text is read or written
    (folder / "config.yaml").write_text(yaml.safe_dump(options))
    checkpoint = folder / MODEL_FILE
    torch.save(dense.state_dict(), checkpoint)
    return checkpoint


def _options(
    config: Path, guides: dict[str, list[str]], experts: bool
) -> argparse.Namespace:
    defaults = vars(SMoETask.get_parser().parse_args([]))
    conf = {**defaults, **yaml.safe_load(config.read_text()), "guides": guides}
    pieces = [f"piece{i}" for i in range(VOCABULARY)]
    tokens = GuideTable.from_mapping(guides).tokens
    conf["token_list"] = [BLANK, UNK, *tokens, *pieces, SOS_EOS]
    conf["specaug"] = None
    for stack in ("encoder_conf", "decoder_conf"):
        for key in [k for k in conf[stack] if "dropout" in k]:
            conf[stack][key] = 0.0
        if not experts:
            conf[stack].pop("experts", None)
        elif "experts" in conf[stack]:
            conf[stack]["experts"].pop("split_at", None)
    return argparse.Namespace(**conf)


def _dense_name(name: str) -> str:
    """Name of a tensor in the host's dense model."""
    key = expert_key(name)
    return name if key is None else key.dense


def mixed_batch(
    model: SMoEModel,
    bandwidths: Sequence[int] | None = None,
    utterances: int = UTTERANCES,
) -> Batch:
    """Noise and random text; every utterance with a transcript and a translation.

    Args:
        bandwidths: guides that the utterances have in turn; None = all.
        utterances: size of the batch.
    """
    samples, tasks = int(SECONDS * MODEL_RATE), model.guides.tasks
    turn = torch.tensor(bandwidths or range(len(model.guides.bandwidths)))
    guides = turn[torch.arange(utterances) % len(turn)]
    data = {
        "speech": 0.1 * torch.randn(utterances, samples),
        "speech_lengths": torch.linspace(0.7 * samples, samples, utterances).long(),
        "bandwidth": guides[:, None],
    }
    first = len(model.guides.tokens) + 2
    for number, task in enumerate(tasks):
        # the translations take turns
        here = torch.arange(utterances) % (len(tasks) - 1) == number - 1
        lengths = TOKENS * (here | (number == 0)).long()
        text = torch.randint(first, first + VOCABULARY, (utterances, TOKENS))
        data[f"text_{task}"] = text.masked_fill(lengths[:, None] == 0, -1)
        data[f"text_{task}_lengths"] = lengths
    return {k: v.to(DEVICE) for k, v in data.items()}


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Name in the host's dense model -> gradient, summed over experts."""
    sums: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            key = _dense_name(name)
            sums[key] = sums.get(key, 0) + parameter.grad
    return sums


def in_double(model: torch.nn.Module, batch: Batch) -> tuple[torch.nn.Module, Batch]:
    """Copies in double precision, to compare gradients with.

    In single precision a hidden unit near zero may be on in one side and off in the
    other, which moves a gradient by a per cent.
    """
    exact = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
    return copy.deepcopy(model).double(), exact


def check_twins(smoe: SMoEModel, dense: SMoEModel, batch: Batch) -> None:
    """Same loss, same gradients.

    Raises:
        DifferenceError: they are not; names the tensor.
    """
    losses, sides = [], []
    for model in (smoe, dense):
        model, exact = in_double(model, batch)
        loss = model(**exact)[0]
        loss.backward()
        losses.append(loss)
        sides.append(gradients(model))
    check_equal("losses", *losses, LOSS_TOLERANCE)
    check_gradients(*sides)


def check_gradients(
    ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]
) -> None:
    """Refuse gradients in double precision that differ, see ``check_equal``."""
    for name, gradient in theirs.items():
        what = f"gradients of {name}"
        check_equal(what, ours[name], gradient, GRADIENT_TOLERANCE, floor=1e-2)


def training_step(
    model: torch.nn.Module, batch: Batch, config: Path
) -> Callable[[int], None]:
    """Forward, backward, clipping of the gradients, update, as the host's trainer.

    The optimiser is the YAML's, with a learning rate that changes next to nothing.
    """
    conf = yaml.safe_load(config.read_text())
    options = {**conf["optim_conf"], "lr": 1e-6}
    optimizer = optim_classes[conf["optim"]](model.parameters(), **options)

    def step(_: int) -> None:
        optimizer.zero_grad()
        model(**batch)[0].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), conf["grad_clip"])
        optimizer.step()

    return step
