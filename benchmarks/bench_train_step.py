"""Training step of S-MoE over that of its hard-sharing twin, mixed batch.

Both sides are built from the same weights: every expert is a copy of the dense FFN.
The step then has one loss and the experts' gradients add up to the dense one's; if
that does not hold, nothing is printed.

    python benchmarks/bench_train_step.py [--config conf/demo/train_smoe.yaml]
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import torch
import yaml
from side_by_side import interleave, record

from espnet_smoe.guide import GuideTable
from espnet_smoe.model import SMoEModel
from espnet_smoe.task import SMoETask
from espnet_smoe.tokens import BLANK, SOS_EOS, UNK

CONF = Path(__file__).parent.parent / "conf"
UTTERANCES, SECONDS, TOKENS, VOCABULARY = 16, 3.0, 16, 500


def build(config: Path, experts: bool) -> SMoEModel:
    """The YAML's model without dropout, with its experts from the start or none."""
    defaults = vars(SMoETask.get_parser().parse_args([]))
    conf = {**defaults, **yaml.safe_load(config.read_text())}
    guides = GuideTable.from_mapping(conf["guides"])
    pieces = [f"piece{i}" for i in range(VOCABULARY)]
    conf["token_list"] = [BLANK, UNK, *guides.tokens, *pieces, SOS_EOS]
    conf["specaug"] = None
    for stack in ("encoder_conf", "decoder_conf"):
        for key in [k for k in conf[stack] if "dropout" in k]:
            conf[stack][key] = 0.0
        if not experts:
            conf[stack].pop("experts", None)
        elif "experts" in conf[stack]:
            conf[stack]["experts"].pop("split_at", None)
    return SMoETask.build_model(argparse.Namespace(**conf)).train()


def copy_dense(dense: SMoEModel, smoe: SMoEModel) -> None:
    """Make every expert of ``smoe`` the FFN of ``dense``, and the rest alike."""
    state = dense.state_dict()
    keys = {k: re.sub(r"experts\.\d+", "experts.0", k) for k in smoe.state_dict()}
    smoe.load_state_dict({k: state[source] for k, source in keys.items()})


def mixed_batch(model: SMoEModel, device: str) -> dict[str, torch.Tensor]:
    """Half narrowband, half wideband, every utterance with every task."""
    samples = int(SECONDS * 16_000)
    count = UTTERANCES
    data = {
        "speech": 0.1 * torch.randn(count, samples),
        "speech_lengths": torch.linspace(0.7 * samples, samples, count).long(),
    }
    for axis in model.guides.utterance_axes:
        data[axis.name] = (torch.arange(count) % len(axis.guides))[:, None]
    for task in model.guides.tasks:
        ids = torch.randint(len(model.guides.tokens) + 2, VOCABULARY, (count, TOKENS))
        data[f"text_{task}"] = ids
        data[f"text_{task}_lengths"] = torch.full((count,), TOKENS)
    return {k: v.to(device) for k, v in data.items()}


def check_equal(
    smoe: SMoEModel, dense: SMoEModel, batch: dict[str, torch.Tensor]
) -> None:
    """Same loss; gradients of the experts add up to those of the dense FFN.

    Raises:
        ValueError: they do not; names the tensor and the difference.
    """
    losses = []
    for model in (smoe, dense):
        model.zero_grad()
        loss = model(**batch)[0]
        loss.backward()
        losses.append(loss)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-4)
    sums: dict[str, torch.Tensor] = {}
    for name, parameter in smoe.named_parameters():
        key = re.sub(r"experts\.\d+", "experts.0", name)
        sums[key] = sums.get(key, 0) + parameter.grad
    for name, parameter in dense.named_parameters():
        scale = parameter.grad.abs().max().clamp(min=1e-3)
        difference = (sums[name] - parameter.grad).abs().max() / scale
        if difference > 1e-2:
            raise ValueError(f"gradients of {name} differ by {difference:.1e}")


def main() -> None:
    """Measure; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=CONF / "demo/train_smoe.yaml")
    parser.add_argument("--pairs", type=int, default=40)
    args = parser.parse_args()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    smoe = build(args.config, experts=True).to(device)
    dense = build(args.config, experts=False).to(device)
    copy_dense(dense, smoe)
    batch = mixed_batch(smoe, device)
    check_equal(smoe, dense, batch)
    steps = []
    for model in (smoe, dense):
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-6)

        def step(model: SMoEModel = model, optimizer: object = optimizer) -> None:
            optimizer.zero_grad()
            model(**batch)[0].backward()
            optimizer.step()

        steps.append(step)
    result = interleave(*steps, pairs=args.pairs)
    record("train_step_smoe_over_dense", result, "time / time")


if __name__ == "__main__":
    sys.exit(main())
