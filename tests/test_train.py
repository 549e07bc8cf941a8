"""Stages 10 and 11 on noise, through the command line."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from tiny_experiment import CONF, write_conf, write_dump

from espnet_smoe.bin import smoe_train
from espnet_smoe.train import read_inputs
from espnet_smoe.trainer import BACKUP

pytest_plugins = ["fixtures_exp"]

CELLS = ("asr", "st_de", "nb", "wb")
RATIOS = ("acc", *(f"acc_{cell}" for cell in CELLS))
LOSSES = ("loss", "loss_ctc", "loss_att", *(f"loss_{cell}" for cell in CELLS))
KEYS = (*RATIOS, *LOSSES)


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(v, other[k]) for k, v in one.items()
    )


def refusal(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a refused command."""
    capsys.readouterr()
    assert smoe_train.main(command) == 1
    lines = capsys.readouterr().err.splitlines()
    lines = [ln for ln in lines if ln.startswith("smoe_train: ")]
    assert len(lines) == 1
    return lines[0]


def test_experiment_folder_has_what_inference_needs(experiment) -> None:
    names = {p.name for p in experiment.exp.iterdir()}
    assert {
        "config.yaml", "bpe.model", "1epoch.pth", "2epoch.pth", "checkpoint.pth",
        "latest.pth", "valid.acc.best.pth", "valid.acc.ave.pth",
    } <= names  # fmt: skip
    source = (experiment.tokens / "bpe.model").read_bytes()
    assert (experiment.exp / "bpe.model").read_bytes() == source


def test_statistics_are_lengths_in_samples(experiment) -> None:
    for split, folder in (("train", experiment.train), ("valid", experiment.dev)):
        shapes = (experiment.stats / split / "speech_shape").read_text().splitlines()
        lengths = (folder / "utt2num_samples").read_text().splitlines()
        assert sorted(shapes) == lengths


def test_reports_have_every_task_and_bandwidth(experiment) -> None:
    stats = load(experiment.exp / "checkpoint.pth")["reporter"]["stats"]
    for epoch in (1, 2):
        for split in ("train", "valid"):
            reported = stats[epoch][split]
            assert set(KEYS) <= set(reported)
            for key in KEYS:
                assert torch.isfinite(torch.tensor(reported[key]))
            for key in RATIOS:
                assert 0.0 <= reported[key] <= 1.0


def test_log_names_every_task_and_bandwidth(
    experiment, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exp = experiment.copy(tmp_path / "exp")
    shutil.move(exp / BACKUP, exp / "checkpoint.pth")
    with caplog.at_level(logging.INFO):
        assert (
            smoe_train.main([*experiment.train_command(exp), "--resume", "true"]) == 0
        )
    (epoch,) = [m for m in caplog.messages if "2epoch results:" in m]
    for split in ("[train]", "[valid]"):
        line = epoch[epoch.index(split) :]
        assert all(f"{key}=" in line for key in KEYS)


def test_P10_run_killed_in_epoch_2_resumes_to_the_same_parameters(
    experiment, tmp_path: Path
) -> None:
    # killed in epoch 2, the folder holds what the first epoch left
    exp = experiment.copy(tmp_path / "exp")
    shutil.move(exp / BACKUP, exp / "checkpoint.pth")
    for path in (*exp.glob("2epoch.pth"), *exp.glob("valid.acc.ave*")):
        path.unlink()
    assert smoe_train.main([*experiment.train_command(exp), "--resume", "true"]) == 0
    for name in ("1epoch.pth", "2epoch.pth", "valid.acc.ave.pth"):
        assert same(load(exp / name), load(experiment.exp / name)), name


def test_P10_one_epoch_then_one_more_is_two_epochs_in_a_go(
    experiment, tmp_path: Path
) -> None:
    # no late split: its batch depends on max_epoch
    encoder = {**CONF["encoder_conf"], "experts": {"axis": "bandwidth"}}
    conf = write_conf(tmp_path / "train.yaml", encoder_conf=encoder)
    parts = experiment.train_command(tmp_path / "parts", conf)
    assert smoe_train.main([*parts, "--max_epoch", "1"]) == 0
    assert not (tmp_path / "parts" / "2epoch.pth").exists()
    assert smoe_train.main([*parts, "--max_epoch", "2", "--resume", "true"]) == 0
    assert smoe_train.main(experiment.train_command(tmp_path / "whole", conf)) == 0
    for name in ("1epoch.pth", "2epoch.pth", "valid.acc.ave.pth"):
        one, other = (load(tmp_path / d / name) for d in ("parts", "whole"))
        assert same(one, other), name


def test_same_seed_same_parameters_and_another_differs(
    experiment, tmp_path: Path
) -> None:
    for seed, equal in ((CONF.get("seed", 0), True), (7, False)):
        exp = tmp_path / f"seed{seed}"
        command = [*experiment.train_command(exp), "--seed", str(seed)]
        assert smoe_train.main([*command, "--max_epoch", "2"]) == 0
        final = load(exp / "2epoch.pth")
        assert same(final, load(experiment.exp / "2epoch.pth")) == equal


def test_late_split_comes_half_way(experiment) -> None:
    first, second = (load(experiment.exp / f"{e}epoch.pth") for e in (1, 2))
    (left,) = [
        k for k in first if k.startswith("encoder") and k.endswith("batches_left")
    ]
    assert first[left] == 0  # three of six batches were tied
    assert second[left] == -torch.inf
    banks = [k for k in first if k.startswith("encoder.") and ".experts.0." in k]
    assert banks
    for key in banks:
        twin = key.replace(".experts.0.", ".experts.1.")
        assert torch.equal(first[key], first[twin])
        assert not torch.equal(second[key], second[twin])


def test_average_is_plain_arithmetic(experiment) -> None:
    average = load(experiment.exp / "valid.acc.ave.pth")
    models = [load(experiment.exp / f"{e}epoch.pth") for e in (1, 2)]
    stats = load(experiment.exp / "checkpoint.pth")["reporter"]["stats"]
    assert len(stats) == 2  # both are among the two best
    for key, value in average.items():
        one, other = (m[key] for m in models)
        if key.endswith("batches_left"):
            assert value == one + other, key  # minus infinity wins
        elif value.is_floating_point():
            assert torch.allclose(value, (one + other) / 2, rtol=0, atol=1e-7), key
        elif key.endswith("num_batches_tracked"):
            assert int(value) == int(one) + int(other)


def test_average_over_the_split_is_split(experiment) -> None:
    average = load(experiment.exp / "valid.acc.ave.pth")
    for key in [k for k in average if k.endswith("batches_left")]:
        assert average[key] == -torch.inf, key


def test_global_normalisation_reads_the_statistics(experiment, tmp_path: Path) -> None:
    conf = write_conf(tmp_path / "train.yaml", normalize="global_mvn", max_epoch=1)
    assert smoe_train.main(experiment.train_command(tmp_path / "exp", conf)) == 0
    config = yaml.safe_load((tmp_path / "exp" / "config.yaml").read_text())
    stats = str(experiment.stats / "train" / "feats_stats.npz")
    assert config["normalize_conf"]["stats_file"] == stats


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"encoder_conf": {"blocks": 1}}, "unknown keys ['blocks'] in encoder_conf"),
        ({"model_conf": {"ctc": 1}}, "unknown keys ['ctc'] in model_conf; known:"),
        ({"guides": {"bandwidth": ["wb"], "task": ["asr"]}}, "nb"),
        (
            {"guides": {"bandwidth": ["nb", "wb"], "task": ["asr", "st_de", "st_fr"]}},
            "lacks the guiding tokens ['<st_fr>']",
        ),
        (
            {"guides": {"bandwidth": ["nb", "wb"], "task": ["asr", "sum"]}},
            "task 'sum' must be 'asr' or 'st_XX'",
        ),
        ({"beam_sizes": 3}, "beam_sizes"),
        ({"sampling": {"temp": 2}}, "unknown keys ['temp'] in sampling; known:"),
        ({"sampling": {"weights": {"xx": 2}}}, "unknown keys ['xx'] in sampling.w"),
        (
            {"sampling": {"temperature": 2}, "batch_type": "sorted"},
            "sampling needs batch_type numel, got sorted",
        ),
        ({"accum_grad": 2}, "num_iters_per_epoch 3 must be a multiple of accum_grad 2"),
        ({"encoder_conf": 5}, "encoder_conf"),
        ({"encoder_conf": {"experts": "bandwidth"}}, "experts must map"),
        ({"encoder_conf": {"experts": {"axis": 5}}}, "experts.axis must be"),
        (
            {"encoder_conf": {"experts": {"axis": "bandwidth", "split_at": "half"}}},
            "experts.split_at must be a number, got 'half'",
        ),
        (
            {"encoder_conf": {"experts": {"axis": "bandwidth", "blocks": 0}}},
            "experts.blocks must be",
        ),
        ({"encoder_conf": {"output_size": 15, "attention_heads": 2}}, "train.yaml"),
        ({"optim_conf": {"learning_rate": 1.0}}, "learning_rate"),
        ({"scheduler": "warmuplr", "scheduler_conf": {"steps": 3}}, "['steps']"),
        ({"encoder": "conformer"}, "--encoder must be one of ('smoe_conformer',)"),
    ],
)
def test_bad_yaml_is_refused_in_one_line(
    experiment,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict,
    message: str,
) -> None:
    conf = write_conf(tmp_path / "train.yaml", **changes)
    command = experiment.train_command(tmp_path / "exp", conf)
    assert message in refusal(command, capsys)
    assert not (tmp_path / "exp").exists()


def test_resuming_with_another_token_list_is_refused_and_changes_nothing(
    experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exp = experiment.copy(tmp_path / "exp")
    before = {p.name: p.read_bytes() for p in exp.iterdir() if p.is_file()}
    tokens = shutil.copytree(experiment.tokens, tmp_path / "tokens")
    lines = (tokens / "tokens.txt").read_text("utf-8").splitlines()
    lines[-2], lines[-3] = lines[-3], lines[-2]
    (tokens / "tokens.txt").write_text("\n".join(lines) + "\n", "utf-8")
    command = [*experiment.train_command(exp), "--resume", "true"]
    command[command.index("--token_dir") + 1] = str(tokens)
    assert "was trained with another token list" in refusal(command, capsys)
    assert before == {p.name: p.read_bytes() for p in exp.iterdir() if p.is_file()}


def test_resuming_another_model_or_other_data_is_refused_and_changes_nothing(
    experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exp = experiment.copy(tmp_path / "exp")
    before = (exp / "config.yaml").read_bytes()
    conf = write_conf(tmp_path / "train.yaml", encoder_conf={"num_blocks": 3})
    command = [*experiment.train_command(exp, conf), "--resume", "true"]
    assert "was trained with another encoder_conf:" in refusal(command, capsys)
    targets = exp / "data" / "train" / "targets"
    targets.write_text(targets.read_text("utf-8").replace('"asr": "', '"asr": "x '))
    command = [*experiment.train_command(exp), "--resume", "true"]
    assert "was trained with another training data:" in refusal(command, capsys)
    assert (exp / "config.yaml").read_bytes() == before


@pytest.mark.parametrize("text", ["", "encoder_conf: {output_size"])
def test_resuming_with_a_config_cut_short_is_refused_in_one_line(
    experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    exp = experiment.copy(tmp_path / "exp")
    (exp / "config.yaml").write_text(text)
    command = [*experiment.train_command(exp), "--resume", "true"]
    assert f"{exp / 'config.yaml'} is broken" in refusal(command, capsys)


def test_a_gpu_that_is_not_there_is_refused(
    experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        return
    command = [*experiment.train_command(tmp_path / "exp"), "--ngpu", "1"]
    assert "torch finds no GPU" in refusal(command, capsys)


def test_a_wrong_host_option_is_one_line_and_status_2(
    experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong in (["--max_epoc", "3"], ["--max_epoch", "two"]):
        command = [*experiment.train_command(tmp_path / "exp"), *wrong]
        with pytest.raises(SystemExit, match="2"):
            smoe_train.main(command)
        lines = capsys.readouterr().err.splitlines()
        assert [x for x in lines if x.startswith("smoe_train: ")] == lines[-1:]
    assert not (tmp_path / "exp").exists()


def test_statistics_of_other_utterances_are_refused(
    experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stats = shutil.copytree(experiment.stats, tmp_path / "stats")
    shapes = stats / "train" / "speech_shape"
    shapes.write_text("".join(shapes.read_text().splitlines(True)[1:]))
    command = experiment.train_command(tmp_path / "exp")
    command[command.index("--stats_dir") + 1] = str(stats)
    assert "name different utterances; run stage 10 again" in refusal(command, capsys)


def test_token_list_without_a_guide_is_refused_in_one_line(
    experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = shutil.copytree(experiment.tokens, tmp_path / "tokens")
    text = (tokens / "tokens.txt").read_text("utf-8").replace("<st_de>\n", "")
    (tokens / "tokens.txt").write_text(text, "utf-8")
    command = experiment.train_command(tmp_path / "exp")
    command[command.index("--token_dir") + 1] = str(tokens)
    assert "lacks the guiding tokens ['<st_de>']" in refusal(command, capsys)


def test_unknown_guide_in_the_data_is_refused_in_one_line(
    experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dump(tmp_path / "train")
    path = tmp_path / "train" / "utt2bandwidth"
    path.write_text(path.read_text().replace("nb", "swb"))
    command = experiment.train_command(tmp_path / "exp")
    command[command.index("--train_dir") + 1] = str(tmp_path / "train")
    assert "unknown bandwidth 'swb'; known: nb, wb" in refusal(command, capsys)


def test_characters_that_the_token_list_lacks_are_warned_of(
    experiment, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folders = (experiment.dev, experiment.tokens)
    read_inputs(experiment.conf, experiment.train, *folders)
    assert not caplog.messages
    write_dump(tmp_path / "train")
    path = tmp_path / "train" / "text.st_de"
    path.write_text(path.read_text("utf-8").replace(" ", " ñ", 1), "utf-8")
    read_inputs(experiment.conf, tmp_path / "train", *folders)
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path / 'train'}, text.st_de: 1 of ")
    assert message.endswith("<unk>: ñ")


@pytest.mark.parametrize(
    "option, stage",
    [("--train_dir", 4), ("--token_dir", 5), ("--stats_dir", 10)],
)
def test_missing_input_names_the_stage_that_makes_it(
    experiment,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    option: str,
    stage: int,
) -> None:
    command = experiment.train_command(tmp_path / "exp")
    command[command.index(option) + 1] = str(tmp_path / "none")
    assert f"run stage {stage} first" in refusal(command, capsys)


def test_missing_config_is_refused_in_one_line(
    experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = experiment.train_command(tmp_path / "exp", tmp_path / "none.yaml")
    assert "none.yaml" in refusal(command, capsys)


def test_failed_statistics_leave_nothing(
    experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conf = write_conf(tmp_path / "train.yaml", model_conf={"ctc": 1})
    command = experiment.train_command(tmp_path / "stats", conf)
    refusal([*command, "--collect_stats", "true"], capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["train.yaml"]


def test_more_gpus_than_there_are_are_refused(
    experiment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    command = [*experiment.train_command(tmp_path / "exp"), "--ngpu", "2"]
    assert "--ngpu 2 was asked for, but torch finds 1 here" in refusal(command, capsys)


def test_several_gpus_get_a_process_each(
    experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from espnet_smoe import train
    from espnet_smoe.task import SMoETask

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    asked = []
    monkeypatch.setattr(train, "_run_host", asked.append)
    command = experiment.train_command(tmp_path / "exp")
    assert smoe_train.main([*command, "--ngpu", "2"]) == 0
    args = SMoETask.get_parser().parse_args(asked[0])
    assert args.multiprocessing_distributed
    assert args.unused_parameters
