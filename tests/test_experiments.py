"""The list, the recipe's names, what is left to do, and a finished tree compared."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from tiny_experiment import write_dump

from espnet_smoe.bin.smoe_experiments import main
from espnet_smoe.config import ConfigError
from espnet_smoe.cost import measure_cost
from espnet_smoe.datadir import read_datadir
from espnet_smoe.experiments import Folders, Run, check_recorded, plan
from espnet_smoe.experiments_list import Model, read_list
from espnet_smoe.files import write_table
from espnet_smoe.guide import GuideTable
from espnet_smoe.preprocess import make_targets
from espnet_smoe.report import write_report
from espnet_smoe.score import score_sets
from espnet_smoe.search import SearchConfig
from espnet_smoe.subset import keep_guides

pytest_plugins = ["fixtures_exp"]

RECIPE = Path(__file__).resolve().parent.parent / "egs2" / "smoe_asr_st"
DENSE = {"train_config": "conf/demo/train_dense.yaml"}
SMOE = {"train_config": "conf/demo/train_smoe.yaml"}
PARTS = ("nb", "wb")
GOOD = {"baseline": "dense", "seeds": [1, 2], "systems": {"dense": DENSE, "smoe": SMOE}}


@pytest.fixture(autouse=True)
def _in_the_recipe(monkeypatch):
    monkeypatch.chdir(RECIPE)


def write_list(path: Path, **changes: object) -> Path:
    path.write_text(yaml.safe_dump({**GOOD, **changes}, sort_keys=False))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, r"unknown keys \['seed'\].*known: .*'seeds'"),
        ({"seeds": []}, "seeds must be a list of numbers"),
        ({"seeds": ["a"]}, "a seed must be a whole number, got 'a'"),
        ({"seeds": [1, 1]}, "a seed stands twice"),
        ({"baseline": "gone"}, r"baseline 'gone' is none of .*'dense', 'smoe'"),
        ({"baseline": "parts", "systems": {"parts": [DENSE]}}, "must be one model"),
        ({"systems": {}}, "systems must map names"),
        ({"systems": {"dense": {}}}, "dense lacks train_config"),
        ({"systems": {"dense": DENSE, "e": []}}, "system e has no model"),
        ({"systems": {"dense": {**DENSE, "keep": 1}}}, r"unknown keys \['keep'\]"),
        ({"systems": {"dense": "x.yaml"}}, "must map option names to values"),
        ({"systems": {"dense": {"train_config": "no.yaml"}}}, "no.yaml does not exist"),
        (
            {"systems": {"dense": {**DENSE, "smoe_args": "--seed 3"}}},
            "seeds stand in the list",
        ),
        ({"run_options": {"stage": 3}}, r"run_options may not set \['stage'\]"),
        ({"run_options": {"skip_train": True}}, r"may not set \['skip_train'\]"),
        ({"run_options": [1]}, "run_options must be a mapping"),
        ({"run_options": {"nbpe": None}}, "run_options.nbpe must be a text or a n"),
        ({"baseline": ["a"]}, r"baseline \"\['a'\]\" is none of"),
        (
            {"systems": {"dense": {**DENSE, "smoe_args": None}}},
            "dense: smoe_args must be a text or a number, got None",
        ),
    ],
)
def test_a_wrong_list_is_refused_by_name(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        read_list(write_list(tmp_path / "list.yaml", **changes))


def test_the_list_of_make_experiments_is_sound():
    experiments = read_list(Path("conf/demo/experiments.yaml"))
    assert len(experiments.systems) >= 4
    assert len(experiments.seeds) >= 2
    assert experiments.baseline == "train_dense"


def test_runs_have_the_names_that_the_recipe_gives_them(tmp_path):
    options = {"expdir": str(tmp_path)}
    path = write_list(tmp_path / "list.yaml", run_options=options)
    runs = plan(read_list(path), inference_nj=1)
    assert [(r.system, r.seed, r.name) for r in runs] == [
        ("dense", 1, "smoe_train_dense"),
        ("smoe", 1, "smoe_demo"),
        ("dense", 2, "smoe_train_dense_seed2"),
        ("smoe", 2, "smoe_demo_seed2"),
    ]
    assert {r.folders.stats for r in runs} == {tmp_path / "smoe_stats"}
    assert runs[0].folders.decoding == tmp_path / "smoe_train_dense/decode"
    assert runs[0].command(11, 13)[-2:] == ("--stage=11", "--stop_stage=13")


def test_models_of_one_condition_have_data_of_their_own(tmp_path):
    conf = yaml.safe_load(Path("conf/demo/train_dense.yaml").read_text())
    conf["guides"] = {"bandwidth": ["nb"], "task": ["asr"]}
    single = tmp_path / "train_single.yaml"
    single.write_text(yaml.safe_dump(conf))
    path = write_list(
        tmp_path / "list.yaml",
        seeds=[1],
        systems={"dense": DENSE, "parts": [{"train_config": str(single)}]},
    )
    whole, part = plan(read_list(path), inference_nj=1)
    assert part.part == {"bandwidth": ("nb",), "task": ("asr",)}
    assert part.whole.set_dirs == whole.folders.set_dirs
    assert part.folders.train_dir == Path("dump/part_nb_asr/raw/train")
    assert part.folders.stats == Path("exp/smoe_stats_part_nb_asr")
    assert part.folders.tokens == whole.folders.tokens
    assert part.name == "smoe_train_single"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "lacks the key 'guides'"),
        (b"- a", "lacks the key 'guides'"),
        (b"a: [", "cannot read the config"),
        (b"a: \xff", "cannot read the config"),
    ],
)
def test_a_broken_training_yaml_is_refused_by_name(tmp_path, content, message):
    broken = tmp_path / "train_broken.yaml"
    broken.write_bytes(content)
    systems = {"dense": {"train_config": str(broken)}}
    path = write_list(tmp_path / "list.yaml", systems=systems)
    with pytest.raises(ValueError, match=f"train_broken.yaml.*{message}|{message}.*tr"):
        plan(read_list(path), inference_nj=1)


def test_parts_that_overlap_are_refused(tmp_path):
    systems = {"dense": DENSE, "parts": []}
    for name, guides in (
        ("a", {"bandwidth": ["nb"], "task": ["asr", "st_de"]}),
        ("b", {"bandwidth": ["wb"], "task": ["asr"]}),
        ("c", {"bandwidth": ["nb", "wb"], "task": ["st_de"]}),
    ):
        path = tmp_path / f"train_{name}.yaml"
        path.write_text(yaml.safe_dump({"guides": guides}))
        systems["parts"].append({"train_config": str(path)})
    path = write_list(tmp_path / "list.yaml", seeds=[1], systems=systems)
    message = (
        "parts: .*train_a.yaml and .*train_c.yaml would both be scored on nb st_de"
    )
    with pytest.raises(ConfigError, match=message):
        plan(read_list(path), inference_nj=1)
    systems["parts"].pop()
    path = write_list(tmp_path / "list.yaml", seeds=[1], systems=systems)
    assert len(plan(read_list(path), inference_nj=1)) == 3


def test_two_systems_of_one_name_are_refused(tmp_path):
    systems = {"dense": DENSE, "again": DENSE}
    path = write_list(tmp_path / "list.yaml", seeds=[1], systems=systems)
    with pytest.raises(ConfigError, match="dense seed 1 and again seed 1 would both"):
        plan(read_list(path), inference_nj=1)


def test_what_the_recipe_refuses_is_told(tmp_path):
    path = write_list(tmp_path / "list.yaml", run_options={"no_such": 1})
    with pytest.raises(ConfigError, match="unknown option --no_such"):
        plan(read_list(path), inference_nj=1)


def folders(folder: Path) -> Folders:
    return Folders(
        dump=folder / "dump",
        train_dir=folder / "dump/train",
        valid_dir=folder / "dump/dev",
        test_sets=("test",),
        tokens=folder / "tokens",
        stats=folder / "stats",
        experiment=folder / "exp",
        decoding=folder / "exp/decode",
        inference_config=folder / "decode.yaml",
    )


def write_search(decoding: Path, config: Path) -> None:
    """What stage 12 records of the search beside the hypotheses of ``test``."""
    options = dataclasses.asdict(SearchConfig.from_yaml(config))
    del options["batch_size"]
    (decoding / "test").mkdir(parents=True, exist_ok=True)
    (decoding / "test/search.yaml").write_text(yaml.safe_dump(options))


def test_what_is_left_to_do_follows_from_the_files(tmp_path):
    here = folders(tmp_path)
    here.decoding.mkdir(parents=True)
    clock = iter(range(1000, 2000))

    def touch(path: Path) -> None:
        path.unlink(missing_ok=True)
        path.touch()
        now = next(clock)
        os.utime(path, (now, now))

    exp, scores = here.experiment, here.decoding / "scores.json"
    assert here.next_stage() == 11  # nothing yet
    touch(exp / "1epoch.pth")
    touch(exp / "checkpoint.pth")
    assert here.next_stage() == 11  # killed after an epoch
    link = exp / "valid.acc.ave.pth"
    link.symlink_to("1epoch.pth")  # older than the checkpoint; the link is not
    assert here.next_stage() == 12
    now = 5000
    os.utime(link, (now, now), follow_symlinks=False)
    scores.touch()
    os.utime(scores, (now + 1, now + 1))
    here.inference_config.write_text("beam_size: 3\n")
    assert here.next_stage() == 12  # by a search that nobody recorded
    write_search(here.decoding, here.inference_config)
    assert here.next_stage() is None
    here.inference_config.write_text("beam_size: 4\n")
    assert here.next_stage() == 12  # by another search
    here.inference_config.write_text("{beam_size: 3, batch_size: 1}\n")
    assert here.next_stage() is None
    data = here.dump / "test/wav.scp"
    data.parent.mkdir(parents=True)
    data.touch()
    assert here.next_stage() == 12  # other data since
    os.utime(data, (now, now))
    assert here.next_stage() is None
    os.utime(link, (now + 2, now + 2), follow_symlinks=False)
    assert here.next_stage() == 12  # another model than the scored one
    os.utime(exp / "checkpoint.pth", (now + 3, now + 3))
    assert here.next_stage() == 11  # went on training since


def test_missing_data_name_the_stage_to_start_from(tmp_path):
    here = folders(tmp_path)
    for folder in here.set_dirs:
        assert here.missing_data() == 1
        folder.mkdir(parents=True)
        (folder / "wav.scp").touch()
    assert here.missing_data() == 1
    here.tokens.mkdir()
    (here.tokens / "bpe.model").touch()
    (here.tokens / "tokens.txt").touch()
    for split in ("train", "valid"):
        assert here.missing_data() == 10
        (here.stats / split).mkdir(parents=True)
        (here.stats / split / "speech_shape").touch()
    assert here.missing_data() is None
    for folder in (here.train_dir, here.valid_dir):
        later = 10**9 + (here.stats / "train/speech_shape").stat().st_mtime_ns
        os.utime(folder / "wav.scp", ns=(later, later))
        assert here.missing_data() == 10
        os.utime(folder / "wav.scp", (0, 0))


@pytest.fixture
def recorded(experiment, tmp_path):
    """Check of the trained folder against the YAML with changes, and arguments."""
    here = dataclasses.replace(
        folders(tmp_path),
        train_dir=experiment.train,
        valid_dir=experiment.dev,
        tokens=experiment.tokens,
    )
    experiment.copy(here.experiment)
    path = tmp_path / "train.yaml"

    def check(arguments: str = "", **changes: object) -> None:
        conf = {**yaml.safe_load(experiment.conf.read_text()), **changes}
        path.write_text(yaml.safe_dump({k: v for k, v in conf.items() if v != "gone"}))
        model = Model(train_config=str(path), smoe_args=arguments)
        check_recorded(Run("x", 0, model, (), here))

    return check


def test_a_folder_of_another_yaml_or_seed_is_refused(experiment, recorded):
    recorded()
    recorded(optim_conf={"lr": "1e-2"})  # text to YAML, 0.01 to the host
    recorded("--max_epoch 2", max_epoch=9)
    with pytest.raises(ConfigError, match="another seed than"):
        recorded("--seed 2")
    with pytest.raises(ConfigError, match="another max_epoch than"):
        recorded(max_epoch=3)
    with pytest.raises(ConfigError, match="another log_interval than"):
        recorded(log_interval="gone")  # then the host's own default
    with pytest.raises(ConfigError, match="another scheduler_conf than"):
        recorded(scheduler_conf={"warmup_steps": 3})
    conf = yaml.safe_load(experiment.conf.read_text())["encoder_conf"]
    del conf["experts"]
    with pytest.raises(ConfigError, match=r"another encoder_conf than.*move it away"):
        recorded(encoder_conf=conf)


def test_what_a_dotted_argument_leaves_alone_is_compared_too(experiment, recorded):
    conf = yaml.safe_load(experiment.conf.read_text())["encoder_conf"]
    recorded("--encoder_conf num_blocks=1", encoder_conf={**conf, "num_blocks": 9})
    with pytest.raises(ConfigError, match="another encoder_conf than"):
        recorded(
            "--encoder_conf num_blocks=1", encoder_conf={**conf, "dropout_rate": 0}
        )
    with pytest.raises(ConfigError, match="another encoder_conf than"):
        recorded("--encoder_conf experts.split_at=0.25")
    with pytest.raises(ConfigError, match=r"x: .*--no_such"):
        recorded("--no_such 1")


def test_a_folder_of_other_data_or_tokens_is_refused(experiment, recorded, tmp_path):
    targets = tmp_path / "exp/data/train/targets"
    first, *others = targets.read_text().splitlines(keepends=True)
    targets.write_text("".join(others))
    with pytest.raises(ConfigError, match="another training data than"):
        recorded()
    targets.write_text("".join([first, *others]))
    recorded()
    (tmp_path / "exp/bpe.model").write_bytes(b"other")
    with pytest.raises(ConfigError, match="another token list than"):
        recorded()


def test_cost_counts_what_one_route_touches(experiment):
    cost = measure_cost(experiment.exp)
    width, inner = 16, 16
    ffn = 2 * width * inner + width + inner
    # macaron and final FFN of the encoder's block, one of the decoder's
    assert cost.parameters - cost.active == 3 * ffn
    assert 0 < cost.step_seconds < 60


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_a_block_more_costs_its_matrix_products(experiment, tmp_path, stack):
    exp = experiment.copy(tmp_path / "exp")
    conf = yaml.safe_load((exp / "config.yaml").read_text())
    conf[f"{stack}_conf"]["num_blocks"] += 1
    (exp / "config.yaml").write_text(yaml.safe_dump(conf))
    found = measure_cost(exp).flops - measure_cost(experiment.exp).flops
    width, inner, kernel = 16, 16, 3
    spectra = (10 * 16000 - 512) // 256 + 1
    frames = ((spectra - 1) // 2 - 1) // 2  # two convolutions of stride 2
    if stack == "encoder":
        ffn = frames * 2 * width * inner
        distances = 2 * frames - 1
        linear = 4 * frames * width**2 + distances * width**2
        # queries by keys, by distances; scores by values
        attention = frames * (frames + distances + frames) * width
        convolution = frames * (2 * width**2 + kernel * width + width**2)
        products = 2 * ffn + linear + attention + convolution
    else:
        places = 40 + 3  # <sos/eos> and the tokens of two axes come first
        ffn = places * 2 * width * inner
        linear = (4 + 2) * places * width**2 + 2 * frames * width**2
        attention = 2 * places * (places + frames) * width
        products = ffn + linear + attention
    assert found == 2 * products


@pytest.fixture
def finished(experiment, tmp_path):
    """A list of three systems and two seeds that somebody has run by hand.

    The third has a model for each bandwidth, the second of them twice as wide inside.
    """
    drop = {"train": ((2, "st_de"), (5, "asr"))}  # as the experiment was trained
    for name in ("train", "dev", "test"):
        write_dump(tmp_path / "dump/raw" / name, drop=drop.get(name, ()))
    search = tmp_path / "decode.yaml"
    search.write_text("beam_size: 2\n")
    conf = experiment.conf.read_text()
    confs = {name: yaml.safe_load(conf) for name in ("smoe", "dense", *PARTS)}
    for name in ("dense", *PARTS):
        for stack in ("encoder_conf", "decoder_conf"):
            del confs[name][stack]["experts"]
    for name in PARTS:
        confs[name]["guides"]["bandwidth"] = [name]
    confs["wb"]["encoder_conf"]["linear_units"] *= 2
    for name, conf in confs.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(conf))
        dump, stats = tmp_path / "dump/raw", tmp_path / "stats"
        if name in PARTS:
            tag = f"part_{name}_asr-st_de"
            dump, stats = tmp_path / f"dump/{tag}/raw", tmp_path / f"stats_{tag}"
            for part in ("train", "dev", "test"):
                keep_guides(tmp_path / "dump/raw" / part, dump / part, conf["guides"])
        # the times of the copies are now
        shutil.copytree(
            experiment.stats, stats, copy_function=shutil.copyfile, dirs_exist_ok=True
        )
        guides = GuideTable.from_mapping(conf["guides"])
        for seed, end in ((0, ""), (2, "_seed2")):
            exp = experiment.copy(tmp_path / f"exp/smoe_{name}{end}")
            recorded = yaml.safe_load((exp / "config.yaml").read_text())
            changed = [k for k in conf if "coder" in k or k == "guides"]
            recorded.update(seed=seed, **{k: conf[k] for k in changed})
            (exp / "config.yaml").write_text(yaml.safe_dump(recorded))
            targets = make_targets(read_datadir(dump / "train"), guides)
            write_table(exp / "data/train/targets", targets)
            decode(exp / "decode", dump, name, seed)
            write_search(exp / "decode", search)
    models = {n: {"train_config": str(tmp_path / f"{n}.yaml")} for n in confs}
    return write_list(
        tmp_path / "list.yaml",
        seeds=[0, 2],
        systems={
            **{name: models[name] for name in ("smoe", "dense")},
            "parts": [models[name] for name in PARTS],
        },
        run_options={
            "expdir": str(tmp_path / "exp"),
            "dumpdir": str(tmp_path / "dump"),
            "token_listdir": str(experiment.tokens),
            "smoe_stats_dir": str(tmp_path / "stats"),
            "inference_config": str(search),
        },
    )


def decode(folder: Path, dump: Path, name: str, seed: int) -> None:
    """Hypotheses of stage 12 with a wrong word in some utterances, and stage 13."""
    (folder / "test").mkdir(parents=True)
    for task in ("asr", "st_de"):
        lines = []
        for number, utt in enumerate(read_datadir(dump / "test")):
            words = utt.texts[task].split()
            if name in ("dense", "wb") and (number + seed) % 3:
                words[0] = "oops"
            lines.append(f"{utt.id} {' '.join(words)}\n")
        (folder / "test" / f"text.{task}").write_text("".join(lines))
    write_report(folder, score_sets(folder, dump, ["test"]), "x")


def test_finished_runs_are_compared_and_none_is_run(finished, tmp_path, capsys):
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert main(["--list", str(finished), "--jobs", "2"]) == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before
    out = tmp_path / "exp/list"
    assert sorted(p.name for p in out.iterdir()) == [
        *("RESULTS.md", "experiments.json", "experiments.png")
    ]
    text = (out / "RESULTS.md").read_text()
    assert capsys.readouterr().out.strip() == text.strip()
    content = json.loads((out / "experiments.json").read_text())
    rows = {(r["system"], r["task"], r["bandwidth"], r["metric"]): r
            for r in content["rows"]}  # fmt: skip
    smoe, dense = (rows[s, "asr", "nb", "wer"] for s in ("smoe", "dense"))
    assert smoe["values"] == [0, 0]
    assert dense["mean"] == pytest.approx(sum(dense["values"]) / 2)
    assert dense["p"] is None
    assert smoe["p"] < 0.05
    costs = content["costs"]
    assert costs["dense"]["parameters"] == costs["dense"]["active"]
    assert costs["dense"]["active"] == costs["smoe"]["active"]
    assert costs["dense"]["flops"] == costs["smoe"]["flops"]
    assert costs["dense"]["parameters"] < costs["smoe"]["parameters"]
    # of the parts, each utterance meets one model
    assert rows["parts", "asr", "nb", "wer"]["values"] == [0, 0]
    assert rows["parts", "asr", "wb", "wer"]["mean"] > 0
    nb, wb = (measure_cost(tmp_path / f"exp/smoe_{name}") for name in PARTS)
    assert nb.parameters < wb.parameters
    assert costs["parts"]["parameters"] == nb.parameters + wb.parameters
    assert costs["parts"]["active"] == wb.active > nb.active
    assert costs["parts"]["flops"] == wb.flops > nb.flops
    assert len(content["commands"]) == 8
    for command in content["commands"].values():
        words = shlex.split(command)
        assert words[0] == "./run.sh"
        assert words[-2:] == ["--stage=11", "--stop_stage=13"]
        # a value of several words stays one; the interpreter is this machine's own
        assert all(word.startswith("--") for word in words[1:])
        assert not any(word.startswith("--python=") for word in words)
    line = next(ln for ln in text.splitlines() if ln.startswith("| smoe | 0.00"))
    assert line.count("|") == 6  # four cells
    assert "0.00 (0.00, 0.00); -100.0 %, p 0.0" in line
    assert (out / "experiments.png").read_bytes().startswith(b"\x89PNG")


def test_hypotheses_of_another_search_are_made_again(finished, tmp_path):
    def stages() -> set:
        runs = plan(read_list(finished), inference_nj=1)
        return {run.folders.next_stage() for run in runs}

    assert stages() == {None}
    (tmp_path / "decode.yaml").write_text("beam_size: 3\n")
    assert stages() == {12}


def test_a_refused_run_is_named_and_the_old_table_stays(finished, tmp_path, capsys):
    assert main(["--list", str(finished)]) == 0
    table = tmp_path / "exp/list/RESULTS.md"
    before = table.read_bytes()
    path = tmp_path / "exp/smoe_dense_seed2/config.yaml"
    path.write_text(path.read_text().replace("seed: 2", "seed: 3"))
    # has to be decoded again, and cannot be: its model is gone
    shutil.rmtree(tmp_path / "exp/smoe_smoe/decode/test")
    (tmp_path / "exp/smoe_smoe/decode/scores.json").unlink()
    broken = tmp_path / "exp/smoe_smoe/valid.acc.ave.pth"
    broken.resolve().write_bytes(b"no model")
    capsys.readouterr()
    assert main(["--list", str(finished)]) == 1
    error = capsys.readouterr().err
    assert "2 of 8 runs did not end" in error
    assert "smoe_dense_seed2 was trained with another seed" in error
    assert "smoe_smoe failed (log: " in error
    assert table.read_bytes() == before


@pytest.mark.slow
def test_a_list_is_run_from_nothing_and_goes_on(tmp_path):
    small = "--max_epoch 1 --num_iters_per_epoch 3 --batch_bins 200000"
    singles = [f"conf/demo/train_single_{part}.yaml" for part in ("nb_asr", "wb_st_de")]
    path = write_list(
        tmp_path / "list.yaml",
        seeds=[1],
        systems={
            **{n: {**s, "smoe_args": small} for n, s in GOOD["systems"].items()},
            "parts": [{"train_config": p, "smoe_args": small} for p in singles],
        },
        run_options={
            **{f"{p}dir": str(tmp_path / p) for p in ("data", "dump", "exp")},
            "demo_sizes": "24 2 2",
            "nbpe": 100,
        },
    )
    assert main(["--list", str(path), "--jobs", "2"]) == 0
    table = tmp_path / "exp/list/RESULTS.md"
    models = {p: p.stat().st_mtime_ns for p in tmp_path.glob("exp/*/checkpoint.pth")}
    assert len(models) == 4
    rows = json.loads(table.with_name("experiments.json").read_text())["rows"]
    cells = {(r["task"], r["bandwidth"]) for r in rows if r["system"] == "parts"}
    assert cells == {("asr", "nb"), ("st_de", "wb")}
    table.unlink()
    scores = next(tmp_path.glob("exp/*dense*/decode/scores.json"))
    scores.unlink()
    assert main(["--list", str(path)]) == 0
    assert table.is_file()
    assert scores.is_file()
    assert {p: p.stat().st_mtime_ns for p in models} == models  # not trained again
