"""One utterance -> arrays."""

from __future__ import annotations

import json

import numpy as np
import pytest

from espnet_smoe.augment import Augmentation
from espnet_smoe.datadir import Utterance
from espnet_smoe.guide import GuideError, GuideTable
from espnet_smoe.preprocess import SMoEPreprocessor, make_targets

pytest_plugins = ["fixtures_exp"]

GUIDES = {"bandwidth": ["nb", "wb"], "task": ["asr", "st_de"]}
TEXTS = {"asr": "the dog runs", "st_de": "der hund rennt"}


@pytest.fixture
def tokens(experiment) -> list[str]:
    path = experiment.tokens / "tokens.txt"
    return path.read_text(encoding="utf-8").splitlines()


@pytest.fixture
def preprocessor(experiment, tokens) -> SMoEPreprocessor:
    bpe = str(experiment.tokens / "bpe.model")
    return SMoEPreprocessor(train=True, token_list=tokens, bpemodel=bpe, guides=GUIDES)


def entry(**changes: object) -> dict:
    speech = np.linspace(-1, 1, 50, dtype=np.float32)
    targets = json.dumps(TEXTS)
    return {"speech": speech, "targets": targets, "bandwidth": "wb", **changes}


def utterance(texts: dict[str, str], bandwidth: str = "wb") -> Utterance:
    return Utterance(
        id="u",
        audio="a.wav",
        speaker="s",
        fs=16000,
        num_samples=10,
        guides={"bandwidth": bandwidth},
        texts=texts,
    )


ALL = {  # happens to every wideband utterance
    "telephone": {"prob": 1.0},
    "data_aug_effects": [[1.0, "polarity_inverse", {}]],
    "data_aug_prob": 1.0,
}


@pytest.mark.parametrize(("train", "conf"), [(True, {}), (False, {}), (False, ALL)])
@pytest.mark.parametrize("bandwidth", ["nb", "wb"])
def test_P9_samples_and_guide_pass_unchanged(
    experiment, tokens, train: bool, conf: dict, bandwidth: str
) -> None:
    """Without augmentation, and in validation and statistics even with it."""
    augmentation = Augmentation(GuideTable.from_mapping(GUIDES), **conf)
    bpe = str(experiment.tokens / "bpe.model")
    preprocess = SMoEPreprocessor(train, tokens, bpe, GUIDES, augmentation)
    speech = np.random.default_rng(0).uniform(-1, 1, 4000).astype(np.float32)
    for _ in range(3):  # nothing random either
        data = preprocess("u", entry(speech=speech.copy(), bandwidth=bandwidth))
        assert data["speech"].dtype == np.float32
        assert np.array_equal(data["speech"], speech)
        assert data["bandwidth"].tolist() == [GUIDES["bandwidth"].index(bandwidth)]


@pytest.mark.parametrize("dumped", [True, False])
def test_P9_an_augmented_utterance_gets_the_guide_of_its_audio(
    experiment, tokens, dumped: bool
) -> None:
    """The other guides and the texts stay; a dump's integers and floats are alike."""
    guides = {"bandwidth": ["wb", "nb"], "room": ["a", "b"], "task": ["asr", "st_de"]}
    augmentation = Augmentation(GuideTable.from_mapping(guides), **ALL)
    bpe = str(experiment.tokens / "bpe.model")
    preprocess = SMoEPreprocessor(True, tokens, bpe, guides, augmentation)
    plain = SMoEPreprocessor(True, tokens, bpe, guides)
    samples = np.random.default_rng(0).integers(-9_000, 9_000, 4_001).astype(np.int16)
    speech = samples if dumped else (samples / 32_768).astype(np.float32)
    np.random.seed(1)
    data = preprocess("u", entry(speech=speech, room="b"))
    np.random.seed(1)
    expected, guide = augmentation((samples / 32_768).astype(np.float32), "wb")
    assert guide == "nb"
    assert data["bandwidth"].tolist() == [1]
    assert data["speech"].dtype == np.float32
    np.testing.assert_array_equal(data["speech"], expected)
    for name, array in plain("u", entry(speech=speech, room="b")).items():
        if name not in ("speech", "bandwidth"):
            np.testing.assert_array_equal(data[name], array)


def test_an_unknown_bandwidth_is_refused_before_and_after_augmentation(
    experiment, tokens
) -> None:
    augmentation = Augmentation(GuideTable.from_mapping(GUIDES), **ALL)
    bpe = str(experiment.tokens / "bpe.model")
    preprocess = SMoEPreprocessor(True, tokens, bpe, GUIDES, augmentation)
    with pytest.raises(GuideError, match=r"u7: unknown bandwidth 'swb'"):
        preprocess("u7", entry(bandwidth="swb"))


def test_texts_become_ids_of_the_token_list(preprocessor, tokens) -> None:
    data = preprocessor("u", entry())
    assert set(data) == {"speech", "bandwidth", "text_asr", "text_st_de"}
    for task, text in TEXTS.items():
        ids = data[f"text_{task}"]
        assert ids.dtype == np.int64
        pieces = [tokens[i] for i in ids]
        assert "".join(pieces).replace("▁", " ").strip() == text


def test_missing_task_is_an_empty_text(preprocessor) -> None:
    data = preprocessor("u", entry(targets='{"st_de": "der hund rennt"}'))
    assert data["text_asr"].shape == (0,)
    assert data["text_asr"].dtype == np.int64
    assert len(data["text_st_de"])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"bandwidth": "swb"}, r"u7: unknown bandwidth 'swb'; known: nb, wb"),
        ({"channel": "a"}, r"u7: unknown data \['channel'\]; known: .*bandwidth"),
        ({"targets": '{"st_fr": "le chien"}'}, r"u7: unknown tasks \['st_fr'\]"),
        ({"speech": np.zeros(0)}, r"u7: expected finite samples.*\(0,\)"),
        ({"speech": np.zeros((9, 2))}, r"u7: expected finite samples.*\(9, 2\)"),
        ({"speech": np.array([0.0, np.nan])}, "u7: expected finite samples"),
        ({"speech": np.array([0.0, np.inf])}, "u7: expected finite samples"),
    ],
)
def test_bad_data_is_refused_by_name(preprocessor, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preprocessor("u7", entry(**changes))


def test_further_axes_come_from_yaml_alone(experiment, tokens) -> None:
    guides = {"bandwidth": ["nb", "wb"], "language": ["en", "fr"], "task": ["asr"]}
    bpe = str(experiment.tokens / "bpe.model")
    preprocess = SMoEPreprocessor(True, tokens, bpe, guides)
    data = preprocess("u", entry(targets='{"asr": "the dog"}', language="fr"))
    assert data["language"].tolist() == [1]


def test_targets_hold_the_models_tasks_only() -> None:
    table = GuideTable.from_mapping(GUIDES)
    texts = {"asr": "straße", "st_fr": "rue"}
    (line,) = make_targets([utterance(texts)], table).values()
    assert json.loads(line) == {"asr": "straße"}


def test_utterance_without_the_models_tasks_is_refused() -> None:
    table = GuideTable.from_mapping(GUIDES)
    with pytest.raises(GuideError, match=r"u: has references of \['st_fr'\] only"):
        make_targets([utterance({"st_fr": "rue"})], table)


def test_utterance_with_an_unknown_guide_is_refused() -> None:
    table = GuideTable.from_mapping(GUIDES)
    with pytest.raises(GuideError, match="swb"):
        make_targets([utterance(TEXTS, bandwidth="swb")], table)
    table = GuideTable.from_mapping({"bandwidth": ["wb"], "room": ["a"], **GUIDES})
    with pytest.raises(GuideError, match="utt2room is missing"):
        make_targets([utterance(TEXTS)], table)
