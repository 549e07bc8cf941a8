"""Every YAML under conf/ builds what it says."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
import yaml

from espnet_smoe.guide import read_guides
from espnet_smoe.search import SearchConfig
from espnet_smoe.task import SMoETask

CONF = Path(__file__).parents[1] / "conf"
TRAIN = sorted(CONF.rglob("train*.yaml"))
DECODE = sorted(CONF.rglob("decode*.yaml"))


def name_of(path: Path) -> str:
    return str(path.relative_to(CONF))


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def options(path: Path, token_list: Path) -> argparse.Namespace:
    command = [
        "--config", str(path), "--token_list", str(token_list),
        "--bpemodel", "bpe.model", "--output_dir", "exp",
    ]  # fmt: skip
    return SMoETask.get_parser().parse_args(command)


@pytest.fixture
def token_list(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.txt"
    tokens = ["<blank>", "<unk>", "<nb>", "<wb>", "<asr>", "<st_de>"]
    tokens += [f"t{i}" for i in range(20)] + ["<sos/eos>"]
    path.write_text("\n".join(tokens) + "\n")
    return path


def test_every_yaml_is_a_training_or_a_decoding_conf() -> None:
    found = sorted(CONF.rglob("*.yaml"))
    assert found == sorted(TRAIN + DECODE)
    assert {
        f"{folder}train_{kind}.yaml"
        for folder in ("", "demo/")
        for kind in ("smoe", "dense", "smoe_encoder", "smoe_decoder")
    } <= {name_of(p) for p in found}


@pytest.mark.parametrize("path", TRAIN, ids=name_of)
def test_training_conf_builds_a_model_and_an_optimiser(
    path: Path, token_list: Path
) -> None:
    args = options(path, token_list)
    model = SMoETask.build_model(args)
    optimizers = SMoETask.build_optimizers(args, model)
    conf = read(path)
    for stack, option in ((model.encoder, "encoder"), (model.decoder, "decoder")):
        experts = conf[f"{option}_conf"].get("experts")
        assert stack.expert_map.num_experts == (2 if experts else 1)
        assert (stack.split.batches_left > 0) == bool((experts or {}).get("split_at"))
    assert len(optimizers) == 1
    read_guides(path)  # what stages 1 and 5 do with it


@pytest.mark.parametrize("path", TRAIN, ids=name_of)
def test_scheduler_of_a_conf_lasts_for_all_updates(path: Path) -> None:
    conf = read(path)
    updates = conf["max_epoch"] * conf["num_iters_per_epoch"]
    updates //= conf.get("accum_grad", 1)
    scheduler = conf["scheduler_conf"]
    if conf["scheduler"] == "onecyclelr":
        assert "total_steps" not in scheduler  # `train` derives it
        assert scheduler["max_lr"] == conf["optim_conf"]["lr"]
    else:
        assert scheduler["warmup_steps"] < updates / 2


@pytest.mark.parametrize("path", TRAIN, ids=name_of)
def test_confs_of_one_size_differ_in_their_experts_only(path: Path) -> None:
    conf, reference = read(path), read(path.with_name("train_smoe.yaml"))
    for one in (conf, reference):
        for stack in ("encoder_conf", "decoder_conf"):
            one[stack].pop("experts", None)
    assert conf == reference


@pytest.mark.parametrize("folder", [CONF, CONF / "demo"], ids=name_of)
def test_ablations_have_the_experts_of_the_method_or_none(folder: Path) -> None:
    stacks = ("encoder_conf", "decoder_conf")

    def experts(kind: str) -> list[dict | None]:
        conf = read(folder / f"train_{kind}.yaml")
        return [conf[stack].get("experts") for stack in stacks]

    encoder, decoder = experts("smoe")
    assert encoder["axis"] == "bandwidth"
    assert decoder["axis"] == "task"
    assert experts("smoe_encoder") == [encoder, None]
    assert experts("smoe_decoder") == [None, decoder]
    assert experts("dense") == [None, None]


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=name_of)
def test_first_line_says_what_it_is(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert first.endswith(".")


@pytest.mark.parametrize("path", DECODE, ids=name_of)
def test_decoding_conf_builds(path: Path) -> None:
    assert SearchConfig.from_yaml(path).beam_size >= 1


def test_experts_cost_parameters_but_no_width(token_list: Path) -> None:
    shapes = {}
    for kind in ("dense", "smoe"):
        path = CONF / "demo" / f"train_{kind}.yaml"
        state = SMoETask.build_model(options(path, token_list)).state_dict()
        shapes[kind] = {k: v.shape for k, v in state.items() if torch.is_tensor(v)}
    extra = set(shapes["smoe"]) - set(shapes["dense"])
    assert set(shapes["dense"]) < set(shapes["smoe"])
    assert all(shapes["dense"][k] == shapes["smoe"][k] for k in shapes["dense"])
    assert all(".experts.1." in k for k in extra)
