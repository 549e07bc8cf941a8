"""What every command line here shares: one line on failure, exit status 1."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence

__all__ = ["run"]


def run(
    parser: argparse.ArgumentParser,
    call: Callable[[argparse.Namespace], None],
    cmd: Sequence[str] | None,
    unknown: str | None = None,
) -> int:
    """Parse, call, and turn a refused input into one line and a status.

    ``call`` refuses input with a ``ValueError`` and reports a full disk or a missing
    file as ``OSError``; anything else is a bug and keeps its traceback, as all do
    with ``--debug``.

    Args:
        unknown: where in the namespace options that the parser does not know go, for
            a tool that hands them on; None = they are wrong usage.

    Returns:
        0 when the output is complete, 1 on a refused input. Wrong usage ends in
        argparse with status 2.
    """
    parser.allow_abbrev = False  # smoe.sh looks for some by name
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    if unknown is None:
        args = parser.parse_args(cmd)
    else:
        args, rest = parser.parse_known_args(cmd)
        setattr(args, unknown, rest)
    logging.basicConfig(
        level=logging.DEBUG if args.debug else logging.INFO,
        format="%(asctime)s (%(module)s:%(lineno)d) %(levelname)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        call(args)
    except (ValueError, OSError) as error:
        if args.debug:
            raise
        message = " ".join(str(error).split("\n")) if str(error) else repr(error)
        print(f"{parser.prog}: {message}", file=sys.stderr)
        return 1
    return 0
