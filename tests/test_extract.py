"""P7: one route as a plain ESPnet model, bit by bit, without the plugin."""

from __future__ import annotations

import ast
import json
import logging
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from espnet2.bin.s2t_inference import Speech2Text as HostSpeech2Text
from surgery import contents, decide, few_files, save
from tiny_experiment import CONF, Experiment, write_conf

from espnet_smoe import Speech2Text
from espnet_smoe.audio import MODEL_RATE
from espnet_smoe.bin import smoe_extract
from espnet_smoe.compare_route import compare_decoding
from espnet_smoe.counterparts import SurgeryError, expert_key
from espnet_smoe.extract import extract
from espnet_smoe.files import read_table, write_table
from espnet_smoe.guide import GuideError
from espnet_smoe.search import SearchConfig
from espnet_smoe.task import SMoETask
from espnet_smoe.train import read_options

pytest_plugins = ["fixtures_exp"]

ROUTES = {
    "nb_asr": {"bandwidth": "nb", "task": "asr"},
    "wb_st_de": {"bandwidth": "wb", "task": "st_de"},
}
# samples; the frames of the last two end with the last sample, which the host cuts
LENGTHS = (9000, 12345, 512 + 30 * 256, 512 + 40 * 256)

# what a user of ESPnet runs; importing the plugin would be an error
HOST = """
import json, pathlib, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "espnet_smoe":
            raise ImportError("the plugin is not here")

sys.meta_path.insert(0, Refuse())
import numpy as np
import torch
from espnet2.bin import s2t_inference

torch.set_num_threads(1)
root, found = pathlib.Path(sys.argv[1]), {}
for name, lang, task, ctc in (
    ("nb_asr", "<nb>", "<asr>", 0.3), ("wb_st_de", "<wb>", "<st_de>", 0.0)
):
    folder = root / name
    s2t = s2t_inference.Speech2Text(
        folder / "config.yaml", folder / "model.pth", lang_sym=lang, task_sym=task,
        ctc_weight=ctc, beam_size=4, nbest=4,
    )
    found[name] = []
    for i in range(4):
        speech = np.load(root / f"{i}.npy")
        one = torch.from_numpy(speech)[None]
        with torch.no_grad():
            memory, frames = s2t.s2t_model.encode(one, torch.tensor([one.size(1)]))
            prompt = [s2t.converter.token2id[t] for t in ("<sos/eos>", lang, task)]
            ys = torch.tensor([prompt + list(range(8, 20))])
            size = torch.tensor([ys.size(1)])
            scores, _ = s2t.s2t_model.decoder(memory, frames, ys, size)
        np.savez(folder / f"{i}.npz", memory=memory, scores=scores)
        nbest = s2t(np.append(speech, np.float32(0)), predict_time=True)
        found[name].append([(r[3].strip(), r[2], float(r[4].score)) for r in nbest])
s2t_inference.main([
    "--s2t_train_config", str(root / "wb_st_de/config.yaml"),
    "--s2t_model_file", str(root / "wb_st_de/model.pth"),
    "--data_path_and_name_and_type", f"{root}/wav.scp,speech,sound",
    "--output_dir", str(root / "decoded"), "--ctc_weight", "0", "--beam_size", "4",
    "--lang_sym", "<wb>", "--task_sym", "<st_de>", "--predict_time", "true",
])
assert not any(name.startswith("espnet_smoe") for name in sys.modules)
(root / "found.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def eager(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny experiment, made to like special tokens and short texts less."""
    folder = experiment.copy(tmp_path_factory.mktemp("eager") / "exp")
    path = folder / "valid.acc.ave.pth"
    state = torch.load(path, weights_only=True)
    state["decoder.output_layer.bias"][:6] += 3.0
    state["decoder.output_layer.weight"] *= 3.0
    state["ctc.ctc_lo.bias"][1:6] += 1.0
    path.unlink()
    torch.save(state, path)
    return folder


@pytest.fixture(scope="module")
def host(eager: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both routes extracted and run by ESPnet alone, in its own process."""
    root = tmp_path_factory.mktemp("host")
    rng = np.random.default_rng(0)
    lines = []
    for i, length in enumerate(LENGTHS):
        speech = (0.1 * rng.standard_normal(length)).astype(np.float32)
        speech = np.round(speech * 32768).astype(np.int16) / np.float32(32768)
        np.save(root / f"{i}.npy", speech)
        wav = np.append(speech, np.float32(0))
        soundfile.write(root / f"{i}.wav", wav, 16000, subtype="PCM_16")
        lines.append(f"u{i} {root}/{i}.wav\n")
    (root / "wav.scp").write_text("".join(lines))
    for name, route in ROUTES.items():
        extract(eager, route, root / name)
    done = subprocess.run(
        [sys.executable, "-c", HOST, str(root)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return root


@pytest.mark.parametrize("name", ROUTES)
def test_p7_the_host_alone_gives_the_same_bits(host: Path, eager: Path, name: str):
    s2t = Speech2Text.from_pretrained(eager)
    model, route = s2t.model, ROUTES[name]
    token_list = model.token_list
    prompt = [
        token_list.index(t) for t in ("<sos/eos>", *(f"<{g}>" for g in route.values()))
    ]
    ys = torch.tensor([prompt + list(range(8, 20))])
    for i, length in enumerate(LENGTHS):
        speech = torch.from_numpy(np.load(host / f"{i}.npy"))[None]
        ids = {
            "bandwidth": torch.tensor(
                [model.guides.bandwidths.index(route["bandwidth"])]
            )
        }
        with torch.no_grad():
            memory, frames = model.encode(speech, torch.tensor([length]), ids)
            scores, _ = model.decoder(memory, frames, ys, torch.tensor([ys.size(1)]))
        theirs = np.load(host / name / f"{i}.npz")
        np.testing.assert_array_equal(memory.numpy(), theirs["memory"])
        np.testing.assert_array_equal(scores.numpy(), theirs["scores"])


@pytest.mark.parametrize("name", ROUTES)
def test_the_host_alone_finds_the_same_hypotheses(host: Path, eager: Path, name: str):
    config = eager / "config.yaml", eager / "valid.acc.ave.pth"
    s2t = Speech2Text(*config, beam_size=4, nbest=4, ctc_weight=0.3)
    found = json.loads((host / "found.json").read_text())[name]
    route = ROUTES[name]
    lengths = set()
    for i, theirs in enumerate(found):
        ours = s2t(
            np.load(host / f"{i}.npy"),
            fs=16000,
            task=route["task"],
            bandwidth=route["bandwidth"],
        )
        # the host leaves the second of two ends that a search stopped at its limit adds
        theirs_ids = [
            (text, [n for n in ids[2:] if n != s2t.model.eos])
            for text, ids, _ in theirs
        ]
        assert [(r[0], r[2]) for r in ours] == theirs_ids
        np.testing.assert_allclose(
            [float(r[3].score) for r in ours], [s for *_, s in theirs], atol=1e-4
        )
        lengths |= {len(r[2]) for r in ours}
    assert max(lengths) > 3  # something was decoded


def test_the_hosts_command_line_decodes_a_translation(host: Path, eager: Path):
    config = eager / "config.yaml", eager / "valid.acc.ave.pth"
    s2t = Speech2Text(*config, beam_size=4)
    text = (host / "decoded/1best_recog/text_nospecial").read_text().splitlines()
    theirs = dict(f"{line} ".split(" ", 1) for line in text)
    for i in range(len(LENGTHS)):
        speech = np.load(host / f"{i}.npy")
        ours = s2t(speech, fs=16000, task="st_de", bandwidth="wb")
        assert theirs[f"u{i}"].strip() == ours[0][0]


def test_the_size_is_that_of_one_route(host: Path, eager: Path):
    report = json.loads((host / "nb_asr/extract.json").read_text())
    state = torch.load(host / "nb_asr/model.pth", weights_only=True)
    before = torch.load(eager / "valid.acc.ave.pth", weights_only=True)
    assert not any(expert_key(k) for k in state)
    dropped = sum(
        v.numel() for k, v in before.items() if expert_key(k) and expert_key(k).expert
    )
    assert dropped > 0
    assert report["parameters_before"] - report["parameters_after"] == dropped
    assert report["difference_encoder"] == report["difference_decoder"] == 0.0


def test_the_command_compares_speed_on_data(
    experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture
):
    out = tmp_path / "nb"
    command = [
        "--exp_dir", str(experiment.exp), "--bandwidth", "nb", "--task", "asr",
        "--data_dir", str(experiment.dev), "--out_dir", str(out),
    ]  # fmt: skip
    assert smoe_extract.main(command) == 0
    decoded = json.loads((out / "extract.json").read_text())["decoding"]
    assert decoded["utterances"] == decoded["same_text"] == 4
    assert decoded["difference_score"] < 1e-4
    assert min(decoded["seconds_before"], decoded["seconds_after"]) > 0
    assert "4 of 4 hypotheses are the same" in capsys.readouterr().out
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["bpemodel"] == str(out / "bpe.model")


def test_an_axis_that_the_model_does_not_have_is_no_reason_not_to_compare(
    experiment: Experiment, host: Path, eager: Path, tmp_path: Path
):
    data = tmp_path / "dev"
    shutil.copytree(experiment.dev, data)
    ids = read_table(data / "utt2bandwidth")
    write_table(data / "utt2room", dict.fromkeys(ids, "kitchen"))
    plain, found = (
        compare_decoding(
            eager / "valid.acc.ave.pth", host / "nb_asr", ROUTES["nb_asr"], folder
        )
        for folder in (experiment.dev, data)
    )
    for key in ("utterances", "same_text", "difference_score"):
        assert found[key] == plain[key]


def test_what_is_too_short_for_the_host_is_not_compared(
    experiment: Experiment, host: Path, eager: Path, tmp_path: Path
):
    data = tmp_path / "dev"
    shutil.copytree(experiment.dev, data)
    short = next(u for u, b in read_table(data / "utt2bandwidth").items() if b == "nb")
    soundfile.write(tmp_path / "short.wav", np.zeros(500, np.int16), MODEL_RATE)
    for name, value in (
        ("wav.scp", str(tmp_path / "short.wav")), ("utt2num_samples", "500")
    ):  # fmt: skip
        write_table(data / name, {**read_table(data / name), short: value})
    checkpoint, route = eager / "valid.acc.ave.pth", ROUTES["nb_asr"]
    found = compare_decoding(checkpoint, host / "nb_asr", route, data)
    assert found["utterances"] == found["same_text"] == 3


def test_a_comparison_that_fails_leaves_logging_as_it_was(
    experiment: Experiment, eager: Path, host: Path
):
    route = {**ROUTES["nb_asr"], "task": "st_fr"}  # is looked up within the search
    logging.disable(logging.DEBUG)
    try:
        with pytest.raises(KeyError, match="st_fr"):
            compare_decoding(
                eager / "valid.acc.ave.pth", host / "nb_asr", route, experiment.dev
            )
        assert logging.root.manager.disable == logging.DEBUG
    finally:
        logging.disable(logging.NOTSET)


def test_the_call_that_is_printed_searches_as_our_defaults_do(host: Path):
    search = SearchConfig()
    for name, ctc_weight in (("nb_asr", search.ctc_weight), ("wb_st_de", 0.0)):
        usage = json.loads((host / name / "extract.json").read_text())["usage"]
        (model,) = (
            node
            for node in ast.walk(ast.parse(usage))
            if isinstance(node, ast.Call)
            and getattr(node.func, "id", None) == "Speech2Text"
        )
        options = {k.arg: ast.literal_eval(k.value) for k in model.keywords}
        assert options == {
            "lang_sym": f"<{ROUTES[name]['bandwidth']}>",
            "task_sym": f"<{ROUTES[name]['task']}>",
            "ctc_weight": ctc_weight,
            "beam_size": search.beam_size,
        }
        assert usage.endswith("predict_time=True)[0][3])")


def test_nothing_but_an_earlier_result_is_replaced(
    experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture
):
    def run(out: Path, source: Path = experiment.exp, name: str = "2epoch.pth") -> int:
        command = ["--exp_dir", source, "--inference_model", name, "--out_dir", out]
        command += ["--bandwidth", "nb", "--task", "asr"]
        return smoe_extract.main([str(c) for c in command])

    exp = experiment.copy(tmp_path / "exp")
    few = few_files(tmp_path / "few", experiment, "bpe.model")
    shutil.copy(exp / "2epoch.pth", few / "model.pth")
    earlier = few_files(tmp_path / "earlier", experiment, "bpe.model")
    shutil.copy(exp / "2epoch.pth", earlier / "model.pth")
    (earlier / "extract.json").write_text("{}")
    before = contents(tmp_path)
    for out, options, words in [
        (exp, (exp,), f"{exp} would be replaced, but {exp / '2epoch.pth'} is read"),
        (earlier, (earlier, "model.pth"), f"{earlier} would be replaced, but"),
        (exp, (), f"{exp} holds 1epoch.pth, 2epoch.pth, "),
        (few, (), f"{few} has no extract.json"),
        (exp / "config.yaml", (), "config.yaml is no folder"),
    ]:
        assert run(out, *options) == 1
        assert words in capsys.readouterr().err
    assert contents(tmp_path) == before
    assert run(earlier) == 0
    assert json.loads((earlier / "extract.json").read_text())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bandwidth", "swb", "--task", "asr"], "unknown bandwidth 'swb'; known: nb"),
        (["--bandwidth", "nb", "--task", "st_fr"], "unknown task 'st_fr'; known: asr"),
        (
            ["--bandwidth", "nb", "--task", "asr", "--guides", "room=a"],
            "a guide on each",
        ),
        (["--bandwidth", "nb", "--task", "asr", "--guides", "room"], "AXIS=GUIDE"),
    ],
)
def test_a_route_that_does_not_exist_is_refused(
    experiment: Experiment,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    options: list[str],
    message: str,
):
    out = tmp_path / "out"
    command = ["--exp_dir", str(experiment.exp), "--out_dir", str(out), *options]
    assert smoe_extract.main(command) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "stack"),
    [("encoder.after_norm.bias", "encoder"), ("decoder.output_layer.bias", "decoder")],
)
def test_outputs_that_are_no_numbers_prove_nothing(
    eager: Path, tmp_path: Path, name: str, stack: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(eager, broken)
    state = torch.load(eager / "valid.acc.ave.pth", weights_only=True)
    state[name][7] = math.nan
    torch.save(state, broken / "valid.acc.ave.pth")
    with pytest.raises(SurgeryError, match=rf"the {stack} .* differs from ours by nan"):
        extract(broken, ROUTES["nb_asr"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_three_axes_are_the_hosts_prompt_with_its_no_timestamps(
    experiment: Experiment, tmp_path: Path
):
    guides = {"bandwidth": ["nb", "wb"], "channel": ["phone", "mic"], "task": ["asr"]}
    tokens = (experiment.tokens / "tokens.txt").read_text().splitlines()
    tokens[5:8] = ["<phone>", "<mic>", "▁new"]
    folder = tmp_path / "tokens"
    folder.mkdir()
    (folder / "tokens.txt").write_text("\n".join(tokens) + "\n")
    shutil.copy(experiment.tokens / "bpe.model", folder)
    encoder = {**CONF["encoder_conf"], "experts": {"axis": ["bandwidth", "channel"]}}
    conf = write_conf(tmp_path / "conf.yaml", guides=guides, encoder_conf=encoder)
    options = read_options(conf, folder, tmp_path / "exp")
    save(tmp_path / "exp", decide(SMoETask.build_model(options), 3), vars(options))
    shutil.copy(folder / "bpe.model", tmp_path / "exp")
    route = {"bandwidth": "wb", "channel": "phone", "task": "asr"}
    extract(tmp_path / "exp", route, tmp_path / "out")
    files = str(tmp_path / "out/config.yaml"), str(tmp_path / "out/model.pth")
    host = HostSpeech2Text(
        *files, lang_sym="<wb>", task_sym="<phone>", ctc_weight=0.3, beam_size=5
    )
    ours = Speech2Text.from_pretrained(tmp_path / "exp")
    speech = np.random.default_rng(2).uniform(-0.2, 0.2, 9000).astype(np.float32)
    (wanted,) = ours(speech, 16000, "asr", "wb", guides={"channel": "phone"})
    theirs = host(np.append(speech, np.float32(0)))[0]
    assert theirs[4].yseq.tolist() == wanted[3].yseq.tolist()
    assert theirs[4].yseq[1:4].tolist() == [3, 5, 4]
    assert float(theirs[4].score) == pytest.approx(float(wanted[3].score), abs=1e-4)


def test_special_tokens_must_be_a_range_that_the_host_can_ban(
    experiment: Experiment, tmp_path: Path
):
    folder = experiment.copy(tmp_path / "exp")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    tokens = config["token_list"]
    tokens[3], tokens[20] = tokens[20], tokens[3]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SurgeryError, match=r"ids \[0, 1, 2, 4, 5, 20\]"):
        extract(folder, ROUTES["nb_asr"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(GuideError, match="known: nb, wb"):
        extract(experiment.exp, {"bandwidth": "x", "task": "asr"}, tmp_path / "out")
