"""CTC prefix scores without a loop: against all paths, and against the host's."""

import itertools
import math

import pytest
import torch

from espnet_smoe.ctc_prefix import ParallelCTCPrefixScorer
from espnet_smoe.host import CTCPrefixScorer

EOS = 4
VOCAB = 5  # blank, three labels, <eos>


class Posteriors(torch.nn.Module):
    """CTC whose input already is what its softmax would give."""

    def log_softmax(self, x):
        return x.clone()  # the host's scorer writes into it


def posteriors(frames, rows=1, vocab=VOCAB, sharpness=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, frames, vocab, generator=generator) * sharpness
    return logits.log_softmax(-1)


def collapsed(path):
    return tuple(label for label, _ in itertools.groupby(path) if label)


def sums_over_paths(logp):
    """text -> its probability, from every path there is."""
    frames, vocab = logp.shape
    texts = {}
    for path in itertools.product(range(vocab), repeat=frames):
        probability = math.exp(sum(float(logp[t, k]) for t, k in enumerate(path)))
        texts[collapsed(path)] = texts.get(collapsed(path), 0.0) + probability
    return texts


@pytest.mark.parametrize("prefix", [(), (1,), (2, 2), (1, 2, 1), (3, 3, 3)])
def test_scores_are_sums_over_all_paths(prefix):
    logp = posteriors(6)
    texts = sums_over_paths(logp[0])

    def beginning_with(labels):
        n = len(labels)
        return sum(p for text, p in texts.items() if text[:n] == labels)

    scorer = ParallelCTCPrefixScorer(Posteriors(), EOS)
    state = [scorer.batch_init_state(logp)]
    labels = torch.arange(1, VOCAB)
    for n in range(len(prefix) + 1):
        y = torch.tensor([[EOS, *prefix[:n]]])
        scores, scored = scorer.batch_score_partial(y, labels, state, logp)
        if n < len(prefix):
            state = scorer.batch_select_state(scored, torch.tensor([[prefix[n]]]))

    here = beginning_with(prefix)
    assert here > 0
    for label in (1, 2, 3):
        want = beginning_with((*prefix, label)) / here
        assert math.exp(scores[0, label]) == pytest.approx(want, rel=1e-4)
    # a path with <eos> on the way is a text of its own: <eos> is a label like others
    want = texts.get(prefix, 0.0) / here
    assert math.exp(scores[0, EOS]) == pytest.approx(want, rel=1e-4)
    assert scores[0, 0] < -1e9  # blank is no text


def walk(scorer, x, lengths, steps, candidates, kept, one_by_one=False):
    """The scores of each step of a search that keeps what it is told to."""
    rows, vocab, num_hyps = x.size(0), x.size(2), len(candidates[0])
    state = [scorer.batch_init_state(x, lengths)] * num_hyps
    y, found = torch.full((num_hyps, 1), EOS), []
    for n in range(steps):
        scores, state = scorer.batch_score_partial(y, candidates[n], state, x)
        found.append(scores)
        best = kept[n]
        hyps = torch.div(best, vocab, rounding_mode="floor")
        hyps = (hyps + torch.arange(rows)[:, None] * (num_hyps // rows)).view(-1)
        labels = (best % vocab).view(-1)
        if one_by_one:
            pairs = zip(hyps.tolist(), labels.tolist(), strict=True)
            state = [scorer.select_state(state, i, label) for i, label in pairs]
            state = [scorer.select_state(state, i) for i in range(len(state))]
        else:
            state = scorer.batch_select_state(state, best)
        y = torch.cat([y[hyps], labels[:, None]], 1)
    return found


def choices(rows, beam, steps, vocab, seed=0):
    """Candidates of each hypothesis and which continuations are kept, by chance."""
    generator = torch.Generator().manual_seed(seed)
    candidates, kept = [], []
    for n in range(steps):
        order = torch.rand(rows * beam, vocab - 1, generator=generator).argsort(1) + 1
        candidates.append(order[:, : beam + 2])
        best = torch.rand(rows, beam * (beam + 2), generator=generator).topk(beam)[1]
        hyps = torch.div(best, beam + 2, rounding_mode="floor")
        flat = hyps + torch.arange(rows)[:, None] * beam
        kept.append(hyps * vocab + candidates[n][flat, best % (beam + 2)])
    return candidates, kept


def check_like_the_host(x, lengths, steps=6, beam=3, **tolerance):
    rows, _, vocab = x.shape
    candidates, kept = choices(rows, beam, steps, vocab)
    arguments = (x, lengths, steps, candidates, kept)
    ours = walk(ParallelCTCPrefixScorer(Posteriors(), EOS), *arguments)
    exact = (x.double(), lengths, steps, candidates, kept)
    theirs = walk(CTCPrefixScorer(Posteriors(), EOS), *exact)
    for got, want, ids in zip(ours, theirs, candidates, strict=True):
        chosen = torch.zeros_like(want, dtype=torch.bool).scatter(1, ids, True)
        chosen[:, EOS] = True
        possible = chosen & (want > -1e8)
        assert possible.any()
        torch.testing.assert_close(
            got[possible].double(), want[possible], check_dtype=False, **tolerance
        )
        assert (got[chosen & ~possible] < -1e8).all()


@pytest.mark.parametrize("sharpness", [0.5, 8.0])
def test_scores_are_the_hosts_in_a_padded_batch(sharpness):
    x = posteriors(20, rows=3, vocab=11, sharpness=sharpness)
    check_like_the_host(x, torch.tensor([20, 13, 9]), rtol=1e-4, atol=1e-4)


def test_scores_of_a_minute_are_the_hosts_in_double_precision():
    x = posteriors(1500, rows=2, vocab=11, sharpness=5.0)
    check_like_the_host(x, torch.tensor([1500, 900]), rtol=1.2e-7, atol=1e-5)


def test_nothing_is_read_from_the_padding():
    x, lengths = posteriors(12, rows=2, vocab=11), torch.tensor([12, 7])
    candidates, kept = choices(2, 3, 4, 11)
    scorer = ParallelCTCPrefixScorer(Posteriors(), EOS)
    want = walk(scorer, x, lengths, 4, candidates, kept)
    x[1, 7:] = torch.nan
    got = walk(scorer, x, lengths, 4, candidates, kept)
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_hypotheses_picked_one_by_one_score_as_those_picked_together():
    x, lengths = posteriors(12, rows=1, vocab=11), torch.tensor([12])
    candidates, kept = choices(1, 3, 5, 11)
    scorer = ParallelCTCPrefixScorer(Posteriors(), EOS)
    want = walk(scorer, x, lengths, 5, candidates, kept)
    got = walk(scorer, x, lengths, 5, candidates, kept, one_by_one=True)
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_the_search_goes_on_with_part_of_what_was_picked():
    x = posteriors(9, vocab=11)
    candidates, kept = choices(1, 3, 2, 11)
    scorer = ParallelCTCPrefixScorer(Posteriors(), EOS)
    y = torch.full((3, 1), EOS)
    first = [scorer.batch_init_state(x)] * 3
    _, scored = scorer.batch_score_partial(y, candidates[0], first, x)
    picked = scorer.batch_select_state(scored, kept[0])
    y = torch.cat([y, picked.labels[:, None]], 1)
    want, _ = scorer.batch_score_partial(y, candidates[1], picked, x)
    some = [scorer.select_state(picked, i) for i in (2, 0)]
    got, _ = scorer.batch_score_partial(y[[2, 0]], candidates[1][[2, 0]], some, x)
    torch.testing.assert_close(got, want[[2, 0]], rtol=0, atol=0)


def test_a_prefix_with_more_labels_than_frames_is_impossible():
    x = posteriors(2, vocab=11)
    scorer = ParallelCTCPrefixScorer(Posteriors(), EOS)
    candidates = [torch.tensor([[n]]) for n in (1, 2, 3)]
    *_, last = walk(scorer, x, None, 3, candidates, candidates)
    assert last.isfinite().all()
    assert last[0, 3] < -1e8
