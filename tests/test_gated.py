"""Learned gate: against a loop over frames, balance loss, padding, caches."""

import re

import contract
import dummies
import pytest
import torch

from espnet_smoe.config import ConfigError, ExpertConfig, GateConfig
from espnet_smoe.experts import Route
from espnet_smoe.gated import GatedFFNBank, balance_loss
from espnet_smoe.host import PositionwiseFeedForward
from espnet_smoe.mask import valid_mask

D, H = 6, 10
LENGTHS = torch.tensor([5, 9, 1, 7])
GATES = pytest.mark.parametrize(
    "num_experts, top_k", [(2, 1), (2, 2), (3, 1), (3, 2), (4, 3), (1, 1)]
)


def make_ffn():
    return PositionwiseFeedForward(D, H, 0.0)


def make_bank(num_experts, top_k, balance_weight=0.01):
    torch.manual_seed(0)
    config = GateConfig(
        num_experts=num_experts, top_k=top_k, balance_weight=balance_weight
    )
    bank = GatedFFNBank(make_ffn, D, config).double()
    with torch.no_grad():
        bank.gate.weight.mul_(3.0)  # decided scores
    return bank


def frames(lengths=LENGTHS, padding=torch.nan):
    torch.manual_seed(1)
    x = torch.randn(len(lengths), int(lengths.max()), D, dtype=torch.double)
    return x.masked_fill(~valid_mask(lengths, x.size(1))[:, :, None], padding)


def route_of(lengths, maxlen, balance=None):
    places = valid_mask(lengths, maxlen).flatten().nonzero().view(-1)
    return Route((len(lengths),), frames=places, balance=balance)


def naive(bank, x, lengths):
    """Reference: a frame at a time; outputs of the valid frames and balance loss."""
    num_experts, outputs, scores, picked = len(bank.experts), {}, [], []
    for b, length in enumerate(lengths.tolist()):
        for t in range(length):
            frame = x[b, t]
            p = torch.exp(bank.gate.weight @ frame)
            p = p / p.sum()
            best = sorted(range(num_experts), key=lambda e: -p[e].item())[: bank.top_k]
            total = sum(p[e] for e in best) if bank.top_k > 1 else 1.0
            outputs[b, t] = sum(p[e] / total * bank.experts[e](frame) for e in best)
            scores.append(p)
            picked += best
    loss = 0.0
    for e in range(num_experts):
        share = picked.count(e) / len(picked)
        loss = loss + num_experts * share * sum(p[e] for p in scores) / len(scores)
    return outputs, bank.balance_weight * loss


# ---- the bank ------------------------------------------------------------------


@GATES
def test_the_bank_equals_a_loop_over_frames(num_experts, top_k):
    bank = make_bank(num_experts, top_k, balance_weight=0.7)
    poisoned, clean = frames(), frames(padding=0.0)
    poisoned.requires_grad_()
    clean.requires_grad_()
    balance = []
    got = bank(poisoned, route_of(LENGTHS, poisoned.size(1), balance))
    outputs, want_balance = naive(bank, clean, LENGTHS)
    want = torch.zeros_like(got)
    for (b, t), y in outputs.items():
        want[b, t] = y
    torch.testing.assert_close(got, want)
    assert len(balance) == 1
    torch.testing.assert_close(balance[0], want_balance)

    cotangent = torch.randn_like(want)
    parameters = list(bank.parameters())
    contract.check_gradients(
        torch.autograd.grad(
            (got * cotangent).sum() + balance[0],
            [poisoned, *parameters],
            allow_unused=True,
        ),
        torch.autograd.grad(
            (want * cotangent).sum() + want_balance,
            [clean, *parameters],
            allow_unused=True,
        ),
    )


@GATES
def test_no_frame_is_dropped_however_unbalanced(num_experts, top_k):
    bank = make_bank(num_experts, top_k)
    rows = []
    for expert in bank.experts:
        expert.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    x = frames(torch.tensor([9])).expand(20, 9, D)[:, :1].contiguous()  # all alike
    y = bank(x, Route((20,)))
    assert sum(rows) == 20 * top_k
    assert max(rows) == 20
    assert (y != 0).all()


def test_p1_a_bank_of_one_expert_is_the_hosts_ffn():
    bank, ffn = make_bank(1, 1), make_ffn().double()
    bank.experts[0].load_state_dict(ffn.state_dict())
    x = frames(torch.tensor([4, 4]))
    torch.testing.assert_close(bank(x, Route((2,))), ffn(x))


def test_an_idle_expert_neither_runs_nor_gets_a_gradient():
    bank = make_bank(3, 1)
    with torch.no_grad():
        bank.gate.weight.zero_()
        bank.gate.weight[1] = 5.0
    x = frames(torch.tensor([4])).abs()
    bank(x, Route((1,))).sum().backward()
    idle = [all(p.grad is None for p in e.parameters()) for e in bank.experts]
    assert idle == [True, False, True]


def test_without_a_list_no_balance_loss_is_computed():
    bank = make_bank(2, 1)
    x = frames(padding=0.0)
    balance = []
    with_list = bank(x, route_of(LENGTHS, x.size(1), balance))
    assert torch.equal(with_list, bank(x, route_of(LENGTHS, x.size(1))))
    assert len(balance) == 1


def test_the_gate_keeps_its_precision_under_autocast():
    bank = make_bank(2, 1).float()
    x = frames(padding=0.0).float()
    seen = []
    bank.gate.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    want = bank(x, Route((4,)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = bank(x, Route((4,)))
    assert seen == [torch.float32] * 2
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, atol=0.05, rtol=0.05)


# ---- balance loss --------------------------------------------------------------


@pytest.mark.parametrize("num_experts", [2, 5])
def test_the_balance_loss_is_one_when_balanced_and_e_when_one_takes_all(num_experts):
    even = torch.full((10, num_experts), 1 / num_experts)
    in_turn = (torch.arange(10) % num_experts)[:, None]
    assert float(balance_loss(even, in_turn)) == pytest.approx(1.0)
    all_on_one = torch.nn.functional.one_hot(torch.zeros(10).long(), num_experts)
    chosen = torch.zeros(10, 1).long()
    assert float(balance_loss(all_on_one.float(), chosen)) == pytest.approx(num_experts)


def test_descending_the_balance_loss_evens_the_load():
    bank = make_bank(3, 1, balance_weight=1.0)
    with torch.no_grad():
        bank.gate.weight[0] += 2.0
    torch.manual_seed(2)
    x = torch.randn(4, 50, D, dtype=torch.double) + 0.5
    optimizer = torch.optim.Adam([bank.gate.weight], lr=0.02)

    def most():
        return (
            float(bank.gate(x).argmax(-1).flatten().bincount().max())
            / x[..., 0].numel()
        )

    assert most() > 0.6
    for _ in range(200):
        balance = []
        bank(x, Route((4,), balance=balance))
        optimizer.zero_grad()
        balance[0].backward()
        optimizer.step()
    assert most() < 0.45


# ---- encoder, decoder, model ---------------------------------------------------

GATE = {"gate": {"num_experts": 3, "top_k": 2, "balance_weight": 0.5}}
TOP1 = {"gate": {"num_experts": 2, "top_k": 1}}
BOTH = pytest.mark.parametrize("experts", [TOP1, GATE], ids=["top-1", "top-2"])
FRAMES = torch.tensor([41, 60, 23, 52])


def build(experts=TOP1, **others):
    return dummies.build(
        encoder={"experts": experts}, decoder={"experts": experts}, **others
    )


def gates(stack):
    return [m for m in stack.modules() if isinstance(m, GatedFFNBank)]


def features():
    torch.manual_seed(0)
    # loud enough that frames differ: every gate then picks more than one expert
    return 5 * torch.randn(4, 60, dummies.MELS, dtype=torch.double)


def test_gates_sit_where_guided_experts_would():
    model = build()
    assert [len(gates(s)) for s in (model.encoder, model.decoder)] == [4, 2]
    some = {**TOP1, "blocks": [1], "ffn": "final"}
    encoder = dummies.build(encoder={"experts": some}).encoder
    assert gates(encoder) == [encoder.encoders[1].feed_forward]


@BOTH
def test_p3_an_utterance_encodes_the_same_alone_as_in_a_batch(experts):
    encoder = build(experts).encoder.eval()

    def run(feats, lengths, rows):
        return encoder(feats, lengths, torch.zeros(len(rows), dtype=torch.int64))[:2]

    contract.check_neighbours(run, features(), FRAMES)


@BOTH
def test_padding_is_in_neither_the_balance_loss_nor_the_gradients(experts):
    encoder = build(experts).encoder.eval()
    ran = []
    for bank in gates(encoder):
        bank.register_forward_hook(
            lambda bank, args, _: ran.append((bank, args[0].detach()))
        )
    results = []
    for padding in (torch.nan, 0.0):
        feats = features()
        for row, length in zip(feats, FRAMES, strict=True):
            row[length:] = padding
        encoder.zero_grad()
        balance = []
        ids = torch.zeros(4, dtype=torch.int64)
        out, lengths, _ = encoder(feats, FRAMES, ids, balance=balance)
        valid = valid_mask(lengths, out.size(1))
        (out[valid].square().mean() + sum(balance)).backward()
        results.append([g.grad for g in encoder.parameters() if g.grad is not None])
    for got, want in zip(*results, strict=True):
        assert torch.equal(got, want)
    for (bank, x), loss in zip(ran[-len(balance) :], balance, strict=True):
        torch.testing.assert_close(loss, naive(bank, x, lengths)[1])


@BOTH
@torch.no_grad()
def test_p5_cached_scores_are_those_of_teacher_forcing_at_every_position(experts):
    model = build(experts).eval()
    decoder, tokens = model.decoder, model.token_list
    torch.manual_seed(0)
    hs = torch.randn(3, 9, dummies.D, dtype=torch.double)
    frames_ = torch.tensor([9, 5, 7])
    prompt = [tokens.index(t) for t in ("<wb>", "<st_de>")]
    ys = torch.cat(
        [torch.tensor([[model.sos, *prompt]] * 3), torch.randint(7, 20, (3, 6))], 1
    )
    logits, _ = decoder(hs, frames_, ys, torch.full((3,), ys.size(1)))
    want = logits.log_softmax(-1)
    hs[~valid_mask(frames_, 9)] = 1e3  # the search may not look there
    picked = set()
    for bank in gates(decoder):
        bank.gate.register_forward_hook(
            lambda _, __, y: picked.update(y.argmax(-1).tolist())
        )
    state = decoder.start_search(hs, frames_, ys[:, 1:3])
    for length in range(3, ys.size(1) + 1):
        got, state = decoder.score_next(ys[:, :length], state)
        torch.testing.assert_close(got, want[:, length - 1])
    assert len(picked) > 1


def test_p1_copies_of_dense_ffns_under_a_gate_of_several_give_the_dense_output():
    gated, dense = build(GATE).eval(), build(None).eval()
    source, own = dense.state_dict(), gated.state_dict()
    names = {k: re.sub(r"experts\.\d", "experts.0", k) for k in own}
    gated.load_state_dict({k: source.get(n, own[k]) for k, n in names.items()})
    got, want = gated(**dummies.batch())[1], dense(**dummies.batch())[1]
    for name in want.keys() - {"loss"}:  # which has the balance on top
        torch.testing.assert_close(got[name], want[name], equal_nan=True)


def test_every_frame_is_routed_by_itself_and_no_guide_is_read():
    encoder = build().encoder.eval()
    picked = []
    for bank in gates(encoder):
        bank.gate.register_forward_hook(lambda _, __, y: picked.append(y.argmax(-1)))
    with torch.no_grad():
        ids = [
            encoder.expert_ids_of({"bandwidth": torch.tensor(g)})
            for g in ([0, 0, 1, 1], [1, 0, 1, 0])
        ]
        a, b = (encoder(features(), FRAMES, i)[0] for i in ids)
    assert torch.equal(a, b)
    assert all(len(set(experts.tolist())) == 2 for experts in picked)


def test_p6_nothing_is_left_on_any_module():
    model = build(GATE).train()
    calls = [
        lambda u=u: model(**dummies.batch(u))
        for u in (dummies.MIXED, [("nb", ("asr",))], [("wb", ("st_es", "asr"))])
    ]
    contract.check_no_guide_state(model, calls)


@BOTH
def test_the_models_loss_is_the_tasks_plus_the_balance_of_every_bank(experts):
    model = build(experts).eval()
    data = dummies.batch()
    loss, stats, _ = model(**data)
    balance = []
    model.encode(
        data["speech"], data["speech_lengths"], dummies.guide_ids(data), balance
    )
    assert len(balance) == 4
    tasks = dummies.GUIDES["task"]
    texts = sum(int(data[f"text_{task}_lengths"].sum()) for task in tasks)
    rows = sum(len(tasks) for _, tasks in dummies.MIXED)  # each ends in <eos>
    want = stats["loss_balance"] * (texts + rows) / len(dummies.MIXED)
    want = want + 0.7 * stats["loss_att"]
    with_asr = [u for u, (_, tasks) in enumerate(dummies.MIXED) if "asr" in tasks]
    want = want + 0.3 * len(with_asr) / len(dummies.MIXED) * stats["loss_ctc"]
    torch.testing.assert_close(loss, want.to(loss))
    weight = experts["gate"].get("balance_weight", 0.01)
    most = 6 * weight * experts["gate"]["num_experts"]
    assert 0.9 * 6 * weight < float(stats["loss_balance"]) <= most
    loss.backward()
    assert all(g.gate.weight.grad.abs().sum() > 0 for g in gates(model))


def test_the_balance_weight_moves_every_gate():
    gradients = []
    for balance_weight in (0.0, 50.0):
        model = build({"gate": {"num_experts": 2, "balance_weight": balance_weight}})
        model(**dummies.batch())[0].backward()
        gradients.append([g.gate.weight.grad for g in gates(model)])
    assert all(not torch.allclose(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("utterances", [dummies.MIXED, [("nb", ("st_de",))]])
def test_statistics_have_the_balance_key_on_every_step_of_a_gated_model_only(
    utterances,
):
    gated, guided = build().eval(), dummies.build().eval()
    keys = set(gated(**dummies.batch(utterances))[1])
    assert keys == set(guided(**dummies.batch(utterances))[1]) | {"loss_balance"}


def test_a_gate_in_one_stack_only_leaves_the_other_as_it_is():
    model = dummies.build(encoder={"experts": TOP1})
    assert len(gates(model.encoder)) == 4
    assert [len(b.experts) for b in model.decoder.banks()] == [3, 3]
    assert "loss_balance" in model(**dummies.batch())[1]


# ---- configuration -------------------------------------------------------------


@pytest.mark.parametrize(
    "conf, message",
    [
        ({"gate": "learned"}, "experts.gate must map option names to values, got 'le"),
        ({"gate": {}}, "experts.gate needs the key 'num_experts'"),
        (
            {"gate": {"num_experts": 2, "k": 1}},
            r"unknown keys \['k'\] in experts.gate; known: \['balance_weight', 'num",
        ),
        ({"gate": {"num_experts": 0}}, "1 <= top_k <= num_experts, got top_k 1 and n"),
        ({"gate": {"num_experts": 2, "top_k": 3}}, "top_k 3 and num_experts 2"),
        ({"gate": {"num_experts": 2, "top_k": 0}}, "top_k 0 and num_experts 2"),
        ({"gate": {"num_experts": 2.0}}, "num_experts must be a whole number, got 2.0"),
        ({"gate": {"num_experts": 2, "balance_weight": -1}}, "finite and >= 0, got -1"),
        (
            {"gate": {"num_experts": 2, "balance_weight": float("nan")}},
            "finite and >= 0, got nan",
        ),
        (
            {"gate": {"num_experts": 2}, "axis": "task", "split_at": 0.5},
            r"cannot go with \['axis', 'split_at'\]",
        ),
        ({"gate": {"num_experts": 2}, "map": {"nb": 0}}, r"cannot go with \['map'\]"),
        ({"gate": {"num_experts": 2}, "shared": True}, r"cannot go with \['shared'\]"),
    ],
)
def test_bad_gates_are_refused(conf, message):
    with pytest.raises(ConfigError, match=message):
        ExpertConfig.from_mapping(conf)
