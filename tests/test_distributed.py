"""Two processes train as one does on the same batches; experts may be idle."""

from __future__ import annotations

import math
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from dummies import MIXED, split_options
from two_processes import start, trained

pytestmark = pytest.mark.slow  # several processes, each imports the host

NB = ("nb", ("asr", "st_de"))
WB = ("wb", ("st_es", "asr"))


def gates(balance_weight: float) -> dict:
    """Options of a model with learned gates in both stacks."""
    gate = {"num_experts": 3, "top_k": 2, "balance_weight": balance_weight}
    return {stack: {"experts": {"gate": gate}} for stack in ("encoder", "decoder")}


# global batches; a process gets every second utterance
EPOCHS = {
    "mixed": {"batches": [MIXED]},
    "ranks-of-3-and-2": {"batches": [[*MIXED, ("nb", ("st_de",))]]},
    "an-expert-idle-on-one-rank": {"batches": [[NB, WB, NB]]},
    "a-task-and-ctc-idle-on-one-rank": {
        "batches": [[("nb", ("asr",)), ("wb", ("st_de", "st_es"))]]
    },
    "an-expert-idle-on-all-ranks": {"batches": [[NB, NB, NB]]},
    "ctc-idle-on-all-ranks": {
        "batches": [[("nb", ("st_de",)), ("nb", ("st_es",)), ("wb", ("st_de",))]]
    },
    "hard-sharing": {
        "batches": [MIXED],
        "model": {"encoder": {"experts": None}, "decoder": {"experts": None}},
    },
    "several-updates": {
        "batches": [MIXED, [NB, WB], [NB, NB, NB], [WB, NB, WB]],
        "optimizer": "momentum",
    },
    "without-bucket-view": {
        "batches": [MIXED, [NB, NB]],
        "optimizer": "momentum",
        "gradient_as_bucket_view": False,
    },
    "accumulated": {
        "batches": [MIXED, [NB, WB], [NB, NB], MIXED],
        "optimizer": "momentum",
        "accum_grad": 2,
    },
    "late-split": {
        "batches": [MIXED, [NB, WB], [NB, NB], MIXED],
        "optimizer": "momentum",
        "model": split_options("encoder", 2),
    },
    "late-split-of-the-decoder": {
        "batches": [[NB, WB], MIXED, [NB, NB]],
        "optimizer": "momentum",
        "model": split_options("decoder", 1),
    },
    "learned-gates": {
        "batches": [MIXED, [NB, WB], [NB, NB, NB]],
        "optimizer": "momentum",
        "model": gates(0.0),
    },
}

# balanced over the frames of a process: no longer as one process is
BALANCED = {**EPOCHS["learned-gates"], "model": gates(0.1)}


def epoch_of_two(rank: int, init_method: str, job: dict) -> tuple:
    """What each process does for one entry of ``EPOCHS``."""
    torch.distributed.init_process_group(
        "gloo", init_method, timedelta(minutes=5), world_size=2, rank=rank
    )
    return trained(**job, rank=rank)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    """Both processes' parameters and statistics of every entry of ``EPOCHS``."""
    folder = tmp_path_factory.mktemp("two")
    jobs = {**EPOCHS, "balanced-gates": BALANCED}
    for view in (True, False):
        for n in (1, 2):
            jobs[f"adamw-{n}-{view}"] = {
                "batches": [MIXED, [NB, NB, NB]][:n],
                "optimizer": "adamw",
                "gradient_as_bucket_view": view,
            }
    jobs = {name: {**job, "folder": folder} for name, job in jobs.items()}
    return start(folder, epoch_of_two, jobs)


@pytest.mark.parametrize("name", EPOCHS)
def test_two_processes_update_as_one_on_the_global_batch(
    together, tmp_path: Path, name: str
) -> None:
    want, _ = trained(**EPOCHS[name], folder=tmp_path)
    for rank, result in enumerate(together[name]):
        assert not isinstance(result, str), result
        got, _ = result
        assert got.keys() == want.keys()
        for key in want:
            torch.testing.assert_close(
                got[key], want[key], rtol=1e-6, atol=1e-6, msg=f"{rank} {key}"
            )


@pytest.mark.parametrize("name", EPOCHS)
def test_two_processes_report_as_one(together, tmp_path: Path, name: str) -> None:
    _, want = trained(**EPOCHS[name], folder=tmp_path)
    keys = [k for k in want if k.startswith(("loss", "acc")) and k != "loss_scale"]
    assert len(keys) == 14 + (name == "learned-gates")  # their balance
    for _, got in together[name]:
        for key in keys:
            assert got[key] == pytest.approx(want[key], rel=1e-6, nan_ok=True), key
    absent = [k for k in keys if all(map(math.isnan, want[k]))]
    if name == "ctc-idle-on-all-ranks":
        assert {"loss_ctc", "loss_asr", "acc_asr"} == set(absent)


@pytest.mark.parametrize("view", [True, False], ids="gradient_as_bucket_view={}".format)
def test_P2_an_expert_idle_on_all_ranks_does_not_move(together, view: bool) -> None:
    # despite the momentum and weight decay of an update in which it was not idle
    (before, _), (after, _) = (together[f"adamw-{n}-{view}"][0] for n in (1, 2))
    # nb is expert 0 of the encoder; asr, st_de and st_es are the decoder's 0, 1, 2
    idle = [k for k in before if k.startswith("encoder") and ".experts.1." in k]
    idle += [k for k in before if k.startswith("decoder") and ".experts.2." in k]
    assert len(idle) == 2 * 2 * 4 + 2 * 4
    assert all(torch.equal(before[k], after[k]) for k in idle)
    busy = [k for k in before if ".experts.0." in k]
    assert not any(torch.equal(before[k], after[k]) for k in busy)


def test_balanced_gates_stay_the_same_on_every_rank(together, tmp_path: Path) -> None:
    (one, stats), (other, others) = together["balanced-gates"]
    assert all(torch.equal(one[k], other[k]) for k in one)
    assert stats["loss_balance"] == others["loss_balance"]
    # the balance loss moved the gates
    free, _ = together["learned-gates"][0]
    moved = [k for k in one if k.endswith("gate.weight")]
    assert len(moved) == 2 * 2 + 2
    assert not any(torch.equal(one[k], free[k]) for k in moved)


def test_late_split_comes_at_the_same_batch_on_every_rank(together) -> None:
    key = "encoder.split.batches_left"
    for got, _ in together["late-split"]:
        assert got[key] == -math.inf
    one, other = (got for got, _ in together["late-split"])
    assert all(torch.equal(one[k], other[k]) for k in one)
