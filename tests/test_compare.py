"""Comparisons against a plain bootstrap, sacrebleu's own test, and chance."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest
from test_score import naive_distance, random_texts

from espnet_smoe import metrics as module
from espnet_smoe.compare import compare, p_value, read_run, score_system
from espnet_smoe.datadir import Utterance, write_datadir
from espnet_smoe.metrics import RESAMPLES, SEED, ScoreError
from espnet_smoe.report import write_report
from espnet_smoe.score import Cell, score_sets

WER = ("test", "asr", "nb", "wer")
BLEU_KEY = ("test", "st_de", "nb", "bleu")


def cell(references, hypotheses, task="asr"):
    return Cell("test", task, "nb", "nb", tuple(references), tuple(hypotheses))


def spoilt(rng, references, error):
    """Hypotheses with a share ``error`` of the words replaced."""
    return [
        " ".join("wrong" if rng.random() < error else w for w in r.split())
        for r in references
    ]


def p_of(comparisons, system, metric):
    return next(c.p for c in comparisons if c.system == system and c.metric == metric)


def test_p_of_wer_is_that_of_a_plain_bootstrap_with_all_seeds_together():
    rng = np.random.default_rng(3)
    references, _ = random_texts(rng, "asr", 25, 0)
    a = [spoilt(rng, references, e) for e in (0.20, 0.26)]
    b = [spoilt(rng, references, e) for e in (0.24, 0.30, 0.27)]
    systems = {
        name: score_system(name, [[cell(references, h)] for h in hypotheses])
        for name, hypotheses in (("a", a), ("b", b))
    }

    words = [r.split() for r in references]

    def errors_of(hypotheses):
        return [
            naive_distance(r, h.split()) for r, h in zip(words, hypotheses, strict=True)
        ]

    errors = {id(hypotheses): errors_of(hypotheses) for hypotheses in (*a, *b)}

    def mean_wer(system, drawn):
        length = sum(len(words[i]) for i in drawn)
        rates = [100 * sum(errors[id(h)][i] for i in drawn) / length for h in system]
        return sum(rates) / len(rates)

    everything = range(len(words))
    measured = mean_wer(b, everything) - mean_wer(a, everything)
    rng = np.random.default_rng(SEED)
    differences = []
    for _ in range(RESAMPLES):
        drawn = rng.choice(len(words), size=len(words))
        differences.append(mean_wer(b, drawn) - mean_wer(a, drawn))
    centre = sum(differences) / RESAMPLES
    hits = sum(abs(d - centre) >= abs(measured) for d in differences)

    found = compare(systems, "a")
    assert 0.01 < p_of(found, "b", "wer") < 0.9  # neither trivial
    assert p_of(found, "b", "wer") == pytest.approx((1 + hits) / (1 + RESAMPLES))
    (score,) = (c for c in found if c.system == "b" and c.metric == "wer")
    assert score.mean == pytest.approx(mean_wer(b, everything))
    assert score.values == pytest.approx([mean_wer([s], everything) for s in b])
    assert score.utterances == 25


def test_resamples_of_bleu_are_those_of_sacrebleu():
    rng = np.random.default_rng(5)
    references, a = random_texts(rng, "st_de", 40, 0.2)
    b = spoilt(rng, references, 0.12)
    _, table = PairedTest(
        [("a", a), ("b", b)],
        {"BLEU": BLEU()},
        [references],
        test_type="bs",
        n_samples=RESAMPLES,
    )()
    systems = {
        name: score_system(name, [[cell(references, h, "st_de")]])
        for name, h in (("a", a), ("b", b))
    }
    a, b = (systems[name][BLEU_KEY] for name in "ab")
    # its p from our resamples: it shifts absolute differences and asks for more
    away = np.abs(b.resampled - a.resampled)
    hits = (away - away.mean() > abs(b.mean - a.mean)).sum()
    assert 1 < hits < 900
    assert (1 + hits) / (1 + RESAMPLES) == pytest.approx(table["BLEU"][1].p_value)
    assert systems["b"][BLEU_KEY].mean == pytest.approx(table["BLEU"][1].score)


def test_equal_systems_have_p_one_and_the_baseline_none():
    rng = np.random.default_rng(1)
    references, hypotheses = random_texts(rng, "asr", 20, 0.3)
    one = score_system("a", [[cell(references, hypotheses)]])
    found = compare({"a": one, "b": one}, "a")
    assert {c.p for c in found if c.system == "a"} == {None}
    assert {c.p for c in found if c.system == "b"} == {1.0}


def test_one_utterance_tells_nothing_about_others():
    systems = {
        name: score_system(name, [[cell(["one two three"], [said])]])
        for name, said in (("good", "one two three"), ("bad", "four"))
    }
    found = compare(systems, "good")
    assert {c.p for c in found} == {None}
    assert {c.utterances for c in found} == {1}


def test_a_clear_difference_has_the_least_p_either_way():
    rng = np.random.default_rng(1)
    references, _ = random_texts(rng, "asr", 60, 0)
    good = [cell(references, spoilt(rng, references, 0.05))]
    bad = [cell(references, spoilt(rng, references, 0.4))]
    systems = {"good": score_system("good", [good]), "bad": score_system("bad", [bad])}
    least = pytest.approx(1 / (1 + RESAMPLES))
    assert p_of(compare(systems, "good"), "bad", "wer") == least
    assert p_of(compare(systems, "bad"), "good", "wer") == least


def test_p_of_chance_differences_is_about_uniform(monkeypatch):
    # 200 pairs of systems of the same quality, fewer resamples to save time
    monkeypatch.setattr(module, "RESAMPLES", 200)
    rng = np.random.default_rng(7)
    values = []
    for _ in range(200):
        length = rng.integers(5, 15, size=80)
        errors = [rng.binomial(length, 0.2) for _ in range(2)]
        rates = []
        for e in errors:
            counts = np.stack([e, 0 * e, 0 * e, length], axis=1).astype(float)
            rate = lambda t: 100 * t[:3].sum() / t[3]  # noqa: E731
            rates.append((rate(counts.sum(0)), counts, rate))
        measures = [
            dataclasses.make_dataclass("M", ["counts", "rate"])(c, r)
            for _, c, r in rates
        ]
        resampled = [module.resampled(m.counts, m.rate) for m in measures]
        values.append(p_value(rates[1][0] - rates[0][0], resampled[1] - resampled[0]))
    for level in (0.1, 0.25, 0.5, 0.75):
        # four standard deviations of a share of 200
        slack = 4 * (level * (1 - level) / 200) ** 0.5
        assert abs(np.mean(np.array(values) <= level) - level) < slack


def test_other_references_are_refused():
    rng = np.random.default_rng(1)
    one, hypotheses = random_texts(rng, "asr", 5, 0.1)
    other = [*one[:-1], "something else"]
    cells = [[cell(one, hypotheses)], [cell(other, hypotheses)]]
    with pytest.raises(ScoreError, match=r"seeds.*different references of test asr nb"):
        score_system("a", cells)
    systems = {n: score_system(n, [c]) for n, c in zip("ab", cells, strict=True)}
    with pytest.raises(ScoreError, match=r"b and a.*different references of test asr"):
        compare(systems, "a")


def test_seeds_with_other_cells_are_refused():
    references, hypotheses = random_texts(np.random.default_rng(1), "asr", 5, 0.1)
    first = cell(references, hypotheses)
    second = dataclasses.replace(first, bandwidth="wb", guide="wb")
    with pytest.raises(ScoreError, match=r"a: not all seeds.*'wb'"):
        score_system("a", [[first, second], [first]])


def test_two_models_of_one_cell_are_refused():
    references, hypotheses = random_texts(np.random.default_rng(1), "asr", 5, 0.1)
    first = cell(references, hypotheses)
    with pytest.raises(ScoreError, match=r"parts: two of its models.* test asr nb"):
        score_system("parts", [[first, dataclasses.replace(first)]])


def test_a_cell_that_the_baseline_lacks_has_no_p():
    references, hypotheses = random_texts(np.random.default_rng(1), "asr", 5, 0.1)
    first = cell(references, hypotheses)
    second = dataclasses.replace(first, bandwidth="wb", guide="wb")
    systems = {
        "base": score_system("base", [[first]]),
        "more": score_system("more", [[first, second]]),
    }
    found = {c.bandwidth: c.p for c in compare(systems, "base") if c.system == "more"}
    assert found == {"nb": 1.0, "wb": None}


@pytest.fixture
def decoded(tmp_path):
    """A scored decoding of two utterances, also with a wrong guide."""
    utterances = [
        Utterance(
            id=f"u{i}",
            audio=f"u{i}.wav",
            speaker="s",
            fs=16000 if i else 8000,
            num_samples=16000,
            guides={"bandwidth": "wb" if i else "nb"},
            texts={"asr": "one two three"},
        )
        for i in range(2)
    ]
    write_datadir(tmp_path / "dump/test", utterances)
    for folder in ("decode/test", "decode/force_nb/test"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "text.asr").write_text("u0 one two\nu1 one two three\n")
    forced = tmp_path / "decode/force_nb/test/utt2bandwidth"
    forced.write_text("u0 nb\nu1 nb\n")
    dirs = tmp_path / "decode", tmp_path / "dump"
    write_report(dirs[0], score_sets(*dirs, ["test"], forced=["nb"]), "x")
    return dirs


def test_a_scored_run_is_read_without_its_wrong_guides(decoded):
    cells = read_run(*decoded, ["test"])
    assert [(c.bandwidth, c.guide) for c in cells] == [("nb", "nb"), ("wb", "wb")]


def test_scores_of_other_hypotheses_are_refused(decoded):
    (decoded[0] / "test/text.asr").write_text("u0 one\nu1 one two three\n")
    with pytest.raises(ScoreError, match=r"wer 33\.3.*66\.6.*run stage 13 again"):
        read_run(*decoded, ["test"])


def test_a_run_without_scores_names_the_stage(decoded):
    (decoded[0] / "scores.json").unlink()
    with pytest.raises(ScoreError, match="run stage 13 first"):
        read_run(*decoded, ["test"])


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"rows": [{"set": "test"}]}',
        '{"rows": [{"set": "test", "task": "asr", "bandwidth": "nb", "guide": "nb", '
        '"metric": "wer", "value": null}]}',
    ],
)
def test_scores_that_are_none_are_refused(decoded, content):
    (decoded[0] / "scores.json").write_text(content)
    with pytest.raises(ScoreError, match=r"holds no scores.*run stage 13 again"):
        read_run(*decoded, ["test"])


def test_only_the_decoded_tasks_are_read(tmp_path):
    texts = {"asr": "one two three", "st_de": "eins zwei drei"}
    utterance = Utterance(
        id="u",
        audio="u.wav",
        speaker="s",
        fs=8000,
        num_samples=16000,
        guides={"bandwidth": "nb"},
        texts=texts,
    )
    decode_dir, dump_dir = tmp_path / "decode_tasksst_de", tmp_path / "dump"
    write_datadir(dump_dir / "test", [utterance])
    (decode_dir / "test").mkdir(parents=True)
    (decode_dir / "test/text.st_de").write_text("u eins zwei\n")
    write_report(decode_dir, score_sets(decode_dir, dump_dir, ["test"], ["st_de"]), "x")
    assert [c.task for c in read_run(decode_dir, dump_dir, ["test"])] == ["st_de"]
    # what was decoded but not scored is missed
    (decode_dir / "test/text.asr").write_text("u one two three\n")
    with pytest.raises(ScoreError, match="None of test asr nb"):
        read_run(decode_dir, dump_dir, ["test"])


def test_a_cell_without_a_score_is_refused(decoded):
    path = decoded[0] / "scores.json"
    rows = json.loads(path.read_text())["rows"]
    kept = [r for r in rows if r["bandwidth"] == "wb"]
    path.write_text(json.dumps({"rows": kept}))
    with pytest.raises(ScoreError, match="None of test asr nb"):
        read_run(*decoded, ["test"])
