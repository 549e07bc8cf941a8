"""Every YAML under conf/ builds what it says."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
import yaml

from espnet_smoe.experiments_list import read_list
from espnet_smoe.gated import GatedFFNBank
from espnet_smoe.guide import read_guides
from espnet_smoe.search import SearchConfig
from espnet_smoe.task import SMoETask

CONF = Path(__file__).parents[1] / "conf"
TRAIN = sorted(CONF.rglob("train*.yaml"))
DECODE = sorted(CONF.rglob("decode*.yaml"))
EXPERIMENTS = sorted(CONF.rglob("experiments*.yaml"))
CONDITIONS = [(b, t) for b in ("nb", "wb") for t in ("asr", "st_de")]
SINGLE = [f"single_{b}_{t}" for b, t in CONDITIONS]
BASELINES = ("dense", "dense_guided", "dense_wide", "gated", *SINGLE)
STACKS = ("encoder_conf", "decoder_conf")


def name_of(path: Path) -> str:
    return str(path.relative_to(CONF))


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def options(path: Path, token_list: Path, *more: str) -> argparse.Namespace:
    command = [
        "--config", str(path), "--token_list", str(token_list),
        "--bpemodel", "bpe.model", "--output_dir", "exp", *more,
    ]  # fmt: skip
    return SMoETask.get_parser().parse_args(command)


@pytest.fixture
def token_list(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.txt"
    tokens = ["<blank>", "<unk>", "<nb>", "<wb>", "<asr>", "<st_de>"]
    tokens += [f"t{i}" for i in range(20)] + ["<sos/eos>"]
    path.write_text("\n".join(tokens) + "\n")
    return path


def test_every_yaml_is_a_conf_of_training_decoding_or_experiments() -> None:
    found = sorted(CONF.rglob("*.yaml"))
    assert found == sorted(TRAIN + DECODE + EXPERIMENTS)
    kinds = ("smoe", "smoe_encoder", "smoe_decoder", *BASELINES)
    assert {
        f"{folder}train_{kind}.yaml" for folder in ("", "demo/") for kind in kinds
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
        experts = conf[f"{option}_conf"].get("experts") or {}
        assert stack.expert_map.num_experts == (2 if "axis" in experts else 1)
        assert (stack.split.batches_left > 0) == bool(experts.get("split_at"))
        gated = [m for m in stack.modules() if isinstance(m, GatedFFNBank)]
        assert bool(gated) == ("gate" in experts)
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
def test_confs_of_one_size_differ_in_what_they_are_named_after_only(path: Path) -> None:
    conf, reference = read(path), read(path.with_name("train_smoe.yaml"))
    for one in (conf, reference):
        for stack in STACKS:
            one[stack].pop("experts", None)
    kind = path.stem.removeprefix("train_")
    if kind == "dense_guided":
        assert conf["encoder_conf"].pop("guide_embedding") == ["bandwidth"]
    if kind in ("dense_wide", "gated_top2"):
        for stack in STACKS:
            assert conf[stack].pop("linear_units") != reference[stack]["linear_units"]
            del reference[stack]["linear_units"]
    if kind in SINGLE:
        bandwidth, task = CONDITIONS[SINGLE.index(kind)]
        assert conf.pop("guides") == {"bandwidth": [bandwidth], "task": [task]}
        del reference["guides"]
        if task != "asr":  # no transcripts, nothing for CTC
            assert conf["model_conf"].pop("ctc_weight") == 0.0
            del reference["model_conf"]["ctc_weight"]
    assert conf == reference


@pytest.mark.parametrize("folder", [CONF, CONF / "demo"], ids=name_of)
def test_ablations_have_the_experts_of_the_method_or_none(folder: Path) -> None:
    def experts(kind: str) -> list[dict | None]:
        conf = read(folder / f"train_{kind}.yaml")
        return [conf[stack].get("experts") for stack in STACKS]

    encoder, decoder = experts("smoe")
    assert encoder["axis"] == "bandwidth"
    assert decoder["axis"] == "task"
    assert experts("smoe_encoder") == [encoder, None]
    assert experts("smoe_decoder") == [None, decoder]
    for kind in ("dense", "dense_guided", "dense_wide", *SINGLE):
        assert experts(kind) == [None, None]
    gate = {"num_experts": 2, "top_k": 1, "balance_weight": 0.01}
    assert experts("gated") == [{"gate": gate}] * 2


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=name_of)
def test_first_line_says_what_it_is(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert first.endswith(".")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_every_system_of_a_list_builds(
    path: Path, token_list: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CONF.parent)
    experiments = read_list(path)
    for system in experiments.systems:
        for model in system.models:
            changes = [*model.smoe_args.split(), "--scheduler_conf", "total_steps=9"]
            args = options(Path(model.train_config), token_list, *changes)
            SMoETask.build_all(args)


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


@pytest.mark.parametrize("folder", [CONF, CONF / "demo"], ids=name_of)
def test_wider_dense_and_gated_models_have_the_parameters_of_smoe(
    folder: Path, token_list: Path
) -> None:
    def size(kind: str) -> int:
        args = options(folder / f"train_{kind}.yaml", token_list)
        return sum(p.numel() for p in SMoETask.build_model(args).parameters())

    smoe = size("smoe")
    kinds = ["dense_wide", *(p.stem[6:] for p in folder.glob("train_gated*.yaml"))]
    assert len(kinds) > 1
    for kind in kinds:
        assert abs(size(kind) - smoe) <= 0.01 * smoe, kind


@pytest.mark.parametrize("path", TRAIN, ids=name_of)
def test_every_system_but_the_wide_one_costs_one_ffn_of_the_method(path: Path) -> None:
    conf, reference = read(path), read(path.with_name("train_smoe.yaml"))
    for stack in STACKS:
        gate = (conf[stack].get("experts") or {}).get("gate", {})
        hidden = conf[stack]["linear_units"] * gate.get("top_k", 1)
        factor = 2 if path.stem == "train_dense_wide" else 1
        assert hidden == factor * reference[stack]["linear_units"]
