"""Gradient cosines: against plain backward passes, one utterance at a time."""

import itertools
import math
import statistics

import dummies
import pytest
import torch

from espnet_smoe.config import ConfigError
from espnet_smoe.guide import TASK
from espnet_smoe.guide_pairs import (
    ATTENTION,
    WITH_CTC,
    Condition,
    GuidePair,
    cuts_of,
    pairs_of,
)
from espnet_smoe.interference import measure
from espnet_smoe.piece import Piece, losses_of
from espnet_smoe.places import places_of

DENSE = {"encoder": {"experts": None}, "decoder": {"experts": None}}
ALL = ("asr", "st_de", "st_es")
# all three tasks in both bandwidths, and utterances that lack some
UTTERANCES = [
    ("wb", ALL), ("nb", ALL), ("wb", ("st_de", "asr")), ("nb", ("asr",)),
    ("nb", ALL), ("wb", ("st_es",)), ("wb", ALL), ("nb", ("st_de", "st_es")),
]  # fmt: skip
# two of the same kind and side: the losses of a piece are sums
RANKS = [0.0, 0.0, 0.5, 0.0, 0.5, 0.0, 0.0, 0.5]


def build(**options):
    return dummies.build(**{**DENSE, **options}).eval()


def table(model):
    """Comparisons of a model on ``UTTERANCES``."""
    return pairs_of(model, [({"bandwidth": b}, tasks) for b, tasks in UTTERANCES])


def piece(data, places, utterances=UTTERANCES, ranks=RANKS):
    """Some like utterances of a batch."""
    first = utterances[places[0]]
    return Piece(
        {name: value[list(places)] for name, value in data.items()},
        {"bandwidth": first[0]},
        frozenset(first[1]),
        ranks[places[0]],
    )


def grouped(data, batches, utterances=UTTERANCES, ranks=RANKS):
    """Batches, given as lists of utterance numbers, as pieces of like utterances."""

    def kind(n):
        return utterances[n][0], tuple(sorted(utterances[n][1])), ranks[n]

    return [
        [
            piece(data, tuple(alike), utterances, ranks)
            for _, alike in itertools.groupby(sorted(batch, key=kind), kind)
        ]
        for batch in batches
    ]


def plain_gradient(with_ctc, without_ctc, data, condition):
    """Gradients by the training loss, one utterance and one backward pass at a time."""
    model = with_ctc if condition.ctc else without_ctc
    model.zero_grad()
    for n, (bandwidth, tasks) in enumerate(UTTERANCES):
        if not set(condition.needs) <= set(tasks):
            continue
        if condition.guides and bandwidth not in condition.guides[1]:
            continue
        low, high = condition.ranks or (0.0, 1.0)
        if not low <= RANKS[n] < high:
            continue
        alone = dummies.one_utterance(data, n)
        for task in set(ALL) - set(condition.tasks):
            alone[f"text_{task}"] = alone[f"text_{task}"][:, :0]
            alone[f"text_{task}_lengths"] = torch.zeros(1, dtype=torch.int64)
        if any(int(alone[f"text_{t}_lengths"]) for t in ALL):
            model(**alone)[0].backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
    }


ATTRIBUTES = {
    ("encoder", "macaron"): "feed_forward_macaron",
    ("encoder", "attention"): "self_attn",
    ("encoder", "convolution"): "conv_module",
    ("encoder", "final"): "feed_forward",
    ("decoder", "self_attention"): "self_attn",
    ("decoder", "cross_attention"): "src_attn",
    ("decoder", "ffn"): "feed_forward",
}


def plain_cosine(a, b, row):
    """Cosine over the parameters whose names belong to a row's place."""

    def mine(name):
        stack = {"encoder": "encoders", "decoder": "decoders"}[row.stack]
        start = f"{row.stack}.{stack}."
        if row.block is None:
            return name.startswith(start) and ".feed_forward" in name
        return name.startswith(f"{start}{row.block}.{ATTRIBUTES[row.stack, row.part]}.")

    names = [n for n in a if mine(n)]
    assert names
    x, y = (torch.cat([g[n].flatten() for n in names]) for g in (a, b))
    return float(torch.nn.functional.cosine_similarity(x, y, dim=0))


@pytest.fixture(scope="module")
def measured():
    """A model, its batch, comparisons and rows of all utterances in one batch."""
    model = build(model_conf={"task_weights": {"st_de": 2.5, "asr": 0.5}})
    data = dummies.batch(UTTERANCES)
    comparisons, skipped = table(model)
    assert not skipped
    rows, guided = measure(model, grouped(data, [range(8)]), comparisons)
    assert not guided
    return model, data, comparisons, rows


def test_cosines_are_those_of_plain_backward_passes_with_the_training_loss(measured):
    model, data, comparisons, rows = measured
    weights = {"task_weights": {"st_de": 2.5, "asr": 0.5}, "ctc_weight": 0.0}
    without_ctc = build(model_conf=weights)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("ctc.")}
    without_ctc.load_state_dict(state)
    conditions = {side for c in comparisons for side in c.sides}
    plain = {c: plain_gradient(model, without_ctc, data, c) for c in conditions}
    model.zero_grad()
    # tasks: 3 pairs, of which 2 with CTC; bandwidths: with control and with CTC
    assert len(comparisons) == 5 + 4
    left = iter(rows)
    seen = set()
    for comparison in comparisons:
        a, b = (plain[side] for side in comparison.sides)
        names = set()
        while len(names) < (9 if comparison.loss == WITH_CTC else 9 + 7):
            row = next(left)
            assert (row.a, row.b) == (comparison.a, comparison.b)
            assert (row.loss, row.control) == (comparison.loss, comparison.control)
            assert row.total == pytest.approx(plain_cosine(a, b, row), abs=1e-6)
            assert row.mean == pytest.approx(row.total, abs=1e-12)  # one batch
            assert row.error is None
            assert row.batches == 1
            names.add(row.place)
            seen.add(round(row.total, 3))
    assert next(left, None) is None
    assert len(seen) > len(rows) / 2  # they tell places and pairs apart


def test_places_are_all_ffns_and_their_neighbours_once(measured):
    model, _, _, rows = measured
    tensors, places = places_of(model)
    names = [f"{s}.{b}.{p}" for (s, p) in ATTRIBUTES for b in (0, 1)]
    assert {p.name for p in places} == {*names, "encoder.ffn", "decoder.ffn"}
    assert {r.place for r in rows} == {p.name for p in places}
    single = [n for p in places if p.block is not None for n in p.tensors]
    assert sorted(single) == list(range(len(tensors)))
    assert len({id(t) for t in tensors}) == len(tensors)
    for stack in ("encoder", "decoder"):
        whole = next(p for p in places if p.name == f"{stack}.ffn")
        names = {
            n
            for n, p in model.named_parameters()
            if p.dim() and any(p is tensors[i] for i in whole.tensors)
        }
        assert names == {
            n for n, _ in model.named_parameters()
            if n.startswith(stack) and ".feed_forward" in n
        }  # fmt: skip


@pytest.mark.parametrize(
    "batches",
    [
        [[0, 1, 2, 3], [4, 5, 6, 7]],
        [[7, 2], [0, 5, 4], [6, 1, 3]],
        [[n] for n in range(8)],
    ],
    ids=["ranks", "uneven", "alone"],
)
def test_the_total_does_not_depend_on_how_utterances_are_grouped(measured, batches):
    model, data, comparisons, rows = measured
    others, _ = measure(model, grouped(data, batches), comparisons)
    assert [r.place for r in others] == [r.place for r in rows]
    for row, other in zip(rows, others, strict=True):
        assert other.total == pytest.approx(row.total, abs=1e-6)


def test_mean_and_error_are_over_the_cosines_of_the_batches(measured):
    model, data, comparisons, _ = measured
    # the last one has one bandwidth only
    batches = grouped(data, [[0, 1, 2, 3], [4, 6], [5, 2, 7], [0, 6]])
    rows, _ = measure(model, batches, comparisons)
    single = [measure(model, [batch], comparisons)[0] for batch in batches]
    for row, *alone in zip(rows, *single, strict=True):
        values = [r.total for r in alone if r.total is not None]
        assert row.batches == len(values)
        assert row.mean == pytest.approx(statistics.fmean(values), abs=1e-9)
        error = (
            statistics.stdev(values) / math.sqrt(len(values))
            if len(values) > 1
            else None
        )
        assert row.error == (None if error is None else pytest.approx(error, abs=1e-9))
    nb_and_wb = [r for r in rows if r.axis == "bandwidth" and not r.control]
    assert {r.batches for r in nb_and_wb} == {2}


def test_cosines_are_symmetric_and_one_of_a_condition_with_itself(measured):
    model, data, comparisons, rows = measured
    turned = [
        GuidePair(c.axis, c.b, c.a, c.loss, c.control, c.matched, c.sides[::-1])
        for c in comparisons
    ]
    batches = grouped(data, [range(8)])
    for row, other in zip(rows, measure(model, batches, turned)[0], strict=True):
        assert other.total == pytest.approx(row.total, abs=1e-9)
    same = [
        GuidePair(TASK, "asr", "st_de", c.loss, False, True, (side, side))
        for c in comparisons
        for side in c.sides
    ]
    for row in measure(model, grouped(data, [[0, 1], [4, 6, 2]]), same)[0]:
        if row.total is not None:
            assert row.total == pytest.approx(1.0, abs=1e-9)
            assert row.mean == pytest.approx(1.0, abs=1e-9)


def test_tasks_that_ask_the_same_agree_and_one_that_unlearns_it_opposes():
    data = dummies.batch(UTTERANCES)
    data["text_st_de"], data["text_st_de_lengths"] = (
        data["text_asr"],
        data["text_asr_lengths"],
    )
    for weight, want in ((1.0, 1.0), (-2.0, -1.0)):
        model = build(model_conf={"task_weights": {"st_de": weight}})
        ids = [model.token_list.index(t) for t in ("<asr>", "<st_de>")]
        with torch.no_grad():  # the same prompt but for its name
            embedding = model.decoder.embed[0].weight
            embedding[ids[1]] = embedding[ids[0]]
        comparisons = [
            c for c in table(model)[0] if (c.b, c.loss) == ("st_de", ATTENTION)
        ]
        both = [n for n, (_, t) in enumerate(UTTERANCES) if {"asr", "st_de"} <= set(t)]
        rows, _ = measure(model, grouped(data, [both]), comparisons)
        assert rows
        for row in rows:
            assert row.total == pytest.approx(want, abs=1e-6), row.place


def test_a_measurement_leaves_parameters_buffers_and_gradients_alone(measured):
    model, data, comparisons, rows = measured
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for n, p in enumerate(model.parameters()):
        p.grad = torch.full_like(p, n)
    random = torch.get_rng_state()
    again, _ = measure(model, grouped(data, [range(8)]), comparisons)
    assert again == rows
    assert torch.equal(torch.get_rng_state(), random)
    for n, p in enumerate(model.parameters()):
        assert torch.equal(p.grad, torch.full_like(p, n))
    model.zero_grad()
    after = model.state_dict()
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.equal(after[key], value), key


def test_nothing_is_dropped_out_and_training_mode_is_refused(measured):
    model, data, comparisons, rows = measured
    rates = {"experts": None, "dropout_rate": 0.5, "positional_dropout_rate": 0.5}
    noisy = build(
        encoder=rates,
        decoder=rates,
        ctc_conf={"dropout_rate": 0.5},
        model_conf={"task_weights": {"st_de": 2.5, "asr": 0.5}},
    )
    noisy.load_state_dict(model.state_dict())
    batches = grouped(data, [range(8)])
    for row, other in zip(rows, measure(noisy, batches, comparisons)[0], strict=True):
        assert other.total == pytest.approx(row.total, abs=1e-9)
    with pytest.raises(ConfigError, match="evaluation mode"):
        measure(noisy.train(), batches, comparisons)


def test_losses_add_up_to_the_training_loss():
    model = build()
    data = dummies.batch(UTTERANCES)
    want, _, _ = model(**data)
    got = 0.0
    for part in grouped(data, [range(8)])[0]:
        for name, loss in losses_of(model, part).items():
            weight = model.ctc_weight if name == "ctc" else 1 - model.ctc_weight
            got += weight * float(loss) / 8
    assert got == pytest.approx(float(want), rel=1e-6)


def test_a_loss_that_is_not_finite_is_refused_by_name():
    model = build()
    data = dummies.batch(UTTERANCES)
    with torch.no_grad():
        model.ctc.ctc_lo.bias.fill_(math.nan)
    with pytest.raises(ConfigError, match=r"the ctc loss .* is nan"):
        measure(model, grouped(data, [range(8)]), table(model)[0])


# ---- S-MoE models ----------------------------------------------------------------


def test_what_experts_keep_apart_is_skipped_by_name_and_the_rest_is_compared():
    model = dummies.build(
        encoder={"experts": {"axis": "bandwidth", "blocks": [1], "ffn": "final"}},
        decoder={
            "experts": {"axis": "task", "map": {"asr": 0, "st_de": 1, "st_es": 1}}
        },
    ).eval()
    data = dummies.batch(UTTERANCES)
    rows, skipped = measure(model, grouped(data, [range(8)]), table(model)[0])
    places = {(s.a, s.b): set() for s in skipped}
    for s in skipped:
        places[s.a, s.b].add(s.place)
        assert f"{s.a} and {s.b} train different experts" in s.reason
    decoder = {"decoder.0.ffn", "decoder.1.ffn", "decoder.ffn"}
    assert places == {
        ("nb", "wb"): {"encoder.1.final", "encoder.ffn"},
        ("asr", "st_de"): decoder,
        ("asr", "st_es"): decoder,
    }
    assert not {(r.a, r.b, r.place) for r in rows} & {
        (a, b, place) for (a, b), names in places.items() for place in names
    }
    assert all(r.total is not None for r in rows)
    compared = {(r.a, r.b) for r in rows if r.place == "decoder.0.ffn"}
    assert compared == {("st_de", "st_es"), ("nb", "wb")}
    compared = {(r.a, r.b) for r in rows if r.place == "encoder.1.final"}
    assert compared == {("asr", "st_de"), ("asr", "st_es"), ("st_de", "st_es")}


def test_a_shared_expert_is_compared_beside_experts_that_are_apart():
    decoder = {"experts": {"axis": "task", "shared": True}}
    model = dummies.build(decoder=decoder, model_conf={"ctc_weight": 0.0}).eval()
    data = dummies.batch(UTTERANCES)
    comparisons, _ = table(model)
    rows, skipped = measure(model, grouped(data, [range(8)]), comparisons)
    places = {"decoder.0.ffn", "decoder.1.ffn", "decoder.ffn"}
    pairs = {(a, b) for a, b in itertools.combinations(ALL, 2)}
    apart = {(s.a, s.b, s.place) for s in skipped if s.axis == TASK}
    assert {(frozenset(s[:2]), s[2]) for s in apart} == {
        (frozenset(pair), place) for pair in pairs for place in places
    }
    shared = [r for r in rows if r.part == "shared" and r.axis == TASK]
    assert len(shared) == 2 * len(pairs)
    of = {(c.axis, c.a, c.b): c for c in comparisons if not c.control}
    for row in shared:
        a, b = (
            plain_gradient(None, model, data, side)
            for side in of[row.axis, row.a, row.b].sides
        )
        start = f"decoder.decoders.{row.block}.feed_forward.shared."
        x, y = (
            torch.cat([g[n].flatten() for n in g if n.startswith(start)])
            for g in (a, b)
        )
        cosine = torch.nn.functional.cosine_similarity(x, y, dim=0)
        assert row.total == pytest.approx(float(cosine), abs=1e-4)
        assert row.place == f"decoder.{row.block}.ffn.shared"


def test_experts_that_are_copies_give_the_dense_models_cosines(measured):
    model, data, comparisons, rows = measured
    moe = dummies.build(
        model_conf={"task_weights": {"st_de": 2.5, "asr": 0.5}},
        decoder={"experts": None},
    ).eval()
    dense = model.state_dict()
    moe.load_state_dict(
        {k: dense.get(k, dense.get(k.replace("experts.1", "experts.0")))
         for k in moe.state_dict()}
    )  # fmt: skip
    of = {(r.a, r.b, r.loss, r.control, r.place): r.total for r in rows}
    shared = [
        r
        for r in measure(moe, grouped(data, [range(8)]), comparisons)[0]
        if r.stack == "decoder" or r.part in ("attention", "convolution")
    ]
    assert shared
    for r in shared:
        key = (r.a, r.b, r.loss, r.control, r.place)
        assert r.total == pytest.approx(of[key], abs=1e-6)


# ---- what is compared ------------------------------------------------------------


def test_without_common_utterances_each_guide_stands_on_its_own():
    model = build()
    comparisons, skipped = pairs_of(
        model,
        [
            ({"bandwidth": "wb"}, ("asr",)),
            ({"bandwidth": "wb"}, ("st_de",)),
            ({"bandwidth": "nb"}, ("asr",)),
        ],
    )
    assert [(s.a, s.b, s.place, s.reason) for s in skipped] == [
        ("asr", "st_es", None, "no utterance of st_es"),
        ("st_de", "st_es", None, "no utterance of st_es"),
    ]
    assert {(c.a, c.b) for c in comparisons} == {("asr", "st_de"), ("nb", "wb")}
    assert not any(c.matched for c in comparisons)
    task = next(c for c in comparisons if c.axis == TASK)
    assert [side.needs for side in task.sides] == [("asr",), ("st_de",)]
    assert task.sides[0].meets({"bandwidth": "wb"}, frozenset({"asr"}), 0)
    assert not task.sides[0].meets({"bandwidth": "wb"}, frozenset({"st_de"}), 0)


def test_a_control_mixes_the_guides_and_parts_the_utterances():
    model = build()
    comparisons, _ = table(model)
    control = next(c for c in comparisons if c.control and c.loss == ATTENTION)
    assert control.sides == tuple(
        Condition(ALL, False, ALL, ("bandwidth", ("nb", "wb")), ranks)
        for ranks in ((0.0, 0.5), (0.5, 1.0))
    )
    assert {c.axis for c in comparisons if c.control} == {"bandwidth"}


def test_the_sides_of_a_control_are_as_large_as_those_of_its_pair():
    model = build()
    utterances = [({"bandwidth": b}, ALL) for b in ["nb"] * 3 + ["wb"] * 9]
    # without all references an utterance is on no side
    utterances += [({"bandwidth": "nb"}, ("asr",))] * 9
    pairs, _ = pairs_of(model, utterances)
    controls = [p.sides for p in pairs if p.control]
    assert controls
    assert all(a.ranks == (0.0, 0.25) and b.ranks == (0.25, 1.0) for a, b in controls)
    assert cuts_of(pairs) == [0.25]


def test_every_axis_of_the_yaml_is_compared():
    guides = dummies.CHANNEL_GUIDES
    model = dummies.build(guides, **DENSE).eval()
    utterances = [
        ({"bandwidth": b, "channel": c}, ("asr", "st_de"))
        for b, c in itertools.product(guides["bandwidth"], guides["channel"])
    ]
    found = {(c.axis, c.a, c.b) for c in pairs_of(model, utterances)[0]}
    assert found == {
        ("task", "asr", "st_de"),
        ("bandwidth", "nb", "wb"),
        ("channel", "phone", "mic"),
    }


def test_without_ctc_only_the_attention_loss_is_compared():
    model = build(model_conf={"ctc_weight": 0.0})
    assert {c.loss for c in table(model)[0]} == {ATTENTION}
