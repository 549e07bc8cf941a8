"""Stage 11 on a cluster: what is submitted, and that it trains once it runs."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow  # several processes, each imports the host

pytest_plugins = ["fixtures_exp"]

RECIPE = Path(__file__).resolve().parent.parent / "egs2" / "smoe_asr_st"
SLURM = "egs2/TEMPLATE/asr1/utils/slurm.pl"

# stands for ESPnet's script where that is absent: submits, waits for the job
SLURM_PL = """\
#!/bin/bash
printf '%q ' "$@" >"${0%/*}/arguments"
while [[ $1 == --* ]]; do
    [ "$1" != --num_nodes ] || export SLURM_JOB_NUM_NODES=$2
    shift 2
done
log=$1
shift
mkdir -p "${log%/*}"
exec "$@" &>"${log}"
"""

# stand for SLURM's programs: run the job here, one task a node
SBATCH = """\
#!/bin/bash
printf '%q ' "$@" >"${0%/*}/sbatch.arguments"
export SLURM_JOB_NUM_NODES=1
while [[ $1 == -* ]]; do
    if [[ $1 == *=* ]]; then shift; continue; fi
    [ "$1" != --nodes ] || export SLURM_JOB_NUM_NODES=$2
    shift 2
done
echo "Submitted batch job 7"
bash "$1" &
"""
SRUN = """\
#!/bin/bash
while [[ $1 == --* ]]; do shift; done
export SLURM_NTASKS=${SLURM_JOB_NUM_NODES} SLURM_STEP_NUM_NODES=${SLURM_JOB_NUM_NODES}
export SLURM_STEP_NODELIST=localhost SLURM_LOCALID=0
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do
    SLURM_PROCID=${node} SLURM_NODEID=${node} "$@" &
    tasks+=($!)
done
status=0
for task in "${tasks[@]}"; do wait "${task}" || status=$?; done
exit "${status}"
"""


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def stage_11(
    folder: Path, host: Path, *options: str, **places: object
) -> subprocess.CompletedProcess:
    """Stage 11 with ``cmd_backend=slurm`` and our ``sbatch`` and ``srun``."""
    given = [f"--{name}={place}" for name, place in places.items()]
    return subprocess.run(
        [
            *("./run.sh", "--python", sys.executable, "--expdir", str(folder / "exp")),
            *("--stage", "11", "--stop_stage", "11", *given, *options),
        ],
        cwd=RECIPE,
        env={
            **os.environ,
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "ESPNET_ROOT": str(host),
            "cmd_backend": "slurm",
            "OMP_NUM_THREADS": "1",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )


def value_of(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """Folder with ``bin/sbatch``, ``bin/srun`` and a host with ``slurm.pl``."""
    script(tmp_path / "bin/sbatch", SBATCH)
    script(tmp_path / "bin/srun", SRUN)
    script(tmp_path / "host" / SLURM, SLURM_PL)
    return tmp_path


def test_several_nodes_are_asked_for_and_told_where_to_meet(programs: Path) -> None:
    script(programs / "bin/srun", "#!/bin/sh\nexit 0\n")
    process = stage_11(programs, programs / "host", "--ngpu", "4", "--num_nodes", "2")
    assert process.returncode == 0, process.stderr
    told = (programs / "host" / SLURM).with_name("arguments").read_text()
    words = shlex.split(told)
    job, task = words[: words.index("srun")], words[words.index("srun") :]
    assert value_of(job, "--name") == "smoe_demo"
    assert value_of(job, "--gpu") == value_of(job, "--num_threads") == "4"
    assert value_of(job, "--num_nodes") == "2"
    assert job[-1] == str(programs / "exp/smoe_demo/train.log")
    assert task[2:5] == [sys.executable, "-m", "espnet_smoe.bin.smoe_train"]
    assert value_of(task, "--ngpu") == "4"
    assert value_of(task, "--multiprocessing_distributed") == "true"
    assert value_of(task, "--dist_launcher") == "slurm"
    meeting = value_of(task, "--dist_init_method")
    assert meeting.startswith(f"file://{programs}/exp/smoe_demo/.dist_init_")


# the host's own slurm.pl reads our conf/slurm.conf
@pytest.mark.parametrize("real", [False, True], ids=["stand-in", "ESPNET_ROOT"])
def test_two_nodes_train_one_model(programs: Path, experiment, real: bool) -> None:
    host = programs / "host"
    if real:
        host = Path(os.environ.get("ESPNET_ROOT") or "/nonexistent")
        if not (host / SLURM).is_file():
            pytest.skip("ESPNET_ROOT with slurm.pl is not set")
    (programs / "dump").mkdir()
    (programs / "dump/raw").symlink_to(experiment.train.parent)
    exp = programs / "exp/two_nodes"
    process = stage_11(
        programs,
        host,
        *("--num_nodes", "2"),
        dumpdir=programs / "dump",
        token_listdir=experiment.tokens,
        smoe_stats_dir=experiment.stats,
        train_config=experiment.conf,
        smoe_exp=exp,
    )
    log = (exp / "train.log").read_text()
    assert process.returncode == 0, process.stderr + log
    assert log.count("The training was finished at 2 epochs") == 1
    checkpoint = torch.load(exp / "checkpoint.pth", weights_only=True)
    assert checkpoint["reporter"]["epoch"] == 2
    if real:
        told = (programs / "bin/sbatch.arguments").read_text()
        assert "--ntasks-per-node=1" in told
        assert "--nodes 2" in told
