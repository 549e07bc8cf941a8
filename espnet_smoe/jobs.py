"""Commands run some at a time; what they started ends with the caller."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Job", "run_jobs"]

logger = logging.getLogger(__name__)

_PAUSE = 0.2  # s between two looks at the running commands
_PATIENCE = 10.0  # s that a command gets to end by itself when asked to


@dataclass(frozen=True)
class Job:
    """A command.

    Args:
        name: for messages.
        command: program and arguments.
        log: file that what it says is added to.
    """

    name: str
    command: tuple[str, ...]
    log: Path


def run_jobs(jobs: Sequence[Job], at_once: int, lock: int) -> list[Job]:
    """Run commands in order, one thread each; a failing one stops no other.

    When the caller is interrupted, what runs is ended too.

    Args:
        at_once: how many may run at a time.
        lock: open file that every command holds open as long as it runs, so that a
            lock on it outlives a killed caller.

    Returns:
        The jobs that failed.
    """
    waiting, failed = list(jobs), []
    running: dict[subprocess.Popen, tuple[Job, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                logger.info("%s started; log: %s", job.name, job.log)
                running[_start(job, lock)] = job, time.monotonic()
            time.sleep(_PAUSE)
            for process in [p for p in running if p.poll() is not None]:
                job, start = running.pop(process)
                seconds = time.monotonic() - start
                left = len(waiting) + len(running)
                if process.returncode:
                    failed.append(job)
                    logger.error(
                        "%s failed with status %d; log: %s",
                        *(job.name, process.returncode, job.log),
                    )
                else:
                    logger.info("%s done in %.0f s, %d left", job.name, seconds, left)
    finally:
        for process in running:
            _end(process)
    return failed


def _start(job: Job, lock: int) -> subprocess.Popen:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab") as log:
        return subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            pass_fds=(lock,),
            # a group of its own: ending it ends what the shell started
            start_new_session=True,
        )


def _end(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    except ProcessLookupError:  # it ended meanwhile
        process.wait()
