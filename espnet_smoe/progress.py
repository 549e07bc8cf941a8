"""Progress with time left, for terminals and for log files."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator

__all__ = ["progress"]

logger = logging.getLogger(__name__)


def progress[T](
    items: Iterable[T], total: int, what: str, log_every: float = 10.0
) -> Iterator[T]:
    """Yield ``items``; show per cent and time left on standard error.

    On a terminal a bar (tqdm); in a log file lines, since a bar there is one endless
    line.

    Args:
        total: number of items, of which the one just yielded counts as still to do.
        what: name of the work.
        log_every: time between two lines, s.
    """
    from tqdm import tqdm

    if sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=what, ascii=True)
        return
    start = last = 0.0
    for done, item in enumerate(items):
        now = time.monotonic()
        if done == 0:  # the first of several processes takes long to start
            start = last = now
        elif now - last >= log_every:
            last = now
            left = tqdm.format_interval((now - start) / done * (total - done))
            logger.info("%s: %d %% done, %s left", what, 100 * done // total, left)
        yield item
