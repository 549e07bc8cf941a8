"""Audio -> text in every task of a model."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from espnet_smoe import Speech2Text
from espnet_smoe.audio import AudioError, to_model_rate
from espnet_smoe.bin import smoe_pack
from espnet_smoe.config import ConfigError
from espnet_smoe.guide import GuideError
from espnet_smoe.search import SearchConfig
from espnet_smoe.task import SMoETask

pytest_plugins = ["fixtures_exp"]

# a model after six updates would end at once or never
SEARCH = {
    "beam_size": 3,
    "nbest": 2,
    "batch_size": 4,
    "maxlenratio": -6,
    "minlenratio": -3,
}


def noise(seconds: float, rate: int, seed: int = 0, channels: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    samples = rng.uniform(-0.5, 0.5, (round(seconds * rate), channels))
    return samples.squeeze(1).astype(np.float32) if channels == 1 else samples


def write(path: Path, samples: np.ndarray, rate: int) -> Path:
    soundfile.write(path, samples, rate, subtype="PCM_16")
    return path


@pytest.fixture(scope="module")
def s2t(experiment) -> Speech2Text:
    files = (experiment.exp / "config.yaml", experiment.exp / "valid.acc.ave.pth")
    return Speech2Text(*files, **SEARCH)


def plain(result: list | dict) -> object:
    """A result without tensors; scores to a millionth."""
    if isinstance(result, dict):
        return {task: plain(nbest) for task, nbest in result.items()}
    return [(text, tokens, ids) for text, tokens, ids, _ in result]


def scores(result: list | dict) -> list[float]:
    nbests = result.values() if isinstance(result, dict) else [result]
    return [float(hyp.score) for nbest in nbests for *_, hyp in nbest]


def assert_same(one: list | dict, other: list | dict) -> None:
    assert plain(one) == plain(other)
    assert scores(one) == pytest.approx(scores(other), abs=1e-4)


def test_import_is_lazy() -> None:
    code = (
        "import sys, espnet_smoe\n"
        "assert 'Speech2Text' in dir(espnet_smoe) or espnet_smoe.__all__\n"
        "loaded = {'torch', 'espnet2', 'librosa', 'numpy'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_model_says_what_it_can_do(s2t) -> None:
    assert s2t.tasks == ("asr", "st_de")
    assert s2t.bandwidths == ("nb", "wb")


def test_result_is_text_tokens_ids_and_hypothesis_best_first(s2t) -> None:
    nbest = s2t(noise(0.8, 16000), fs=16000)
    assert 1 <= len(nbest) <= SEARCH["nbest"]
    assert sorted(scores(nbest), reverse=True) == scores(nbest)
    for text, tokens, ids, hyp in nbest:
        assert isinstance(text, str)
        assert [s2t.model.token_list[i] for i in ids] == tokens
        assert text.split() == "".join(tokens).replace("▁", " ").split()
        assert hyp.yseq.tolist()[3:-1] == ids
        prompt = [s2t.model.token_list[i] for i in hyp.yseq.tolist()[:3]]
        assert prompt == ["<sos/eos>", "<wb>", "<asr>"]


def test_special_tokens_are_never_emitted(s2t) -> None:
    special = ["<blank>", "<unk>", "<nb>", "<wb>", "<asr>", "<st_de>"]
    bias = s2t.model.decoder.output_layer.bias
    before = bias.detach().clone()
    try:
        with torch.no_grad():  # a decoder that wants nothing else
            bias[[s2t.model.token_list.index(t) for t in special]] += 50.0
        result = s2t(noise(0.9, 8000), fs=8000, task=["asr", "st_de"])
    finally:
        bias.data.copy_(before)
    for nbest in result.values():
        for _, tokens, _, hyp in nbest:
            assert tokens
            assert not {*special, "<sos/eos>"} & set(tokens)
            assert np.isfinite(float(hyp.score))


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 48000])
def test_path_and_array_give_the_same(s2t, tmp_path: Path, rate: int) -> None:
    path = write(tmp_path / "a.wav", noise(0.7, rate), rate)
    samples, _ = soundfile.read(path, dtype="float32")
    as_int, _ = soundfile.read(path, dtype="int16")
    expected = s2t(path, task=["asr", "st_de"])
    for speech in (samples, as_int, torch.from_numpy(samples), samples.astype(float)):
        result = s2t(speech, fs=rate, task=["asr", "st_de"])
        assert plain(result) == plain(expected)
        assert scores(result) == scores(expected)
    assert scores(s2t(str(path), fs=rate, task=["asr", "st_de"])) == scores(expected)


@pytest.mark.parametrize(
    "rate, guide", [(8000, "<nb>"), (16000, "<wb>"), (44100, "<wb>")]
)
def test_rate_picks_the_bandwidth(s2t, rate: int, guide: str) -> None:
    nbest = s2t(noise(0.7, rate), fs=rate)
    assert s2t.model.token_list[int(nbest[0][3].yseq[1])] == guide


def test_bandwidth_can_be_said(s2t) -> None:
    audio = noise(0.7, 16000)
    nb, wb = (s2t(audio, fs=16000, bandwidth=b) for b in ("nb", "wb"))
    assert s2t.model.token_list[int(nb[0][3].yseq[1])] == "<nb>"
    assert scores(nb) != scores(wb)
    assert scores(wb) == scores(s2t(audio, fs=16000))
    assert s2t(noise(0.7, 11025), fs=11025, bandwidth="nb")


def bursts(rate: int, top: float) -> np.ndarray:
    """2 s of noise up to ``top`` Hz that comes and goes four times a second."""
    length = 2 * rate
    spectrum = np.fft.rfft(np.random.default_rng(3).standard_normal(length))
    spectrum[np.fft.rfftfreq(length, 1 / rate) > top] = 0
    loudness = np.sin(2 * np.pi * 2 * np.arange(length) / rate) ** 4
    samples = np.fft.irfft(spectrum, length) * loudness
    return np.rint(samples / np.abs(samples).max() * 20000) / np.float32(32768)


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize("top, guide", [(3400.0, "<nb>"), (7800.0, "<wb>")])
def test_auto_bandwidth_is_that_of_the_speech_and_not_of_the_rate(
    s2t, rate: int, top: float, guide: str
) -> None:
    nbest = s2t(bursts(rate, top), fs=rate, bandwidth="auto")
    assert s2t.model.token_list[int(nbest[0][3].yseq[1])] == guide


def test_auto_bandwidth_of_silence_is_the_rates_with_a_warning(
    s2t, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "still.wav", np.zeros(16000), 16000)
    nbest = s2t(path, bandwidth="auto")
    assert s2t.model.token_list[int(nbest[0][3].yseq[1])] == "<wb>"
    assert f"{path}: bandwidth unknown (no speech: silence)" in caplog.text
    assert f"{path}: silent: all samples are 0" in caplog.text
    with pytest.raises(AudioError, match="say the bandwidth"):
        s2t(np.zeros(11025, np.float32), fs=11025, bandwidth="auto")


def test_faults_of_a_recording_are_logged_with_its_name(
    s2t, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loud = np.clip(3 * bursts(16000, 1000.0), -0.99, 0.99)
    path = write(tmp_path / "loud.wav", loud, 16000)
    s2t(path)
    assert f"{path}: clipped: " in caplog.text
    caplog.clear()
    s2t(write(tmp_path / "fine.wav", bursts(16000, 1000.0), 16000))
    assert "clipped" not in caplog.text


def test_stereo_file_needs_a_channel(s2t, tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", noise(0.7, 44100, channels=2), 44100)
    with pytest.raises(AudioError, match="has 2 channels: say which"):
        s2t(path)
    left, right = (s2t(path, channel=c) for c in (0, 1))
    assert scores(left) != scores(right)
    column = soundfile.read(path, dtype="float32")[0][:, 1]
    assert scores(s2t(column, fs=44100)) == scores(right)


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "an array of samples needs its rate"),
        ({"fs": 7999}, "under the lowest, 8000 Hz"),
        ({"fs": 11025}, "say the bandwidth"),
        ({"fs": 16000, "task": "st_fr"}, "unknown task 'st_fr'; known: asr, st_de"),
        ({"fs": 16000, "task": ["asr", "sum"]}, "unknown task 'sum'; known: asr, st_"),
        (
            {"fs": 16000, "task": ["asr", "asr"]},
            "task must be a task or",
        ),
        ({"fs": 16000, "task": []}, "task must be a task or"),
        ({"fs": 16000, "bandwidth": "swb"}, "unknown bandwidth 'swb'; known: nb, wb"),
        ({"fs": 16000, "task": None}, "task must be a task or"),
        ({"fs": "16000"}, "fs must be a whole number of Hz, got '16000'"),
        ({"fs": 16000, "bandwidth": ""}, "unknown bandwidth ''; known: nb, wb"),
        ({"fs": 16000, "guides": {"bandwidth": "wb"}}, "bandwidth=, not among guides="),
        ({"fs": 16000, "guides": {"room": "a"}}, "unknown axis 'room'; known: bandw"),
    ],
)
def test_wrong_question_is_refused_and_known_answers_are_listed(
    s2t, options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        s2t(noise(0.5, 16000), **options)


@pytest.mark.parametrize(
    "speech, message",
    [
        (np.zeros(0, np.float32), "zero samples"),
        (np.array([0.0, np.nan] * 4000), "sample 1 is nan"),
        (np.array([0.0, -np.inf] * 4000), "sample 1 is -inf"),
        (np.zeros((8000, 2), np.float32), r"shape \(S,\), got \(8000, 2\)"),
        (np.zeros(8000, np.int32), "float in .* or int16, got int32"),
        (np.full(8000, 32767.0), "float samples must lie in .*, got 32767"),
        ("none.wav", "none.wav: audio file is missing"),
    ],
)
def test_unusable_audio_is_refused(s2t, speech: object, message: str) -> None:
    fs = None if isinstance(speech, str) else 16000
    with pytest.raises(AudioError, match=message):
        s2t(speech, fs=fs)


def test_rate_that_contradicts_the_file_is_refused(s2t, tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", noise(0.5, 16000), 16000)
    with pytest.raises(AudioError, match="has 16000 Hz, not fs=8000"):
        s2t(path, fs=8000)


@pytest.mark.parametrize("rate", [8000, 16000])
def test_very_short_and_silent_audio_decode(s2t, rate: int) -> None:
    for audio in (noise(0.02, rate), np.zeros(rate // 2, np.float32)):
        result = s2t(audio, fs=rate, task=["asr", "st_de"])
        assert all(np.isfinite(scores(result)))
        assert all(isinstance(nbest[0][0], str) for nbest in result.values())
    assert s2t(noise(1 / rate, rate), fs=rate)


def test_P4_several_tasks_share_one_encoding(s2t) -> None:
    calls = []
    hook = s2t.model.encoder.register_forward_hook(lambda *_: calls.append(1))
    try:
        both = s2t(noise(0.8, 16000), fs=16000, task=["st_de", "asr"])
    finally:
        hook.remove()
    assert len(calls) == 1
    assert list(both) == ["st_de", "asr"]
    for task, nbest in both.items():
        assert_same(s2t(noise(0.8, 16000), fs=16000, task=task), nbest)


def test_tasks_differ(s2t) -> None:
    both = s2t(noise(0.8, 16000), fs=16000, task=["asr", "st_de"])
    prompts = [s2t.model.token_list[int(n[0][3].yseq[2])] for n in both.values()]
    assert prompts == ["<asr>", "<st_de>"]
    assert scores(both["asr"]) != scores(both["st_de"])


def test_P3_batch_equals_one_by_one(s2t, tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", noise(0.65, 48000, 9), 48000)
    speech = [
        noise(0.9, 8000, 1),
        noise(0.5, 16000, 2),
        path,
        noise(1.1, 22050, 3),
        (noise(0.5, 8000, 4) * 32767).astype(np.int16),
        noise(0.02, 16000, 5),
    ]
    fs = [8000, 16000, None, 22050, 8000, 16000]
    task = ["asr", ["asr", "st_de"], "st_de", ("st_de",), "asr", ["st_de"]]
    bandwidth = [None, "nb", None, None, "wb", None]
    batch = s2t.batch_decode(speech, fs, task, bandwidth)
    assert len(batch) == len(speech)
    for x, rate, t, b, result in zip(speech, fs, task, bandwidth, batch, strict=True):
        alone = s2t(x, fs=rate, task=t, bandwidth=b)
        assert isinstance(result, list if isinstance(t, str) else dict)
        assert_same(result, alone)


def test_batch_takes_one_value_for_all(s2t) -> None:
    speech = [noise(0.4, 8000, i) for i in range(5)]
    batch = s2t.batch_decode(speech, fs=8000, task="st_de")
    for x, result in zip(speech, batch, strict=True):
        assert_same(result, s2t(x, fs=8000, task="st_de"))
    assert s2t.batch_decode([]) == []


def test_a_flat_list_of_tasks_is_asked_of_every_utterance(s2t) -> None:
    speech = [noise(0.4, 8000, i) for i in range(2)]
    for task in (["asr", "st_de"], ("st_de",)):
        batch = s2t.batch_decode(speech, fs=np.int64(8000), task=task)
        assert [list(result) for result in batch] == [list(task)] * 2
    batch = s2t.batch_decode(speech, fs=8000, task=[["asr"], ["st_de"]])
    assert [list(result) for result in batch] == [["asr"], ["st_de"]]


def test_batch_takes_channels_and_guides(s2t, tmp_path: Path) -> None:
    both = np.stack([noise(0.5, 8000, 1), noise(0.5, 8000, 2)], axis=1)
    path = write(tmp_path / "both.wav", both, 8000)
    first, second = s2t.batch_decode([path, path], channel=[0, 1], guides={})
    assert_same(first, s2t(path, channel=0))
    assert_same(second, s2t(path, channel=1))


def test_a_tensor_with_gradient_is_samples(s2t) -> None:
    samples = noise(0.4, 8000)
    tensor = torch.from_numpy(samples).requires_grad_()
    assert_same(s2t(tensor, fs=8000), s2t(samples, fs=8000))


def test_list_of_another_length_is_refused(s2t) -> None:
    with pytest.raises(ConfigError, match="2 values of fs for 1 utterances"):
        s2t.batch_decode([noise(0.4, 8000)], fs=[8000, 8000])


def test_encoder_hears_the_samples_of_the_dump(s2t, tmp_path: Path) -> None:
    heard = []
    hook = s2t.model.frontend.register_forward_pre_hook(
        lambda _, args: heard.append(args[0])
    )
    path = write(tmp_path / "a.wav", noise(0.7, 8000), 8000)
    try:
        s2t(path)
    finally:
        hook.remove()
    expected = to_model_rate(soundfile.read(path, dtype="float32")[0], 8000)
    assert np.array_equal(heard[0][0].numpy(), expected)


def test_decoding_leaves_no_trace(s2t) -> None:
    audio = noise(0.6, 16000)
    first = s2t(audio, fs=16000, task=["asr", "st_de"])
    s2t(noise(1.0, 8000, 7), fs=8000, task="st_de")
    assert scores(s2t(audio, fs=16000, task=["asr", "st_de"])) == scores(first)
    assert not s2t.model.training


def test_folder_is_loaded_with_the_decoding_config_beside_it(
    experiment, tmp_path: Path
) -> None:
    exp = experiment.copy(tmp_path / "exp")
    (exp / "decode.yaml").write_text("{nbest: 2, beam_size: 2, maxlenratio: -4}\n")
    assert len(Speech2Text.from_pretrained(exp)(noise(0.6, 16000), fs=16000)) == 2
    other = tmp_path / "other.yaml"
    other.write_text("{nbest: 1, beam_size: 2, maxlenratio: -4}\n")
    loaded = Speech2Text.from_pretrained(exp, inference_config=other)
    assert len(loaded(noise(0.6, 16000), fs=16000)) == 1
    other.write_text("beam: 3\n")
    with pytest.raises(
        ConfigError, match=r"unknown keys \['beam'\] in the decoding config; known"
    ):
        Speech2Text.from_pretrained(exp, inference_config=other)


def test_moved_folder_needs_no_other_file(
    experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exp = experiment.copy(tmp_path / "moved")
    text = (exp / "config.yaml").read_text().replace(str(experiment.exp), "/gone")
    (exp / "config.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    audio = noise(0.6, 16000)
    moved = Speech2Text.from_pretrained("moved")(audio, fs=16000)
    original = Speech2Text.from_pretrained(experiment.exp)(audio, fs=16000)
    assert scores(moved) == scores(original)


def test_packed_zip_gives_the_same_text(experiment, tmp_path: Path) -> None:
    decode = tmp_path / "decode.yaml"
    decode.write_text("{beam_size: 2, maxlenratio: -5, minlenratio: -3}\n")
    packed = tmp_path / "model.zip"
    command = [
        "--exp_dir", str(experiment.exp), "--out", str(packed),
        "--inference_config", str(decode),
    ]  # fmt: skip
    assert smoe_pack.main(command) == 0
    audio = noise(0.6, 8000)
    from_zip = Speech2Text.from_pretrained(packed)
    from_folder = Speech2Text.from_pretrained(experiment.exp, inference_config=decode)
    for task in ("asr", "st_de"):
        one, other = (s(audio, fs=8000, task=task) for s in (from_zip, from_folder))
        assert plain(one) == plain(other)
        assert scores(one) == scores(other)


@pytest.mark.parametrize("name", ["none.zip", "none", "a/b/c", "./user/name"])
def test_missing_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"is missing|no experiment folder"):
        Speech2Text.from_pretrained(name)


@pytest.mark.parametrize(
    "name, message",
    [
        ("config.yaml", "config .*config.yaml is missing"),
        ("valid.acc.ave.pth", "checkpoint .*ave.pth is missing; stage 11 makes it"),
    ],
)
def test_folder_that_lacks_a_file_is_refused(
    experiment, tmp_path: Path, name: str, message: str
) -> None:
    exp = experiment.copy(tmp_path / "exp")
    (exp / name).unlink()
    with pytest.raises(ConfigError, match=message):
        Speech2Text.from_pretrained(exp)


def test_checkpoint_of_another_model_is_refused_by_its_keys(
    experiment, tmp_path: Path
) -> None:
    state = torch.load(experiment.exp / "1epoch.pth", weights_only=True)
    path = tmp_path / "other.pth"
    config = experiment.exp / "config.yaml"

    torch.save({k: v for k, v in state.items() if ".experts.1." not in k}, path)
    with pytest.raises(ConfigError, match=r"is of another model.*missing \['.*experts"):
        Speech2Text(config, path)
    torch.save({**state, "encoder.extra": torch.zeros(1)}, path)
    with pytest.raises(ConfigError, match=r"1 unknown \['encoder.extra'\]"):
        Speech2Text(config, path)
    wider = {**state, "ctc.ctc_lo.bias": torch.zeros(len(state["ctc.ctc_lo.bias"]) + 1)}
    torch.save(wider, path)
    with pytest.raises(ConfigError, match=r"1 of another shape \['ctc.ctc_lo.bias'\]"):
        Speech2Text(config, path)


@pytest.mark.parametrize("content", [b"", b"weights", b"PK\x03\x04 cut"])
def test_what_is_no_checkpoint_is_refused_by_name(
    experiment, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "cut.pth"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"checkpoint .*cut\.pth is unreadable"):
        Speech2Text(experiment.exp / "config.yaml", path)
    with pytest.raises(ConfigError, match=r"checkpoint.pth holds no model"):
        Speech2Text(experiment.exp / "config.yaml", experiment.exp / "checkpoint.pth")


def test_broken_config_and_zip_are_refused_by_name(tmp_path: Path) -> None:
    for name in ("config.yaml", "model.pth", "model.zip"):
        (tmp_path / name).write_text("a: [")
    with pytest.raises(ConfigError, match=r"config.yaml is no YAML"):
        Speech2Text(tmp_path / "config.yaml", tmp_path / "model.pth")
    with pytest.raises(ConfigError, match=r"model.zip is no complete zip file"):
        Speech2Text.from_pretrained(tmp_path / "model.zip")


@pytest.mark.parametrize(
    "name, value",
    [
        ("beam_size", "five"),
        ("beam_size", 2.5),
        ("ctc_weight", "high"),
        ("penalty", None),
        ("nbest", [1]),
        ("normalize_length", 3),
        ("beam_size", 0),
        ("nbest", 0),
        ("batch_size", 0),
        ("ctc_weight", 1.0),
        ("ctc_weight", -0.1),
    ],
)
def test_search_option_out_of_range_is_refused(
    experiment, name: str, value: float
) -> None:
    files = (experiment.exp / "config.yaml", experiment.exp / "1epoch.pth")
    with pytest.raises(ConfigError, match=name):
        Speech2Text(*files, **{name: value})


def test_defaults_of_the_search_are_those_of_its_config() -> None:
    parameters = inspect.signature(Speech2Text).parameters
    for field in dataclasses.fields(SearchConfig):
        assert parameters[field.name].default == field.default, field.name


def test_same_model_through_the_hosts_loader(experiment, s2t) -> None:
    model, _ = SMoETask.build_model_from_file(
        experiment.exp / "config.yaml", experiment.exp / "valid.acc.ave.pth"
    )
    own = s2t.model.state_dict()
    assert all(torch.equal(v, own[k]) for k, v in model.state_dict().items())


def test_guide_errors_are_value_errors() -> None:
    assert issubclass(GuideError, ValueError)
    assert issubclass(AudioError, ValueError)
    assert issubclass(ConfigError, ValueError)
