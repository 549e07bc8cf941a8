"""P8: a task added later leaves all earlier outputs bit-identical."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from surgery import contents, decide, few_files, save
from tiny_experiment import CONF, Experiment, write_conf, write_dump

from espnet_smoe import Speech2Text
from espnet_smoe.bin import smoe_add_task, smoe_train
from espnet_smoe.checkpoint import load_model
from espnet_smoe.config import ConfigError
from espnet_smoe.counterparts import expert_key
from espnet_smoe.extract import extract
from espnet_smoe.guide import TASK, GuideError
from espnet_smoe.search import RowSearch, SearchConfig
from espnet_smoe.task import SMoETask
from espnet_smoe.train import read_options

pytest_plugins = ["fixtures_exp"]

FILE = "valid.acc.ave.pth"
OLD = ("asr", "st_de")


def state_of(folder: Path, name: str = FILE) -> dict[str, torch.Tensor]:
    return torch.load(folder / name, weights_only=True)


def add(exp: Path, out: Path, task: str = "st_es", like: str = "st_de") -> int:
    command = ["--exp_dir", exp, "--task", task, "--like", like, "--out_dir", out]
    return smoe_add_task.main([str(c) for c in command])


@pytest.fixture(scope="module")
def added(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("added") / "exp"
    assert add(experiment.exp, out) == 0
    return out


@pytest.fixture(scope="module")
def spanish(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Dumps whose utterances have a reference of the new task, and of old ones."""
    root = tmp_path_factory.mktemp("spanish")
    folders = {"train": root / "train", "dev": root / "dev"}
    for seed, folder in enumerate(folders.values(), 7):
        write_dump(folder, seed=seed)
        text = (folder / "text.st_de").read_text()
        (folder / "text.st_es").write_text(text.replace("und", "rund"))
    return folders


def smoe_train_main(added: Path, data: dict[str, Path], *options: object) -> int:
    command = [
        "--config", added / "train_st_es.yaml", "--train_dir", data["train"],
        "--valid_dir", data["dev"], "--token_dir", added, *options,
    ]  # fmt: skip
    return smoe_train.main([str(c) for c in command])


@pytest.fixture(scope="module")
def stats(
    added: Path,
    spanish: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Stage 10 with the YAML that the tool wrote."""
    out = tmp_path_factory.mktemp("stats") / "stats"
    collect = ["--output_dir", out, "--collect_stats", "true"]
    assert smoe_train_main(added, spanish, *collect) == 0
    return out


@pytest.fixture(scope="module")
def trained(
    added: Path,
    spanish: dict[str, Path],
    stats: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Six updates of Adam through the trainer, mean of both epochs."""
    out = tmp_path_factory.mktemp("trained") / "exp"
    options = ["--keep_nbest_models", "2", "--optim_conf", "weight_decay=0.1"]
    options += ["--stats_dir", stats, "--output_dir", out]
    assert smoe_train_main(added, spanish, *options) == 0
    assert (out / FILE).resolve().name == "valid.acc.ave_2best.pth"
    return out


def outputs(folder: Path, tasks=OLD) -> list[torch.Tensor]:
    """Encoder output and teacher-forced scores of every old route, on noise."""
    model, _ = load_model(folder / "config.yaml", folder / FILE)
    model.eval()
    generator = torch.Generator().manual_seed(0)
    speech = 0.1 * torch.randn(2, 9000, generator=generator)
    lengths = torch.tensor([9000, 7000])
    text = torch.randint(6, 46, (2, 7), generator=generator)
    found = []
    with torch.no_grad():
        for ids in ([0, 0], [1, 1], [1, 0]):
            memory, frames = model.encode(
                speech, lengths, {"bandwidth": torch.tensor(ids)}
            )
            found.append(memory)
            for task in tasks:
                token = model.guide_token_ids[TASK][model.guides.tasks.index(task)]
                prompt = [[46, [2, 3][i], token] for i in ids]
                ys = torch.cat([torch.tensor(prompt), text], dim=1)
                scores, _ = model.decoder(memory, frames, ys, torch.tensor([10, 8]))
                found += [scores, model.ctc.log_softmax(memory)]
    return found


def hypotheses(folder: Path, tasks=OLD) -> list[tuple[list[int], float]]:
    """N-best lists with all their scores, mixed bandwidths in one batch."""
    s2t = Speech2Text(folder / "config.yaml", folder / FILE, nbest=3)
    rng = np.random.default_rng(1)
    speech = [rng.uniform(-0.3, 0.3, n).astype(np.float32) for n in (9000, 7000, 8000)]
    results = s2t.batch_decode(
        speech, fs=16000, task=list(tasks), bandwidth=["nb", "wb", "nb"]
    )
    return [
        (r[2], float(r[3].score), {k: float(v) for k, v in r[3].scores.items()})
        for result in results
        for task in tasks
        for r in result[task]
    ]


def assert_same(a: list[torch.Tensor], b: list[torch.Tensor]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y)


def test_p8_old_outputs_stay_to_the_bit_when_the_new_task_is_trained(
    experiment: Experiment, trained: Path
):
    assert_same(outputs(experiment.exp), outputs(trained))
    assert hypotheses(experiment.exp) == hypotheses(trained)


def test_only_what_serves_the_new_task_moved(added: Path, trained: Path):
    before, after = state_of(added), state_of(trained)
    assert set(before) == set(after)
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    # the host adds up whole numbers in a mean; nothing reads them
    moved = {k for k in moved if not k.endswith("num_batches_tracked")}
    new = {k for k in before if expert_key(k) and expert_key(k).expert == 2}
    assert new
    assert moved == {"decoder.added.st_es", *new}
    targets = (trained / "data/train/targets").read_text().splitlines()
    assert all(list(json.loads(t.split(" ", 1)[1])) == ["st_es"] for t in targets)
    epoch = state_of(trained, "1epoch.pth")
    assert torch.equal(
        before["encoder.encoders.0.conv_module.norm.num_batches_tracked"],
        epoch["encoder.encoders.0.conv_module.norm.num_batches_tracked"],
    )


def test_the_new_task_begins_as_the_one_it_is_like(
    experiment: Experiment, added: Path, trained: Path
):
    assert_same(outputs(experiment.exp), outputs(added))
    assert hypotheses(experiment.exp) == hypotheses(added)
    assert hypotheses(added, ["st_de"]) == hypotheses(added, ["st_es"])
    assert hypotheses(trained, ["st_de"]) != hypotheses(trained, ["st_es"])


def test_a_second_task_leaves_the_first_added_one(trained: Path, tmp_path: Path):
    assert add(trained, tmp_path / "exp", "st_fr", "st_es") == 0
    tasks = (*OLD, "st_es")
    assert_same(outputs(trained, tasks), outputs(tmp_path / "exp", tasks))
    assert hypotheses(trained, tasks) == hypotheses(tmp_path / "exp", tasks)
    model, _ = load_model(tmp_path / "exp/config.yaml", tmp_path / "exp" / FILE)
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert "decoder.added.st_fr" in learning
    assert "decoder.added.st_es" not in learning
    assert {expert_key(n).expert for n in learning if expert_key(n)} == {3}
    # the new parts are copies at first: only when they have moved do they tell
    state = state_of(tmp_path / "exp")
    torch.save({k: v + (k in learning) for k, v in state.items()}, tmp_path / "moved")
    (tmp_path / "moved").replace(tmp_path / "exp" / FILE)
    assert_same(outputs(trained, tasks), outputs(tmp_path / "exp", tasks))


def test_an_added_task_can_be_extracted(trained: Path, tmp_path: Path):
    report = extract(trained, {"bandwidth": "nb", "task": "st_es"}, tmp_path / "es")
    assert report["difference_encoder"] == report["difference_decoder"] == 0.0
    config = yaml.safe_load((tmp_path / "es/config.yaml").read_text())
    assert config["preprocessor_conf"]["notime_symbol"] == "<st_es>"
    assert len(config["token_list"]) == 47
    assert config["token_list"].index("<st_es>") < 6


@pytest.mark.parametrize("name", ["asr", "st_de"])
def test_a_prepared_token_is_never_emitted_before_or_after(
    experiment: Experiment, tmp_path: Path, name: str
):
    """A token list may hold the token of a task that comes later."""
    exp = experiment.copy(tmp_path / "exp")
    config = yaml.safe_load((exp / "config.yaml").read_text())
    config["token_list"][6] = "<st_es>"
    (exp / "config.yaml").write_text(yaml.safe_dump(config))
    state = state_of(exp)
    state["decoder.output_layer.bias"][6] += 50.0  # all it ever wants to say
    (exp / FILE).unlink()
    torch.save(state, exp / FILE)
    assert add(exp, tmp_path / "new", like=name) == 0
    before, after = hypotheses(exp), hypotheses(tmp_path / "new")
    assert before == after
    assert not any(6 in ids for ids, *_ in before)


def test_outputs_that_are_no_numbers_prove_nothing(
    experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture
):
    exp = experiment.copy(tmp_path / "exp")
    state = state_of(exp)
    state["decoder.output_layer.bias"][7] = math.nan
    (exp / FILE).unlink()
    torch.save(state, exp / FILE)
    assert add(exp, tmp_path / "new") == 1
    assert "nan" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def untrained(experiment: Experiment, exp: Path, **changes: object) -> Path:
    """An experiment of another architecture, with decided weights."""
    conf = write_conf(exp.with_suffix(".yaml"), **changes)
    options = read_options(conf, experiment.tokens, exp)
    save(exp, decide(SMoETask.build_model(options), seed=3), vars(options))
    (exp / "bpe.model").write_bytes((experiment.tokens / "bpe.model").read_bytes())
    return exp


@pytest.mark.parametrize(
    ("experts", "like", "origin"),
    [
        ({"axis": TASK, "map": {"asr": 0, "st_de": 1}}, "asr", {2: 0}),
        ({"axis": TASK, "map": {"asr": 0, "st_de": 0}}, "st_de", {1: 0}),
        ({"axis": ["bandwidth", TASK]}, "st_de", {0: 0, 1: 1, 2: 1, 3: 2, 4: 3, 5: 3}),
        ({"axis": [TASK, "bandwidth"]}, "asr", {4: 0, 5: 1}),
        ({"axis": TASK, "split_at": 0.5}, "asr", {0: 0, 1: 1, 2: 0}),
    ],
    ids=["map", "shared", "bandwidth-task", "task-bandwidth", "still-tied"],
)
def test_experts_of_any_routing_by_task(
    experiment: Experiment, tmp_path: Path, experts, like, origin
):
    decoder = {**CONF["decoder_conf"], "experts": experts}
    exp = untrained(experiment, tmp_path / "exp", decoder_conf=decoder)
    assert add(exp, tmp_path / "new", like=like) == 0
    old, new = state_of(exp), state_of(tmp_path / "new")
    bank = "decoder.decoders.0.feed_forward.experts.{}.w_1.weight"
    for to, source in origin.items():
        assert torch.equal(new[bank.format(to)], old[bank.format(source)])
    # tied experts would leave the new one idle
    assert float(new["decoder.split.batches_left"]) == -math.inf
    assert hypotheses(exp) == hypotheses(tmp_path / "new")


def batch(tasks: tuple[str, ...], asked: str) -> dict[str, torch.Tensor]:
    """Two utterances with references of one task alone."""
    generator = torch.Generator().manual_seed(4)
    data = {
        "speech": 0.1 * torch.randn(2, 9000, generator=generator),
        "speech_lengths": torch.tensor([9000, 7000]),
        "bandwidth": torch.tensor([[0], [1]]),
    }
    for task in tasks:
        length = 5 if task == asked else 0
        text = torch.randint(6, 46, (2, length), generator=generator)
        lengths = torch.full((2,), length)
        data |= {f"text_{task}": text, f"text_{task}_lengths": lengths}
    return data


@pytest.mark.parametrize(
    ("stack", "change"),
    [
        ("encoder", {"guide_embedding": ["bandwidth"], "experts": None}),
        ("encoder", {"guide_embedding": ["bandwidth"]}),
        ("encoder", {"experts": {"gate": {"num_experts": 3, "top_k": 2}}}),
        ("encoder", {"experts": {"axis": "bandwidth", "shared": True}}),
        ("decoder", {"experts": {"axis": TASK, "shared": True}}),
    ],
    ids=["embedding", "embedding-experts", "gate", "shared", "shared-decoder"],
)
def test_a_task_is_added_to_any_model_with_decoder_experts_by_task(
    experiment: Experiment, tmp_path: Path, stack: str, change: dict
):
    conf = {f"{stack}_conf": {**CONF[f"{stack}_conf"], **change}}
    exp, new = untrained(experiment, tmp_path / "exp", **conf), tmp_path / "new"
    assert add(exp, new) == 0
    assert_same(outputs(exp), outputs(new))
    before = outputs(new, ["st_es"])
    assert_same(outputs(exp, ["st_de"]), before)
    model, _ = load_model(new / "config.yaml", new / FILE)
    learning = [p for p in model.parameters() if p.requires_grad]
    optim = torch.optim.AdamW(learning, lr=0.01)
    model.train()
    for _ in range(3):
        optim.zero_grad()
        model(**batch((*OLD, "st_es"), "st_es"))[0].backward()
        optim.step()
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    torch.save(model.state_dict(), new / FILE)
    assert_same(outputs(exp), outputs(new))
    after = outputs(new, ["st_es"])
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_gated_decoder_has_no_experts_by_task(
    experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture
):
    decoder = {**CONF["decoder_conf"], "experts": {"gate": {"num_experts": 2}}}
    exp = untrained(experiment, tmp_path / "exp", decoder_conf=decoder)
    assert add(exp, tmp_path / "new") == 1
    assert "no experts by task" in capsys.readouterr().err


def test_nothing_but_an_earlier_result_is_replaced(
    experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture
):
    exp, other = (experiment.copy(tmp_path / name) for name in ("exp", "other"))
    few = few_files(tmp_path / "few", experiment, "bpe.model", FILE)
    before = contents(tmp_path)
    link = tmp_path / "link"
    link.symlink_to(exp)
    for source, out, words in [
        (exp, exp, f"{exp} would be replaced, but {exp / FILE} is read"),
        (exp, link, f"{link} would be replaced, but"),
        (few, few, f"{few} would be replaced, but"),
        (exp, other, f"{other} holds 1epoch.pth, 2epoch.pth, "),
        (exp, few, f"{few} has no add_task.json"),
        (exp, tmp_path, f"{tmp_path} holds exp"),
    ]:
        assert add(source, out) == 1
        assert words in capsys.readouterr().err
    link.unlink()
    assert contents(tmp_path) == before
    assert add(exp, tmp_path / "new") == 0
    made = contents(tmp_path / "new")
    assert add(exp, tmp_path / "new") == 0
    assert contents(tmp_path / "new") == made
    capsys.readouterr()
    assert add(exp, tmp_path / "new", "st_fr") == 1
    assert "new holds train_st_es.yaml" in capsys.readouterr().err


def test_the_mean_of_three_checkpoints_is_refused(
    added: Path, spanish, stats: Path, tmp_path: Path, capsys
):
    x = torch.linspace(0.1, 0.2, 100)
    assert torch.equal((x + x) / 2, x)
    assert not torch.equal((x + x + x) / 3, x)  # why
    out = tmp_path / "exp"
    options = ["--stats_dir", stats, "--output_dir", out, "--keep_nbest_models", "3"]
    assert smoe_train_main(added, spanish, *options) == 1
    error = capsys.readouterr().err
    assert "mean of 3 checkpoints" in error
    assert "keep_nbest_models to 1 or 2" in error
    assert not out.exists()


def test_utterances_without_the_new_task_are_refused(
    experiment: Experiment, added: Path, tmp_path: Path, capsys
):
    folders = {"train": experiment.train, "dev": experiment.dev}
    options = ["--stats_dir", experiment.stats, "--output_dir", tmp_path / "exp"]
    assert smoe_train_main(added, folders, *options) == 1
    assert "has references of ['asr', 'st_de'] only" in capsys.readouterr().err


def test_other_tokens_are_refused(
    added: Path, spanish, stats: Path, tmp_path: Path, capsys
):
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    (tokens / "bpe.model").write_bytes((added / "bpe.model").read_bytes())
    lines = (added / "tokens.txt").read_text().splitlines()
    lines[8:10] = lines[9:7:-1]
    (tokens / "tokens.txt").write_text("\n".join(lines) + "\n")
    options = ["--stats_dir", stats, "--output_dir", tmp_path / "exp"]
    # the last of two equal options counts
    assert smoe_train_main(added, spanish, *options, "--token_dir", tokens) == 1
    error = capsys.readouterr().err
    assert str(added / FILE) in error
    assert str(tokens / "tokens.txt") in error


@pytest.mark.parametrize(
    ("task", "like", "message"),
    [
        (
            "st_de",
            "asr",
            "has the task 'st_de' already; its tasks are ['asr', 'st_de']",
        ),
        ("st_es", "st_xx", "unknown task 'st_xx'; known: asr, st_de"),
        ("summary", "asr", "must be 'asr' or 'st_XX'"),
        ("nb", "asr", "more than one axis"),
    ],
)
def test_tasks_that_cannot_be_added(
    experiment: Experiment, tmp_path: Path, capsys, task, like, message
):
    assert add(experiment.exp, tmp_path / "exp", task, like) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "exp").exists()


def test_a_decoder_without_experts_by_task_is_refused(
    experiment: Experiment, tmp_path: Path, capsys
):
    exp = experiment.copy(tmp_path / "exp")
    config = yaml.safe_load((exp / "config.yaml").read_text())
    config["decoder_conf"]["experts"] = {"axis": "bandwidth"}
    (exp / "config.yaml").write_text(yaml.safe_dump(config))
    assert add(exp, tmp_path / "new") == 1
    assert "no experts by task" in capsys.readouterr().err


def test_train_only_must_name_tasks_with_something_of_their_own(
    experiment: Experiment, tmp_path: Path
):
    def build(**changes):
        conf = copy.deepcopy(CONF)
        for key, change in changes.items():
            conf[key] |= change
        path = write_conf(tmp_path / "conf.yaml", **conf)
        return SMoETask.build_model(read_options(path, experiment.tokens, tmp_path))

    with pytest.raises(GuideError, match="unknown task 'st_fr'; known: asr, st_de"):
        build(model_conf={"train_only": ["st_fr"]})
    with pytest.raises(ConfigError, match="no token or decoder expert serves"):
        build(
            model_conf={"train_only": ["asr"]},
            decoder_conf={"experts": {"axis": TASK, "map": {"asr": 0, "st_de": 0}}},
        )
    model = build(model_conf={"train_only": ["asr"]})
    assert {
        expert_key(n).expert for n, p in model.named_parameters() if p.requires_grad
    } == {0}
    model.train()
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    assert norms
    assert not any(m.training for m in norms)
    assert model.decoder.training
    assert RowSearch(model.eval(), SearchConfig())  # decodes as any model
