"""Stage 12: a dumped data directory -> hypotheses of every task."""

from __future__ import annotations

from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile
import torch
from tiny_experiment import write_dump

from espnet_smoe import Speech2Text
from espnet_smoe.audio import to_model_rate
from espnet_smoe.bin import smoe_inference
from espnet_smoe.datadir import Utterance, read_datadir, write_datadir
from espnet_smoe.decode import searched_with
from espnet_smoe.dump import load_dumped

pytest_plugins = ["fixtures_exp"]

OF_TASKS = sorted(
    f"{kind}.{task}" for kind in ("text", "token", "score") for task in ("asr", "st_de")
)
NAMES = sorted([*OF_TASKS, "search.yaml", "utt2bandwidth"])


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("conf") / "decode.yaml"
    path.write_text("{beam_size: 2, maxlenratio: -5, minlenratio: -2, batch_size: 3}\n")
    return path


def command(experiment, config: Path, out: Path, *extra: str) -> list[str]:
    return [
        "--exp_dir", str(experiment.exp), "--data_dir", str(experiment.train),
        "--output_dir", str(out), "--config", str(config), *extra,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def decoded(
    experiment, config: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    out = tmp_path_factory.mktemp("decoded") / "out"
    assert smoe_inference.main(command(experiment, config, out)) == 0
    return contents(out)


def contents(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text("utf-8") for p in sorted(folder.iterdir())}


def ids(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines()]


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert smoe_inference.main(arguments) == 1
    lines = capsys.readouterr().err.splitlines()
    (line,) = [ln for ln in lines if ln.startswith("smoe_inference: ")]
    return line


def test_a_file_per_task_sorted_by_id(decoded) -> None:
    assert list(decoded) == NAMES
    for name in NAMES:
        if name != "search.yaml":
            assert ids(decoded[name]) == sorted(ids(decoded[name]))


def test_utterance_is_decoded_in_the_tasks_it_has_references_of(decoded) -> None:
    every = [f"u{i}" for i in range(8)]
    assert ids(decoded["text.asr"]) == [u for u in every if u != "u5"]
    assert ids(decoded["text.st_de"]) == [u for u in every if u != "u2"]


def test_token_and_score_belong_to_the_text(decoded) -> None:
    for task in ("asr", "st_de"):
        for text, token, score in zip(
            *(decoded[f"{k}.{task}"].splitlines() for k in ("text", "token", "score")),
            strict=True,
        ):
            (name, *words), (other, *pieces) = text.split(), token.split()
            assert name == other == score.split()[0]
            assert "".join(pieces).replace("▁", " ").split() == words
            assert float(score.split()[1]) < 0.0


def test_number_of_processes_changes_nothing(
    experiment, config: Path, decoded, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert smoe_inference.main(command(experiment, config, out, "--nj", "2")) == 0
    assert contents(out) == decoded


def test_batch_size_changes_nothing(experiment, decoded, tmp_path: Path) -> None:
    conf = tmp_path / "decode.yaml"
    conf.write_text("{beam_size: 2, maxlenratio: -5, minlenratio: -2, batch_size: 1}\n")
    out = tmp_path / "out"
    assert smoe_inference.main(command(experiment, conf, out)) == 0
    found = contents(out)
    for name in NAMES:
        if name.startswith("score"):
            one, other = (
                [float(ln.split()[1]) for ln in text.splitlines()]
                for text in (found[name], decoded[name])
            )
            assert one == pytest.approx(other, abs=1e-4)
        else:
            assert found[name] == decoded[name]


def test_a_decoding_tells_the_search_it_was_made_with(
    experiment, config: Path, tmp_path: Path
) -> None:
    out, conf = tmp_path / "out", tmp_path / "decode.yaml"
    assert not searched_with(out, config)
    assert smoe_inference.main(command(experiment, config, out)) == 0
    assert searched_with(out, config)
    conf.write_text(config.read_text().replace("batch_size: 3", "batch_size: 1"))
    assert searched_with(out, conf)  # the same hypotheses
    conf.write_text(config.read_text().replace("beam_size: 2", "beam_size: 3"))
    assert not searched_with(out, conf)
    conf.write_text(config.read_text() + "# the default, in words\n")
    assert searched_with(out, conf)


def test_asked_tasks_are_decoded_for_every_utterance(
    experiment, config: Path, decoded, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert (
        smoe_inference.main(command(experiment, config, out, "--tasks", "st_de")) == 0
    )
    found = contents(out)
    assert list(found) == [n for n in NAMES if not n.endswith("asr")]
    assert ids(found["text.st_de"]) == [f"u{i}" for i in range(8)]
    assert set(decoded["text.st_de"].splitlines()) < set(
        found["text.st_de"].splitlines()
    )


def test_an_abbreviated_option_is_wrong_usage(
    experiment, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        smoe_inference.main(
            command(experiment, config, tmp_path / "out", "--task", "st_de")
        )
    assert "unrecognized arguments: --task st_de" in capsys.readouterr().err


@pytest.mark.parametrize("guide", ["nb", "wb"])
def test_a_forced_guide_is_that_guide_for_every_utterance(
    experiment, config: Path, decoded, tmp_path: Path, guide: str
) -> None:
    labels = {u.id: u.guides["bandwidth"] for u in read_datadir(experiment.train)}
    assert decoded["utt2bandwidth"] == "".join(f"{i} {b}\n" for i, b in labels.items())
    out = tmp_path / "out"
    forced = command(experiment, config, out, "--force_bandwidth", guide)
    assert smoe_inference.main(forced) == 0
    found = contents(out)
    assert found["utt2bandwidth"] == "".join(f"{i} {guide}\n" for i in labels)
    same = {i for i, b in labels.items() if b == guide}
    assert 0 < len(same) < len(labels)
    for task in ("asr", "st_de"):
        lines = zip(
            found[f"score.{task}"].splitlines(),
            decoded[f"score.{task}"].splitlines(),
            strict=True,
        )
        for one, other in lines:
            equal = float(one.split()[1]) == pytest.approx(float(other.split()[1]))
            assert equal == (one.split()[0] in same)


def test_an_unknown_forced_guide_is_refused(
    experiment, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(
        experiment, config, tmp_path / "out", "--force_bandwidth", "swb"
    )
    assert "unknown bandwidth 'swb'; known: nb, wb" in refusal(arguments, capsys)


def test_dump_gives_what_the_api_gives_on_the_recording(
    experiment, config: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(3)
    s2t = Speech2Text.from_pretrained(experiment.exp, inference_config=config)
    utterances, expected, dumped = [], {}, {}
    for rate, guide in ((8000, "nb"), (16000, "wb"), (44100, "wb")):
        path, name = tmp_path / f"{rate}.wav", f"r{rate:05}"
        samples = rng.uniform(-0.4, 0.4, round(0.7 * rate))
        soundfile.write(path, samples, rate, subtype="PCM_16")
        at_model_rate = to_model_rate(soundfile.read(path, dtype="float32")[0], rate)
        dumped[name] = np.rint(at_model_rate * 32768).astype(np.int16)
        utterances.append((name, rate, guide))
        expected[name] = s2t(path, task=["asr", "st_de"])
    ark, scp = tmp_path / "data_wav.ark", tmp_path / "scp"
    kaldiio.save_ark(str(ark), {n: (16000, a) for n, a in dumped.items()}, scp=str(scp))
    places = dict(line.split() for line in scp.read_text().splitlines())
    write_datadir(
        tmp_path / "data",
        [
            Utterance(
                id=name,
                audio=places[name],
                speaker="s",
                fs=rate,
                num_samples=len(dumped[name]),
                guides={"bandwidth": guide},
                texts={"asr": "a", "st_de": "b"},
            )
            for name, rate, guide in utterances
        ],
    )
    for utt in read_datadir(tmp_path / "data"):
        raw = soundfile.read(tmp_path / f"{utt.fs}.wav", dtype="float32")[0]
        assert np.array_equal(load_dumped(utt), to_model_rate(raw, utt.fs))
    out = tmp_path / "out"
    arguments = command(experiment, config, out)
    arguments[arguments.index("--data_dir") + 1] = str(tmp_path / "data")
    assert smoe_inference.main(arguments) == 0
    for task in ("asr", "st_de"):
        found = dict(
            line.partition(" ")[::2]
            for line in (out / f"text.{task}").read_text("utf-8").splitlines()
        )
        assert found == {n: r[task][0][0] for n, r in expected.items()}
        for line in (out / f"score.{task}").read_text().splitlines():
            name, score = line.split()
            best = float(expected[name][task][0][3].score)
            assert float(score) == pytest.approx(best, abs=1e-4)


def test_empty_hypothesis_is_the_id_alone(experiment, tmp_path: Path) -> None:
    exp = experiment.copy(tmp_path / "exp")
    state = torch.load(exp / "1epoch.pth", weights_only=True)
    state["decoder.output_layer.bias"][-1] += 100.0  # <eos> first, whatever is heard
    torch.save(state, exp / "eager.pth")
    conf = tmp_path / "decode.yaml"
    conf.write_text("{beam_size: 1, ctc_weight: 0.0}\n")
    out = tmp_path / "out"
    arguments = command(experiment, conf, out, "--inference_model", "eager.pth")
    arguments[arguments.index("--exp_dir") + 1] = str(exp)
    assert smoe_inference.main(arguments) == 0
    for task, missing in (("asr", "u5"), ("st_de", "u2")):
        names = [f"u{i}" for i in range(8) if f"u{i}" != missing]
        assert (out / f"text.{task}").read_text().splitlines() == names
        assert (out / f"token.{task}").read_text().splitlines() == names


def test_rerun_replaces_the_folder_as_a_whole(
    experiment, config: Path, decoded, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "text.st_fr").write_text("u0 vieux\n")
    assert smoe_inference.main(command(experiment, config, out)) == 0
    assert contents(out) == decoded
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("--exp_dir", "none", "run stage 11 first"),
        ("--data_dir", "none", "run stages 3 and 4 first"),
        ("--config", "none.yaml", "decoding config none.yaml is missing"),
        ("--inference_model", "9epoch.pth", "9epoch.pth is missing; stage 11 makes it"),
        ("--tasks", "st_fr", "unknown task 'st_fr'; known: asr, st_de"),
    ],
)
def test_missing_or_unknown_input_is_refused_in_one_line(
    experiment,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: str,
    value: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    arguments = [*command(experiment, config, out), option, value]
    assert message in refusal(arguments, capsys)
    assert not out.exists()


def test_bad_decoding_key_is_refused_in_one_line(
    experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conf = tmp_path / "decode.yaml"
    conf.write_text("beam: 3\n")
    line = refusal(command(experiment, conf, tmp_path / "out"), capsys)
    assert "unknown keys ['beam'] in the decoding config; known: ['batch_size'" in line


def test_broken_audio_is_refused_by_name_and_leaves_the_old_result(
    experiment,
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "data"
    write_dump(data)
    path = data / "utt2num_samples"
    path.write_text(path.read_text().replace("u3 ", "u3 1"))
    out = tmp_path / "out"
    out.mkdir()
    (out / "text.asr").write_text("old\n")
    arguments = command(experiment, config, out)
    arguments[arguments.index("--data_dir") + 1] = str(data)
    assert "u3: expected" in refusal(arguments, capsys)
    assert contents(out) == {"text.asr": "old\n"}


def test_set_without_references_of_the_models_tasks_is_refused(
    experiment, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    write_dump(data)
    (data / "text.asr").unlink()
    (data / "text.st_de").rename(data / "text.st_fr")
    arguments = command(experiment, config, tmp_path / "out")
    arguments[arguments.index("--data_dir") + 1] = str(data)
    assert "has no reference of the tasks" in refusal(arguments, capsys)
