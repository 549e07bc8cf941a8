"""Guide embedding at the encoder input: added, explicit, padding-proof."""

import contract
import dummies
import pytest
import torch

from espnet_smoe.config import ConfigError
from espnet_smoe.embedding import GuideEmbedding
from espnet_smoe.guide import GuideError, GuideTable

FRAMES = torch.tensor([41, 60, 23, 52])
IDS = torch.tensor([1, 0, 1, 0])
TABLE = GuideTable.from_mapping(dummies.CHANNEL_GUIDES)


def build(axes=("bandwidth",), guides=dummies.GUIDES, **conf):
    encoder = {"experts": None, **conf}
    if axes is not None:
        encoder["guide_embedding"] = axes
    return dummies.build(guides, encoder=encoder)


def trained(axes=("bandwidth",), guides=dummies.GUIDES, **conf):
    """A model whose embedding is no longer zero."""
    model = build(axes, guides, **conf)
    torch.manual_seed(3)
    with torch.no_grad():
        for table in model.encoder.guide_embedding.tables.values():
            table.weight.normal_()
    return model


def features():
    torch.manual_seed(0)
    return torch.randn(4, 60, dummies.MELS, dtype=torch.double)


def run(encoder, feats, lengths=FRAMES, ids=IDS):
    guide_ids = {"bandwidth": ids}
    expert_ids = encoder.expert_ids_of(guide_ids)
    return encoder(feats, lengths, expert_ids, guide_ids)


def test_vectors_of_several_axes_add_up():
    embedding = GuideEmbedding(TABLE, ["bandwidth", "channel"], 5)
    for table in embedding.tables.values():
        torch.nn.init.normal_(table.weight)
    ids = {"bandwidth": torch.tensor([1, 0, 1]), "channel": torch.tensor([0, 0, 1])}
    bandwidth, channel = (t.weight for t in embedding.tables.values())
    want = [bandwidth[b] + channel[c] for b, c in ((1, 0), (0, 0), (1, 1))]
    torch.testing.assert_close(embedding(ids), torch.stack(want))


def test_p1_at_first_the_model_is_the_one_without_embedding():
    guided, plain = build(), build(None)
    own = plain.state_dict()
    state = guided.state_dict()
    extra = set(state) - set(own)
    assert extra == {"encoder.guide_embedding.tables.bandwidth.weight"}
    assert all(torch.equal(state[k], own[k]) for k in own)
    data = dummies.batch()
    assert torch.equal(guided.eval()(**data)[0], plain.eval()(**data)[0])


def test_the_guide_is_added_to_the_subsampled_frames_before_the_first_block():
    encoder, plain = trained().encoder.eval(), build(None).encoder.eval()
    seen = {}
    for name, one in (("guided", encoder), ("plain", plain)):
        one.encoders[0].register_forward_pre_hook(
            lambda _, args, name=name: seen.update({name: args[0].detach()})
        )
        run(one, features())
    vectors = encoder.guide_embedding.tables["bandwidth"].weight[IDS]
    torch.testing.assert_close(
        seen["guided"] - seen["plain"],
        vectors[:, None].expand_as(seen["plain"]).detach(),
    )


@pytest.mark.parametrize(
    "experts", [None, {"axis": "bandwidth"}], ids=["dense", "both"]
)
def test_outputs_and_gradients_are_those_of_one_row_at_a_time(experts):
    encoder = trained(experts=experts).encoder.eval()
    feats = features()
    for row, length in zip(feats, FRAMES, strict=True):
        row[length:] = torch.nan
    out, sizes, _ = run(encoder, feats)
    torch.manual_seed(1)
    cotangent = torch.randn_like(out)
    together = alone = 0.0
    for b, length in enumerate(FRAMES.tolist()):
        n = int(sizes[b])
        y, *_ = run(
            encoder, feats[b : b + 1, :length], FRAMES[b : b + 1], IDS[b : b + 1]
        )
        torch.testing.assert_close(out[b, :n], y[0])
        together = together + (out[b, :n] * cotangent[b, :n]).sum()
        alone = alone + (y[0] * cotangent[b, :n]).sum()
    leaves = list(encoder.parameters())
    got = torch.autograd.grad(together, leaves, allow_unused=True)
    want = torch.autograd.grad(alone, leaves, allow_unused=True)
    contract.check_gradients(got, want)
    gradient = dict(zip(leaves, got, strict=True))[
        encoder.guide_embedding.tables["bandwidth"].weight
    ]
    assert (gradient.abs().sum(1) > 0).all()


def test_p2_a_guides_vector_moves_its_own_rows_only():
    encoder = trained().encoder.eval()
    before = run(encoder, features())[0].detach()
    with torch.no_grad():
        encoder.guide_embedding.tables["bandwidth"].weight[1] += 1.0
    after = run(encoder, features())[0].detach()
    for row, guide in enumerate(IDS.tolist()):
        assert torch.equal(before[row], after[row]) == (guide == 0)


def test_p3_an_utterance_encodes_the_same_alone_as_in_a_batch():
    encoder = trained().encoder.eval()
    contract.check_neighbours(
        lambda feats, lengths, rows: run(encoder, feats, lengths, IDS[rows])[:2],
        features(),
        FRAMES,
    )


def test_the_model_hands_the_guides_of_the_batch_to_the_embedding():
    guides = dummies.CHANNEL_GUIDES
    model = trained(["channel", "bandwidth"], guides).eval()
    utterances = [("nb", "mic", ("asr",)), ("wb", "phone", ("asr",))]
    data = dummies.batch(utterances, guides)
    before = dummies.encode(model, data, guides)[0]
    for axis in ("channel", "bandwidth"):
        other = {**data, axis: data[axis].flip(0)}
        assert not torch.allclose(dummies.encode(model, other, guides)[0], before)


def test_p6_guides_are_arguments_and_stay_on_no_module():
    model = trained().eval()
    calls = [
        lambda u=u: model(**dummies.batch(u))
        for u in (dummies.MIXED, [("nb", ("asr",))], [("wb", ("st_es", "asr"))])
    ]
    contract.check_no_guide_state(model, calls)
    with pytest.raises(GuideError, match=r"embeds guides of \['bandwidth'\], but got"):
        model.encoder(features(), FRAMES, torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize(
    "axes, error, message",
    [
        (["task"], ConfigError, "guide_embedding cannot hold 'task'"),
        (["room"], GuideError, "unknown axis 'room'; known: bandwidth, task"),
        ([], ConfigError, r"list of distinct axes, got \[\]"),
        ("bandwidth", ConfigError, "list of distinct axes, got 'bandwidth'"),
        (["bandwidth"] * 2, ConfigError, "list of distinct axes, got"),
        ({"bandwidth": 1}, ConfigError, "list of distinct axes, got"),
    ],
)
def test_bad_embeddings_are_refused(axes, error, message):
    with pytest.raises(error, match=message):
        build(axes)
