"""Survey: labels and conflicts from what is declared and heard, and the report."""

from __future__ import annotations

import csv
import itertools
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_smoe.bandwidth import BandwidthEstimate
from espnet_smoe.survey import (
    MODES,
    Entry,
    Evidence,
    SurveyError,
    check_mode,
    examine,
    judge,
)
from espnet_smoe.survey_report import write_survey


def entry(name="a", heard="wb", seconds=2.0, **changes) -> Entry:
    """One utterance of a file of its own; ``heard`` None = nobody listened."""
    warnings = changes.pop("warnings", ())
    score = changes.pop("score", 1.0)
    estimate = None
    if heard is not None:
        estimate = BandwidthEstimate(bandwidth=heard, score=score, reason="why")
    fields = {"split": "train", "rate": 16_000, "word": None, "recording": (name, 0)}
    return Entry(
        id=name,
        evidence=Evidence(seconds, estimate, tuple(warnings)),
        **{**fields, **changes},
    )


def verdict(found) -> tuple:
    return found.label, found.detected, found.conflict, found.relabelled


# ------------------------------------------------------------------ labels

# (rate, word, heard) -> (label, conflict, relabelled) in check mode and in detect mode
SAME = {
    (16_000, None, "wb"): ("wb", False, False),
    (16_000, None, "unknown"): ("wb", False, False),
    (8_000, None, "nb"): ("nb", False, False),
    (8_000, None, "unknown"): ("nb", False, False),
    (16_000, "nb", "nb"): ("nb", False, False),
    (16_000, "nb", "unknown"): ("nb", False, False),
    (16_000, "nb", "wb"): ("nb", True, False),  # the corpus's word wins, loudly
    (48_000, "wb", "nb"): ("wb", True, False),
    (11_025, "nb", "wb"): ("nb", True, False),
    (11_025, None, "unknown"): (None, False, False),
    (16_000, "swb", "wb"): ("swb", False, False),  # the detector cannot say
}
CHECK = {
    **SAME,
    (16_000, None, "nb"): ("wb", True, False),
    (11_025, None, "nb"): (None, False, False),
    (11_025, None, "wb"): (None, False, False),
}
DETECT = {
    **SAME,
    (16_000, None, "nb"): ("nb", False, True),
    (11_025, None, "nb"): ("nb", False, False),  # nothing else was declared
    (11_025, None, "wb"): ("wb", False, False),
}


@pytest.mark.parametrize(
    ("mode", "case", "expected"),
    [("check", *item) for item in CHECK.items()]
    + [("detect", *item) for item in DETECT.items()],
)
def test_the_label_follows_from_mode_rate_word_and_sound(mode, case, expected) -> None:
    rate, word, heard = case
    (found,) = judge([entry(rate=rate, word=word, heard=heard)], mode)
    label, conflict, relabelled = expected
    assert verdict(found) == (label, heard, conflict, relabelled)


@pytest.mark.parametrize(
    ("rate", "word"), itertools.product((8000, 44_100), (None, "nb"))
)
def test_header_labels_as_check_does_without_the_detector(rate, word) -> None:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, rate).astype(np.float32)
    evidence = examine(samples, rate, "header")
    assert evidence.estimate is None
    assert evidence.seconds == 1.0
    one = Entry(
        id="a",
        split="train",
        rate=rate,
        word=word,
        recording=("a", 0),
        evidence=evidence,
    )
    (found,) = judge([one], "header")
    (checked,) = judge([entry(rate=rate, word=word)], "check")
    assert verdict(found) == (checked.label, None, False, False)


def test_the_detector_and_the_checks_of_quality_are_asked() -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 32_000).astype(np.float32)
    evidence = examine(noise + 0.4, 16_000, "check")
    assert evidence.estimate.bandwidth in ("nb", "wb", "unknown")
    assert [w for w in evidence.warnings if "DC offset" in w]
    assert examine(noise, 16_000, "check").warnings == ()


def test_a_mode_that_there_is_not_is_refused_by_name() -> None:
    for mode in MODES:
        check_mode(mode)
    with pytest.raises(SurveyError, match=r"'guess'.*known: header, detect, check"):
        check_mode("guess")


# ------------------------------------------------------------------ pooling


def cut(recording, *parts, channel=0) -> list[Entry]:
    """Utterances of one channel of a file from (heard, seconds) pairs."""
    return [
        entry(
            f"{recording}{channel}-{k}", heard, seconds, recording=(recording, channel)
        )
        for k, (heard, seconds) in enumerate(parts)
    ]


def test_utterances_of_a_recording_share_a_clear_majority() -> None:
    parts = ("nb", 8.0), ("unknown", 30.0), ("wb", 1.9), ("nb", 0.1)
    found = judge(cut("call", *parts), "detect")
    assert [f.detected for f in found] == ["nb"] * 4
    assert [f.label for f in found] == ["nb"] * 4


def test_seconds_count_not_utterances() -> None:
    found = judge(cut("call", ("nb", 10.0), *[("wb", 0.3)] * 8), "detect")
    assert {f.label for f in found} == {"nb"}


def test_in_a_mixed_recording_each_utterance_stands_for_itself() -> None:
    parts = ("wb", 7.9), ("nb", 2.1), ("unknown", 5.0)
    found = judge(cut("broadcast", *parts), "detect")
    assert [f.detected for f in found] == ["wb", "nb", "unknown"]
    assert [f.label for f in found] == ["wb", "nb", "wb"]  # 16 kHz where unknown


def test_channels_and_files_do_not_share() -> None:
    entries = [
        *cut("call", ("nb", 9.0), ("unknown", 1.0)),
        *cut("call", ("wb", 9.0), ("unknown", 1.0), channel=1),
        *cut("other", ("unknown", 1.0)),
    ]
    found = [f.detected for f in judge(entries, "check")]
    assert found == ["nb", "nb", "wb", "wb", "unknown"]


@st.composite
def corpora(draw) -> list[Entry]:
    parts = st.tuples(
        st.sampled_from(["nb", "wb", "unknown"]),
        st.integers(1, 20),
        st.sampled_from(["x", "y"]),
        st.sampled_from([0, 1]),
        st.sampled_from([8000, 11_025, 16_000]),
        st.sampled_from([None, None, "nb", "wb"]),
    )
    return [
        entry(f"u{k}", heard, float(sec), recording=(file, ch), rate=rate, word=word)
        for k, (heard, sec, file, ch, rate, word) in enumerate(
            draw(st.lists(parts, min_size=1, max_size=12))
        )
    ]


@settings(max_examples=80, database=None, deadline=None)
@given(corpora(), st.sampled_from(["check", "detect"]), st.randoms())
def test_verdicts_are_those_of_the_plain_rule_in_any_order(made, mode, random) -> None:
    def plain(e: Entry) -> tuple[str, str | None]:
        mine = [o for o in made if o.recording == e.recording]
        said = {
            b: sum(
                o.evidence.seconds for o in mine if o.evidence.estimate.bandwidth == b
            )
            for b in ("nb", "wb")
        }
        total, sounds = sum(said.values()), e.evidence.estimate.bandwidth
        for b in said:
            if total and said[b] >= 0.8 * total:
                sounds = b
        label = {8000: "nb", 16_000: "wb"}.get(e.rate)
        if mode == "detect" and sounds != "unknown":
            label = sounds
        return sounds, e.word or label

    shuffled = random.sample(made, len(made))
    for found in judge(shuffled, mode):
        assert (found.detected, found.label) == plain(found.entry)
    assert [f.entry for f in judge(shuffled, mode)] == shuffled


# ------------------------------------------------------------------ report


def table(datadir: Path) -> list[dict[str, str]]:
    with (datadir / "survey/bandwidth.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def many() -> list[Entry]:
    return [
        *(entry(f"c{k:02}", "nb", score=-20.0 - k) for k in range(25)),
        entry("q", "unknown", score=0.0, warnings=("clipped: x", "DC offset: y")),
        entry("t", "wb", split="test", rate=8000, word="wb"),
        entry("u", "nb", split="test", rate=8000),
    ]


def test_the_table_has_each_utterance_as_it_was_judged(tmp_path) -> None:
    findings = judge(many(), "check")
    write_survey(tmp_path, findings, "check")
    rows = table(tmp_path)
    assert [r["id"] for r in rows] == [f.entry.id for f in findings]
    for row, found in zip(rows, findings, strict=True):
        assert (row["label"], row["detected"]) == (found.label, found.detected)
        assert row["conflict"] == ("yes" if found.conflict else "no")
        assert int(row["rate_hz"]) == found.entry.rate
        assert row["declared"] == found.entry.declared
        assert float(row["score_db"]) == found.entry.evidence.estimate.score
    by_id = {r["id"]: r for r in rows}
    assert by_id["q"]["warnings"] == "clipped: x; DC offset: y"
    assert (by_id["t"]["declared_by"], by_id["u"]["declared_by"]) == ("key", "rate")


def test_the_summary_counts_each_utterance_once_and_lists_twenty(tmp_path) -> None:
    write_survey(tmp_path, judge(many(), "check"), "check")
    text = (tmp_path / "survey/survey.md").read_text()
    assert "| train | 16000 | wb | 0.01 | 26 | 1 | 0 | 25 | 1 |" in text
    assert "| test | 8000 | wb | 0.00 | 1 | 0 | 0 | 0 | 0 |" in text
    assert "| test | 8000 | nb | 0.00 | 1 | 0 | 0 | 0 | 0 |" in text
    assert text.count(": wb, sounds like nb") == 20
    assert "- and 5 more" in text
    assert "- q: clipped: x" in text
    write_survey(tmp_path, judge(many(), "detect"), "detect")
    text = (tmp_path / "survey/survey.md").read_text()
    assert "| train | 16000 | nb | 0.01 | 25 | 0 | 25 | 0 | 0 |" in text
    assert "| train | 16000 | wb | 0.00 | 1 | 1 | 0 | 0 | 1 |" in text


def test_the_summary_says_how_many_twins_it_leaves_out(tmp_path) -> None:
    findings = judge(many(), "check")
    for twins in (0, 17):
        write_survey(tmp_path / str(twins), findings, "check", twins)
        text = (tmp_path / str(twins) / "survey/survey.md").read_text()
        assert f"twins in the data directories, not counted above: {twins}." in text
    tables = [(tmp_path / n / "survey/bandwidth.tsv").read_bytes() for n in ("0", "17")]
    assert tables[0] == tables[1]


def test_the_chart_is_a_png_of_scores_or_not_there(tmp_path) -> None:
    write_survey(tmp_path / "a", judge(many(), "check"), "check")
    assert (tmp_path / "a/survey/scores.png").read_bytes()[:4] == b"\x89PNG"
    for name, one in {
        "header": entry(heard=None),
        "unknown": entry(heard="unknown", score=0.0),
    }.items():
        write_survey(tmp_path / name, judge([one], "header"), "header")
        files = sorted(p.name for p in (tmp_path / name / "survey").iterdir())
        assert files == ["bandwidth.tsv", "survey.md"]


def test_the_log_has_a_line_per_split_and_one_warning_with_advice(
    tmp_path, caplog
) -> None:
    caplog.set_level(logging.INFO)
    write_survey(tmp_path, judge(many(), "check"), "check")
    train, test, warning = (r.getMessage() for r in caplog.records)
    assert train.endswith(
        "26 utterances: 26 of 16000 Hz wb, 1 unknown, 25 conflicts, 1 with warnings"
    )
    assert test.endswith("2 utterances: 1 of 8000 Hz nb, 1 of 8000 Hz wb")
    assert caplog.records[-1].levelname == "WARNING"
    assert "25 utterances" in warning
    assert "--bandwidth detect" in warning
    assert '"bandwidth"' in warning


def test_without_conflicts_there_is_no_warning(tmp_path, caplog) -> None:
    write_survey(tmp_path, judge(many(), "detect"), "detect")
    write_survey(tmp_path, judge([entry(word="nb", heard="wb")], "detect"), "detect")
    (record,) = caplog.records
    assert "correct their" in record.getMessage()


def test_a_report_that_fails_leaves_the_last_one_as_it_was(tmp_path) -> None:
    write_survey(tmp_path, judge([entry("old")], "check"), "check")
    before = {p.name: p.read_bytes() for p in (tmp_path / "survey").iterdir()}
    broken = judge([entry("new", warnings=("half a pair \ud800",))], "check")
    with pytest.raises(UnicodeEncodeError):
        write_survey(tmp_path, broken, "check")
    assert {p.name: p.read_bytes() for p in (tmp_path / "survey").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["survey"]


def test_the_same_findings_give_the_same_bytes(tmp_path) -> None:
    for name in "ab":
        write_survey(tmp_path / name, judge(many(), "check"), "check")
    for file in ("bandwidth.tsv", "survey.md", "scores.png"):
        first, second = ((tmp_path / n / "survey" / file).read_bytes() for n in "ab")
        assert first == second
