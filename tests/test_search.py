"""Search over (utterance, task) rows: against the host's search, uncached."""

import random

import contract
import dummies
import pytest
import torch
from espnet2.legacy.nets.scorer_interface import BatchScorerInterface

from espnet_smoe.config import ConfigError
from espnet_smoe.host import BatchBeamSearch, CTCPrefixScorer, LengthBonus
from espnet_smoe.rows import Rows
from espnet_smoe.search import RowSearch, SearchConfig

TASKS = dummies.GUIDES["task"]
UTTERANCES = [("wb", ()), ("nb", ()), ("wb", ())]
# (utterance, task) in no order; utterance 1 lacks st_de
PAIRS = [(2, "st_es"), (0, "asr"), (1, "asr"), (0, "st_de"), (2, "asr"), (1, "st_es")]


class FullPrefixScorer(torch.nn.Module, BatchScorerInterface):
    """Reference: teacher forcing over the whole prefixes, no cache."""

    def __init__(self, decoder, banned):
        super().__init__()
        self.decoder = decoder
        self.banned = banned

    def batch_score(self, ys, states, xs, xs_mask=None):
        frames = torch.full((len(xs),), xs.size(1))
        if xs_mask is not None:
            frames = xs_mask.sum((1, 2))
        logits, _ = self.decoder(xs, frames, ys, torch.full((len(ys),), ys.size(1)))
        logp = logits[:, -1].log_softmax(-1)
        logp[:, self.banned] = -torch.inf
        return logp, states


@torch.no_grad()
def reference(model, config, encoded, frames, pairs, bandwidths):
    """The host's own search, one row after the other."""
    tokens = model.token_list
    banned = [i for i, t in enumerate(tokens[:-1]) if t.startswith("<")]
    results = []
    for b, task in pairs:
        weight = config.ctc_weight if task == "asr" else 0.0
        search = BatchBeamSearch(
            scorers={
                "decoder": FullPrefixScorer(model.decoder, banned),
                "ctc": CTCPrefixScorer(model.ctc, model.eos),
                "length_bonus": LengthBonus(model.vocab_size),
            },
            weights={
                "decoder": 1 - weight,
                "ctc": weight,
                "length_bonus": config.penalty,
            },
            beam_size=config.beam_size,
            vocab_size=model.vocab_size,
            sos=model.sos,
            eos=model.eos,
            pre_beam_score_key="full",
            normalize_length=config.normalize_length,
        ).eval()
        prompt = [tokens.index(f"<{g}>") for g in (bandwidths[b], task)]
        search.set_hyp_primer([model.sos, *prompt])
        results.append(
            search(
                encoded[b, : frames[b]],
                maxlenratio=config.maxlenratio,
                minlenratio=config.minlenratio,
            )[: config.nbest]
        )
    return results


def setup(utterances=UTTERANCES, seed=0, **others):
    model = dummies.build(seed=seed, **others).eval()
    data = dummies.batch(utterances)
    with torch.no_grad():
        # some hypotheses end by themselves, some at the limit
        model.decoder.output_layer.bias[model.eos] += 1.5
        encoded, frames = dummies.encode(model, data)
    return model, data, encoded, frames


def rows_of(model, data, pairs):
    utterances = torch.tensor([b for b, _ in pairs])
    tasks = torch.tensor([TASKS.index(t) for _, t in pairs])
    bandwidths = data["bandwidth"].view(-1)[utterances]
    ids = model.guide_token_ids
    prompts = torch.stack(
        [torch.tensor(ids["bandwidth"])[bandwidths], torch.tensor(ids["task"])[tasks]],
        1,
    )
    return Rows(utterances, tasks, prompts)


def plain(nbest):
    return [(h.yseq.tolist(), float(h.score)) for h in nbest]


def check_same_nbests(got, want):
    assert len(got) == len(want)
    for ours, theirs in zip(got, want, strict=True):
        assert [y for y, _ in plain(ours)] == [y for y, _ in plain(theirs)]
        for a, b in zip(ours, theirs, strict=True):
            assert float(a.score) == pytest.approx(float(b.score), abs=1e-4)
            parts = {name: float(score) for name, score in b.scores.items()}
            assert a.scores == pytest.approx(parts, abs=1e-3)


# ---- the host's search ---------------------------------------------------------


@pytest.mark.parametrize("ctc_weight", [0.0, 0.3])
@pytest.mark.parametrize(
    "options",
    [
        {"maxlenratio": -6},
        {"maxlenratio": 0.5, "minlenratio": 0.2, "penalty": 0.7},
        {"maxlenratio": -5, "normalize_length": True},
    ],
    ids=["six-tokens", "ratios-and-penalty", "normalized"],
)
@pytest.mark.parametrize("pairs", [PAIRS, PAIRS[3:4]], ids=["many", "one"])
def test_p5_the_search_finds_the_hosts_nbests_with_the_hosts_scores(
    ctc_weight, options, pairs
):
    model, data, encoded, frames = setup()
    config = SearchConfig(beam_size=3, nbest=3, ctc_weight=ctc_weight, **options)
    got = RowSearch(model, config)(encoded, frames, rows_of(model, data, pairs))
    bandwidths = [bandwidth for bandwidth, _ in UTTERANCES]
    want = reference(model, config, encoded, frames, pairs, bandwidths)
    assert all(len(nbest) == 3 for nbest in want)
    check_same_nbests(got, want)


@pytest.mark.parametrize(
    "encoder, decoder",
    [
        ({"gate": {"num_experts": 2}}, {"gate": {"num_experts": 2}}),
        ({"axis": "bandwidth"}, {"gate": {"num_experts": 3, "top_k": 2}}),
        (
            {"axis": "bandwidth", "shared": True},
            {"axis": ["task", "bandwidth"], "shared": True},
        ),
    ],
    ids=["top-1", "top-2", "shared"],
)
def test_p5_the_search_finds_them_whatever_picks_the_experts(encoder, decoder):
    model, data, encoded, frames = setup(
        encoder={"experts": encoder, "guide_embedding": ["bandwidth"]},
        decoder={"experts": decoder},
    )
    config = SearchConfig(beam_size=3, nbest=3, maxlenratio=-6)
    got = RowSearch(model, config)(encoded, frames, rows_of(model, data, PAIRS))
    bandwidths = [u[0] for u in UTTERANCES]
    want = reference(model, config, encoded, frames, PAIRS, bandwidths)
    check_same_nbests(got, want)


def test_p5_a_search_without_length_limit_ends_where_the_hosts_does():
    model, data, encoded, frames = setup(UTTERANCES[:2])
    config = SearchConfig(beam_size=2, nbest=2)
    pairs = [(1, "asr"), (0, "st_de"), (1, "st_de")]
    got = RowSearch(model, config)(encoded, frames, rows_of(model, data, pairs))
    check_same_nbests(
        got, reference(model, config, encoded, frames, pairs, ["wb", "nb"])
    )


def possible(nbest):
    """Without texts that have more labels than CTC has frames for."""
    return [h for h in nbest if float(h.score) > -1e6]


@pytest.mark.parametrize("seed", range(12))
def test_p5_any_options_give_the_hosts_nbests(seed):
    pick = random.Random(seed)
    tokens = dummies.token_list(plain=pick.choice([3, 20]))
    model, data, encoded, frames = setup(seed=seed, token_list=tokens)
    with torch.no_grad():
        model.decoder.output_layer.weight *= pick.choice([0.5, 1.0, 4.0])
    pairs = pick.sample([(b, t) for b in range(3) for t in TASKS], pick.randint(1, 9))
    config = SearchConfig(
        beam_size=pick.choice([1, 2, 5, 8]),
        nbest=pick.choice([1, 3, 12]),
        ctc_weight=pick.choice([0.0, 0.3, 0.9]),
        penalty=pick.choice([0.0, 0.5, 3.0, -0.5]),
        normalize_length=pick.random() < 0.3,
        maxlenratio=pick.choice([0.0, -1, -3, 0.5, 2.0]),
        minlenratio=pick.choice([0.0, 0.2, 1.3, -2]),  # some find nothing and try again
    )
    got = RowSearch(model, config)(encoded, frames, rows_of(model, data, pairs))
    bandwidths = [bandwidth for bandwidth, _ in UTTERANCES]
    want = reference(model, config, encoded, frames, pairs, bandwidths)
    check_same_nbests([possible(n) for n in got], [possible(n) for n in want])


@torch.no_grad()
def test_p5_the_hosts_own_loop_runs_on_the_decoder():
    model, _, encoded, frames = setup()
    prompt = [model.token_list.index(f"<{guide}>") for guide in ("wb", "st_de")]
    nbests = []
    for decoder in (model.decoder, FullPrefixScorer(model.decoder, [])):
        search = BatchBeamSearch(
            scorers={"decoder": decoder},
            weights={"decoder": 1.0},
            beam_size=3,
            vocab_size=model.vocab_size,
            sos=model.sos,
            eos=model.eos,
        ).eval()
        for x, lengths in ((encoded[0, : frames[0]], None), (encoded, frames)):
            search.set_hyp_primer([model.sos, *prompt])
            found = search(x, x_lengths=lengths, maxlenratio=-6)
            nbests.append(found if lengths is not None else [found])
    check_same_nbests(nbests[0], nbests[2])
    check_same_nbests(nbests[1], nbests[3])


@pytest.mark.parametrize("ctc_weight", [0.0, 0.3])
def test_a_beam_wider_than_the_vocabulary_takes_what_there_is(ctc_weight):
    tokens = dummies.token_list(plain=2)
    model, data, encoded, frames = setup(token_list=tokens)
    config = SearchConfig(
        beam_size=2 * len(tokens), nbest=2, ctc_weight=ctc_weight, maxlenratio=-3
    )
    for nbest in RowSearch(model, config)(encoded, frames, rows_of(model, data, PAIRS)):
        assert len(nbest) == 2


@pytest.mark.parametrize("ctc_weight", [0.0, 0.3])
def test_scores_that_are_no_numbers_are_refused(ctc_weight):
    model, data, encoded, frames = setup()
    encoded[1] = torch.nan
    search = RowSearch(model, SearchConfig(beam_size=2, ctc_weight=ctc_weight))
    with pytest.raises(ValueError, match="row 1 of the batch has a score that is no"):
        search(encoded, frames, rows_of(model, data, [(0, "asr"), (1, "asr")]))


def steps_of(search, encoded, frames, rows, monkeypatch):
    """N-best lists, and how often the decoder was asked."""
    steps = []
    score = search.model.decoder.score_next
    with monkeypatch.context() as patch:
        patch.setattr(
            search.model.decoder, "score_next", lambda *a: steps.append(1) or score(*a)
        )
        return search(encoded, frames, rows), len(steps)


def end_as_the_host(search):
    """From now on no row ends before the host would end it."""
    for one in (search._with_ctc, search._without_ctc):
        one.scores_fall = False


def decided(seed, scale, eos):
    """A model whose scores are far apart, and its batch; see `setup`."""
    model, *others = setup(seed=seed)
    with torch.no_grad():
        model.decoder.output_layer.weight *= scale
        model.decoder.output_layer.bias[model.eos] += eos
    return model, *others


@pytest.mark.parametrize("nbest", [1, 3])
def test_p5_ending_early_loses_nothing_and_saves_steps(monkeypatch, nbest):
    taken = [0, 0]
    for seed in range(4):
        model, data, encoded, frames = decided(seed, scale=8.0, eos=0.0)
        rows = rows_of(model, data, PAIRS)
        config = SearchConfig(beam_size=4, nbest=nbest, penalty=-0.1 * seed)
        search = RowSearch(model, config)
        early, first = steps_of(search, encoded, frames, rows, monkeypatch)
        end_as_the_host(search)
        late, second = steps_of(search, encoded, frames, rows, monkeypatch)
        check_same_nbests(early, late)
        assert first <= second
        taken = [taken[0] + first, taken[1] + second]
    assert taken[0] < taken[1]


def test_rows_that_are_done_leave_the_batch(monkeypatch):
    model, data, encoded, frames = decided(seed=0, scale=8.0, eos=0.0)
    pairs = [(b, task) for b in range(3) for task in ("st_de", "st_es")]
    score, sizes = model.decoder.score_next, []

    def counting(ys, cache):
        sizes.append(len(ys))
        return score(ys, cache)

    monkeypatch.setattr(model.decoder, "score_next", counting)
    search = RowSearch(model, SearchConfig(beam_size=4))
    search(encoded, frames, rows_of(model, data, pairs))
    first, *others = sizes
    assert first == len(pairs)  # a prompt is read once a row, not once a hypothesis
    assert others[0] == 4 * len(pairs)
    assert others == sorted(others, reverse=True)
    assert others[-1] < others[0]


@pytest.mark.parametrize(
    ("options", "scale", "eos"),
    [({"penalty": 5.0}, 1.0, 5.0), ({"normalize_length": True}, 4.0, 3.0)],
)
def test_p5_no_row_ends_early_where_scores_may_rise(options, scale, eos):
    config = SearchConfig(beam_size=4, maxlenratio=-8, **options)
    for seed in range(4):
        model, data, encoded, frames = decided(seed, scale, eos)
        rows = rows_of(model, data, PAIRS)
        search = RowSearch(model, config)
        early = search(encoded, frames, rows)
        end_as_the_host(search)
        check_same_nbests(early, search(encoded, frames, rows))


@pytest.mark.parametrize("options", [{"penalty": 0.5}, {"normalize_length": True}])
def test_p5_where_scores_may_rise_a_search_ends_by_the_hosts_criterion(
    monkeypatch, options
):
    model, data, encoded, frames = decided(seed=2, scale=1.0, eos=8.0)
    encoded, frames = encoded.repeat(1, 6, 1), frames * 6  # room for long texts
    config = SearchConfig(beam_size=3, **options)
    pairs = [(0, "st_de")]
    search = RowSearch(model, config)
    rows = rows_of(model, data, pairs)
    got, steps = steps_of(search, encoded, frames, rows, monkeypatch)
    want = reference(model, config, encoded, frames, pairs, ["wb"])
    check_same_nbests(got, want)
    assert steps < int(frames[0])


@pytest.mark.parametrize("ctc_weight", [0.0, 0.3])
def test_p5_a_row_ends_at_its_own_limit_beside_rows_with_a_longer_one(ctc_weight):
    model, data, encoded, frames = setup()
    # longer is better, and too few rows are done for any to leave the batch
    config = SearchConfig(
        beam_size=3, nbest=3, ctc_weight=ctc_weight, maxlenratio=1.0, penalty=9.0
    )
    short, long = int(frames.argmin()), int(frames.argmax())
    pairs = [(short, "asr"), *[(long, "asr")] * 4]
    got = RowSearch(model, config)(encoded, frames, rows_of(model, data, pairs))
    bandwidths = [bandwidth for bandwidth, _ in UTTERANCES]
    want = reference(model, config, encoded, frames, pairs, bandwidths)
    check_same_nbests(got, want)
    assert len(got[0][0].yseq) < len(got[1][0].yseq)


@torch.no_grad()
def test_p5_scores_are_those_of_teacher_forcing():
    model, data, encoded, frames = setup()
    longest = 6
    config = SearchConfig(beam_size=3, nbest=3, ctc_weight=0.0, maxlenratio=-longest)
    nbests = RowSearch(model, config)(encoded, frames, rows_of(model, data, PAIRS))
    ended = total = 0
    for (b, _), nbest in zip(PAIRS, nbests, strict=True):
        total += len(nbest)
        for hyp in nbest:
            n = len(hyp.yseq)
            logits, _ = model.decoder(
                encoded[b : b + 1], frames[b : b + 1], hyp.yseq[None], torch.tensor([n])
            )
            logp = logits[0].log_softmax(-1)[:-1].gather(1, hyp.yseq[1:, None])[2:]
            if len(logp) > longest:  # the host adds <eos> at the limit for nothing
                logp = logp[:-1]
            else:
                ended += 1
            assert float(hyp.score) == pytest.approx(float(logp.sum()), abs=1e-4)
    assert 0 < ended < total


def test_ctc_scores_transcripts_and_no_translation():
    model, data, encoded, frames = setup()
    config = SearchConfig(beam_size=2, ctc_weight=0.3, maxlenratio=-4)
    nbests = RowSearch(model, config)(encoded, frames, rows_of(model, data, PAIRS))
    for (_, task), nbest in zip(PAIRS, nbests, strict=True):
        assert ("ctc" in nbest[0].scores) == (task == "asr")


# ---- alone, isolated, one encoding ---------------------------------------------


def test_p3_an_utterance_decodes_the_same_alone_as_beside_longer_ones():
    model, data, encoded, frames = setup()
    assert len(set(frames.tolist())) > 1
    config = SearchConfig(beam_size=3, nbest=3, maxlenratio=-6)
    search = RowSearch(model, config)
    together = search(encoded, frames, rows_of(model, data, PAIRS))
    for pair, nbest in zip(PAIRS, together, strict=True):
        b = pair[0]
        alone = dummies.one_utterance(data, b)
        with torch.no_grad():
            x, n = dummies.encode(model, alone)
        check_same_nbests([nbest], search(x, n, rows_of(model, alone, [(0, pair[1])])))


def test_p2_tasks_are_isolated_through_the_search():
    model, data, encoded, frames = setup()
    search = RowSearch(model, SearchConfig(beam_size=2, nbest=2, maxlenratio=-5))
    rows = rows_of(model, data, PAIRS)
    contract.check_isolation(
        lambda: [plain(nbest) for nbest in search(encoded, frames, rows)],
        dummies.expert_modules(model.decoder),
        [TASKS.index(task) for _, task in PAIRS],
    )


def test_p2_bandwidths_are_isolated_through_encoding_and_search():
    model, data, _, _ = setup()
    search = RowSearch(model, SearchConfig(beam_size=2, nbest=2, maxlenratio=-5))
    rows = rows_of(model, data, PAIRS)

    @torch.no_grad()
    def run():
        return [plain(n) for n in search(*dummies.encode(model, data), rows)]

    names = [UTTERANCES[b][0] for b, _ in PAIRS]
    contract.check_isolation(
        run,
        dummies.expert_modules(model.encoder),
        [dummies.GUIDES["bandwidth"].index(name) for name in names],
    )


def test_p4_all_tasks_of_a_batch_share_one_encoding():
    model = dummies.build().eval()
    calls = []
    model.encoder.register_forward_hook(lambda _, args, __: calls.append(len(args[0])))
    data = dummies.batch(UTTERANCES)
    with torch.no_grad():
        encoded, frames = dummies.encode(model, data)
    everything = torch.ones(len(TASKS), len(UTTERANCES), dtype=torch.bool)
    rows = model.rows_of(dummies.guide_ids(data), everything)
    config = SearchConfig(beam_size=2, maxlenratio=-3)
    assert len(RowSearch(model, config)(encoded, frames, rows)) == 9
    assert calls == [len(UTTERANCES)]


def test_p6_a_search_leaves_no_guides_on_the_model():
    model, data, encoded, frames = setup()
    search = RowSearch(model, SearchConfig(beam_size=2, maxlenratio=-3))
    calls = [
        lambda p=p: search(encoded, frames, rows_of(model, data, p))
        for p in (PAIRS, PAIRS[::-1], PAIRS[:1])
    ]
    contract.check_no_guide_state(model, calls)


# ---- what is emitted -----------------------------------------------------------


@pytest.mark.parametrize("ctc_weight", [0.0, 0.3])
def test_no_special_token_is_ever_emitted_however_probable(ctc_weight):
    model, data, encoded, frames = setup()
    special = [i for i, t in enumerate(model.token_list[:-1]) if t.startswith("<")]
    with torch.no_grad():
        model.decoder.output_layer.bias[special] += 20.0
        model.ctc.ctc_lo.bias[special[1:]] += 2.0
    config = SearchConfig(beam_size=3, nbest=3, ctc_weight=ctc_weight, maxlenratio=-5)
    rows = rows_of(model, data, PAIRS)
    for row, nbest in enumerate(RowSearch(model, config)(encoded, frames, rows)):
        assert nbest
        for hyp in nbest:
            sos, *prompt = hyp.yseq[:3].tolist()
            *text, eos = hyp.yseq[3:].tolist()  # at the limit the host adds an <eos>
            assert sos == eos == model.eos
            assert prompt == rows.prompts[row].tolist()
            assert not set(text) & set(special)
            assert model.eos not in text[:-1]
            assert float(hyp.score) > -1e4


def test_an_ended_hypothesis_lets_go_of_its_caches():
    model, data, encoded, frames = setup()
    config = SearchConfig(beam_size=2, maxlenratio=-3)
    for nbest in RowSearch(model, config)(encoded, frames, rows_of(model, data, PAIRS)):
        assert all(not h.states for h in nbest)
        assert all(h.yseq.untyped_storage().nbytes() == h.yseq.nbytes for h in nbest)


@pytest.mark.parametrize("ctc_weight", [0.0, 0.3])
def test_a_beam_wider_than_what_can_be_said_holds_nothing_impossible(ctc_weight):
    model, data, encoded, frames = setup()
    with torch.no_grad():
        bias = model.decoder.output_layer.bias
        sayable = [len(bias) - 2, model.eos]
        bias[[i for i in range(len(bias)) if i not in sayable]] = -torch.inf
    config = SearchConfig(beam_size=4, nbest=9, ctc_weight=ctc_weight, maxlenratio=-3)
    for nbest in RowSearch(model, config)(encoded, frames, rows_of(model, data, PAIRS)):
        texts = [tuple(h.yseq.tolist()) for h in nbest]
        assert len(set(texts)) == len(texts) == 4  # of 0 to 3 tokens
        assert all(-1e4 < h.score < 0.0 for h in nbest)


# ---- options -------------------------------------------------------------------


@pytest.mark.parametrize(
    "conf, message",
    [
        ({"beam": 5}, r"unknown keys \['beam'\] in .*; known: .*beam_size"),
        ({"ctc_weight": 1.0}, r"ctc_weight must lie in \[0, 1\), got 1.0"),
        ({"beam_size": 0}, "beam_size must be >= 1, got 0"),
        ({"nbest": 0}, "nbest must be >= 1, got 0"),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
    ],
)
def test_bad_options_are_refused(conf, message):
    with pytest.raises(ConfigError, match=message):
        SearchConfig.from_mapping(conf)


def test_options_are_read_from_yaml(tmp_path):
    path = tmp_path / "decode.yaml"
    path.write_text("beam_size: 7\nctc_weight: 0.4\n")
    assert SearchConfig.from_yaml(path) == SearchConfig(beam_size=7, ctc_weight=0.4)
    path.write_text("")
    assert SearchConfig.from_yaml(path) == SearchConfig()


@pytest.mark.parametrize("text", ["- 5\n", "beam_size: [\n"])
def test_a_file_that_is_no_mapping_is_refused_by_name(tmp_path, text):
    path = tmp_path / "decode.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"decode\.yaml"):
        SearchConfig.from_yaml(path)
    with pytest.raises(ConfigError, match=r"absent\.yaml"):
        SearchConfig.from_yaml(tmp_path / "absent.yaml")
