"""The recipe from a shell: every stage on a tiny demo corpus, reruns, wrong usage."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

RECIPE = Path(__file__).resolve().parent.parent / "egs2" / "smoe_asr_st"

# the demo's model after three updates: bad hypotheses, but every file
TINY = [
    *("--demo_sizes", "24 2 2", "--nbpe", "100", "--speed_perturb_factors", "1.0 1.1"),
    *("--nj", "2", "--inference_nj", "1", "--inference_args", "--tasks asr st_de"),
    *("--smoe_tag", "demo", "--inference_tag", "decode_tiny"),
    "--smoe_args=--max_epoch 1 --num_iters_per_epoch 3 --batch_bins 200000"
    " --scheduler_conf total_steps=3",
]


def command(folder: Path, *options: str) -> list[str]:
    """run.sh with its data, dump and experiments in ``folder``."""
    places = [f"--{p}dir={folder / p}" for p in ("data", "dump", "exp")]
    return ["./run.sh", "--python", sys.executable, *places, *options]


def run(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess:
    """Run ``command`` to its end."""
    return subprocess.run(
        command(folder, *options),
        cwd=RECIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )


def run_until(folder: Path, sign: str, *options: str) -> None:
    """Kill run.sh and all it started as soon as ``folder`` has a file like ``sign``."""
    process = subprocess.Popen(
        command(folder, *options),
        cwd=RECIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and not list(folder.glob(sign)):
        assert time.monotonic() < deadline, f"no {sign}"
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def contents(folder: Path, part: str) -> dict[str, bytes]:
    """Every file of a part of ``folder``, hidden ones too, as if it lay elsewhere."""
    files = (p for p in (folder / part).rglob("*") if p.is_file())
    return {
        str(p.relative_to(folder)): p.read_bytes().replace(bytes(folder), b"@")
        for p in files
        if "token_list" not in p.parts
    }


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Folder and process of one run of all stages."""
    folder = tmp_path_factory.mktemp("recipe")
    return folder, run(folder, *TINY)


def read_rows(folder: Path) -> list[dict]:
    text = (folder / "exp/smoe_demo/decode_tiny/scores.json").read_text("utf-8")
    return json.loads(text)["rows"]


def test_all_stages_succeed_and_leave_their_files(chain):
    folder, process = chain
    assert process.returncode == 0, process.stderr
    for name in (
        "data/train/wav.scp",
        "data/train_sp/utt2speed",
        "dump/raw/org/train_sp/utt2bandwidth",
        "dump/raw/train_sp/text.asr",
        "dump/raw/dev/text.st_de",
        "dump/raw/test/utt2fs",
        "data/token_list/bpe100/bpe.model",
        "exp/smoe_stats_demo_24-2-2_bpe100_sp/train/speech_shape",
        "exp/smoe_demo/config.yaml",
        "exp/smoe_demo/valid.acc.ave.pth",
        "exp/smoe_demo/train.log",
        "exp/smoe_demo/decode_tiny/test/text.asr",
        "exp/smoe_demo/decode_tiny/test/text.st_de",
        "exp/smoe_demo/decode_tiny/RESULTS.md",
        "exp/smoe_demo/decode_tiny/scores.png",
    ):
        assert (folder / name).exists(), name
    # the upload is the only stage that must be asked for
    numbers = (1, 2, 3, 4, 5, 10, 11, 12, 13, 14)
    assert all(f"Stage {n}:" in process.stdout for n in numbers)
    assert "Stage 15:" not in process.stdout
    assert "Skipping stage 15: --skip_upload_hf is true" in process.stdout


def test_test_sets_are_not_filtered(chain):
    folder, _ = chain
    assert not (folder / "dump/raw/org/test").exists()
    assert (folder / "dump/raw/org/dev").exists()


def test_every_task_and_bandwidth_is_scored_and_shown(chain):
    folder, process = chain
    cells = {(r["set"], r["task"], r["bandwidth"]) for r in read_rows(folder)}
    assert cells == {
        ("test", task, band) for task in ("asr", "st_de") for band in ("nb", "wb")
    }
    table = process.stdout.partition("Stage 13")[2]
    assert "wer" in table
    assert "bleu" in table


def test_the_pack_holds_model_and_config(chain):
    folder, _ = chain
    with zipfile.ZipFile(folder / "exp/smoe_demo/smoe_demo.zip") as archive:
        names = [Path(name).name for name in archive.namelist()]
    assert {"meta.yaml", "config.yaml", "valid.acc.ave.pth", "bpe.model"} <= set(names)


def test_a_late_stage_reruns_with_the_same_result(chain):
    folder, _ = chain
    before = read_rows(folder)
    again = run(folder, *TINY, "--stage", "13", "--stop_stage", "13")
    assert again.returncode == 0, again.stderr
    assert read_rows(folder) == before


@pytest.mark.parametrize("tasks", ["--tasks asr", "--tasks=asr"])
def test_some_tasks_are_decoded_and_scored_alone(chain, tasks):
    folder, _ = chain
    only = ["--inference_tag", "only", f"--inference_args={tasks}"]
    done = run(folder, *TINY, *only, "--stage", "12", "--stop_stage", "13")
    assert done.returncode == 0, done.stderr
    (scores,) = folder.glob("exp/*/only/scores.json")
    assert {row["task"] for row in json.loads(scores.read_text())["rows"]} == {"asr"}


def test_twins_are_dumped_and_a_wrong_guide_is_scored(chain, tmp_path):
    folder, _ = chain
    texts = dict(
        line.split(maxsplit=1)
        for line in (folder / "data/test/text.asr").read_text("utf-8").splitlines()
    )
    lines = [
        {
            "id": f"{split}-{utt}",
            "audio": str(folder / f"data/demo_audio/test/{utt}.wav"),
            "split": split,
            "texts": {"asr": text},
        }
        for split in ("train", "dev", "test")
        for utt, text in texts.items()
    ]
    manifest = tmp_path / "two.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    # the manifest's dump, decoded with the model of the demo corpus
    options = [
        *("--corpus", "manifest", "--manifest", str(manifest), "--nj", "2"),
        *("--narrowband_twins", "true", "--force_bandwidths", "nb wb"),
        *("--train_config", "conf/demo/train_smoe.yaml", "--expdir", f"{folder}/exp"),
        *("--inference_config", "conf/demo/decode.yaml", "--inference_nj", "1"),
        *("--smoe_tag", "demo", "--inference_tag", "forced"),
        *("--inference_args", "--tasks asr", "--speed_perturb_factors", "1.0 1.1"),
    ]
    for first, last in (("1", "4"), ("12", "13")):
        done = run(tmp_path, *options, "--stage", first, "--stop_stage", last)
        assert done.returncode == 0, done.stderr

    bands = (folder / "data/test/utt2bandwidth").read_text("utf-8").splitlines()
    wide = {line.split()[0] for line in bands if line.endswith(" wb")}
    assert wide
    for part, prefixes in {
        "dev": [""], "test": [""], "train_sp": ["", "sp1.1-"],
    }.items():  # fmt: skip
        table = (tmp_path / "dump/raw" / part / "utt2bandwidth").read_text("utf-8")
        guides = dict(line.split() for line in table.splitlines())
        split = part.removesuffix("_sp")
        twins = {f"{p}tel-{split}-{u}" for p in prefixes for u in wide}
        assert {u for u in guides if "tel-" in u} == twins
        assert {guides[u] for u in twins} == {"nb"}
        assert len(guides) == len(prefixes) * (len(texts) + len(wide))
    scores = json.loads((folder / "exp/smoe_demo/forced/scores.json").read_text())
    cells = {(r["task"], r["bandwidth"], r["guide"]) for r in scores["rows"]}
    assert cells == {("asr", b, g) for b in ("nb", "wb") for g in ("nb", "wb")}


def test_early_stages_rerun_with_the_same_result(chain):
    folder, _ = chain
    kept = ["dump/raw/train_sp/utt2num_samples", "data/token_list/bpe100/tokens.txt"]
    before = [(folder / name).read_bytes() for name in kept]
    again = run(folder, *TINY, "--stage", "4", "--stop_stage", "5")
    assert again.returncode == 0, again.stderr
    assert [(folder / name).read_bytes() for name in kept] == before


def test_a_killed_stage_leaves_nothing_half_written_and_reruns(chain, tmp_path):
    folder, _ = chain
    options = [*TINY, "--stage", "1", "--stop_stage", "1"]
    run_until(tmp_path, "data/.demo_audio.tmp/train/*.wav", *options)
    assert [p.name for p in (tmp_path / "data").iterdir()] == [".demo_audio.tmp"]
    again = run(tmp_path, *TINY, "--stop_stage", "2")
    assert again.returncode == 0, again.stderr
    assert contents(tmp_path, "data") == contents(folder, "data")

    options = [*TINY, "--stage", "3", "--stop_stage", "4"]
    run_until(tmp_path, "dump/raw/org/.train_sp.tmp/*.ark", *options)
    assert [p.name for p in (tmp_path / "dump/raw").iterdir()] == ["org"]
    assert [p.name for p in (tmp_path / "dump/raw/org").iterdir()] == [".train_sp.tmp"]
    again = run(tmp_path, *options)
    assert again.returncode == 0, again.stderr
    assert contents(tmp_path, "dump/raw") == contents(folder, "dump/raw")


def test_upload_without_login_is_refused_in_one_line(chain, tmp_path):
    folder, _ = chain
    process = run(
        folder,
        *("--stage", "15", "--skip_upload_hf", "false", "--hf_repo", "user/name"),
        HF_HOME=str(tmp_path),
        HF_TOKEN="",
    )
    assert process.returncode == 1
    assert process.stderr.count("\n") == 1
    assert "not logged in" in process.stderr


MANIFEST = ["--corpus", "manifest", "--manifest", "calls/may 7.jsonl"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--no_such_option", "1"], "unknown option --no_such_option"),
        (["--no_such_option=1"], "unknown option --no_such_option"),
        (["--@", "1"], "unknown option --@"),
        (["--stage"], "option --stage needs a value"),
        (["--stage", "--ngpu", "1"], "option --stage needs a value"),
        (["--nj", "two"], "option --nj must be a whole number, got 'two'"),
        (["--skip_train", "yes"], "option --skip_train must be true or false"),
        (["--max_wav_duration", "1e3"], "must be a number like 30.0, got '1e3'"),
        (["--min_wav_duration=.", "--nj", "1"], "must be a number like 0.1, got '.'"),
        (["stray"], "unexpected argument 'stray'"),
        (["--manifest", "my.jsonl"], "--manifest my.jsonl needs --corpus manifest"),
        (["--corpus", "manifest"], "--corpus manifest needs --manifest FILE"),
        ([*MANIFEST, "--seed", "1"], "options of --corpus demo"),
        ([*MANIFEST, "--demo_sizes", "1 1 1"], "options of --corpus demo"),
        (["--test_sets", "test dev"], "set 'dev' of --test_sets"),
        (["--test_sets", "train"], "set 'train' of --test_sets"),
        (["--test_sets", ""], "--test_sets names no set"),
        (["--stage", "15", "--skip_upload_hf", "false"], "--hf_repo user/name"),
        (["--stage", "99"], "names no stage; there are 1-5 and 10-15"),
        (["--stage", "7", "--stop_stage", "8"], "names no stage"),
        (["--stage", "13", "--stop_stage", "12"], "names no stage"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(tmp_path, options, message):
    process = run(tmp_path, "--stage", "15", *options, MANIFEST="")
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1
    assert message in process.stderr
    assert not any(tmp_path.iterdir())


def test_help_lists_every_option_of_the_script():
    process = run(Path("."), "--help")
    assert process.returncode == 0
    for name in ("stage", "skip_upload_hf", "inference_model", "speed_perturb_factors"):
        assert f"  --{name} " in process.stdout
    assert "(default: valid.acc.ave.pth)" in process.stdout
    # what run.sh chose, not what smoe.sh would
    assert "(default: conf/demo/train_smoe.yaml)" in process.stdout


@pytest.mark.parametrize(
    ("stage", "maker"),
    [(2, 1), (3, 1), (4, 3), (5, 4), (10, 5), (11, 5), (13, 12), (14, 11), (15, 14)],
)
def test_a_stage_without_its_input_names_the_stage_that_makes_it(
    tmp_path, stage, maker
):
    process = run(
        tmp_path,
        *("--stage", str(stage), "--stop_stage", str(stage)),
        *("--speed_perturb_factors", "0.9" if stage == 2 else ""),
        *("--skip_upload_hf", "false", "--hf_repo", "user/name"),
    )
    assert process.returncode == 1
    assert f"stage {maker} " in process.stderr
    assert "Traceback" not in process.stderr
    # logs at most
    assert all(p.suffix == ".log" for p in tmp_path.rglob("*") if p.is_file())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--corpus", "manifest", "--manifest", "no/such.jsonl"], "no/such.jsonl"),
        (["--corpus", "nothing"], "unknown corpus 'nothing'"),
        (["--train_config", "no/such.yaml"], "no/such.yaml"),
        (["--bandwidth", "detect"], "the demo corpus knows its bandwidths"),
        (["--num_nodes", "2"], "needs cmd_backend slurm or sge"),
        (["--python", "/no/such/python"], "run 'make install'"),
    ],
)
def test_a_refused_choice_is_one_line_and_writes_nothing(tmp_path, options, message):
    process = run(tmp_path, "--stop_stage", "1", *options, MANIFEST="")
    assert process.returncode == 1
    assert process.stderr.count("\n") == 1
    assert message in process.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("backend", "message"),
    [("slurm", "set ESPNET_ROOT"), ("moon", "known: local slurm sge ssh")],
)
def test_a_backend_that_cannot_start_is_refused(tmp_path, backend, message):
    process = run(tmp_path, cmd_backend=backend, ESPNET_ROOT="")
    assert process.returncode == 1
    assert process.stderr.count("\n") == 1
    assert message in process.stderr


def test_a_cluster_script_gets_options_log_and_command(tmp_path):
    scripts = tmp_path / "egs2/TEMPLATE/asr1/utils"
    scripts.mkdir(parents=True)
    slurm = scripts / "slurm.pl"
    slurm.write_text('#!/bin/sh\necho "$@" >"${0%/*}/arguments"\n')
    slurm.chmod(0o755)
    process = run(
        tmp_path,
        *("--stage", "11", "--stop_stage", "11", "--ngpu", "2"),
        cmd_backend="slurm",
        ESPNET_ROOT=str(tmp_path),
    )
    assert process.returncode == 0, process.stderr
    words = (scripts / "arguments").read_text().split()
    log = str(tmp_path / "exp/smoe_demo/train.log")
    assert words[:5] == ["--gpu", "2", log, sys.executable, "-m"]
    at = words.index("--multiprocessing_distributed")
    assert words[at : at + 4] == [
        "--multiprocessing_distributed",
        "true",
        "--ngpu",
        "2",
    ]


DENSE = ["--train_config", "conf/demo/train_dense.yaml"]
DETECT = ["--bandwidth", "detect"]
TWINS = ["--narrowband_twins", "true"]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ([], "demo"),
        (["--demo_sizes", "", "--seed", "0", "--train_set=train"], "demo"),
        (["--smoe_args", "--max_epoch 7 --seed=2"], "demo_max_epoch7_seed2"),
        (["--smoe_args", "--seed=2"], "demo_seed2"),
        (["--speed_perturb_factors", "0.9 1.0"], "demo_sp"),
        (["--nbpe", "300"], "demo_bpe300"),
        (["--demo_sizes", "9 2 2", "--seed=3"], "demo_9-2-2_seed3_train_smoe"),
        (DENSE, "train_dense"),
        ([*DENSE, "--smoe_args", "--max_epoch 7"], "train_dense_max_epoch7"),
        ([*DENSE, "--seed", "3"], "demo_seed3_train_dense"),
        (MANIFEST, "manifest_may_7_train_smoe"),
        ([*MANIFEST, *DENSE], "manifest_may_7_train_dense"),
        ([*MANIFEST, "--smoe_tag", "mine"], "mine"),
        ([*MANIFEST, *DETECT], "manifest_may_7_detect_train_smoe"),
        ([*MANIFEST, *TWINS], "manifest_may_7_twins_train_smoe"),
        ([*MANIFEST, *TWINS, *DETECT], "manifest_may_7_detect_twins_train_smoe"),
        ([*MANIFEST, "--bandwidth", "header"], "manifest_may_7_train_smoe"),
        ([*MANIFEST, "--narrowband_twins=false"], "manifest_may_7_train_smoe"),
    ],
)
def test_what_was_trained_otherwise_is_another_experiment(tmp_path, options, name):
    late = ["--stage", "14", "--stop_stage", "14"]
    assert f"/exp/smoe_{name}/" in run(tmp_path, *late, *options).stderr


def test_another_corpus_has_other_data_and_statistics(tmp_path):
    # the default places are in the folder of the recipe: work on a copy
    copy = tmp_path / "egs2/recipe"
    shutil.copytree(
        RECIPE, copy, ignore=shutil.ignore_patterns("conf", "data", "dump", "exp")
    )
    (copy / "conf").symlink_to((RECIPE / "conf").resolve())

    def said(stage: int, *options: str) -> str:
        """The stage's line of inputs and outputs; it fails, as its input is missing."""
        only = ["--stage", str(stage), "--stop_stage", str(stage)]
        process = subprocess.run(
            ["./run.sh", "--python", sys.executable, *only, *options],
            cwd=copy,
            capture_output=True,
            text=True,
        )
        return next(ln for ln in process.stdout.splitlines() if "Stage" in ln)

    assert "audio of data at 16 kHz -> dump/raw" in said(3)
    assert said(10).endswith("dump/raw/dev -> exp/smoe_stats")
    seeded = ["--seed", "1"]
    assert "audio of data/demo_seed1 at 16 kHz -> dump/demo_seed1/raw" in said(
        3, *seeded
    )
    may = "manifest_may_7"
    assert f"audio of data/{may} at 16 kHz -> dump/{may}/raw" in said(3, *MANIFEST)
    assert said(10, *MANIFEST, "--nbpe", "300").endswith(
        f"dump/{may}/raw/dev -> exp/smoe_stats_{may}_bpe300"
    )
    other = f"{may}_detect_twins"
    assert f"audio of data/{other} at 16 kHz -> dump/{other}/raw" in said(
        3, *MANIFEST, *DETECT, *TWINS
    )
    mine = [*MANIFEST, "--dumpdir", "mine"]
    assert f"texts of mine/raw/train -> data/{may}/token_list" in said(5, *mine)


def test_another_checkpoint_is_another_decoding(tmp_path):
    options = ["--stage", "13", "--stop_stage", "13", "--inference_model", "7epoch.pth"]
    assert "exp/smoe_demo/decode_7epoch ->" in run(tmp_path, *options).stdout


def test_the_local_runner_logs_output_and_passes_the_status_on(tmp_path):
    log = tmp_path / "logs" / "a.log"
    for status in (3, 0):
        command = ["bash", "-c", f"echo said by {status}; exit {status}"]
        process = subprocess.run(
            [RECIPE / "local/run_local.sh", "--gpu", "1", "--mem", "4G", log, *command],
            capture_output=True,
            text=True,
        )
        assert process.returncode == status
        assert f"said by {status}" in process.stderr
        assert (str(log) in process.stderr) == (status != 0)
    # a second run keeps what the first one logged
    assert log.read_text().count("said by 3\n") == 1
    assert "(code 3)" in log.read_text()
    assert "(code 0)" in log.read_text()
