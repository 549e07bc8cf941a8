"""YAML and options -> model."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from espnet2.tasks import asr as host_asr
from espnet2.train.distributed_utils import DistributedOption
from espnet2.train.trainer import Trainer
from tiny_experiment import write_conf

from espnet_smoe.bin import smoe_train
from espnet_smoe.config import ConfigError
from espnet_smoe.decoder import SMoETransformerDecoder
from espnet_smoe.encoder import SMoEConformerEncoder
from espnet_smoe.guide import GuideError
from espnet_smoe.model import SMoEModel
from espnet_smoe.task import SMoETask, split_batches
from espnet_smoe.telephone import TelephoneLine
from espnet_smoe.tokens import TokenError
from espnet_smoe.trainer import SMoETrainer

pytest_plugins = ["fixtures_exp"]


def options(experiment, *extra: str) -> argparse.Namespace:
    tokens = experiment.tokens
    command = [
        "--config", str(experiment.conf), "--output_dir", "exp",
        "--token_list", str(tokens / "tokens.txt"),
        "--bpemodel", str(tokens / "bpe.model"), *extra,
    ]  # fmt: skip
    return SMoETask.get_parser().parse_args(command)


def test_host_knows_the_classes_by_name() -> None:
    choices = host_asr.encoder_choices
    assert choices.get_class("smoe_conformer") is SMoEConformerEncoder
    assert host_asr.decoder_choices.get_class("smoe_transformer") is (
        SMoETransformerDecoder
    )
    assert host_asr.model_choices.get_class("smoe") is SMoEModel


def test_trainer_is_the_hosts_with_a_safe_checkpoint() -> None:
    assert SMoETask.trainer is SMoETrainer
    assert issubclass(SMoETrainer, Trainer)


def test_P9_audio_is_altered_by_preprocessor_conf_alone() -> None:
    """And that flips the guide: see test_augment.py."""
    parser = SMoETask.get_parser()
    known = {action.dest for action in parser._actions}
    augmentations = {
        "rir_scp", "rir_apply_prob", "noise_scp", "noise_apply_prob", "noise_db_range",
        "speech_volume_normalize", "short_noise_thres", "preprocessor",
        "data_aug_effects", "data_aug_num", "data_aug_prob",
        "use_preprocessor_valid", "frontend", "preencoder",
    }  # fmt: skip
    stock = {action.dest for action in host_asr.ASRTask.get_parser()._actions}
    assert {"rir_scp", "noise_scp", "speech_volume_normalize", "preprocessor"} <= stock
    assert not known & augmentations
    assert "preprocessor_conf" in known & stock


def test_config_yaml_rebuilds_the_model_without_other_files(
    experiment, tmp_path: Path
) -> None:
    config = yaml.safe_load((experiment.exp / "config.yaml").read_text("utf-8"))
    tokens = (experiment.tokens / "tokens.txt").read_text("utf-8").splitlines()
    assert config["token_list"] == tokens
    assert config["guides"] == {"bandwidth": ["nb", "wb"], "task": ["asr", "st_de"]}
    assert config["espnet_smoe_version"]
    alone = tmp_path / "config.yaml"
    alone.write_bytes((experiment.exp / "config.yaml").read_bytes())
    model, _ = SMoETask.build_model_from_file(alone, experiment.exp / "2epoch.pth")
    assert isinstance(model, SMoEModel)


@pytest.mark.parametrize(
    "option, message",
    [
        (
            "--encoder_conf=blocks=3",
            r"unknown keys \['blocks'\] in encoder_conf.*num_b",
        ),
        (
            "--encoder_conf=split_after=3",
            r"unknown keys \['split_after'\] in encoder_c",
        ),
        ("--decoder_conf=width=3", r"unknown keys \['width'\] in decoder_conf; known"),
        ("--model_conf=ctc=3", r"unknown keys \['ctc'\] in model_conf; known:.*ctc_we"),
        ("--frontend_conf=mels=3", r"unknown keys \['mels'\] in frontend_conf.*n_mels"),
        ("--ctc_conf=weight=3", r"unknown keys \['weight'\] in ctc_conf; known"),
        ("--normalize_conf=mean=3", r"unknown keys \['mean'\] in normalize_conf; kno"),
        ("--encoder_conf=experts={route: a}", r"unknown keys \['route'\] in experts"),
        ("--encoder_conf=experts={axis: room}", r"unknown axis 'room'; known: bandw"),
        ("--encoder_conf=experts={axis: task}", "cannot be routed by 'task'"),
        ("--frontend_conf=fs=8000", "fs must be 16000 Hz, got 8000"),
        ("--frontend_conf=center=true", r"center must be false, got true"),
    ],
)
def test_wrong_key_or_value_is_refused_and_known_ones_are_listed(
    experiment, option: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SMoETask.build_model(options(experiment, option))


BAD_AUGMENTATION = [
    (
        "--preprocessor_conf=phone={}",
        r"\['phone'\] in preprocessor_conf; known: .*tele",
    ),
    (
        "--preprocessor_conf=train=true",
        r"unknown keys \['train'\] in preprocessor_conf",
    ),
    (
        "--preprocessor_conf=guides={}",
        r"unknown keys \['guides'\] in preprocessor_conf",
    ),
    ("--preprocessor_conf=telephone={prob: 2}", r"prob must lie in \[0, 1\], got 2"),
    ("--preprocessor_conf=telephone.codecs=[gsm]", "telephone needs the key 'prob'"),
    (
        "--preprocessor_conf={data_aug_effects: [[1.0, lowpass, {}]], "
        "data_aug_prob: 0.5}",
        "lowpass narrows the band and leaves the guide",
    ),
]


@pytest.mark.parametrize(("option", "message"), BAD_AUGMENTATION)
@pytest.mark.parametrize("collect", ["true", "false"])
def test_wrong_augmentation_is_refused_before_anything_is_written(
    experiment, tmp_path: Path, option: str, message: str, collect: str, capsys
) -> None:
    command = experiment.train_command(tmp_path / "exp")
    assert smoe_train.main([*command, "--collect_stats", collect, option]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_augmentation_comes_from_yaml_and_command_line(
    experiment, tmp_path: Path
) -> None:
    telephone = {"prob": 0.25, "snr_db": [5, 15]}
    conf = write_conf(
        tmp_path / "train.yaml", preprocessor_conf={"telephone": telephone}
    )
    extra = (
        "--config", str(conf), "--preprocessor_conf", "telephone.codecs=[opus]",
        "--preprocessor_conf", "telephone.prob=0.5",
    )  # fmt: skip
    args = options(experiment, *extra)
    for train in (True, False):
        made = SMoETask.build_preprocess_fn(args, train).augmentation
        assert made.line == TelephoneLine(snr_db=(5, 15), codecs=("opus",))
        assert made.telephone_prob == 0.5
    none = SMoETask.build_preprocess_fn(options(experiment), True).augmentation
    assert none.line is None
    assert none.effects is None


def test_statistics_are_of_audio_as_it_is_and_validation_too(
    experiment, tmp_path: Path
) -> None:
    """The host's data loaders: shapes of stage 10 are those of the dump."""
    command = experiment.train_command(tmp_path / "stats")
    conf = {"telephone": {"prob": 1.0}}
    command += ["--collect_stats", "true", "--preprocessor_conf", str(conf)]
    assert smoe_train.main(command) == 0
    for split in ("train", "valid"):
        for name in ("speech_shape", "feats_stats.npz"):
            made, plain = (
                d / split / name for d in (tmp_path / "stats", experiment.stats)
            )
            if name == "speech_shape":
                assert made.read_text() == plain.read_text()
                continue
            with np.load(made) as ours, np.load(plain) as theirs:
                assert set(ours) == set(theirs)
                for key in ours:
                    np.testing.assert_array_equal(ours[key], theirs[key])

    args = options(experiment, "--preprocessor_conf", str(conf))
    folders = {"train": experiment.train, "valid": experiment.dev}
    for split, folder in folders.items():
        data = [
            (str(folder / "wav.scp"), "speech", "kaldi_ark"),
            (str(experiment.exp / "data" / split / "targets"), "targets", "text"),
            (str(folder / "utt2bandwidth"), "bandwidth", "text"),
        ]
        setattr(args, f"{split}_data_path_and_name_and_type", data)
        shapes = str(experiment.stats / split / "speech_shape")
        setattr(args, f"{split}_shape_file", [shapes])
    for split, expected in (("train", {0}), ("valid", {0, 1})):
        factory = SMoETask.build_iter_factory(args, DistributedOption(), split)
        batches = [batch for _, batch in factory.build_iter(1)]
        assert {int(i) for b in batches for i in b["bandwidth"]} == expected


def test_specaug_keys_are_checked_too(experiment) -> None:
    extra = ("--specaug", "specaug", "--specaug_conf", "masks=1")
    with pytest.raises(ConfigError, match=r"\['masks'\] in specaug_conf; known"):
        SMoETask.build_model(options(experiment, *extra))
    args = options(experiment, *extra[:3], "time_mask_width_range=[0, 5]")
    assert SMoETask.build_model(args).specaug is not None


def test_guides_that_the_token_list_lacks_are_refused(experiment) -> None:
    args = options(experiment)
    args.guides = {"bandwidth": ["nb", "wb"], "task": ["asr", "st_fr"]}
    with pytest.raises(GuideError, match=r"lacks the guiding tokens \['<st_fr>'\]"):
        SMoETask.build_model(args)


def test_token_list_must_be_there_and_in_order(experiment, tmp_path: Path) -> None:
    args = options(experiment, "--token_list", str(tmp_path / "none.txt"))
    with pytest.raises(TokenError, match=r"none\.txt is missing; stage 5 makes it"):
        SMoETask.build_model(args)
    for tokens in ([], ["<unk>", "<blank>", "a", "<sos/eos>"], ["<blank>", "<unk>"]):
        args.token_list = tokens
        with pytest.raises(TokenError, match="must start with <blank>, <unk>"):
            SMoETask.build_model(args)


@pytest.mark.parametrize(
    "split_at, epochs, batches, expected",
    [(0.5, 10, 500, 2500), (0.25, 2, 3, 2), (0.0, 10, None, 0), (0.0, 10, 500, 0)],
)
def test_split_is_a_fraction_of_all_training_batches(
    split_at: float, epochs: int, batches: int | None, expected: int
) -> None:
    args = argparse.Namespace(max_epoch=epochs, num_iters_per_epoch=batches)
    conf = {"experts": {"axis": "bandwidth", "split_at": split_at}}
    assert split_batches(args, conf) == expected
    assert split_batches(args, {}) == 0


def test_split_without_a_known_number_of_batches_is_refused(experiment) -> None:
    args = options(experiment)
    args.num_iters_per_epoch = None
    with pytest.raises(ConfigError, match="set num_iters_per_epoch"):
        SMoETask.build_model(args)


def test_seed_and_init_decide_the_parameters(experiment) -> None:
    import torch

    def weights(*extra: str) -> torch.Tensor:
        torch.manual_seed(0)
        model = SMoETask.build_model(options(experiment, *extra))
        return torch.cat([p.flatten() for p in model.parameters()])

    assert torch.equal(weights(), weights())
    assert not torch.equal(weights(), weights("--init", "xavier_uniform"))
