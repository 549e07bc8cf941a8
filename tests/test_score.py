"""Scores against plain references: an own Levenshtein, sacrebleu's public API."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import sacrebleu
from sacrebleu.metrics import BLEU, CHRF, TER

from espnet_smoe.bin.smoe_score import main
from espnet_smoe.datadir import Utterance, read_datadir, write_datadir
from espnet_smoe.files import write_table
from espnet_smoe.metrics import (
    RESAMPLES,
    SEED,
    ErrorCount,
    bootstrap,
    count_errors,
    measure,
)
from espnet_smoe.score import ScoreError, read_cells, score_sets

WORDS = {
    "asr": "the old dog saw a small red house near our long river today",
    "st_de": "der alte Hund sah heute ein kleines rotes Haus am langen Fluss",
}


def naive_distance(reference, hypothesis):
    """Levenshtein distance of two sequences, one row at a time."""
    row = list(range(len(hypothesis) + 1))
    for i, r in enumerate(reference, 1):
        above, row = row, [i]
        for j, h in enumerate(hypothesis, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (r != h)))
    return row[-1]


def random_texts(rng, task, number, error):
    """`number` references of 4-9 words, and hypotheses with `error` of them wrong."""
    pool = WORDS[task].split()
    references = [
        [str(w) for w in rng.choice(pool, size=rng.integers(4, 10))]
        for _ in range(number)
    ]
    hypotheses = [
        [
            str(rng.choice(pool)) if rng.random() < error / 2 else w
            for w in words
            if rng.random() > error / 2
        ]
        for words in references
    ]
    return [" ".join(r) for r in references], [" ".join(h) for h in hypotheses]


@pytest.fixture
def decoded(tmp_path):
    """A dump with ASR and ST references in two bandwidths, and its hypotheses."""
    rng = np.random.default_rng(0)
    number = 24
    texts = {t: random_texts(rng, t, number, 0.3) for t in WORDS}
    ids = [f"s{k % 3}-u{k:02d}" for k in range(number)]
    references = {
        i: {t: texts[t][0][k] for t in WORDS if t == "asr" or k % 4}
        for k, i in enumerate(ids)
    }
    write_datadir(
        tmp_path / "dump/raw/test",
        [
            Utterance(
                id=i,
                audio=f"{i}.wav",
                speaker=i[:2],
                fs=8000 if k % 2 else 16000,
                num_samples=16000,
                guides={"bandwidth": "nb" if k % 2 else "wb"},
                texts=references[i],
            )
            for k, i in enumerate(ids)
        ],
    )
    folder = tmp_path / "exp/decode/test"
    folder.mkdir(parents=True)
    for t in WORDS:
        lines = [
            f"{i} {texts[t][1][k]}\n" for k, i in enumerate(ids) if t in references[i]
        ]
        (folder / f"text.{t}").write_text("".join(lines), encoding="utf-8")
    return tmp_path


def run_main(root, *options):
    return main(
        [
            *("--decode_dir", str(root / "exp/decode")),
            *("--dump_dir", str(root / "dump/raw")),
            *("--test_sets", "test", *options),
        ]
    )


def rows_of(root):
    return json.loads((root / "exp/decode/scores.json").read_text("utf-8"))["rows"]


def edit_lines(root, task, edit):
    path = root / f"exp/decode/test/text.{task}"
    path.write_text("".join(edit(path.read_text("utf-8").splitlines(True))), "utf-8")


@pytest.mark.parametrize("unit", ["word", "char"])
def test_errors_equal_a_plain_levenshtein(unit):
    rng = np.random.default_rng(1)
    for reference, hypothesis in zip(*random_texts(rng, "asr", 50, 0.5), strict=True):
        split = str.split if unit == "word" else list
        count = count_errors(reference, hypothesis, unit)
        expected = naive_distance(split(reference), split(hypothesis))
        assert sum(count[:3]) == expected
        assert count.length == len(split(reference))


@pytest.mark.parametrize(
    ("hypothesis", "expected"),
    [
        ("a b c d", (0, 0, 0, 4)),
        ("a x c d", (1, 0, 0, 4)),
        ("a c d", (0, 1, 0, 4)),
        ("a b c d e", (0, 0, 1, 4)),
        ("", (0, 4, 0, 4)),
    ],
    ids=["none", "substitution", "deletion", "insertion", "empty hypothesis"],
)
def test_one_error_at_a_known_place_is_counted_as_what_it_is(hypothesis, expected):
    assert count_errors("a b c d", hypothesis, "word") == expected


def test_the_corpus_rate_is_errors_over_units_and_no_mean_of_rates():
    counted = measure("wer", ["a b", "a b c d e f g h"], ["a x", "a b c d e f g h"])
    assert counted.rate(counted.counts.sum(axis=0)) == pytest.approx(10.0)
    assert counted.reference_units == 10


def test_an_empty_reference_has_no_rate():
    with pytest.raises(ScoreError, match="empty reference"):
        _ = ErrorCount(0, 0, 1, 0).rate


@pytest.mark.parametrize(
    ("metric", "public", "name"),
    [
        ("bleu", lambda h, r: sacrebleu.corpus_bleu(h, [r]).score, "BLEU"),
        ("chrf2", lambda h, r: sacrebleu.corpus_chrf(h, [r]).score, "chrF2"),
        ("ter", lambda h, r: sacrebleu.corpus_ter(h, [r]).score, "TER"),
    ],
)
def test_translation_scores_and_signatures_are_sacrebleus_own(metric, public, name):
    references, hypotheses = random_texts(np.random.default_rng(2), "st_de", 40, 0.3)
    hypotheses[3] = ""
    counted = measure(metric, references, hypotheses)
    value = counted.rate(counted.counts.sum(axis=0))
    assert value == pytest.approx(public(hypotheses, references), abs=1e-9)
    assert counted.signature.startswith(f"{name}|nrefs:1|bs:1000|seed:12345|")


@pytest.mark.parametrize(
    ("metric", "scorer"), [("bleu", BLEU), ("chrf2", CHRF), ("ter", TER)]
)
def test_the_bootstrap_makes_the_draws_the_signature_claims(
    metric, scorer, monkeypatch
):
    monkeypatch.setenv("SACREBLEU_SEED", str(SEED))
    references, hypotheses = random_texts(np.random.default_rng(3), "st_de", 40, 0.3)
    counted = measure(metric, references, hypotheses)
    low, high = bootstrap(counted.counts, counted.rate)
    own = scorer().corpus_score(hypotheses, [references], n_bootstrap=RESAMPLES)
    # sacrebleu publishes half the width, computed in single precision
    assert (high - low) / 2 == pytest.approx(own._ci, abs=1e-3)


@pytest.mark.parametrize("metric", ["wer", "cer", "bleu", "chrf2", "ter"])
def test_the_interval_brackets_the_score_and_shrinks_with_more_text(metric):
    task = "asr" if metric in ("wer", "cer") else "st_de"
    widths = []
    for number in (30, 270):
        texts = random_texts(np.random.default_rng(4), task, number, 0.3)
        counted = measure(metric, *texts)
        low, high = bootstrap(counted.counts, counted.rate)
        assert low < counted.rate(counted.counts.sum(axis=0)) < high
        widths.append(high - low)
    assert widths[1] < 0.6 * widths[0]


def test_perfect_and_all_empty_hypotheses_score_the_ends_of_the_scale():
    texts = ["one two three four five", "six seven eight nine ten"]
    best = {"wer": 0.0, "cer": 0.0, "bleu": 100.0, "chrf2": 100.0, "ter": 0.0}
    worst = {"wer": 100.0, "cer": 100.0, "bleu": 0.0, "chrf2": 0.0, "ter": 100.0}
    for metric in best:
        for hypotheses, expected in ((texts, best), (["", ""], worst)):
            counted = measure(metric, texts, hypotheses)
            value = counted.rate(counted.counts.sum(axis=0))
            assert value == pytest.approx(expected[metric], abs=1e-6)
            interval = bootstrap(counted.counts, counted.rate)
            assert interval == pytest.approx((value, value), abs=1e-6)


def test_rows_hold_one_score_per_set_task_bandwidth_and_metric(decoded):
    assert run_main(decoded) == 0
    rows = rows_of(decoded)
    cells = [(r["set"], r["task"], r["bandwidth"], r["metric"]) for r in rows]
    assert cells == [
        ("test", task, bandwidth, metric)
        for task, metrics in (
            ("asr", ("wer", "cer")),
            ("st_de", ("bleu", "chrf2", "ter")),
        )
        for bandwidth in ("nb", "wb")
        for metric in metrics
    ]
    assert list(rows[0]) == [
        *("set", "task", "bandwidth", "guide", "metric", "value", "low", "high"),
        *("utterances", "reference_units", "signature"),
    ]
    assert [r["utterances"] for r in rows[:4]] == [12] * 4
    # every fourth utterance, all of them wideband, has no translation
    assert [r["utterances"] for r in rows[4:]] == [12] * 3 + [6] * 3


def test_a_wrong_guide_has_rows_of_its_own_after_the_true_ones(decoded):
    for guide in ("nb", "wb"):
        forced = decoded / f"exp/decode/force_{guide}/test"
        shutil.copytree(decoded / "exp/decode/test", forced)
        ids = [u.id for u in read_datadir(decoded / "dump/raw/test")]
        write_table(forced / "utt2bandwidth", dict.fromkeys(ids, guide))
    # what is said of narrowband speech as wideband is wrong in its first word
    path = decoded / "exp/decode/force_wb/test/text.asr"
    lines = path.read_text("utf-8").splitlines()
    path.write_text("".join(f"{x.split()[0]} wrong\n" for x in lines), "utf-8")

    assert run_main(decoded) == 0
    alone = rows_of(decoded)
    assert all(r["guide"] == r["bandwidth"] for r in alone)
    assert run_main(decoded, "--force_bandwidths", "nb", "wb") == 0
    rows = rows_of(decoded)
    assert rows[: len(alone)] == alone
    probed = {
        (r["task"], r["bandwidth"], r["guide"], r["metric"]): r["value"]
        for r in rows[len(alone) :]
    }
    true = {(r["task"], r["bandwidth"], r["metric"]): r["value"] for r in alone}
    assert {key[1:3] for key in probed} == {("nb", "wb"), ("wb", "nb")}
    assert len(probed) == len(true)
    assert probed["asr", "nb", "wb", "wer"] == 100.0
    del probed["asr", "nb", "wb", "wer"], probed["asr", "nb", "wb", "cer"]
    for (task, bandwidth, _, metric), value in probed.items():
        assert value == true[task, bandwidth, metric]


def test_a_forced_decoding_that_was_not_forced_is_refused(decoded, capsys):
    shutil.copytree(decoded / "exp/decode/test", decoded / "exp/decode/force_wb/test")
    assert run_main(decoded, "--force_bandwidths", "wb") == 1
    assert "every utterance decoded as wb, got nb" in capsys.readouterr().err


def test_an_utterance_without_the_guide_it_was_decoded_with_is_refused(decoded, capsys):
    ids = [u.id for u in read_datadir(decoded / "dump/raw/test")]
    path = decoded / "exp/decode/test/utt2bandwidth"
    write_table(path, dict.fromkeys(ids[1:], "nb"))
    assert run_main(decoded) == 1
    assert f"{path} lacks 1 decoded utterances: {ids[0]}" in capsys.readouterr().err


def test_cell_scores_are_those_of_the_texts_of_the_cell(decoded):
    assert run_main(decoded) == 0
    rows = {(r["task"], r["bandwidth"], r["metric"]): r for r in rows_of(decoded)}
    for cell in read_cells(decoded / "exp/decode", decoded / "dump/raw", "test"):
        references, hypotheses = list(cell.references), list(cell.hypotheses)
        if cell.task == "asr":
            pairs = list(zip(references, hypotheses, strict=True))
            errors = sum(naive_distance(r.split(), h.split()) for r, h in pairs)
            words = sum(len(r.split()) for r in references)
            row = rows["asr", cell.bandwidth, "wer"]
            assert row["value"] == pytest.approx(100 * errors / words)
            assert row["reference_units"] == words
        else:
            expected = sacrebleu.corpus_bleu(hypotheses, [references]).score
            row = rows["st_de", cell.bandwidth, "bleu"]
            assert row["value"] == pytest.approx(expected)


def test_the_order_and_blanks_of_the_lines_change_nothing(decoded):
    assert run_main(decoded) == 0
    before = rows_of(decoded)
    for task in WORDS:
        edit_lines(decoded, task, lambda ls: [x.replace(" ", " \t ") for x in ls[::-1]])
    assert run_main(decoded) == 0
    assert rows_of(decoded) == before


def test_an_id_alone_is_an_empty_hypothesis(decoded):
    edit_lines(decoded, "asr", lambda ls: [ls[0].split()[0] + "\n", *ls[1:]])
    cells = read_cells(decoded / "exp/decode", decoded / "dump/raw", "test", ["asr"])
    assert sum(c.hypotheses.count("") for c in cells) == 1


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda ls: ls[1:], "no hypothesis for 1 of 24 references: s0-u00"),
        (lambda ls: [*ls, "other hello\n"], "1 hypotheses without a reference"),
        (lambda ls: [*ls, ls[0]], "text.asr:25: id 's0-u00' comes twice"),
        (lambda ls: [ls[0], "\n", *ls[1:]], "text.asr:2: expected '<id> <text>'"),
        (
            lambda ls: [f"x-{x}" for x in ls],
            "for 24 of 24 references: s0-u00, s0-u03, s0-u06, s0-u09, s0-u12 and 19",
        ),
    ],
    ids=["missing id", "extra id", "id twice", "empty line", "other ids"],
)
def test_texts_that_do_not_pair_are_refused_with_ids_and_file(
    decoded, capsys, edit, message
):
    edit_lines(decoded, "asr", edit)
    assert run_main(decoded) == 1
    captured = capsys.readouterr()
    line = captured.err.splitlines()[-1]
    assert line.startswith("smoe_score: ")
    assert message in line
    assert str(decoded / "exp/decode/test/text.asr") in line
    assert not list((decoded / "exp/decode").glob("scores*"))


def test_a_task_without_hypotheses_is_refused_unless_tasks_leave_it_out(
    decoded, capsys
):
    (decoded / "exp/decode/test/text.st_de").unlink()
    assert run_main(decoded) == 1
    assert "text.st_de is missing; run stage 12 first" in capsys.readouterr().err
    assert run_main(decoded, "--tasks", "asr") == 0
    assert {r["task"] for r in rows_of(decoded)} == {"asr"}


def test_hypotheses_of_a_task_without_references_are_refused(decoded, capsys):
    (decoded / "exp/decode/test/text.st_fr").write_text("s0-u00 oui\n")
    assert run_main(decoded) == 1
    assert "without a reference in set 'test': s0-u00" in capsys.readouterr().err


def test_a_task_that_is_in_no_set_or_has_no_metric_is_refused(decoded, capsys):
    assert run_main(decoded, "--tasks", "asr", "st_fr") == 1
    assert "no text for task st_fr" in capsys.readouterr().err
    (decoded / "exp/decode/test/text.speaker").write_text("s0-u00 me\n")
    assert run_main(decoded) == 1
    assert "no metric for task 'speaker'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("exp/decode", "decode is missing; run stage 12 first"),
        ("exp/decode/test", "test is missing; run stage 12 first"),
        ("dump/raw/test", "test is missing; run stages 1 to 4 first"),
    ],
)
def test_a_missing_folder_names_the_stage_that_makes_it(
    decoded, capsys, folder, message
):
    (decoded / folder).rename(decoded / "elsewhere")
    assert run_main(decoded) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_scoring_does_not_load_torch(decoded):
    script = (
        "import sys; from espnet_smoe.bin.smoe_score import main;"
        f"status = main(['--decode_dir', {str(decoded / 'exp/decode')!r},"
        f" '--dump_dir', {str(decoded / 'dump/raw')!r}, '--test_sets', 'test']);"
        "assert 'torch' not in sys.modules and 'espnet2' not in sys.modules;"
        "sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_sets_named_twice_are_scored_once(decoded):
    roots = (decoded / "exp/decode", decoded / "dump/raw")
    assert score_sets(*roots, ["test", "test"]) == score_sets(*roots, ["test"])
