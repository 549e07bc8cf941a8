"""(utterance, task) pairs a second in training: ours over the host's S2T model.

Every utterance has a transcript and a translation. Ours encodes it once for both; the
host's S2T model takes each pair as an example of its own, all in one batch, without
its padding to 30 s. Both have the same sizes and weights: every expert of ours is a
copy of the host's FFN.

    python benchmarks/bench_train_pairs.py [--config conf/demo/train_smoe.yaml]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from side_by_side import DEVICE, check_equal, interleave, record, speedup
from twins import (
    CONFIG,
    LOSS_TOLERANCE,
    Batch,
    check_gradients,
    gradients,
    in_double,
    mixed_batch,
    training_step,
    twins,
    write_dense,
)

from espnet_smoe.bin.cli import run
from espnet_smoe.extract import extract
from espnet_smoe.guide import TASK
from espnet_smoe.model import SMoEModel


def host_of(dense: SMoEModel, config: Path) -> torch.nn.Module:
    """The host's S2T model of the same weights, in training mode.

    Raises:
        SurgeryError: it does not give the same outputs.
    """
    from espnet2.tasks.s2t import S2TTask

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = write_dense(dense, config, folder)
        route = {a.name: a.guides[0] for a in dense.guides.axes}  # all are alike
        extract(checkpoint, route, folder / "host")
        host, _ = S2TTask.build_model_from_file(
            folder / "host/config.yaml", folder / "host/model.pth", DEVICE
        )
    return host.train()


def pairs_of(model: SMoEModel, batch: Batch) -> Batch:
    """The batch as the host's S2T model reads it: an example for each pair.

    Its texts begin with the two guiding tokens. The host leaves CTC out for a pair
    whose ``text_ctc`` is "not available", and here the text before is never.
    """
    guides, ids = batch["bandwidth"].view(-1).tolist(), model.guide_token_ids
    chosen, texts, ctc = [], [], []
    not_available = torch.tensor([model.token_list.index("<unk>")], device=DEVICE)
    for number, task in enumerate(model.guides.tasks):
        lengths = batch[f"text_{task}_lengths"].tolist()
        for place, length in enumerate(lengths):
            if not length:
                continue
            text = batch[f"text_{task}"][place, :length]
            prompt = [ids["bandwidth"][guides[place]], ids[TASK][number]]
            chosen.append(place)
            texts.append(torch.cat([torch.tensor(prompt, device=DEVICE), text]))
            ctc.append(text if task == "asr" else not_available)
    data = {k: batch[k][chosen] for k in ("speech", "speech_lengths")}
    previous = [not_available] * len(texts)
    for key, rows in (("text", texts), ("text_prev", previous), ("text_ctc", ctc)):
        data[key] = torch.nn.utils.rnn.pad_sequence(
            rows, batch_first=True, padding_value=-1
        )
        data[f"{key}_lengths"] = torch.tensor([len(r) for r in rows], device=DEVICE)
    return data


def check_sides(
    ours: SMoEModel, batch: Batch, host: torch.nn.Module, pairs: Batch
) -> None:
    """Same losses of CTC and of the decoder, same gradients.

    The host's decoder also learns to predict the two guiding tokens, which it is
    given; the check leaves these out of its loss.

    Raises:
        DifferenceError: they differ; names the loss or tensor.
    """
    count = len(pairs["speech"]) / len(batch["speech"])
    (ours, batch), (host, pairs) = in_double(ours, batch), in_double(host, pairs)
    loss, stats, _ = ours(**batch)
    loss.backward()

    def without_prompt(_: torch.nn.Module, given: tuple) -> tuple:
        logits, target = given
        return logits, torch.cat([torch.full_like(target[:, :2], -1), target[:, 2:]], 1)

    host.criterion_att.register_forward_pre_hook(without_prompt)
    host_loss, host_stats, _ = host(**pairs)
    # ours is a sum over pairs for each utterance, the host's a mean over pairs
    scale = ours.ctc_weight / host.ctc_weight
    (scale * host_loss).backward()
    for key, factor in (("loss_ctc", 1.0), ("loss_att", count)):
        check_equal(key, stats[key], factor * host_stats[key], LOSS_TOLERANCE)
    check_equal("losses", loss, scale * host_loss, LOSS_TOLERANCE)
    check_gradients(gradients(ours), gradients(host))


def measure(args: argparse.Namespace) -> None:
    """One row."""
    torch.manual_seed(0)
    smoe, dense = twins(args.config)
    host = host_of(dense, args.config)
    batch = mixed_batch(smoe)
    pairs = pairs_of(smoe, batch)
    # the weight with which the host's mean over pairs has our gradients, but for scale
    odds = smoe.ctc_weight / (1 - smoe.ctc_weight)
    odds *= len(batch["speech"]) / len(pairs["speech"])
    host.ctc_weight = odds / (1 + odds)
    check_sides(smoe, batch, host, pairs)
    steps = (
        training_step(smoe, batch, args.config),
        training_step(host, pairs, args.config),
    )
    result = speedup(interleave(*steps, pairs=args.pairs))
    record("train_pairs_per_second_over_s2t", result, "pairs/s / pairs/s")


def main() -> int:
    """Measure; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="bench_train_pairs", description=__doc__)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--pairs", type=int, default=40, help="of measurements")
    return run(parser, measure, None)


if __name__ == "__main__":
    sys.exit(main())
