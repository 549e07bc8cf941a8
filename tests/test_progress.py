"""Progress: passes everything through and says how far it is."""

import logging
import re

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
