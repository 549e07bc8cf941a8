"""CTC prefix scores without a loop: against all paths, and against the host's."""

import itertools
import math

import pytest
import torch

from espnet_smoe.ctc_prefix import Posteriors, Prefixes
from espnet_smoe.host import CTCPrefixScorer

EOS = 4
VOCAB = 5  # blank, three labels, <eos>


class PlainCTC(torch.nn.Module):
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


def start(logp, lengths=None):
    if lengths is None:
        lengths = torch.full((len(logp),), logp.size(1))
    return Prefixes.empty(Posteriors.of(logp, lengths))


@pytest.mark.parametrize("prefix", [(), (1,), (2, 2), (1, 2, 1), (3, 3, 3)])
def test_scores_are_sums_over_all_paths(prefix):
    logp = posteriors(6)
    texts = sums_over_paths(logp[0])
    state = start(logp)
    for label in prefix:
        state = state.extend(torch.tensor([[0]]), torch.tensor([[label]]))
    scores = state.scores(torch.arange(1, VOCAB)[None, None], EOS)[0, 0].exp()
    for label in (1, 2, 3):
        begun = (*prefix, label)
        want = sum(p for text, p in texts.items() if text[: len(begun)] == begun)
        assert float(scores[label - 1]) == pytest.approx(want, rel=1e-4)
    # a path with <eos> on the way is a text of its own: <eos> is a label like others
    want = texts.get(prefix, 0.0)
    assert float(scores[EOS - 1]) == pytest.approx(want, rel=1e-4)


def choices(rows, beam, steps, vocab, seed=0):
    """By chance: candidates (P, K, S) of each hypothesis, which one are gone on with,
    and their labels, (P, K) each. At first a row has one hypothesis."""
    generator = torch.Generator().manual_seed(seed)
    made, before = [], 1
    for _ in range(steps):
        size = (rows, before, vocab - 1)
        order = torch.rand(*size, generator=generator).argsort(2) + 1
        candidates = order[:, :, : beam + 2]
        best = torch.rand(rows, before * (beam + 2), generator=generator).topk(beam)[1]
        hyps = torch.div(best, beam + 2, rounding_mode="floor")
        made.append((candidates, hyps, candidates.flatten(1).gather(1, best)))
        before = beam
    return made


def walk(x, lengths, made):
    """The scores of each step of a search that goes on with what it is told to."""
    state, found = start(x, lengths), []
    for candidates, hyps, labels in made:
        found.append(state.scores(candidates, EOS))
        state = state.extend(hyps, labels)
    return found


def walk_of_the_host(x, lengths, made):
    """The same by the host's scorer: the sum of what it gives for each label.

    It cannot widen a beam, so it starts with copies of the empty prefix.
    """
    scorer = CTCPrefixScorer(PlainCTC(), EOS)
    (rows, _, vocab), beam = x.shape, made[0][1].size(1)
    state = [scorer.batch_init_state(x, lengths)] * (rows * beam)
    y, before, found = torch.full((rows * beam, 1), EOS), 0.0, []
    for candidates, hyps, labels in made:
        wide = candidates.expand(-1, beam, -1)
        scores, scored = scorer.batch_score_partial(y, wide.flatten(0, 1), state, x)
        sums = before + scores.view(rows, beam, vocab)
        found.append(sums.gather(2, wide)[:, : candidates.size(1)])
        best = hyps * vocab + labels
        state = scorer.batch_select_state(scored, best)
        places = (hyps + beam * torch.arange(rows)[:, None]).view(-1)
        y = torch.cat([y[places], labels.view(-1, 1)], 1)
        before = sums.flatten(1).gather(1, best)[:, :, None]
    return found


def check_like_the_host(x, lengths, steps=6, beam=3, **tolerance):
    made = choices(len(x), beam, steps, x.size(2))
    ours = walk(x, lengths, made)
    theirs = walk_of_the_host(x.double(), lengths, made)
    for got, want in zip(ours, theirs, strict=True):
        possible = want > -1e8
        assert possible.any()
        torch.testing.assert_close(got[possible], want[possible], **tolerance)
        assert (got[~possible] < -1e8).all()


@pytest.mark.parametrize("sharpness", [0.5, 8.0])
def test_scores_are_the_hosts_in_a_padded_batch(sharpness):
    x = posteriors(20, rows=3, vocab=11, sharpness=sharpness)
    check_like_the_host(x, torch.tensor([20, 13, 9]), rtol=1e-9, atol=1e-9)


def test_scores_of_a_minute_are_the_hosts():
    x = posteriors(1500, rows=2, vocab=11, sharpness=5.0)
    check_like_the_host(x, torch.tensor([1500, 900]), rtol=1e-9, atol=1e-9)


def test_nothing_is_read_from_the_padding():
    x, lengths = posteriors(12, rows=2, vocab=11), torch.tensor([12, 7])
    made = choices(2, 3, 4, 11)
    want = walk(x, lengths, made)
    x[1, 7:] = torch.nan
    torch.testing.assert_close(walk(x, lengths, made), want, rtol=0, atol=0)


def test_rows_score_the_same_when_others_have_left():
    x, lengths = posteriors(12, rows=3, vocab=11), torch.tensor([12, 7, 9])
    (_, hyps, labels), (candidates, *_) = choices(3, 4, 2, 11)
    state = start(x, lengths).extend(hyps, labels)
    rows = torch.tensor([2, 0])
    got = state.of_rows(rows).scores(candidates[rows], EOS)
    want = state.scores(candidates, EOS)[rows]
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_a_prefix_with_more_labels_than_frames_is_impossible():
    state = start(posteriors(2, vocab=11))
    for label in (1, 2):
        state = state.extend(torch.tensor([[0]]), torch.tensor([[label]]))
    scores = state.scores(torch.tensor([[[3]]]), EOS)
    assert scores.isfinite().all()
    assert float(scores) < -1e8
