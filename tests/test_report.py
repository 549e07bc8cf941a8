"""The written report says what the scores say."""

import json

import pytest

from espnet_smoe import report
from espnet_smoe.score import Row

COMMAND = "python -m espnet_smoe.bin.smoe_score --test_sets test"


def row(task, bandwidth, metric, value, low, high, guide=None):
    return Row(
        set="test",
        task=task,
        bandwidth=bandwidth,
        guide=guide or bandwidth,
        metric=metric,
        value=value,
        low=low,
        high=high,
        utterances=60,
        reference_units=500,
        signature=f"{metric}|unit:x",
    )


ROWS = [
    row("asr", "nb", "wer", 9.25, 7.5, 11.125),
    row("asr", "wb", "wer", 4.0, 3.0, 5.0),
    row("st_de", "nb", "bleu", 70.0, 65.0, 74.5),
    row("st_de", "wb", "bleu", 82.5, 79.0, 85.0),
]
WRONG_GUIDE = row("asr", "nb", "wer", 12.0, 10.0, 14.0, guide="wb")


def test_the_printed_table_is_aligned_and_complete():
    lines = report.table(ROWS).splitlines()
    assert len(lines) == 5
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split() == [
        *("test", "asr", "nb", "nb", "wer", "9.25", "[7.50,", "11.12]", "60")
    ]


def test_results_have_a_line_per_cell_a_column_per_metric_and_each_signature_once():
    text = report.markdown([*ROWS, WRONG_GUIDE], "exp/decode", COMMAND)
    lines = text.splitlines()
    assert lines[0] == "# RESULTS: exp/decode"
    assert f"- command: `{COMMAND}`" in lines
    table = [line for line in lines if line.startswith("|")]
    assert table == [
        "| set | task | bandwidth | guide | utterances | WER | BLEU |",
        "| --- | --- | --- | --- | ---: | ---: | ---: |",
        "| test | asr | nb | nb | 60 | 9.25 [7.50, 11.12] | - |",
        "| test | asr | wb | wb | 60 | 4.00 [3.00, 5.00] | - |",
        "| test | st_de | nb | nb | 60 | - | 70.00 [65.00, 74.50] |",
        "| test | st_de | wb | wb | 60 | - | 82.50 [79.00, 85.00] |",
        "| test | asr | nb | wb | 60 | 12.00 [10.00, 14.00] | - |",
    ]
    assert lines.count("- `wer|unit:x`") == 1


@pytest.mark.parametrize(
    "rows",
    [
        ROWS,
        ROWS[:2],
        ROWS[2:],
        [row("asr", "nb", "wer", 5.0, 6.0, 7.0)],
        [row("asr", "nb", "wer", 0.0, 0.0, 0.0)],
        [*ROWS, WRONG_GUIDE],
    ],
    ids=[
        *("both", "asr only", "st only", "interval beside the score", "no error"),
        "wrong guide",
    ],
)
def test_report_files_are_complete_and_no_temporary_file_stays(tmp_path, rows):
    report.write_report(tmp_path, rows, COMMAND)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("RESULTS.md", "scores.json", "scores.png")
    ]
    content = json.loads((tmp_path / "scores.json").read_text("utf-8"))
    assert [Row(**r) for r in content["rows"]] == rows
    png = (tmp_path / "scores.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert png.rstrip(b"\0").endswith(b"IEND\xaeB`\x82")


def test_a_failed_chart_leaves_the_old_scores_and_no_temporary_file(
    tmp_path, monkeypatch
):
    report.write_report(tmp_path, ROWS, COMMAND)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def fail(rows, path):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(report, "draw", fail)
    with pytest.raises(OSError, match="No space"):
        report.write_report(tmp_path, ROWS[:1], COMMAND)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
