"""Dense -> S-MoE: step 0 gives the dense model's output (P1), from any source."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from espnet2.tasks.asr import ASRTask
from surgery import DENSE, contents, few_files, make_dense, make_stock
from tiny_experiment import CONF, Experiment, write_conf

from espnet_smoe import Speech2Text
from espnet_smoe.bin import smoe_train, smoe_upcycle
from espnet_smoe.checkpoint import load_model
from espnet_smoe.compare_route import compare_dense
from espnet_smoe.counterparts import (
    SurgeryError,
    expert_key,
    expert_maps,
    stock_options,
)
from espnet_smoe.dense import read_dense

pytest_plugins = ["fixtures_exp"]

FILE = "valid.acc.ave.pth"


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / FILE, weights_only=True)


def upcycle(experiment: Experiment, out: Path, *options: object, conf=None) -> int:
    command = [
        "--config", conf or experiment.conf, "--token_dir", experiment.tokens,
        "--out_dir", out, *options,
    ]  # fmt: skip
    return smoe_upcycle.main([str(c) for c in command])


@pytest.fixture(scope="module")
def dense(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dense(tmp_path_factory.mktemp("dense") / "a", experiment, seed=1)


@pytest.fixture(scope="module")
def other(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dense(tmp_path_factory.mktemp("dense") / "b", experiment, seed=2)


@pytest.fixture(scope="module")
def made(
    experiment: Experiment, dense: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("made") / "exp"
    assert upcycle(experiment, out, "--dense", dense) == 0
    return out


def test_every_expert_is_the_dense_ffn_and_nothing_is_left_over(
    made: Path, dense: Path
):
    state, source = state_of(made), read_dense(dense).state
    report = json.loads((made / "upcycle.json").read_text())
    experts = [k for k in state if expert_key(k)]
    assert {expert_key(k).expert for k in experts} == {0, 1}
    for key in experts:
        assert torch.equal(state[key], source[expert_key(key).dense])
    for key in report["copied"]:
        assert torch.equal(state[key], source[key])
    splits = {k for k in state if k.endswith("batches_left")}
    assert set(state) == set(experts) | set(report["copied"]) | splits
    assert report["fresh"] == report["unused"] == []
    assert set(report["copied_to_experts"].values()) == {2}
    # tied experts would throw the copies away at the first update
    assert {float(state[k]) for k in splits} == {-math.inf}


def test_speech_comes_out_as_from_the_dense_model(made: Path, dense: Path):
    speech = np.random.default_rng(0).uniform(-0.3, 0.3, 9000).astype(np.float32)
    (dense / "bpe.model").write_bytes((made / "bpe.model").read_bytes())
    ours, theirs = (
        Speech2Text(f / "config.yaml", f / FILE, nbest=3) for f in (made, dense)
    )
    for bandwidth in ("nb", "wb"):
        a, b = (
            s(speech, fs=16000, task=["asr", "st_de"], bandwidth=bandwidth)
            for s in (ours, theirs)
        )
        for task, nbest in a.items():
            assert [r[2] for r in nbest] == [r[2] for r in b[task]]
            for x, y in zip(nbest, b[task], strict=True):
                assert float(x[3].score) == pytest.approx(float(y[3].score), abs=1e-4)


def test_training_starts_from_it(experiment: Experiment, made: Path, tmp_path: Path):
    out = tmp_path / "exp"
    command = [
        *experiment.train_command(out), "--init_param", str(made / FILE),
        "--max_epoch", "1", "--num_iters_per_epoch", "2", "--optim_conf", "lr=0.0",
        "--scheduler", "none", "--scheduler_conf", "{}",
    ]  # fmt: skip
    assert smoe_train.main(command) == 0
    before, after = state_of(made), state_of(out)
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert all("norm.running" in k or "num_batches" in k for k in moved), moved


def test_other_tokens_are_refused_at_the_start_of_training(
    experiment: Experiment, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    config = yaml.safe_load((made / "config.yaml").read_text())
    config["token_list"][8:10] = config["token_list"][9:7:-1]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save(state_of(made), tmp_path / FILE)
    command = experiment.train_command(tmp_path / "exp")
    assert smoe_train.main([*command, "--init_param", str(tmp_path / FILE)]) == 1
    error = capsys.readouterr().err
    assert str(tmp_path / FILE) in error
    assert str(experiment.tokens) in error
    assert not (tmp_path / "exp").exists()


def test_a_stock_model_gives_its_output_on_every_route(
    experiment: Experiment, tmp_path: Path
):
    stock = make_stock(tmp_path / "stock", experiment)
    assert upcycle(experiment, tmp_path / "exp", "--dense", stock) == 0
    host, _ = ASRTask.build_model_from_file(stock / "config.yaml", stock / FILE)
    ours, _ = load_model(tmp_path / "exp/config.yaml", tmp_path / "exp" / FILE)
    host.eval(), ours.eval()
    speech, lengths = 0.1 * torch.randn(2, 9000), torch.tensor([9000, 9000])
    with torch.no_grad():
        wanted, frames = host.encode(speech, lengths)
        got, _ = ours.encode(speech, lengths, {"bandwidth": torch.tensor([1, 0])})
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
        prompts = [[46, 2, 4, 9, 10], [46, 3, 5, 11, 12]]
        ys, sizes = torch.tensor(prompts), torch.tensor([5, 5])
        wanted, _ = host.decoder(wanted, frames, ys, sizes)
        got, _ = ours.decoder(got, frames, ys, sizes)
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)


def test_an_encoder_of_another_vocabulary_leaves_the_decoder_fresh(
    experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture
):
    tokens = ["<blank>", "<unk>", "a", "b", "<sos/eos>"]
    stock = make_stock(tmp_path / "stock", experiment, tokens)
    # names of checkpoints older than ESPnet 202611
    old = {
        k.replace("embed.out.", "embed.out.0."): v for k, v in state_of(stock).items()
    }
    torch.save(old, stock / FILE)
    assert upcycle(experiment, tmp_path / "exp", "--dense", stock) == 1
    error = capsys.readouterr().err
    assert "5 tokens" in error
    assert "one of 47" in error
    assert "'a' and '<nb>'" in error
    out = tmp_path / "exp"
    assert upcycle(experiment, out, "--dense", stock, "--encoder_only") == 0
    report = json.loads((out / "upcycle.json").read_text())
    assert {k.split(".")[0] for k in report["fresh"]} == {"decoder", "ctc"}
    assert {k.split(": ")[1].split(".")[0] for k in report["unused"]} == {
        "decoder",
        "ctc",
    }
    assert all("difference_decoder" not in row for row in report["routes"])
    assert torch.equal(
        state_of(out)["encoder.embed.out.weight"], old["encoder.embed.out.0.weight"]
    )


@pytest.mark.parametrize("shared", ["average", "wb"])
def test_experts_of_several_models(
    experiment: Experiment, dense: Path, other: Path, tmp_path: Path, shared: str
):
    out = tmp_path / "exp"
    sources = ["--expert", f"nb={dense}", "--expert", f"wb={other}", "--shared", shared]
    assert upcycle(experiment, out, *sources) == 0
    a, b = (read_dense(p).state for p in (dense, other))
    for name, got in state_of(out).items():
        key = expert_key(name)
        if name.endswith("batches_left"):
            continue
        plain = key.dense if key else name
        if key and key.stack == "encoder":
            wanted = (a, b)[key.expert][plain]
        elif shared == "wb":
            wanted = b[plain]
        elif got.is_floating_point():
            wanted = (a[plain] + b[plain]) / 2
        else:
            wanted = a[plain]
        torch.testing.assert_close(got, wanted, atol=1e-7, rtol=1e-6)
    report = json.loads((out / "upcycle.json").read_text())
    ffns = {expert_key(k).dense for k in state_of(out) if expert_key(k)}
    if shared == "wb":  # of the other model only the encoder's FFNs were taken
        unused = {k.removeprefix(f"{dense}: ") for k in report["unused"]}
        assert unused == set(a) - {k for k in ffns if k.startswith("encoder.")}
    else:
        assert report["unused"] == []


def test_global_statistics_travel_with_the_checkpoint(
    experiment: Experiment, tmp_path: Path
):
    stats = tmp_path / "stats.npz"
    np.savez(stats, count=4, sum=np.arange(20.0), sum_square=np.arange(20.0) * 9 + 1)
    conf = {"normalize": "global_mvn", "normalize_conf": {"stats_file": str(stats)}}
    dense = make_dense(tmp_path / "dense", experiment, **conf)
    target = write_conf(tmp_path / "smoe.yaml", normalize="global_mvn")
    stats.unlink()
    out = tmp_path / "exp"
    assert upcycle(experiment, out, "--dense", dense, conf=target) == 0
    model, _ = load_model(out / "config.yaml", out / FILE)
    np.testing.assert_allclose(model.normalize.mean, np.arange(20.0) / 4)
    # built without a checkpoint, the file gives the same statistics
    with np.load(out / "feats_stats.npz") as made:
        np.testing.assert_allclose(made["sum"] / made["count"], np.arange(20.0) / 4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"encoder_conf": {**CONF["encoder_conf"], "linear_units": 24}},
            ["linear_units 16 there and 24 here"],
        ),
        (
            {"decoder_conf": {**CONF["decoder_conf"], "num_blocks": 2}},
            ["the decoder of", "num_blocks 1 there and 2 here"],
        ),
        ({"frontend_conf": {**CONF["frontend_conf"], "n_mels": 30}}, ["n_mels 20"]),
        ({"normalize": None}, ["'utterance_mvn'", "None"]),
    ],
    ids=["encoder", "decoder", "frontend", "normalize"],
)
def test_another_architecture_is_refused_with_both_sides(
    experiment: Experiment, dense: Path, tmp_path: Path, capsys, changes, words
):
    conf = write_conf(tmp_path / "other.yaml", **changes)
    assert upcycle(experiment, tmp_path / "exp", "--dense", dense, conf=conf) == 1
    error = capsys.readouterr().err
    assert all(word in error for word in [*words, str(dense), str(conf)]), error
    assert not (tmp_path / "exp").exists()


@pytest.mark.parametrize("norm_vars", [True, False])
def test_another_normalisation_is_refused_with_both_sides(
    experiment: Experiment, tmp_path: Path, capsys, norm_vars: bool
):
    """Encodings of one model with and without it differed by 0.86."""
    stats = tmp_path / "stats.npz"
    np.savez(stats, count=4, sum=np.arange(20.0), sum_square=np.arange(20.0) * 9 + 1)
    if norm_vars:
        kind, conf, default = "utterance_mvn", {}, False
    else:
        kind, conf, default = "global_mvn", {"stats_file": str(stats)}, True
    conf = {"norm_vars": norm_vars, **conf}
    dense = make_dense(tmp_path / "a", experiment, normalize=kind, normalize_conf=conf)
    target = write_conf(tmp_path / "smoe.yaml", normalize=kind)
    out = tmp_path / "exp"
    assert upcycle(experiment, out, "--dense", dense, conf=target) == 1
    error = capsys.readouterr().err
    assert f"the {kind} of {dense} is not that of {target}" in error
    assert f"norm_vars {norm_vars} there and {default} here" in error
    assert not out.exists()


def test_a_normalisation_that_spells_out_the_defaults_is_the_same(
    experiment: Experiment, tmp_path: Path
):
    conf = {"norm_means": True, "norm_vars": False}
    dense = make_dense(tmp_path / "a", experiment, normalize_conf=conf)
    assert upcycle(experiment, tmp_path / "exp", "--dense", dense) == 0


def test_the_proof_begins_with_audio(made: Path, dense: Path):
    model, _ = load_model(made / "config.yaml", made / FILE)
    model.eval()
    source = read_dense(dense)

    def difference(**changes) -> float:
        other = dataclasses.replace(source, **changes)
        route = {"bandwidth": "nb", "task": "asr"}
        return compare_dense(model, other, route, False)["difference_encoder"]

    assert difference() <= 1e-5
    assert difference(normalize=("utterance_mvn", {"norm_vars": True})) > 0.1
    assert difference(normalize=(None, {})) > 0.1
    front = {**source.options["frontend"], "win_length": 512}
    assert difference(options={**source.options, "frontend": front}) > 1e-3


def test_what_the_host_computes_otherwise_is_refused(
    experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture
):
    stock = make_stock(
        tmp_path / "a", experiment, encoder_conf={"rel_pos_type": "legacy"}
    )
    assert upcycle(experiment, tmp_path / "exp", "--dense", stock) == 1
    assert "rel_pos_type 'legacy' there and 'latest' here" in capsys.readouterr().err
    stock = make_stock(tmp_path / "b", experiment, frontend_conf={"center": True})
    assert upcycle(experiment, tmp_path / "exp", "--dense", stock) == 0
    assert "centred its frames" in capsys.readouterr().out


def test_as_many_other_tokens_are_refused(
    experiment: Experiment, dense: Path, tmp_path: Path, capsys
):
    swapped = tmp_path / "swapped"
    shutil.copytree(dense, swapped)
    config = yaml.safe_load((swapped / "config.yaml").read_text())
    a, b = config["token_list"][8:10]
    config["token_list"][8:10] = b, a
    (swapped / "config.yaml").write_text(yaml.safe_dump(config))
    assert upcycle(experiment, tmp_path / "exp", "--dense", swapped) == 1
    assert f"token 8 is {b!r} and {a!r}" in capsys.readouterr().err
    assert not (tmp_path / "exp").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--expert", "nb={a}", "--expert", "swb={b}"], "unknown guides ['swb']"),
        (["--expert", "nb={a}", "--shared", "wb"], "average or a guide of --expert"),
        (["--expert", "nb={a}", "--expert", "nb={b}"], "names a guide twice"),
        (["--expert", "asr={a}", "--encoder_only"], "no expert that is copied serves"),
        (["--dense", "{exp}"], "is no dense model: its encoder has experts"),
        (["--dense", "{a}/none"], "/none is missing; expected an experiment folder"),
        (["--dense", "{a}/.."], "holds no valid.acc.ave.pth; name another checkpoint"),
    ],
)
def test_sources_that_do_not_fit_are_refused(
    experiment: Experiment,
    dense: Path,
    other: Path,
    tmp_path: Path,
    capsys,
    options,
    message,
):
    paths = {"a": dense, "b": other, "exp": experiment.exp}
    options = [o.format(**paths) for o in options]
    assert upcycle(experiment, tmp_path / "exp", *options) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "exp").exists()


@pytest.mark.parametrize(
    "experts",
    [
        {"axis": "bandwidth", "map": {"nb": 0, "wb": 0}},
        {"axis": "bandwidth", "blocks": []},
    ],
    ids=["one-expert", "no-block"],
)
def test_a_guide_that_no_expert_of_its_own_serves_is_refused(
    experiment: Experiment, dense: Path, other: Path, tmp_path: Path, capsys, experts
):
    encoder = {**DENSE["encoder_conf"], "experts": experts}
    conf = write_conf(tmp_path / "one.yaml", encoder_conf=encoder)
    sources = ["--expert", f"nb={dense}", "--expert", f"asr={other}"]
    assert upcycle(experiment, tmp_path / "exp", *sources, conf=conf) == 1
    error = capsys.readouterr().err
    assert "no expert that is copied serves the guides ['nb']" in error
    assert "has experts for ['asr']" in error
    assert not (tmp_path / "exp").exists()


@pytest.mark.parametrize("name", ["config.yaml", FILE])
@pytest.mark.parametrize("content", ["empty", "cut", "list"])
def test_a_broken_experiment_is_refused_by_name(
    experiment: Experiment, dense: Path, tmp_path: Path, capsys, name: str, content: str
):
    broken = tmp_path / "broken"
    shutil.copytree(dense, broken)
    whole = (dense / name).read_bytes()
    cut = whole[: len(whole) // 2] if name == FILE else b"a: ["
    (broken / name).write_bytes({"empty": b"", "cut": cut, "list": b"- 1\n"}[content])
    assert upcycle(experiment, tmp_path / "exp", "--dense", broken) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("smoe_upcycle: c")
    assert str(broken / name) in error
    assert not (tmp_path / "exp").exists()


def test_nothing_but_an_earlier_result_is_replaced(
    experiment: Experiment, dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    exp = experiment.copy(tmp_path / "exp")
    few = few_files(tmp_path / "few", experiment, "bpe.model", FILE)
    mine, tokens = tmp_path / "mine", tmp_path / "tokens"
    shutil.copytree(dense, mine)
    tokens.mkdir()
    for name in ("bpe.model", "tokens.txt"):
        shutil.copy(experiment.tokens / name, tokens)
    earlier = tmp_path / "earlier"
    assert upcycle(experiment, earlier, "--dense", mine) == 0
    before = contents(tmp_path)
    given = ["--token_dir", tokens]  # the last of two equal options counts
    for out, source, words in [
        (exp, mine, f"{exp} holds 1epoch.pth, 2epoch.pth, "),
        (few, mine, f"{few} has no upcycle.json"),
        (mine, mine, f"{mine} would be replaced, but {mine} is read"),
        (mine, mine / FILE, f"{mine} would be replaced, but {mine / FILE} is read"),
        (tokens, mine, f"{tokens} would be replaced, but {tokens} is read"),
        (earlier, earlier, f"{earlier} would be replaced, but"),
    ]:
        capsys.readouterr()
        assert upcycle(experiment, out, "--dense", source, *given) == 1
        assert words in capsys.readouterr().err
    assert contents(tmp_path) == before
    assert upcycle(experiment, earlier, "--dense", mine) == 0


@pytest.mark.parametrize(
    "name", ["encoder.after_norm.weight", "decoder.output_layer.bias"]
)
def test_outputs_that_are_no_numbers_prove_nothing(
    experiment: Experiment, dense: Path, tmp_path: Path, capsys, name: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(dense, broken)
    state = state_of(dense)
    state[name][3] = math.nan
    torch.save(state, broken / FILE)
    assert upcycle(experiment, tmp_path / "exp", "--dense", broken) == 1
    assert "nan" in capsys.readouterr().err
    assert not (tmp_path / "exp").exists()


def test_guides_that_share_an_expert_cannot_come_from_two_models(
    experiment: Experiment, dense: Path, other: Path, tmp_path: Path, capsys
):
    encoder = {
        **DENSE["encoder_conf"],
        "experts": {"axis": "bandwidth", "map": {"nb": 0, "wb": 0}},
    }
    conf = write_conf(tmp_path / "one.yaml", encoder_conf=encoder)
    sources = ["--expert", f"nb={dense}", "--expert", f"wb={other}"]
    assert upcycle(experiment, tmp_path / "exp", *sources, conf=conf) == 1
    error = capsys.readouterr().err
    assert "encoder expert 0 serves ['nb', 'wb']" in error
    assert str(dense) in error
    assert str(other) in error


@pytest.mark.parametrize(
    "experts, message",
    [
        ({"gate": {"num_experts": 2}}, "encoder_conf.experts.gate .* expected experts"),
        (
            {"axis": "bandwidth", "shared": True},
            "encoder_conf.experts.shared True: its",
        ),
    ],
)
def test_experts_that_are_no_dense_models_are_refused(experts, message) -> None:
    conf = {"guides": {"bandwidth": ["nb", "wb"], "task": ["asr"]}}
    stacks = {"encoder_conf": {"experts": experts}, "decoder_conf": {}}
    with pytest.raises(SurgeryError, match=message):
        expert_maps({**conf, **stacks})


def test_a_guide_embedding_is_no_option_of_the_host() -> None:
    with pytest.raises(SurgeryError, match=r"guide_embedding \['bandwidth'\]: a dense"):
        stock_options("encoder", {"guide_embedding": ["bandwidth"]})
