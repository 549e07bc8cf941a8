"""Data directory -> sentencepiece model and token list."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from espnet_smoe.bin import smoe_tokens
from espnet_smoe.config import ConfigError
from espnet_smoe.datadir import Utterance, write_datadir
from espnet_smoe.guide import GuideError, GuideTable
from espnet_smoe.tokens import (
    BLANK,
    SOS_EOS,
    UNK,
    BpeTokenizer,
    TokenError,
    guide_token_ids,
    train_tokens,
    warn_of_unknown,
)

GUIDES = GuideTable.from_mapping(
    {"bandwidth": ["nb", "wb"], "task": ["asr", "st_de", "st_es"]}
)
TEXTS = [
    {"asr": "good morning to all", "st_de": "guten morgen an alle"},
    {"asr": "the morning is good"},
    {"st_de": "schöne Grüße an alle, groß und klein"},
    {"asr": "all is well", "st_fr": "tout va bien çà et là"},
]


def write_data(folder: Path, texts: list[dict[str, str]]) -> Path:
    write_datadir(
        folder,
        [
            Utterance(
                id=f"u{i}",
                audio=f"/nowhere/{i}.wav",
                speaker="s",
                fs=16000,
                num_samples=100,
                guides={"bandwidth": "wb"},
                texts=t,
            )
            for i, t in enumerate(texts)
        ],
    )
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tokens")
    train_tokens(write_data(root / "data", TEXTS), GUIDES, 60, root / "bpe60")
    return root / "bpe60"


def read_tokens(folder: Path) -> list[str]:
    return (folder / "tokens.txt").read_text(encoding="utf-8").splitlines()


def test_folder_holds_model_vocabulary_and_list(made: Path) -> None:
    names = sorted(p.name for p in made.iterdir())
    assert names == ["bpe.model", "bpe.vocab", "tokens.txt"]


def test_special_tokens_stand_where_the_host_wants_them(made: Path) -> None:
    tokens = read_tokens(made)
    assert tokens[:2] == [BLANK, UNK]
    assert tokens[-1] == SOS_EOS
    assert len(set(tokens)) == len(tokens)


def test_size_counts_unknown_and_guides_but_not_blank_and_ends(made: Path) -> None:
    assert len(read_tokens(made)) == 60 + 2


def test_every_guide_is_one_token_even_without_data(made: Path) -> None:
    tokens = read_tokens(made)
    ids = guide_token_ids(GUIDES, tokens)
    assert {a: [tokens[i] for i in row] for a, row in ids.items()} == {
        "bandwidth": ["<nb>", "<wb>"],
        "task": ["<asr>", "<st_de>", "<st_es>"],
    }
    for guide in GUIDES.tokens:
        pieces = BpeTokenizer(made / "bpe.model").encode(guide)
        assert [p for p in pieces if p != "▁"] == [guide]


@pytest.mark.parametrize("text", [t for one in TEXTS[:3] for t in one.values()])
def test_references_round_trip_through_known_tokens(made: Path, text: str) -> None:
    tokenizer = BpeTokenizer(made / "bpe.model")
    pieces = tokenizer.encode(text)
    assert tokenizer.decode(pieces) == text
    assert set(pieces) <= set(read_tokens(made)) - {UNK}


@pytest.mark.parametrize(
    "texts, message",
    [
        ([], None),
        ([t for one in TEXTS[:3] for t in one.values()], None),
        (["gru\u0308n"], None),  # sentencepiece composes the umlaut
        (
            ["guten morgen", "mañana", "gru\u0308n", "¿señor?"],
            r"here: 2 of 4 references .* become <unk>: \?, ¿, ñ$",
        ),
    ],
)
def test_characters_that_the_list_lacks_are_named(
    made: Path, caplog: pytest.LogCaptureFixture, texts: list, message: str | None
) -> None:
    warn_of_unknown(made, texts, "here")
    assert len(caplog.messages) == (message is not None)
    assert not message or re.search(message, caplog.messages[0])


def test_texts_of_other_tasks_are_not_learnt(made: Path) -> None:
    assert not [t for t in read_tokens(made) if "ç" in t or "à" in t]


def test_tokenizer_pickles_before_and_after_use(made: Path) -> None:
    tokenizer = BpeTokenizer(made / "bpe.model")
    fresh = pickle.loads(pickle.dumps(tokenizer))
    assert fresh.encode("all is well") == tokenizer.encode("all is well")
    used = pickle.loads(pickle.dumps(tokenizer))
    assert used.encode("all is well") == tokenizer.encode("all is well")


def test_rerun_gives_the_same_bytes(made: Path, tmp_path: Path) -> None:
    train_tokens(write_data(tmp_path / "data", TEXTS), GUIDES, 60, tmp_path / "again")
    for name in ("bpe.vocab", "tokens.txt"):
        assert (tmp_path / "again" / name).read_bytes() == (made / name).read_bytes()


def test_a_folder_that_holds_more_than_tokens_is_left_alone(tmp_path: Path) -> None:
    data, out = write_data(tmp_path / "data", TEXTS), tmp_path / "exp"
    train_tokens(data, GUIDES, 60, out)
    train_tokens(data, GUIDES, 60, out)  # an earlier result is replaced
    (out / "config.yaml").write_text("guides: {}")
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    with pytest.raises(ConfigError, match=r"exp holds config\.yaml; expected"):
        train_tokens(data, GUIDES, 60, out)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_token_list_without_a_guide_is_refused(made: Path) -> None:
    tokens = [t for t in read_tokens(made) if t != "<st_es>"]
    with pytest.raises(GuideError, match=r"lacks the guiding tokens.*<st_es>"):
        guide_token_ids(GUIDES, tokens)


def test_missing_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenError, match=r"none\.model is missing"):
        BpeTokenizer(tmp_path / "none.model").encode("a")


@pytest.mark.parametrize("nbpe", [3, 5000])
def test_impossible_size_is_refused_and_leaves_nothing(
    tmp_path: Path, nbpe: int
) -> None:
    data = write_data(tmp_path / "data", TEXTS)
    with pytest.raises(TokenError, match=f"nbpe {nbpe} does not fit the 5 references"):
        train_tokens(data, GUIDES, nbpe, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data"]


@pytest.mark.parametrize("special", ["<nb>", "<st_es>", "<unk>", "<sos/eos>"])
def test_special_token_in_a_reference_is_refused(tmp_path: Path, special: str) -> None:
    data = write_data(tmp_path / "data", [*TEXTS, {"asr": f"say {special} now"}])
    with pytest.raises(TokenError, match=f"say {special} now.*special token"):
        train_tokens(data, GUIDES, 60, tmp_path / "out")


def test_no_reference_of_the_models_tasks_is_refused(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", [{"st_fr": "tout va bien"}])
    with pytest.raises(TokenError, match=r"no reference of the tasks \['asr'"):
        train_tokens(data, GUIDES, 60, tmp_path / "out")


def test_command_line_reports_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conf = tmp_path / "train.yaml"
    conf.write_text("guides: {bandwidth: [nb, wb], task: [asr, st_de]}\n")
    data = write_data(tmp_path / "data", TEXTS)
    command = ["--train_config", str(conf), "--train_dir", str(data)]
    out = tmp_path / "out"
    assert smoe_tokens.main([*command, "--nbpe", "9999", "--out_dir", str(out)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert smoe_tokens.main([*command, "--nbpe", "60", "--out_dir", str(out)]) == 0
    assert "<st_es>" not in read_tokens(out)
