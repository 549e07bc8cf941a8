"""The host's mean of checkpoints against plain arithmetic."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from dummies import build, split_options
from espnet2.main_funcs.average_nbest_models import average_nbest_models
from espnet2.train.reporter import Reporter

SPLIT = "encoder.split.batches_left"
# validation accuracy of epochs 1 to 4
ACCURACY = (0.1, 0.4, 0.3, 0.2)


@pytest.fixture
def states(tmp_path: Path) -> list[dict[str, torch.Tensor]]:
    """Four checkpoints of a split model: 4, 3 and 1 batches before, one after it."""
    found = []
    for epoch, left in enumerate((4.0, 3.0, 1.0, -math.inf), 1):
        model = build(seed=epoch, **split_options("encoder", 4)).float()
        state = model.state_dict()
        state[SPLIT] = torch.tensor(left)
        for key in state:
            if key.endswith("num_batches_tracked"):
                state[key] = torch.tensor(10 * epoch)
        torch.save(state, tmp_path / f"{epoch}epoch.pth")
        found.append(state)
    return found


@pytest.fixture
def reporter() -> Reporter:
    """What the host's trainer keeps of each epoch."""
    made = Reporter()
    for epoch, value in enumerate(ACCURACY, 1):
        made.set_epoch(epoch)
        with made.observe("valid") as sub:
            sub.register({"acc": value, "loss": 1 - value})
            sub.next()
    return made


def mean(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return torch.load(folder / name, weights_only=True)


@pytest.mark.parametrize(("nbest", "epochs"), [(2, [2, 3]), (3, [2, 3, 4])])
def test_floats_are_averaged_and_whole_numbers_added_up(
    tmp_path: Path, states, reporter: Reporter, nbest: int, epochs: list[int]
):
    criteria = [("valid", "acc", "max"), ("valid", "loss", "min")]
    average_nbest_models(tmp_path, reporter, criteria, nbest)
    of = [states[e - 1] for e in epochs]
    for criterion in ("acc", "loss"):
        got = mean(tmp_path, f"valid.{criterion}.ave_{nbest}best.pth")
        assert set(got) == set(states[0])
        for key, value in got.items():
            total = sum(s[key].double() for s in of)
            if not value.is_floating_point():
                assert value == total
            else:
                torch.testing.assert_close(
                    value.double(), total / nbest, rtol=1e-6, atol=1e-7
                )
    assert (tmp_path / "valid.acc.ave.pth").resolve().name == (
        f"valid.acc.ave_{nbest}best.pth"
    )
    # the checkpoints themselves stay as they were
    for epoch, state in enumerate(states, 1):
        saved = mean(tmp_path, f"{epoch}epoch.pth")
        assert all(torch.equal(saved[k], state[k]) for k in state)


def test_a_mean_over_the_split_is_parted_and_loads(
    tmp_path: Path, states, reporter: Reporter
):
    average_nbest_models(tmp_path, reporter, [("valid", "acc", "max")], [2, 3])
    before = mean(tmp_path, "valid.acc.ave_2best.pth")
    over = mean(tmp_path, "valid.acc.ave_3best.pth")
    assert float(before[SPLIT]) == 2.0  # of 3 and 1
    assert float(over[SPLIT]) == -math.inf
    assert not any(v.isnan().any() for v in over.values())
    model = build(**split_options("encoder", 4)).float()
    model.load_state_dict(over)
    first = torch.cat([p.flatten() for p in next(model.encoder.banks()).parameters()])
    model.train()
    assert not model.encoder.split.train_batch(model.encoder.banks())
    again = torch.cat([p.flatten() for p in next(model.encoder.banks()).parameters()])
    assert torch.equal(first, again)  # nothing was copied over


def test_the_mean_of_one_or_two_equal_checkpoints_is_them(
    tmp_path: Path, states, reporter: Reporter
):
    """What ``train_only`` relies on."""
    for epoch in (2, 3):
        torch.save(states[1], tmp_path / f"{epoch}epoch.pth")
    average_nbest_models(tmp_path, reporter, [("valid", "acc", "max")], 2)
    got = mean(tmp_path, "valid.acc.ave_2best.pth")
    for key, value in got.items():
        if value.is_floating_point():
            assert torch.equal(value, states[1][key])
