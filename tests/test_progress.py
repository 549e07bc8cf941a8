"""Progress: passes everything through and says how far it is."""

import logging
import re
import time

from espnet_smoe.progress import progress


def test_items_pass_in_order_and_only_once():
    items = iter(range(7))
    assert list(progress(items, 7, "work")) == list(range(7))


def test_a_log_file_gets_lines_with_per_cent_and_time_left(caplog):
    with caplog.at_level(logging.INFO):
        list(progress(range(4), 4, "work", log_every=0.0))
    lines = [r.message for r in caplog.records]
    assert [re.match(r"work: (\d+) % done, \S+ left", x)[1] for x in lines] == [
        "25",
        "50",
        "75",
    ]


def test_short_work_logs_nothing(caplog):
    with caplog.at_level(logging.INFO):
        list(progress(range(4), 4, "work"))
    assert not caplog.records


def test_the_wait_for_the_first_item_is_not_how_long_others_take(caplog, monkeypatch):
    clock = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)

    def items():
        nonlocal clock
        for n in range(4):
            clock += 1.0 if n else 100.0
            yield n

    with caplog.at_level(logging.INFO):
        list(progress(items(), 4, "work", log_every=0.0))
    left = [r.message.split(", ")[1] for r in caplog.records]
    assert left == ["00:03 left", "00:02 left", "00:01 left"]
