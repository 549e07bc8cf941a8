"""S-MoE Transformer decoder: against the host's, with caches, late split."""

import contract
import dummies
import pytest
import torch
from espnet2.asr.decoder.transformer_decoder import TransformerDecoder

from espnet_smoe.config import ConfigError
from espnet_smoe.guide import GuideError
from espnet_smoe.mask import valid_mask

TOKENS = dummies.token_list()
SOS, EOS = len(TOKENS) - 1, len(TOKENS) - 1
FRAMES = torch.tensor([9, 14, 5, 11])
TEXTS = torch.tensor([4, 2, 6, 1])
PROMPTS = [("wb", "st_es"), ("nb", "asr"), ("wb", "asr"), ("nb", "st_de")]
TASKS = [2, 0, 0, 1]  # task guides of the rows, in no order
START = 3  # <sos> and two guiding tokens


def make_decoder(guides=dummies.GUIDES, **conf):
    return dummies.build(guides, decoder=conf).decoder


def memory(frames=FRAMES):
    torch.manual_seed(0)
    return torch.randn(len(frames), int(frames.max()), dummies.D, dtype=torch.double)


def prefixes(texts=TEXTS, prompts=PROMPTS, tokens=TOKENS):
    """``<sos>``, prompt, text of each row, padded with ``<eos>``; and lengths."""
    torch.manual_seed(0)
    rows = []
    for length, guides in zip(texts.tolist(), prompts, strict=True):
        prompt = torch.tensor([tokens.index(f"<{g}>") for g in guides])
        text = torch.randint(7, len(tokens) - 1, (length,))
        rows.append(torch.cat([torch.tensor([SOS]), prompt, text]))
    ys = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=EOS)
    return ys, torch.tensor([len(r) for r in rows])


# ---- the host's decoder --------------------------------------------------------


@pytest.mark.parametrize("sdpa", [False, True], ids=["plain", "sdpa"])
def test_p1_copies_of_a_stock_transformer_give_its_output_and_gradients(sdpa):
    decoder = make_decoder(use_sdpa=sdpa)
    stock = TransformerDecoder(
        vocab_size=len(TOKENS),
        encoder_output_size=dummies.D,
        attention_heads=2,
        linear_units=dummies.H,
        num_blocks=2,
        dropout_rate=0.0,
        positional_dropout_rate=0.0,
    ).double()
    dummies.copy_from_stock(decoder, stock)
    assert len(dummies.banks(decoder)) == 2
    hs = memory().requires_grad_()
    ys, lengths = prefixes()
    got, got_lengths = decoder(hs, FRAMES, ys, lengths)
    want, _ = stock(hs, FRAMES, ys, lengths)
    assert torch.equal(got_lengths, lengths)
    contract.check_same_as_stock(decoder, stock, got, want, lengths, [hs])


# ---- isolation, neighbours, explicit guides ------------------------------------


def test_p2_tasks_are_isolated():
    decoder = make_decoder().eval()
    hs, (ys, lengths) = memory(), prefixes()

    def run(rows=slice(None)):
        return decoder(hs[rows], FRAMES[rows], ys[rows], lengths[rows])[0]

    experts = dummies.expert_modules(decoder)
    contract.check_isolation(lambda: run().detach(), experts, TASKS)
    contract.check_idle_gradients(run, experts, TASKS)


def test_p3_a_row_scores_the_same_alone_as_in_a_batch():
    decoder = make_decoder().eval()
    hs = memory()
    ys, lengths = prefixes()
    with torch.no_grad():
        together, _ = decoder(hs, FRAMES, ys, lengths)
        for r, (frames, n) in enumerate(zip(FRAMES, lengths, strict=True)):
            alone, _ = decoder(
                hs[r : r + 1, :frames],
                frames[None],
                ys[r : r + 1, :n],
                n[None],
            )
            torch.testing.assert_close(together[r, :n], alone[0])


def test_no_position_sees_a_later_token():
    decoder = make_decoder().eval()
    hs, (ys, lengths) = memory(), prefixes()
    before, _ = decoder(hs, FRAMES, ys, lengths)
    changed = ys.clone()
    changed[:, 5:] = 8
    after, _ = decoder(hs, FRAMES, changed, lengths)
    torch.testing.assert_close(after[:, :5], before[:, :5])


def test_prompts_given_on_the_host_are_those_of_the_prefixes():
    decoder = make_decoder().eval()
    hs, (ys, lengths) = memory(), prefixes()
    want, _ = decoder(hs, FRAMES, ys, lengths)
    got, _ = decoder(hs, FRAMES, ys, lengths, ys[:, 1:START])
    assert torch.equal(got, want)


def test_p6_the_guide_is_read_from_the_prompt_and_stays_on_no_module():
    decoder = make_decoder().eval()
    hs = memory()
    ys, lengths = prefixes()
    other, _ = prefixes(prompts=PROMPTS[::-1])

    def teacher(prefix):
        return lambda: decoder(hs, FRAMES, prefix, lengths)

    def cached(prefix):
        def run():
            state = decoder.start_search(hs, FRAMES, prefix[:, 1:START])
            decoder.score_next(prefix[:, :START], state)

        return run

    calls = [teacher(ys), teacher(other), cached(ys), cached(other)]
    contract.check_no_guide_state(decoder, calls)


@pytest.mark.parametrize(
    "prompt, axis",
    [
        (("asr", "nb"), "bandwidth"),
        (("nb", "nb"), "task"),
        (("nb", "unk"), "task"),
    ],
    ids=["swapped", "no-task", "unknown"],
)
def test_p6_a_prompt_token_that_is_no_guide_is_an_error_that_lists_them(prompt, axis):
    decoder = make_decoder()
    known = [TOKENS.index(f"<{g}>") for g in dummies.GUIDES[axis]]
    ys, lengths = prefixes(prompts=[*PROMPTS[:3], prompt])
    with pytest.raises(GuideError) as error:
        decoder(memory(), FRAMES, ys, lengths)
    assert f"no {axis} guides; known: {known}" in str(error.value)
    with pytest.raises(GuideError, match=f"no {axis} guides"):
        decoder.start_search(memory(), FRAMES, ys[:, 1:START])


@pytest.mark.parametrize("length", [0, 1, 3])
def test_p6_a_search_with_another_prompt_than_one_token_an_axis_is_refused(length):
    decoder = make_decoder().eval()
    prompts = prefixes()[0][:, 1 : 1 + length]
    with pytest.raises(
        GuideError, match=rf"of {length} tokens .* \['bandwidth', 'task'"
    ):
        decoder.start_search(memory(), FRAMES, prompts)


# ---- caches --------------------------------------------------------------------


def teacher_forcing(decoder, hs, frames, ys):
    """Reference: log probabilities after each position, (N, L, V)."""
    lengths = torch.full((len(ys),), ys.size(1))
    logits, _ = decoder(hs, frames, ys, lengths)
    return logits.log_softmax(-1)


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [2, 3, 0], [3]], ids=str)
@torch.no_grad()
def test_p5_cached_scores_are_those_of_teacher_forcing_at_every_position(rows):
    decoder = make_decoder().eval()
    frames = FRAMES[rows]
    hs = memory()[rows, : int(frames.max())]
    ys = prefixes(torch.full((4,), 7))[0][rows]
    want = teacher_forcing(decoder, hs, frames, ys)
    hs[~valid_mask(frames, hs.size(1))] = 1e3  # the search may not look there
    state = decoder.start_search(hs, frames, ys[:, 1:START])
    for length in range(START, ys.size(1) + 1):
        got, state = decoder.score_next(ys[:, :length], state)
        torch.testing.assert_close(got, want[:, length - 1])


@torch.no_grad()
def test_p5_hypotheses_that_are_picked_doubled_and_dropped_keep_their_own_past():
    decoder = make_decoder().eval()
    hs, vocab, beam = memory(), len(TOKENS), 3
    ys = prefixes(torch.ones(4, dtype=torch.int64))[0]
    state = decoder.start_search(hs, FRAMES, ys[:, 1:START])
    torch.manual_seed(0)
    for _ in range(6):
        per_row = len(ys) // len(hs)
        got, state = decoder.score_next(ys, state)
        memories = hs.repeat_interleave(per_row, 0)
        frames = FRAMES.repeat_interleave(per_row)
        want = teacher_forcing(decoder, memories, frames, ys)[:, -1]
        torch.testing.assert_close(got, want)
        picked = torch.randint(0, per_row, (len(hs), beam))
        before = (picked + per_row * torch.arange(len(hs))[:, None]).flatten()
        tokens = torch.randint(7, vocab - 1, (len(before), 1))
        ys, state = torch.cat([ys[before], tokens], 1), state.select(before)


@torch.no_grad()
def test_p5_a_beam_may_shrink_and_grow():
    decoder = make_decoder().eval()
    hs, frames = memory()[1:2], FRAMES[1:2]
    ys = prefixes()[0][1:2, :START]
    state = decoder.start_search(hs, frames, ys[:, 1:])
    for kept in ([0, 0, 0, 0], [3, 0, 2], [2], [0, 0]):
        got, state = decoder.score_next(ys, state)
        memories = hs.expand(len(ys), -1, -1)
        want = teacher_forcing(decoder, memories, frames.expand(len(ys)), ys)[:, -1]
        torch.testing.assert_close(got, want)
        ys = torch.cat([ys[kept], torch.randint(7, 20, (len(kept), 1))], 1)
        state = state.select(torch.tensor(kept))


@torch.no_grad()
def test_p5_rows_that_leave_take_nothing_from_those_that_stay():
    decoder = make_decoder().eval()
    hs, ys = memory(), prefixes(torch.full((4,), 3))[0]
    state = decoder.start_search(hs, FRAMES, ys[:, 1:START])
    _, state = decoder.score_next(ys[:, :-1], state)
    rows = torch.tensor([3, 0])
    got, _ = decoder.score_next(ys[rows], state.of_rows(rows, rows))
    want = teacher_forcing(decoder, hs[rows], FRAMES[rows], ys[rows])[:, -1]
    torch.testing.assert_close(got, want)


@torch.no_grad()
def test_p5_two_searches_that_part_from_one_state_do_not_disturb_each_other():
    decoder = make_decoder().eval()
    hs, vocab = memory(), len(TOKENS)
    ys = prefixes()[0][:, :START]
    start = decoder.start_search(hs, FRAMES, ys[:, 1:])
    _, start = decoder.score_next(ys, start)
    torch.manual_seed(0)
    paths, states = [ys, ys], [start, start]
    for _ in range(20):  # longer than the store has room for at first
        for n in (0, 1):
            new = torch.randint(7, vocab - 1, (len(ys), 1))
            paths[n] = torch.cat([paths[n], new], 1)
            got, states[n] = decoder.score_next(paths[n], states[n])
            want = teacher_forcing(decoder, hs, FRAMES, paths[n])[:, -1]
            torch.testing.assert_close(got, want)


@torch.no_grad()
def test_keys_of_earlier_positions_are_not_copied_at_every_step():
    decoder = make_decoder().eval()
    hs, (ys, _) = memory(), prefixes(torch.full((4,), 30))
    state = decoder.start_search(hs, FRAMES, ys[:, 1:START])
    stores = set()
    for length in range(START, ys.size(1) + 1):
        _, state = decoder.score_next(ys[:, :length], state)
        state = state.select(torch.arange(len(ys)))
        stores.add(state.store.tensor.data_ptr())
    assert len(stores) <= 4  # its room doubles


@torch.no_grad()
def test_p5_the_hosts_scorer_interface_gives_the_scores_of_teacher_forcing():
    decoder = make_decoder().eval()
    hs, ys = memory(), prefixes(torch.full((4,), 3))[0]
    want = teacher_forcing(decoder, hs, FRAMES, ys)[:, -1]
    mask = valid_mask(FRAMES, hs.size(1))[:, None, :]
    got, _ = decoder.batch_score(ys, [None] * len(ys), hs, xs_mask=mask)
    torch.testing.assert_close(got, want)
    for row, frames in enumerate(FRAMES.tolist()):
        got, _ = decoder.score(ys[row], None, hs[row, :frames])
        torch.testing.assert_close(got, want[row])


@torch.no_grad()
def test_only_new_positions_are_computed():
    decoder = make_decoder().eval()
    widths = []
    for layer in decoder.decoders:
        layer.norm1.register_forward_hook(
            lambda _, args, __: widths.append(args[0].size(1))
        )
        layer.src_attn.linear_k.register_forward_hook(lambda *_: widths.append("cross"))
    hs, (ys, _) = memory(), prefixes()
    state = decoder.start_search(hs, FRAMES, ys[:, 1:START])
    for length in (START, START + 1, START + 2):
        _, state = decoder.score_next(ys[:, :length], state)
    assert widths == ["cross", "cross", START, START, 1, 1, 1, 1]


# ---- where experts sit ---------------------------------------------------------


@pytest.mark.parametrize(
    "experts, sizes",
    [
        (None, [1, 1]),
        ({"axis": "task"}, [3, 3]),
        ({"axis": ["bandwidth", "task"]}, [6, 6]),
        ({"axis": "bandwidth"}, [2, 2]),
        ({"axis": "task", "blocks": [1]}, [1, 3]),
        ({"axis": "task", "map": {"asr": 0, "st_de": 1, "st_es": 1}}, [2, 2]),
        ({"axis": "task", "shared": True}, [3, 3]),
    ],
    ids=["none", "task", "both-axes", "bandwidth", "blocks", "map", "shared"],
)
@torch.no_grad()
def test_p5_holds_wherever_yaml_puts_the_experts(experts, sizes):
    decoder = make_decoder(experts=experts).eval()
    assert [len(b.feed_forward.experts) for b in decoder.decoders] == sizes
    hs, (ys, _) = memory(), prefixes(torch.full((4,), 3))
    want = teacher_forcing(decoder, hs, FRAMES, ys)
    state = decoder.start_search(hs, FRAMES, ys[:, 1:START])
    for length in range(START, ys.size(1) + 1):
        got, state = decoder.score_next(ys[:, :length], state)
        torch.testing.assert_close(got, want[:, length - 1])


def test_a_shared_expert_serves_its_guides_and_no_other():
    shared = {"asr": 0, "st_de": 1, "st_es": 1}
    decoder = make_decoder(experts={"axis": "task", "map": shared}).eval()
    hs, (ys, lengths) = memory(), prefixes()
    contract.check_isolation(
        lambda: decoder(hs, FRAMES, ys, lengths)[0].detach(),
        dummies.expert_modules(decoder),
        [1, 0, 0, 1],
    )


@pytest.mark.parametrize(
    "conf, error, message",
    [
        ({"experts": {"axis": "task", "ffn": "final"}}, ConfigError, "one FFN"),
        ({"experts": {"axis": "speaker"}}, GuideError, "unknown axis 'speaker'; known"),
        ({"experts": {"axis": "task", "blocks": [-1]}}, ConfigError, r"outside"),
        ({"experts": {"axis": []}}, GuideError, "distinct axes"),
        ({"experts": {"axis": ["task", "task"]}}, GuideError, "distinct axes"),
        (
            {"experts": {"axis": "task", "map": {"asr": 0, "st_de": 2, "st_es": 2}}},
            GuideError,
            "expert ids must be 0..E-1",
        ),
        ({"normalize_before": False}, ConfigError, "in decoder_conf"),
    ],
)
def test_bad_configs_are_refused(conf, error, message):
    with pytest.raises(error, match=message):
        make_decoder(**conf)


# ---- late split ----------------------------------------------------------------


def test_before_the_split_the_decoder_trains_its_first_expert_alone():
    decoder = dummies.build(**dummies.split_options("decoder", 1)).decoder
    dense = make_decoder(experts=None)
    own = decoder.state_dict()
    dense.load_state_dict({k: own[k] for k in dense.state_dict()})
    first, *others = dummies.expert_modules(decoder)
    hs, (ys, lengths) = memory(), prefixes()
    with torch.no_grad():
        for p in first.parameters():
            p.add_(0.1)
        for bank, plain in zip(decoder.banks(), dense.banks(), strict=True):
            plain.experts[0].load_state_dict(bank.experts[0].state_dict())

    out, _ = decoder(hs, FRAMES, ys, lengths)
    assert torch.equal(out, dense(hs, FRAMES, ys, lengths)[0])
    out.sum().backward()
    assert all(p.grad is None for o in others for p in o.parameters())

    decoder(hs, FRAMES, ys, lengths)[0].sum().backward()
    for other in others:
        for a, b in zip(first.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)
            assert b.grad is not None
