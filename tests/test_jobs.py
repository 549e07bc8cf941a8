"""Real shell commands: order, limits, failures, and what a killed caller leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from espnet_smoe.config import ConfigError
from espnet_smoe.experiments_run import _locked
from espnet_smoe.jobs import Job, run_jobs

CALLER = """
import signal, sys
from pathlib import Path
from espnet_smoe.experiments_run import _locked
from espnet_smoe.jobs import Job, run_jobs
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
folder = Path(sys.argv[1])
job = Job("sleeper", ("sh", "-c", f"sleep 300 & echo $! > {folder}/pid; wait"),
          folder / "log")
with _locked(folder / ".lock") as lock:
    run_jobs([job], 1, lock)
"""


def shell(folder: Path, name: str, script: str) -> Job:
    return Job(name, ("sh", "-c", script), folder / "logs" / f"{name}.log")


def wait_for(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_failing_job_is_returned_and_stops_no_other(tmp_path):
    jobs = [
        shell(tmp_path, "good", "echo said"),
        shell(tmp_path, "bad", "echo why >&2; exit 3"),
        shell(tmp_path, "last", f"touch {tmp_path}/last; echo $OMP_NUM_THREADS"),
    ]
    with _locked(tmp_path / ".lock") as lock:
        failed = run_jobs(jobs, 1, lock)
    assert [job.name for job in failed] == ["bad"]
    assert jobs[1].log.read_text() == "why\n"
    assert jobs[2].log.read_text() == "1\n"
    assert (tmp_path / "last").exists()


@pytest.mark.parametrize("at_once", [1, 2])
def test_no_more_than_asked_for_run_at_a_time(tmp_path, at_once):
    # each notes how many others it sees beside it
    script = f"cd {tmp_path}; touch run.$$; sleep 0.5; set -- run.*; echo $#; rm run.$$"
    jobs = [shell(tmp_path, f"j{i}", script) for i in range(4)]
    with _locked(tmp_path / ".lock") as lock:
        assert run_jobs(jobs, at_once, lock) == []
    seen = [int(job.log.read_text()) for job in jobs]
    assert max(seen) <= at_once
    assert at_once == 1 or max(seen) == 2


@pytest.fixture
def caller(tmp_path):
    """A process that runs one long job; the process id of that job."""
    process = subprocess.Popen([sys.executable, "-c", CALLER, str(tmp_path)])
    pid = tmp_path / "pid"
    wait_for(lambda: pid.is_file() and pid.read_text().strip())
    job = int(pid.read_text())
    yield process, job
    process.kill()
    process.wait()
    if runs(job):
        os.kill(job, signal.SIGKILL)


def test_ending_the_caller_ends_its_jobs(caller):
    process, job = caller
    process.terminate()
    assert process.wait(30) == 1
    wait_for(lambda: not runs(job))


def test_a_killed_caller_leaves_the_lock_with_its_jobs(caller, tmp_path):
    process, job = caller
    process.kill()
    process.wait()
    assert runs(job)
    with (
        pytest.raises(ConfigError, match=r"still goes on"),
        _locked(tmp_path / ".lock"),
    ):
        pass
    os.kill(job, signal.SIGKILL)
    wait_for(lambda: not runs(job))

    def is_free():
        try:
            with _locked(tmp_path / ".lock"):
                return True
        except ConfigError:
            return False

    wait_for(is_free)
