"""S-MoE Conformer encoder: against the host's, alone and in a batch, late split."""

import contract
import dummies
import pytest
import torch
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder

from espnet_smoe.config import ConfigError
from espnet_smoe.encoder import SMoEConformerEncoder
from espnet_smoe.guide import GuideError

LENGTHS = torch.tensor([41, 60, 23, 37, 52])
IDS = torch.tensor([1, 0, 1, 1, 0])  # bandwidth guides, in no order
FRAMES = "conv2d", "conv2d6", "conv2d8"


def make_encoder(**conf):
    mels = 24 if conf.get("input_layer", "conv2d") != "conv2d" else dummies.MELS
    frontend = {"n_fft": 128, "hop_length": 64, "n_mels": mels}
    return dummies.build(encoder=conf, frontend_conf=frontend).encoder


def features(dim=dummies.MELS, lengths=LENGTHS, seed=0):
    torch.manual_seed(seed)
    feats = torch.randn(len(lengths), int(lengths.max()), dim, dtype=torch.double)
    for row, length in zip(feats, lengths, strict=True):
        row[length:] = 0.0
    return feats


def route_by(encoder, ids=IDS):
    return encoder.expert_ids_of({"bandwidth": ids})


# ---- the host's encoder --------------------------------------------------------


@pytest.mark.parametrize("macaron", [True, False], ids=["macaron", "one-ffn"])
@pytest.mark.parametrize("sdpa", [False, True], ids=["plain", "sdpa"])
def test_p1_copies_of_a_stock_conformer_give_its_output_and_gradients(macaron, sdpa):
    encoder = make_encoder(macaron_style=macaron, use_sdpa=sdpa)
    stock = ConformerEncoder(
        input_size=dummies.MELS,
        output_size=dummies.D,
        attention_heads=2,
        linear_units=dummies.H,
        num_blocks=2,
        dropout_rate=0.0,
        positional_dropout_rate=0.0,
        macaron_style=macaron,
        rel_pos_type="latest",
        cnn_module_kernel=5,
        use_sdpa=sdpa,
    ).double()
    dummies.copy_from_stock(encoder, stock)
    assert len(dummies.banks(encoder)) == (4 if macaron else 2)

    feats = features().requires_grad_()
    for training in (False, True):  # batch statistics, too, see one batch
        encoder.zero_grad()
        stock.zero_grad()
        feats.grad = None
        encoder.train(training)
        stock.train(training)
        got, got_lengths, _ = encoder(feats, LENGTHS, route_by(encoder))
        want, want_lengths, _ = stock(feats, LENGTHS)
        assert torch.equal(got_lengths, want_lengths)
        contract.check_same_as_stock(encoder, stock, got, want, want_lengths, [feats])


# ---- isolation, neighbours, explicit guides ------------------------------------


@pytest.mark.parametrize("ids", [IDS, torch.tensor([0, 0, 0, 1, 1])])
def test_p2_bandwidths_are_isolated(ids):
    encoder = make_encoder().eval()
    feats = features()

    def run(rows=slice(None)):
        out, *_ = encoder(feats[rows], LENGTHS[rows], route_by(encoder, ids[rows]))
        return out

    experts = dummies.expert_modules(encoder)
    contract.check_isolation(lambda: run().detach(), experts, ids.tolist())
    contract.check_idle_gradients(run, experts, ids.tolist())


@pytest.mark.parametrize("input_layer", FRAMES)
@pytest.mark.parametrize("sdpa", [False, True], ids=["plain", "sdpa"])
def test_p3_an_utterance_encodes_the_same_alone_as_in_a_batch(input_layer, sdpa):
    encoder = make_encoder(input_layer=input_layer, use_sdpa=sdpa).eval()

    def run(feats, lengths, rows):
        return encoder(feats, lengths, route_by(encoder, IDS[rows]))[:2]

    feats = features(8 if input_layer == "conv2d" else 24)
    contract.check_neighbours(run, feats, LENGTHS)


def test_p3_rows_may_come_in_any_order():
    encoder = make_encoder().eval()
    feats = features()
    want, want_lengths, _ = encoder(feats, LENGTHS, route_by(encoder))
    order = torch.tensor([3, 1, 4, 0, 2])
    got, lengths, _ = encoder(
        feats[order], LENGTHS[order], route_by(encoder, IDS[order])
    )
    torch.testing.assert_close(got, want[order])
    assert torch.equal(lengths, want_lengths[order])


def test_p6_the_guide_is_an_argument_and_stays_on_no_module():
    encoder = make_encoder().eval()
    feats = features()

    def call(ids):
        return lambda: encoder(feats, LENGTHS, route_by(encoder, ids))

    calls = [call(ids) for ids in (IDS, 1 - IDS, torch.zeros_like(IDS))]
    contract.check_no_guide_state(encoder, calls)
    before = calls[0]()[0]
    calls[1]()
    assert torch.equal(calls[0]()[0], before)


@pytest.mark.parametrize("bad", [2, -1])
def test_p6_an_unknown_guide_id_is_an_error_that_lists_the_known_ones(bad):
    encoder = make_encoder()
    with pytest.raises(ValueError, match=rf"\({bad},\).*known: \[\(0,\), \(1,\)\]"):
        route_by(encoder, torch.tensor([0, bad]))


def test_expert_ids_of_another_batch_are_refused():
    encoder = make_encoder()
    with pytest.raises(ValueError, match="5 rows"):
        encoder(features(), LENGTHS, torch.tensor([0, 1]))


def test_too_few_frames_are_refused_with_their_number():
    encoder = make_encoder().eval()
    assert encoder.min_frames() == 11
    short, lengths = features(lengths=torch.tensor([10])), torch.tensor([10])
    with pytest.raises(ValueError, match="10 frames are too few"):
        encoder(short, lengths, torch.tensor([0]))
    enough, lengths = features(lengths=torch.tensor([11])), torch.tensor([11])
    assert encoder(enough, lengths, torch.tensor([0]))[0].size(1) == 2
    encoder.train()  # batch norm needs two frames
    encoder(enough, lengths, torch.tensor([0]))


SHARED = {"axis": "bandwidth", "shared": True}


def test_a_shared_expert_halves_both_so_that_an_utterance_costs_one_ffn():
    encoder, dense = make_encoder(experts=SHARED), make_encoder(experts=None)
    (bank, *_), (ffn, *_) = encoder.banks(), dense.banks()
    assert len(bank.experts) == 2
    hidden = [len(e.w_1.weight) for e in (bank.shared, *bank.experts)]
    assert hidden == [dummies.H // 2] * 3
    assert len(ffn.experts[0].w_1.weight) == dummies.H
    some = make_encoder(experts={**SHARED, "blocks": [1], "ffn": "final"})
    shared = [b.shared is not None for b in some.banks()]
    assert shared == [False, False, True, False]
    with pytest.raises(ConfigError, match="linear_units, which must be even, got 25"):
        make_encoder(experts=SHARED, linear_units=25)


def test_p2_p3_hold_beside_a_shared_expert():
    encoder = make_encoder(experts=SHARED).eval()

    def run(feats, lengths, rows):
        return encoder(feats, lengths, route_by(encoder, IDS[rows]))[:2]

    contract.check_neighbours(run, features(), LENGTHS)

    def outputs(rows=slice(None)):
        return run(features()[rows], LENGTHS[rows], rows)[0]

    experts = dummies.expert_modules(encoder)
    contract.check_isolation(lambda: outputs().detach(), experts, IDS.tolist())
    contract.check_idle_gradients(outputs, experts, IDS.tolist())


# ---- where experts sit ---------------------------------------------------------


@pytest.mark.parametrize(
    "experts, final, macaron",
    [
        (None, [1, 1], [1, 1]),
        ({"axis": "bandwidth"}, [2, 2], [2, 2]),
        ({"axis": "bandwidth", "blocks": [1]}, [1, 2], [1, 2]),
        ({"axis": "bandwidth", "ffn": "macaron"}, [1, 1], [2, 2]),
        ({"axis": "bandwidth", "ffn": "final", "blocks": [0]}, [2, 1], [1, 1]),
        ({"axis": "bandwidth", "map": {"nb": 0, "wb": 0}}, [1, 1], [1, 1]),
    ],
    ids=["none", "all", "blocks", "macaron", "final-of-a-block", "shared"],
)
def test_yaml_says_which_ffns_get_experts(experts, final, macaron):
    encoder = make_encoder(experts=experts).eval()
    assert [len(b.feed_forward.experts) for b in encoder.encoders] == final
    assert [len(b.feed_forward_macaron.experts) for b in encoder.encoders] == macaron
    a, *_ = encoder(features(), LENGTHS, route_by(encoder, IDS))
    b, *_ = encoder(features(), LENGTHS, route_by(encoder, 1 - IDS))
    assert torch.equal(a, b) == (max(final + macaron) == 1)


@pytest.mark.parametrize(
    "conf, error, message",
    [
        ({"input_layer": "linear"}, ConfigError, "input_layer must be one of"),
        ({"experts": {"axis": "task"}}, ConfigError, "cannot be routed by 'task'"),
        ({"experts": {"axis": ["bandwidth", "task"]}}, ConfigError, "'task'"),
        ({"experts": {"axis": "colour"}}, GuideError, "unknown axis 'colour'; known"),
        ({"experts": {"axis": "bandwidth", "blocks": [2]}}, ConfigError, "outside"),
        ({"experts": {"axis": "bandwidth", "map": {"nb": 0}}}, GuideError, "each of"),
        ({"experts": {"router": "learned"}}, ConfigError, "in experts"),
        ({"positionwise_layer_type": "conv1d"}, ConfigError, "in encoder_conf"),
    ],
)
def test_bad_configs_are_refused(conf, error, message):
    with pytest.raises(error, match=message):
        make_encoder(**conf)


def test_a_negative_split_is_refused():
    with pytest.raises(ConfigError, match="batches must be >= 0"):
        SMoEConformerEncoder(8, dummies.GUIDES, output_size=16, split_after=-1)


# ---- late split ----------------------------------------------------------------


def split_encoder(split_after):
    model = dummies.build(**dummies.split_options("encoder", split_after))
    assert int(model.encoder.split.batches_left) == split_after
    return model.encoder


def step(encoder, optimizer, n, ids=IDS):
    optimizer.zero_grad()
    feats = features(seed=n)
    out, *_ = encoder(feats, LENGTHS, route_by(encoder, ids))
    (out * torch.arange(len(ids))[:, None, None]).square().mean().backward()
    optimizer.step()
    return out.detach()


def flat(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_before_the_split_all_rows_train_the_first_expert_alone():
    encoder = split_encoder(2)
    first, second = dummies.expert_modules(encoder)
    start = flat(first), flat(second)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.01)
    for n in range(2):
        step(encoder, optimizer, n)
        assert all(p.grad is None for p in second.parameters())
        assert all(p.grad is not None for p in first.parameters())
    assert not torch.equal(flat(first), start[0])
    assert torch.equal(flat(second), start[1])


def test_tied_training_is_training_of_a_dense_encoder():
    encoder, dense = split_encoder(3), make_encoder(experts=None)
    own = encoder.state_dict()
    dense.load_state_dict({k: own[k] for k in dense.state_dict() if k in own})
    optimizers = [torch.optim.Adam(e.parameters(), lr=0.01) for e in (encoder, dense)]
    for n in range(3):
        assert torch.equal(
            step(encoder, optimizers[0], n), step(dense, optimizers[1], n)
        )


def test_the_experts_part_as_copies_at_the_batch_after_the_split():
    encoder = split_encoder(2)
    first, second = dummies.expert_modules(encoder)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.01)
    for n in range(2):
        step(encoder, optimizer, n)
    assert not torch.equal(flat(first), flat(second))
    optimizer.zero_grad()
    out, *_ = encoder(features(), LENGTHS, route_by(encoder))
    assert torch.equal(flat(first), flat(second))
    (out * torch.arange(len(IDS))[:, None, None]).square().mean().backward()
    assert all(p.grad is not None for p in (*first.parameters(), *second.parameters()))
    optimizer.step()
    assert not torch.equal(flat(first), flat(second))
    parted = flat(second)
    encoder.eval()
    encoder.state_dict()
    assert torch.equal(flat(second), parted)


@pytest.mark.parametrize("read", ["state_dict", "eval"])
def test_while_tied_whatever_is_read_holds_copies_of_the_first_expert(read):
    encoder = split_encoder(3)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.01)
    step(encoder, optimizer, 0)
    first, second = dummies.expert_modules(encoder)
    assert not torch.equal(flat(first), flat(second))
    if read == "eval":
        encoder.eval()
        routed, *_ = encoder(features(), LENGTHS, route_by(encoder))
        dense, *_ = encoder(features(), LENGTHS, torch.zeros_like(IDS))
        torch.testing.assert_close(routed, dense)
        state = dict(encoder.named_parameters())
    else:
        state = encoder.state_dict()
    names = [n for n in state if ".experts.1." in n]
    assert names
    for name in names:
        assert torch.equal(state[name], state[name.replace("experts.1", "experts.0")])


def test_a_tied_encoder_that_never_trained_evaluates_as_its_first_expert():
    encoder = split_encoder(3).eval()
    routed, *_ = encoder(features(), LENGTHS, route_by(encoder))
    dense, *_ = encoder(features(), LENGTHS, torch.zeros_like(IDS))
    torch.testing.assert_close(routed, dense)


def test_evaluation_counts_no_batch():
    encoder = split_encoder(2).eval()
    for _ in range(4):
        encoder(features(), LENGTHS, route_by(encoder))
    assert int(encoder.split.batches_left) == 2


@pytest.mark.parametrize("when", [(1, 2), (2, 5), (5, 6), (1, 4, 6), (3, 4)], ids=str)
def test_averaged_checkpoints_before_across_and_after_the_split_are_the_mean(when):
    split_after = 3
    encoder = split_encoder(split_after)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.01)
    saved = {}
    for n in range(1, 7):
        step(encoder, optimizer, n)
        saved[n] = {k: v.clone() for k, v in encoder.state_dict().items()}
    chosen = [saved[n] for n in when]
    # the host's arithmetic: whole numbers add up, the rest is the mean
    average = {k: sum(s[k] for s in chosen) for k in chosen[0]}
    average = {
        k: v if v.dtype == torch.int64 else v / len(chosen) for k, v in average.items()
    }
    decoding = split_encoder(split_after)  # as a decoder starts: built, loaded, eval
    decoding.load_state_dict(average)
    decoding.eval()
    decoding.state_dict()

    by_hand = make_encoder()  # never had a split
    with torch.no_grad():
        for name, p in by_hand.named_parameters():
            p.copy_(torch.stack([s[name] for s in chosen]).mean(0))
        for name, b in by_hand.named_buffers():
            if b.is_floating_point():
                b.copy_(torch.stack([s[name] for s in chosen]).mean(0))
    by_hand.eval()
    got, *_ = decoding(features(), LENGTHS, route_by(decoding))
    want, *_ = by_hand(features(), LENGTHS, route_by(by_hand))
    torch.testing.assert_close(got, want)
