"""Expert bank, route, late split and configuration, each on its own."""

import contract
import dummies
import pytest
import torch

from espnet_smoe.config import ConfigError, ExpertConfig
from espnet_smoe.experts import ExpertFFNBank, ExpertSplit, Route
from espnet_smoe.guide import GuideTable
from espnet_smoe.host import PositionwiseFeedForward

D, H = 6, 10
CPU = torch.device("cpu")
GUIDES = GuideTable.from_mapping({"bandwidth": ["nb", "wb"], "task": ["asr", "st_de"]})

BATCHES = pytest.mark.parametrize(
    "num_experts, ids",
    [
        pytest.param(1, [0, 0, 0], id="one-expert"),
        pytest.param(2, [1, 0, 1, 0], id="interleaved"),
        pytest.param(2, [0, 0, 1], id="in-order"),
        pytest.param(2, [1, 1, 1], id="expert-0-idle"),
        pytest.param(3, [2, 0, 0], id="middle-expert-idle"),
        pytest.param(4, [3, 0, 3, 1, 0], id="odd-batch"),
        pytest.param(3, [1, 2, 0], id="no-self-inverse-permutation"),
        pytest.param(4, [2], id="batch-of-one"),
    ],
)


def make_ffn():
    return PositionwiseFeedForward(D, H, 0.0)


def make_bank(num_experts):
    torch.manual_seed(0)
    return ExpertFFNBank(make_ffn, num_experts).double()


def routed(bank, x, ids):
    """The bank as a stack of layers uses it."""
    route = Route.of(torch.tensor(ids), len(bank.experts), CPU)
    return route.restore(bank(route.sort(x), route))


def naive(bank, x, ids):
    """Reference: one row at a time, in the order the batch came."""
    return torch.stack([bank.experts[e](row) for row, e in zip(x, ids, strict=True)])


def check_bank(bank, ids, reference):
    """Outputs and gradients of a routed batch are those of ``reference(x)``."""
    x = torch.randn(len(ids), 7, D, dtype=torch.double, requires_grad=True)
    cotangent = torch.randn(len(ids), 7, D, dtype=torch.double)
    leaves = [x, *bank.parameters()]
    got, want = routed(bank, x, ids), reference(x)
    torch.testing.assert_close(got, want)
    contract.check_gradients(
        torch.autograd.grad(got, leaves, cotangent, allow_unused=True),
        torch.autograd.grad(want, leaves, cotangent, allow_unused=True),
    )


@BATCHES
def test_the_bank_equals_a_loop_over_rows(num_experts, ids):
    bank = make_bank(num_experts)
    check_bank(bank, ids, lambda x: naive(bank, x, ids))


def test_p1_a_bank_with_one_expert_is_the_hosts_ffn():
    bank, ffn = make_bank(1), make_ffn().double()
    bank.experts[0].load_state_dict(ffn.state_dict())
    x = torch.randn(3, 7, D, dtype=torch.double, requires_grad=True)
    cotangent = torch.randn_like(x)

    got, want = routed(bank, x, [0, 0, 0]), ffn(x)
    assert torch.equal(got, want)
    got = torch.autograd.grad(got, [x, *bank.parameters()], cotangent)
    want = torch.autograd.grad(want, [x, *ffn.parameters()], cotangent)
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


def test_p2_a_row_never_sees_another_rows_expert():
    bank, ids = make_bank(3), [2, 0, 1, 0]
    x = torch.randn(4, 5, D, dtype=torch.double)
    contract.check_isolation(lambda: routed(bank, x, ids).detach(), bank.experts, ids)
    contract.check_idle_gradients(
        lambda rows: routed(bank, x[rows], [ids[r] for r in rows]), bank.experts, ids
    )


def test_an_idle_expert_does_not_run():
    bank = make_bank(3)
    calls = []
    for e, expert in enumerate(bank.experts):
        expert.register_forward_hook(lambda *_, e=e: calls.append(e))
    routed(bank, torch.zeros(3, 5, D, dtype=torch.double), [2, 0, 2])
    assert sorted(calls) == [0, 2]


@BATCHES
def test_a_route_sorts_by_expert_and_restores_the_callers_order(num_experts, ids):
    ids = torch.tensor(ids)
    route = Route.of(ids, num_experts, CPU)
    assert route.sort(ids).tolist() == sorted(ids.tolist())
    assert sum(route.counts) == len(ids)
    assert list(route.counts) == [(ids == e).sum() for e in range(num_experts)]
    rows = torch.arange(len(ids))
    assert torch.equal(route.restore(route.sort(rows)), rows)
    # rows of one expert keep their order: results do not depend on a shuffle
    for e in range(num_experts):
        mine = route.sort(rows)[route.sort(ids) == e].tolist()
        assert mine == sorted(mine)


@pytest.mark.parametrize("ids", [[0, 2], [0, -1], [], [[0], [1]]])
def test_expert_ids_out_of_range_or_shape_are_refused(ids):
    with pytest.raises(ValueError, match="expert ids"):
        Route.of(torch.tensor(ids, dtype=torch.int64), 2, CPU)


@pytest.mark.parametrize("ids, num_experts", [([0, 1], 3), ([0, 1, 0], 2)])
def test_a_route_of_another_batch_is_refused(ids, num_experts):
    route = Route.of(torch.tensor(ids), num_experts, CPU)
    with pytest.raises(ValueError, match="route of"):
        make_bank(2)(torch.zeros(2, 3, D, dtype=torch.double), route)


def test_a_bank_needs_an_expert():
    with pytest.raises(ConfigError, match="num_experts must be >= 1, got 0"):
        ExpertFFNBank(make_ffn, 0)


# ---- shared expert -------------------------------------------------------------


def make_half():
    return PositionwiseFeedForward(D, H // 2, 0.0)


def make_shared_bank(num_experts):
    torch.manual_seed(0)
    return ExpertFFNBank(make_half, num_experts, shared=True).double()


@BATCHES
def test_a_shared_expert_adds_its_output_to_every_row(num_experts, ids):
    bank = make_shared_bank(num_experts)
    check_bank(
        bank,
        ids,
        lambda x: torch.stack([bank.shared(row) for row in x]) + naive(bank, x, ids),
    )


def divide(ffn, bank):
    """Give half of an FFN's hidden units to the shared expert, half to each other."""
    state, half = ffn.state_dict(), H // 2
    for expert, units, bias in (
        (bank.shared, slice(half), state["w_2.bias"]),
        *((e, slice(half, H), torch.zeros(D)) for e in bank.experts),
    ):
        part = {
            "w_1.weight": state["w_1.weight"][units],
            "w_1.bias": state["w_1.bias"][units],
            "w_2.weight": state["w_2.weight"][:, units],
            "w_2.bias": bias,
        }
        expert.load_state_dict(part)


@pytest.mark.parametrize("ids", [[0, 1, 1], [1, 1, 1]])
def test_p1_a_dense_ffn_divided_into_shared_and_guided_units_gives_its_output(ids):
    bank, ffn = make_shared_bank(2), make_ffn().double()
    divide(ffn, bank)
    x = torch.randn(3, 7, D, dtype=torch.double, requires_grad=True)
    cotangent = torch.randn_like(x)
    got, want = routed(bank, x, ids), ffn(x)
    torch.testing.assert_close(got, want)
    wanted = torch.autograd.grad(want, [x, ffn.w_1.weight], cotangent)
    halves = [e.w_1.weight for e in (bank.shared, *bank.experts)]
    got = torch.autograd.grad(got, [x, *halves], cotangent, allow_unused=True)
    torch.testing.assert_close(got[0], wanted[0])
    torch.testing.assert_close(got[1], wanted[1][: H // 2])
    guided = sum(g for g in got[2:] if g is not None)
    torch.testing.assert_close(guided, wanted[1][H // 2 :])


def test_p2_a_shared_expert_serves_all_and_the_guided_ones_stay_isolated():
    bank, ids = make_shared_bank(3), [2, 0, 1, 0]
    x = torch.randn(4, 5, D, dtype=torch.double)
    contract.check_isolation(lambda: routed(bank, x, ids).detach(), bank.experts, ids)
    contract.check_idle_gradients(
        lambda rows: routed(bank, x[rows], [ids[r] for r in rows]), bank.experts, ids
    )
    before = routed(bank, x, ids).detach()
    with dummies.disturbed(bank.shared):
        after = routed(bank, x, ids).detach()
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_split_copies_the_guided_experts_and_leaves_the_shared_one():
    bank, split = make_shared_bank(2), ExpertSplit(1)
    shared = [p.clone() for p in bank.shared.parameters()]
    split.train_batch([bank])
    split.train_batch([bank])
    assert equal_experts(bank)
    after = bank.shared.parameters()
    assert all(torch.equal(a, b) for a, b in zip(shared, after, strict=True))
    first = bank.experts[0].w_1.weight
    assert not torch.equal(first, bank.shared.w_1.weight)


# ---- late split ----------------------------------------------------------------


@pytest.mark.parametrize("batches", [1, 2, 5])
def test_a_split_ties_exactly_so_many_batches_and_copies_at_the_next(batches):
    bank, split = make_bank(3), ExpertSplit(batches)
    for _ in range(batches):
        assert split.batches_left >= 0
        assert split.train_batch([bank])
    assert not equal_experts(bank)
    assert not split.train_batch([bank])
    assert equal_experts(bank)
    assert split.batches_left < 0
    with torch.no_grad():
        bank.experts[1].w_1.bias.add_(1.0)
    assert not split.train_batch([bank])
    split.complete([bank])
    assert not equal_experts(bank), "parted experts must never be copied again"


def test_without_a_split_nothing_is_tied_or_copied():
    bank, split = make_bank(2), ExpertSplit(0)
    assert split.batches_left < 0
    assert not split.train_batch([bank])
    split.complete([bank])
    assert not equal_experts(bank)


def test_the_counter_of_a_split_is_saved():
    split = ExpertSplit(3)
    split.train_batch([])
    resumed = ExpertSplit(3)
    resumed.load_state_dict(split.state_dict())
    assert [resumed.train_batch([]) for _ in range(4)] == [True, True, False, False]


def test_a_negative_split_is_refused():
    with pytest.raises(ConfigError, match="batches must be >= 0, got -1"):
        ExpertSplit(-1)


def equal_experts(bank):
    first, *others = (list(e.parameters()) for e in bank.experts)
    return all(torch.equal(a, b) for o in others for a, b in zip(first, o, strict=True))


# ---- configuration -------------------------------------------------------------


@pytest.mark.parametrize(
    "conf, message",
    [
        ({"axes": "bandwidth", "axis": "task"}, r"unknown keys \['axes'\] in experts"),
        ({"ffn": "both"}, "needs the key 'axis'"),
        ({"axis": "task", "ffn": "first"}, "macaron, final or both, got 'first'"),
        ({"axis": "task", "split_at": 1.0}, r"lie in \[0, 1\), got 1.0"),
        ({"axis": "task", "split_at": -0.1}, r"lie in \[0, 1\), got -0.1"),
        ({"axis": "task", "shared": "yes"}, "shared must be true or false, got 'yes'"),
    ],
)
def test_bad_expert_configs_are_refused(conf, message):
    with pytest.raises(ConfigError, match=message):
        ExpertConfig.from_mapping(conf)


def test_unknown_keys_are_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"known: .*axis.*blocks.*ffn.*map.*split_at"):
        ExpertConfig.from_mapping({"axis": "task", "split": 0.5})


def test_blocks_choose_where_experts_sit():
    config = ExpertConfig(axis="task", blocks=[0, 2])
    assert [config.has_experts(b, 3) for b in range(3)] == [True, False, True]
    assert ExpertConfig(axis="task").has_experts(7, 8)
    with pytest.raises(ConfigError, match=r"\[2\] lie outside the stack's 0..1"):
        config.has_experts(0, 2)


def test_several_axes_get_an_expert_for_each_combination():
    expert_map = ExpertConfig(axis=["task", "bandwidth"]).expert_map(GUIDES)
    assert expert_map.axes == ("task", "bandwidth")
    assert expert_map.num_experts == 4
    assert expert_map.table[1, 0] == 2


def test_an_average_with_a_parted_split_stays_parted_when_trained_on():
    tied, parted = ExpertSplit(500), ExpertSplit(1)
    for _ in range(2):
        parted.train_batch([])
    mean = (tied.batches_left + parted.batches_left) / 2
    bank, split = make_bank(2), ExpertSplit(500)
    split.load_state_dict({"batches_left": mean})
    assert not split.train_batch([bank])
    split.complete([bank])
    assert not equal_experts(bank)


def test_an_average_of_tied_splits_goes_on_from_their_mean():
    split = ExpertSplit(500)
    split.load_state_dict({"batches_left": torch.tensor(1.5)})
    bank = make_bank(2)
    assert [split.train_batch([bank]) for _ in range(3)] == [True, False, False]
    assert equal_experts(bank)
