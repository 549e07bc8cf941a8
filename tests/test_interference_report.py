"""``smoe_interference``: dumped set and model -> JSON, table and plot."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from espnet_smoe.bin import smoe_add_task, smoe_interference
from espnet_smoe.datadir import Utterance
from espnet_smoe.interference import Row
from espnet_smoe.interference_data import Card, alike, deal
from espnet_smoe.interference_report import ranking
from espnet_smoe.report import commit

pytest_plugins = ["fixtures_exp"]

FILES = ["interference.json", "interference.md", "interference.png"]


def command(exp: Path, data: Path, out: Path, *extra: str) -> list[str]:
    return [
        "--exp_dir", str(exp), "--data_dir", str(data), "--out_dir", str(out),
        "--inference_model", "model.pth", *extra,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def dense(experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny experiment's model with the first expert of each bank alone."""
    exp = tmp_path_factory.mktemp("dense")
    config = yaml.safe_load((experiment.exp / "config.yaml").read_text())
    for stack in ("encoder", "decoder"):
        del config[f"{stack}_conf"]["experts"]
    (exp / "config.yaml").write_text(yaml.safe_dump(config))
    shutil.copy(experiment.exp / "bpe.model", exp)
    state = torch.load(experiment.exp / "2epoch.pth")
    shared = {k: v for k, v in state.items() if ".experts.1." not in k}
    torch.save(shared, exp / "model.pth")
    return exp


@pytest.fixture(scope="module")
def result(experiment, dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("result") / "out"
    arguments = command(dense, experiment.train, out, "--batch_size", "4")
    assert smoe_interference.main(arguments) == 0
    return out


def load(out: Path) -> dict:
    return json.loads((out / "interference.json").read_text("utf-8"))


def test_a_run_writes_table_json_and_plot_with_how_they_were_made(
    experiment, dense, result
):
    assert sorted(p.name for p in result.iterdir()) == FILES
    assert (result / "interference.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    made = load(result)
    wanted = " ".join(command(dense, experiment.train, result, "--batch_size", "4"))
    assert made["command"].endswith(f"espnet_smoe.bin.smoe_interference {wanted}")
    assert (made["utterances"], made["batches"], made["seed"]) == (8, 2, 0)
    assert made["commit"] == commit()
    assert made["skipped"] == []
    assert {(r["axis"], r["a"], r["b"]) for r in made["rows"]} == {
        ("task", "asr", "st_de"),
        ("bandwidth", "nb", "wb"),
    }
    text = (result / "interference.md").read_text("utf-8")
    blocks = [f"encoder.0.{p}" for p in ("macaron", "attention", "convolution")]
    for place in (*blocks, "encoder.0.final", "encoder.ffn", "decoder.0.ffn"):
        assert text.count(f"| {place} |") == 2
    for name in ("command", "commit", "seed", "model", "data"):
        assert f"- {name}: " in text
    row = next(r for r in made["rows"] if r["place"] == "encoder.0.final")
    assert f"| {row['mean']:.3f} ± {row['error']:.3f} | {row['total']:.3f} |" in text


def test_sums_depend_on_neither_batch_size_nor_seed_where_nothing_is_drawn(
    experiment, dense, result, tmp_path
):
    out = tmp_path / "out"
    extra = ("--batch_size", "3", "--seed", "5")
    assert smoe_interference.main(command(dense, experiment.train, out, *extra)) == 0
    assert load(out)["batches"] == 3
    for row, other in zip(load(result)["rows"], load(out)["rows"], strict=True):
        if not row["control"]:  # the halves are drawn
            assert other["total"] == pytest.approx(row["total"], abs=1e-4)


def test_an_s_moe_model_names_what_its_experts_keep_apart(experiment, tmp_path):
    out = tmp_path / "out"
    arguments = command(experiment.exp, experiment.train, out, "--num_batches", "1")
    arguments[7] = "2epoch.pth"
    assert smoe_interference.main(arguments) == 0
    made = load(out)
    assert {(s["place"], s["a"], s["b"]) for s in made["skipped"]} == {
        *((f"encoder.{p}", "nb", "wb") for p in ("0.macaron", "0.final", "ffn")),
        *((f"decoder.{p}", "asr", "st_de") for p in ("0.ffn", "ffn")),
    }
    text = (out / "interference.md").read_text("utf-8")
    assert "- bandwidth, nb and wb at encoder.0.final: guided by bandwidth" in text


def test_what_training_freezes_has_gradients_here(experiment, tmp_path):
    added = tmp_path / "added"
    like = ["--exp_dir", str(experiment.exp), "--task", "st_es", "--like", "st_de"]
    assert smoe_add_task.main([*like, "--out_dir", str(added)]) == 0
    arguments = command(added, experiment.train, tmp_path / "out", "--num_batches", "1")
    arguments[7] = "valid.acc.ave.pth"
    assert smoe_interference.main(arguments) == 0
    made = load(tmp_path / "out")
    assert "encoder.0.attention" in {r["place"] for r in made["rows"]}
    lacking = {(s["a"], s["b"]) for s in made["skipped"] if s["place"] is None}
    assert lacking == {("asr", "st_es"), ("st_de", "st_es")}


def test_refused_input_leaves_no_folder_and_touches_no_other(
    experiment, dense, tmp_path, capsys
):
    def refusal(*arguments: str) -> str:
        capsys.readouterr()
        assert smoe_interference.main(arguments) == 1
        return capsys.readouterr().err

    out = tmp_path / "out"
    assert "num_batches must be at least 1, got 0" in refusal(
        *command(dense, experiment.train, out, "--num_batches", "0")
    )
    assert "missing; run stages 3 and 4" in refusal(
        *command(dense, tmp_path / "no", out)
    )
    one = tmp_path / "one"  # one bandwidth and one task
    shutil.copytree(experiment.train, one)
    (one / "text.st_de").unlink()
    bandwidths = (one / "utt2bandwidth").read_text().splitlines()
    dropped = {line.split()[0] for line in bandwidths if line.endswith("nb")} | {"u5"}
    for file in one.iterdir():
        if file.name not in ("data_wav.ark", "spk2utt"):
            kept = [
                line
                for line in file.read_text().splitlines(keepends=True)
                if line.split()[0] not in dropped
            ]
            file.write_text("".join(kept))
    said = refusal(*command(dense, one, out))
    assert "nothing to compare" in said
    assert "no utterance of st_de" in said
    assert "no utterance of nb" in said
    assert list(out.parent.glob("*out*")) == []

    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "model.pth").write_text("weights")
    said = refusal(*command(dense, experiment.train, theirs))
    assert f"{theirs} holds model.pth" in said
    assert (theirs / "model.pth").read_text() == "weights"


# ---- dealing ---------------------------------------------------------------------


def utterances(number: int = 41) -> list[Utterance]:
    tasks = itertools.cycle([("asr", "st_de"), ("asr",), ("st_de", "asr")])
    return [
        Utterance(
            id=f"u{n}",
            audio="a",
            speaker="s",
            fs=8000,
            num_samples=1,
            guides={"bandwidth": "nb" if n % 3 else "wb"},
            texts=dict.fromkeys(of, "x"),
        )
        for n, of in zip(range(number), tasks, strict=False)
    ]


@pytest.mark.parametrize("batch_size", [1, 2, 7, 41, 100])
def test_every_utterance_is_dealt_once_and_batches_are_alike(batch_size):
    all_of_them = utterances()
    batches = deal(all_of_them, batch_size, 3)
    assert len(batches) == -(-len(all_of_them) // batch_size)
    seen = [utt.id for batch in batches for _, utt in batch]
    assert sorted(seen) == sorted(u.id for u in all_of_them)
    assert max(map(len, batches)) <= batch_size
    assert max(map(len, batches)) - min(map(len, batches)) <= 1
    for cuts in ([], [0.5], [0.2, 0.7]):
        counts = [Counter() for _ in batches]
        for count, batch in zip(counts, batches, strict=True):
            groups = alike(batch, cuts)
            assert sorted(c for g in groups for c in ids(g)) == sorted(ids(batch))
            for group in groups:
                parts = {(kind(u), sum(rank >= c for c in cuts)) for rank, u in group}
                assert len(parts) == 1
                count[parts.pop()] += len(group)
        for key in set().union(*counts):
            numbers = [count[key] for count in counts]
            assert max(numbers) - min(numbers) <= 1
        # as few groups as there are parts in a batch: each costs a backward pass
        assert all(
            len(alike(batch, cuts)) == len(count)
            for batch, count in zip(batches, counts, strict=True)
        )


def ids(cards: list[Card]) -> list[str]:
    return [utt.id for _, utt in cards]


def kind(utt: Utterance) -> tuple:
    return utt.guides["bandwidth"], tuple(sorted(utt.texts))


def test_ranks_are_even_follow_the_seed_and_not_the_batch_size():
    def ranks(batch_size: int, seed: int) -> dict[str, float]:
        batches = deal(utterances(), batch_size, seed)
        return {utt.id: rank for batch in batches for rank, utt in batch}

    assert ranks(4, 1) == ranks(41, 1)
    assert ranks(4, 1) != ranks(4, 2)
    kinds: dict[tuple, list[float]] = {}
    for utt in utterances():
        kinds.setdefault(kind(utt), []).append(ranks(4, 1)[utt.id])
    for found in kinds.values():
        for cut in (0.2, 0.5, 0.7):
            below = sum(rank < cut for rank in found)
            assert abs(below - cut * len(found)) <= 0.5


# ---- ranking ---------------------------------------------------------------------

ROW = Row(
    axis="bandwidth", a="nb", b="wb", loss="attention", control=False, matched=True,
    place="encoder.0.final", stack="encoder", block=0, part="final", mean=0.5,
    error=0.1, batches=4, total=0.6,
)  # fmt: skip


def test_ffns_are_ranked_by_what_lies_below_the_control_with_ctc_where_it_reaches():
    def ffn(block: int, mean: float, control: float, loss: str) -> list[Row]:
        row = replace(ROW, place=f"encoder.{block}.final", block=block, loss=loss)
        return [replace(row, mean=mean), replace(row, control=True, mean=control)]

    rows = [
        *ffn(0, 0.9, 0.9, "attention"), *ffn(0, 0.2, 0.9, "attention+ctc"),
        *ffn(1, 0.1, 0.9, "attention"), *ffn(1, 0.6, 0.7, "attention+ctc"),
        replace(ROW, place="encoder.0.attention", part="attention", mean=-1.0),
        replace(ROW, place="encoder.ffn", block=None, mean=-1.0),
        replace(ROW, stack="decoder", place="decoder.0.ffn", part="ffn", mean=0.6),
        replace(ROW, stack="decoder", place="decoder.1.ffn", part="ffn", mean=None),
    ]  # fmt: skip
    got = [(row.place, row.loss, round(gap, 9)) for row, gap in ranking(rows)]
    assert got == [
        ("encoder.0.final", "attention+ctc", 0.7),
        ("decoder.0.ffn", "attention", 0.4),
        ("encoder.1.final", "attention+ctc", 0.1),
    ]
