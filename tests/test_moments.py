"""Late split with optimiser state: real updates against a tied reference."""

from __future__ import annotations

import copy
from pathlib import Path

import dummies
import pytest
import torch
from tiny_experiment import CONF, write_conf

from espnet_smoe import trainer
from espnet_smoe.bin import smoe_train
from espnet_smoe.config import ConfigError, ExpertConfig
from espnet_smoe.moments import copy_moments, moments_follow
from espnet_smoe.task import SMoETask

pytest_plugins = ["fixtures_exp"]

FRAMES = torch.tensor([41, 60, 23])
TIED = 3
OPTIMIZERS = pytest.mark.parametrize(
    "optimizer_of",
    [
        lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.9, 0.98)),
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    ],
    ids=["adam", "adamw", "momentum"],
)


def split_encoder(copy_moments: bool, split_after: int = TIED):
    conf = dummies.split_options("encoder", split_after)
    conf["encoder"]["experts"]["copy_moments"] = copy_moments
    model = dummies.build(**conf)
    for module in model.modules():  # one batch twice has its mean, not its variance
        if isinstance(module, torch.nn.BatchNorm1d):
            module.momentum = 0.0
    return model.encoder


def update(encoder, optimizer, seed, guides=(0,)):
    """One update on a batch that is given once for each of some guides."""
    torch.manual_seed(seed)
    feats = torch.randn(3, 60, dummies.MELS, dtype=torch.double)
    ids = torch.tensor(guides).repeat_interleave(3)
    times = len(guides)
    out, lengths, _ = encoder(
        feats.repeat(times, 1, 1), FRAMES.repeat(times), ids.clone()
    )
    optimizer.zero_grad()
    weights = torch.randn(3, 1, 1, dtype=torch.double).repeat(times, 1, 1)
    (out[:, : int(lengths.min())] * weights).square().sum().backward()
    optimizer.step()


def experts(encoder):
    return [list(e.parameters()) for e in dummies.expert_modules(encoder)]


def trained(copy_moments, optimizer_of):
    """An encoder after its tied updates, and its optimiser."""
    encoder = split_encoder(copy_moments)
    optimizer = optimizer_of(encoder.parameters())
    for n in range(TIED):
        update(encoder, optimizer, n)
    return encoder, optimizer


def tied_one_update_longer(optimizer_of):
    """An encoder of the same start whose split comes later, and its optimiser."""
    tied = split_encoder(True, split_after=TIED + 1)
    optimizer = optimizer_of(tied.parameters())
    for n in range(TIED + 1):
        update(tied, optimizer, n)
    return tied, optimizer


@OPTIMIZERS
def test_right_after_the_split_every_copy_moves_as_the_tied_expert_would(optimizer_of):
    encoder, optimizer = trained(True, optimizer_of)
    assert not any(p in optimizer.state for p in experts(encoder)[1])
    tied, reference = tied_one_update_longer(optimizer_of)
    with moments_follow(encoder, [optimizer]):
        update(encoder, optimizer, TIED, guides=(0, 1))
    want = experts(tied)[0]
    for mine in experts(encoder):
        for p, q in zip(mine, want, strict=True):
            torch.testing.assert_close(p, q)
            for key, value in reference.state[q].items():
                torch.testing.assert_close(optimizer.state[p][key], value)


@OPTIMIZERS
def test_without_the_switch_copies_start_with_no_state(optimizer_of):
    encoder, optimizer = trained(False, optimizer_of)
    tied, _ = tied_one_update_longer(optimizer_of)
    with moments_follow(encoder, [optimizer]):
        update(encoder, optimizer, TIED, guides=(0, 1))
    first, second = experts(encoder)
    for p, q, want in zip(first, second, experts(tied)[0], strict=True):
        torch.testing.assert_close(p, want)
        assert not torch.allclose(q, want)


def test_copied_state_is_the_experts_own_and_is_copied_once():
    encoder, optimizer = trained(True, torch.optim.Adam)
    with moments_follow(encoder, [optimizer]):
        update(encoder, optimizer, TIED, guides=(0, 1))
        for n in range(3):  # the first expert alone goes on
            update(encoder, optimizer, 10 + n)
    for p, q in zip(*experts(encoder), strict=True):
        assert float(optimizer.state[p]["step"]) == TIED + 4
        assert float(optimizer.state[q]["step"]) == TIED + 1
        assert not torch.equal(
            optimizer.state[p]["exp_avg"], optimizer.state[q]["exp_avg"]
        )


def test_state_is_in_the_precision_of_the_optimiser():
    encoder = split_encoder(True, split_after=1).float()
    optimizer = torch.optim.Adam(encoder.parameters())
    with moments_follow(encoder, [optimizer]):
        for _ in range(2):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                ids = torch.tensor([0, 1, 1])
                out, *_ = encoder(torch.randn(3, 60, dummies.MELS), FRAMES, ids)
            out.float().square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    for p in experts(encoder)[1]:
        state = optimizer.state[p]
        assert {v.dtype for v in state.values()} == {torch.float32}
        assert float(state["step"]) == 2


def test_a_split_between_accumulated_batches_is_complete_when_the_epoch_ends():
    encoder, optimizer = trained(True, torch.optim.Adam)
    with moments_follow(encoder, [optimizer]):
        encoder(
            torch.randn(1, 60, dummies.MELS).double(),
            torch.tensor([60]),
            torch.tensor([0]),
        )
        assert encoder.split.parted
    for p, q in zip(*experts(encoder), strict=True):
        assert optimizer.state[q].keys() == optimizer.state[p].keys()
        assert all(
            torch.equal(optimizer.state[q][k], v) for k, v in optimizer.state[p].items()
        )


def test_stacks_that_were_parted_before_or_are_still_tied_are_left_alone():
    parted, optimizer = trained(True, torch.optim.Adam)
    update(parted, optimizer, TIED)  # parts; only the first expert has state
    with moments_follow(parted, [optimizer]):
        update(parted, optimizer, TIED + 1)
    assert not any(p in optimizer.state for p in experts(parted)[1])
    tied, optimizer = trained(True, torch.optim.Adam)
    copy_moments(optimizer, [tied])
    assert not any(p in optimizer.state for p in experts(tied)[1])


def test_hooks_are_gone_afterwards_even_after_an_error():
    encoder, optimizer = trained(True, torch.optim.Adam)
    with pytest.raises(KeyboardInterrupt), moments_follow(encoder, [optimizer]):
        raise KeyboardInterrupt
    update(encoder, optimizer, TIED)
    assert not any(p in optimizer.state for p in experts(encoder)[1])


def train_rank(rank: int, folder: str) -> None:
    """One of two processes, each with a bandwidth of its own; the split after two."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    conf = dummies.split_options("encoder", 2)
    conf["encoder"]["experts"]["copy_moments"] = True
    model = dummies.build(**conf).float()
    parallel = torch.nn.parallel.DistributedDataParallel(
        model, find_unused_parameters=True
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    with moments_follow(parallel, [optimizer]):
        for n in range(4):
            # in the last batch the second expert is idle everywhere
            bandwidth = "nb" if n == 3 else ("nb", "wb")[rank]
            data = dummies.batch([(bandwidth, ("asr",))] * 2, seed=2 * n + rank)
            data["speech"] = data["speech"].float()
            optimizer.zero_grad()
            parallel(**data)[0].sum().backward()
            optimizer.step()
    firsts = [next(e.parameters()) for e in dummies.expert_modules(model.encoder)]
    result = {
        "parameters": [p.detach() for p in model.parameters()],
        "moments": [s["exp_avg"] for s in optimizer.state_dict()["state"].values()],
        "steps": [float(optimizer.state[p]["step"]) for p in firsts],
    }
    torch.save(result, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_that_see_other_guides_copy_the_same_state(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(
        train_rank, (str(tmp_path),), nprocs=2, start_method="spawn"
    )
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert one["steps"] == other["steps"] == [4.0, 3.0]
    for name in ("parameters", "moments"):
        pairs = zip(one[name], other[name], strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), name


# ---- through the trainer -------------------------------------------------------


def conf_of(path: Path, **experts: object) -> Path:
    encoder = copy.deepcopy(CONF["encoder_conf"])
    encoder["experts"].update(experts)
    return write_conf(path, encoder_conf=encoder, max_epoch=3)


def states(exp: Path) -> dict[str, list[dict]]:
    """Optimiser state of the encoder's experts in a checkpoint: expert -> states."""
    saved = torch.load(exp / "checkpoint.pth", weights_only=True)
    model, _ = SMoETask.build_model_from_file(exp / "config.yaml")
    found: dict[str, list[dict]] = {"0": [], "1": []}
    for i, (name, _) in enumerate(model.named_parameters()):
        if name.startswith("encoder.") and ".experts." in name:
            expert = name.partition(".experts.")[2][0]
            found[expert].append(saved["optimizers"][0]["state"].get(i, {}))
    return found


@pytest.fixture(scope="module")
def trained_run(experiment, tmp_path_factory) -> tuple[list[str], Path]:
    """Nine batches in three epochs, the split after four: amid the second."""
    folder = tmp_path_factory.mktemp("moments")
    conf = conf_of(folder / "train.yaml", split_at=4 / 9, copy_moments=True)
    command = experiment.train_command(folder / "exp", conf)
    assert smoe_train.main(command) == 0
    return command, folder / "exp"


def test_a_training_run_copies_moments_where_yaml_says_so(
    experiment, trained_run, tmp_path: Path
) -> None:
    final = states(trained_run[1])
    for first, second in zip(final["0"], final["1"], strict=True):
        assert first.keys() == second.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert 4 < float(second["step"]) <= 9
    conf = conf_of(tmp_path / "train.yaml", split_at=4 / 9)
    command = experiment.train_command(tmp_path / "exp", conf)
    assert smoe_train.main(command) == 0
    assert all(float(s["step"]) <= 5 for s in states(tmp_path / "exp")["1"])


@pytest.mark.parametrize("epoch", [1, 2], ids=["before-the-split", "after-it"])
def test_p10_a_run_killed_around_the_split_resumes_to_the_same_parameters(
    trained_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    command, whole = trained_run
    exp = tmp_path / "exp"
    command = [str(exp) if part == str(whole) else part for part in command]

    def kill(_: Path, saved: int) -> None:
        if saved == epoch:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_back_up", kill)
        with pytest.raises(KeyboardInterrupt):
            smoe_train.main(command)
    copied = [bool(s) for s in states(exp)["1"]]
    assert copied == [epoch == 2] * len(copied)
    assert smoe_train.main([*command, "--resume", "true"]) == 0
    got, want = (
        torch.load(folder / "3epoch.pth", weights_only=True) for folder in (exp, whole)
    )
    assert all(torch.equal(got[k], want[k]) for k in want)


# ---- configuration -------------------------------------------------------------


def test_copying_without_a_split_is_refused():
    with pytest.raises(ConfigError, match="copy_moments true needs a late split"):
        ExpertConfig.from_mapping({"axis": "task", "copy_moments": True})
    with pytest.raises(ConfigError, match="copy_moments must be true or false, got 1"):
        ExpertConfig.from_mapping({"axis": "task", "split_at": 0.5, "copy_moments": 1})
