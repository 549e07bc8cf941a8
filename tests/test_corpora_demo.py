"""The demo corpus: sentences, plan, audio and data directories."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_smoe.corpora import demo, demo_grammar
from espnet_smoe.corpora.demo import DemoError, prepare_demo
from espnet_smoe.corpora.demo_grammar import GrammarError, sentence_pairs
from espnet_smoe.corpora.demo_lexicon import day_of_month, german_number, number
from espnet_smoe.corpora.demo_plan import SPLITS, plan, speakers
from espnet_smoe.corpora.demo_speech import Delivery, SpeechError, Voice
from espnet_smoe.datadir import read_datadir
from espnet_smoe.guide import GuideTable
from espnet_smoe.survey import SurveyError

SIZES = (60, 4, 5)
GUIDES = GuideTable.from_mapping(
    {"bandwidth": ["nb", "wb"], "task": ["asr", "st_de", "st_es"]}
)


@pytest.fixture(scope="module")
def sentences() -> list[tuple[str, str]]:
    return sentence_pairs(100_001, seed=3)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    datadir = tmp_path_factory.mktemp("demo") / "data"
    prepare_demo(datadir, SIZES, seed=5, nj=2, guides=GUIDES)
    return datadir


def _hashes(datadir: Path) -> dict[str, str]:
    """Hash of every file; wav.scp without the folder it names."""
    found = {}
    for path in sorted(datadir.rglob("*")):
        if path.is_file():
            raw = path.read_bytes().replace(str(datadir).encode(), b"")
            found[str(path.relative_to(datadir))] = hashlib.sha256(raw).hexdigest()
    return found


# ------------------------------------------------------------------ sentences


def test_the_grammar_has_over_a_hundred_thousand_sentences(sentences) -> None:
    assert len({english for english, _ in sentences}) > 100_000


def test_the_same_seed_gives_the_same_sentences(sentences) -> None:
    assert sentence_pairs(1_000, seed=3) == sentences[:1_000]
    assert sentence_pairs(1_000, seed=4) != sentences[:1_000]


def test_sentences_are_short_lower_case_and_without_punctuation(sentences) -> None:
    for english, german in sentences:
        assert len(english.split()) <= 12
        for text in (english, german):
            assert text == text.lower() == " ".join(text.split())
            assert not set(text) - set("abcdefghijklmnopqrstuvwxyzäöüß '-")


def test_one_sentence_in_thirty_is_a_string_of_three_or_four_digits(sentences) -> None:
    digits = [e.split()[4:] for e, _ in sentences[:10_000] if " number is " in e]
    assert 0.02 < len(digits) / 10_000 < 0.04
    assert {len(d) for d in digits} == {3, 4}


def test_an_exhausted_grammar_says_so(monkeypatch) -> None:
    trains = [(demo_grammar._next_train, 1)]  # 16 * 15 * 2 sentences
    monkeypatch.setattr(demo_grammar, "_SENTENCES", trains)
    assert len(sentence_pairs(400, seed=0)) == 400
    with pytest.raises(GrammarError, match=r"ran out after 480 .*; 481 were asked for"):
        sentence_pairs(481, seed=0)


@pytest.mark.parametrize(
    ("english", "german"),
    [
        # separable prefix: last in the imperative, joined in the infinitive
        (r"please call my son back .*", r"bitte rufen sie meinen sohn .* zurück"),
        (r"i have to call my aunt back .*", r"ich muss meine tante .* zurückrufen"),
        (r"please turn off the radio .*", r"bitte schalten sie .* das radio .* aus"),
        # time before object, accusative by gender
        (r"can you look for my coat today", r"können sie heute meinen mantel suchen"),
        (r".* to look for my bag on .*", r".* am .* meine tasche suchen"),
        (r"she wants to look for my phone .*", r"sie will .* mein telefon suchen"),
        (r"i .* to buy one (cake|apple).*", r"ich .* einen (kuchen|apfel) kaufen"),
        (r"i .* to buy two eggs .*", r"ich .* zwei eier kaufen"),
        # verb last in clauses
        (r".* because i must .*", r"ich kann nicht kommen weil ich .*en muss"),
        (r"please tell my wife that .*", r"bitte sagen sie meiner frau dass .* werde"),
        (r"if the car is too new i .*", r"wenn das auto zu neu ist werde ich .*en"),
        # clock and dates
        (r"my son .* at half past three", r"mein sohn hat .* um halb vier angerufen"),
        (r".* called me .* at one o'clock", r".* um ein uhr angerufen"),
        (r".* called me .* a quarter to one", r".* um viertel vor eins angerufen"),
        (r".* on sunday the third of may", r".* am sonntag dem dritten mai .*"),
        # dative
        (r".* from my father yet", r".* von meinem vater noch nicht .*"),
        (r".* from my mother yet", r".* von meiner mutter noch nicht .*"),
        # adjective endings
        (r"is there a small park near .*", r"gibt es .* einen kleinen park"),
        (r"is there a small hotel near .*", r"gibt es .* ein kleines hotel"),
        (r"is there a small bank near .*", r"gibt es .* eine kleine bank"),
        (r"is there .* near the school", r"gibt es in der nähe von der schule .*"),
        # money
        (r"the .* costs .* one euro", r"(der|die|das) .* kostet .* ein euro"),
    ],
)
def test_german_follows_german_grammar(sentences, english: str, german: str) -> None:
    """Each English sentence of the form has German of the form."""
    found = [g for e, g in sentences if re.fullmatch(english, e)]
    assert found
    assert [g for g in found if not re.fullmatch(german, g)] == []


def test_the_german_is_not_word_by_word(sentences) -> None:
    """Verbs come last."""
    last = {german.split()[-1] for _, german in sentences}
    assert {"zurückrufen", "ab", "muss", "werde", "überweisen", "angerufen"} <= last


@pytest.mark.parametrize(
    ("n", "english", "german"),
    [
        (0, "zero", "null"),
        (1, "one", "eins"),
        (17, "seventeen", "siebzehn"),
        (21, "twenty one", "einundzwanzig"),
        (30, "thirty", "dreißig"),
        (100, "one hundred", "einhundert"),
        (101, "one hundred and one", "einhunderteins"),
        (999, "nine hundred and ninety nine", "neunhundertneunundneunzig"),
    ],
)
def test_numbers_are_spelled_out(n: int, english: str, german: str) -> None:
    assert (number(n), german_number(n)) == (english, german)


@pytest.mark.parametrize(
    ("n", "english", "german"),
    [
        (1, "first", "ersten"),
        (3, "third", "dritten"),
        (7, "seventh", "siebten"),
        (12, "twelfth", "zwölften"),
        (16, "sixteenth", "sechzehnten"),
        (22, "twenty second", "zweiundzwanzigsten"),
        (31, "thirty first", "einunddreißigsten"),
    ],
)
def test_days_of_the_month_are_spelled_out(n: int, english: str, german: str) -> None:
    assert day_of_month(n) == (english, german)


# ------------------------------------------------------------------ plan


def test_voices_and_sentences_of_dev_and_test_occur_nowhere_else() -> None:
    readings = plan((3_000, 200, 300), seed=0)
    for of in (
        lambda r: r.speaker.voice.variant,
        lambda r: r.speaker.id,
        lambda r: r.english,
    ):
        train, dev, test = ({of(r) for r in readings if r.split == s} for s in SPLITS)
        assert not train & dev
        assert not (train | dev) & test


def test_there_are_many_speakers_and_all_of_them_read() -> None:
    everyone = speakers(seed=0)
    assert [len(everyone[s]) for s in SPLITS] == [126, 6, 12]
    readings = plan((3_000, 200, 300), seed=0)
    assert len({r.speaker.id for r in readings}) == 126 + 6 + 12


def test_train_takes_turns_and_the_others_are_paired() -> None:
    readings = plan((10, 3, 3), seed=0)
    train = [r.bandwidths for r in readings if r.split == "train"]
    assert train == [("wb",), ("nb",)] * 5
    assert {r.bandwidths for r in readings if r.split != "train"} == {("wb", "nb")}


def test_the_plan_needs_no_speech_library() -> None:
    code = (
        "import sys; from espnet_smoe.corpora import demo, demo_plan;"
        "demo_plan.plan((5, 1, 1), 0); print('espeakng_loader' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


# ------------------------------------------------------------------ corpus


def test_data_directories_hold_what_was_planned(corpus: Path) -> None:
    readings = plan(SIZES, seed=5)
    for split, count in zip(SPLITS, (60, 8, 10), strict=True):
        utterances = {u.id: u for u in read_datadir(corpus / split)}
        assert len(utterances) == count
        for reading in (r for r in readings if r.split == split):
            for bandwidth in reading.bandwidths:
                utt = utterances[reading.utterance_id(bandwidth)]
                assert utt.texts == {"asr": reading.english, "st_de": reading.german}
                assert utt.guides == {"bandwidth": bandwidth}
                assert utt.speaker == reading.speaker.id


def test_audio_has_the_format_and_length_that_the_data_say(corpus: Path) -> None:
    formats = {"nb": (8_000, "ULAW"), "wb": (16_000, "PCM_16")}
    for split in SPLITS:
        for utt in read_datadir(corpus / split):
            assert Path(utt.audio).is_absolute()
            info = soundfile.info(utt.audio)
            form = formats[utt.guides["bandwidth"]]
            assert (info.samplerate, info.subtype) == form
            assert (info.samplerate, info.frames) == (utt.fs, utt.num_samples)
            assert 0.5 < info.duration < 8.0
    stored = list((corpus / "demo_audio").rglob("*.wav"))
    assert len(stored) == 60 + 8 + 10


def test_sorting_by_utterance_sorts_by_speaker(corpus: Path) -> None:
    for split in SPLITS:
        lines = (corpus / split / "utt2spk").read_text().splitlines()
        order = [line.split()[1] for line in lines]
        assert order == sorted(order)
        assert all(line.startswith(line.split()[1]) for line in lines)


def test_both_recordings_of_a_sentence_are_one_reading(corpus: Path) -> None:
    """The envelopes of the pair go together; those of two sentences do not."""
    utterances = {u.id: u for u in read_datadir(corpus / "test")}
    wide = {i[:-3]: u for i, u in utterances.items() if i.endswith("-wb")}
    for name, utt in wide.items():
        narrow = utterances[f"{name}-nb"]
        assert abs(utt.num_samples - 2 * narrow.num_samples) <= 1
        first, second = (_envelope(u.audio, u.fs) for u in (utt, narrow))
        assert np.corrcoef(first, second)[0, 1] > 0.5


def _envelope(path: str, rate: int) -> np.ndarray:
    """Level of every 50 ms, dB."""
    samples = soundfile.read(path)[0]
    count = rate // 20
    blocks = samples[: len(samples) // count * count].reshape(-1, count)
    return 10 * np.log10(np.mean(blocks**2, axis=1) + 1e-9)


def test_the_corpus_is_the_same_whatever_the_number_of_processes(
    corpus: Path, tmp_path: Path
) -> None:
    for nj in (1, 3):
        prepare_demo(tmp_path / str(nj), SIZES, seed=5, nj=nj, guides=GUIDES)
        assert _hashes(tmp_path / str(nj)) == _hashes(corpus)


def test_the_survey_has_every_utterance_with_its_label(corpus: Path) -> None:
    lines = (corpus / "survey/bandwidth.tsv").read_text().splitlines()
    head, *rows = (line.split("\t") for line in lines)
    found = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    utterances = {u.id: u for s in SPLITS for u in read_datadir(corpus / s)}
    assert set(found) == set(utterances)
    for utt, row in found.items():
        assert row["label"] == utterances[utt].guides["bandwidth"]
        assert (row["declared_by"], row["rate_hz"]) == ("key", str(utterances[utt].fs))
        seconds = utterances[utt].num_samples / utterances[utt].fs
        assert float(row["seconds"]) == pytest.approx(seconds, abs=1e-3)


@pytest.mark.parametrize("mode", ["header", "detect"])
def test_the_corpus_is_the_same_whatever_it_sounds_like(
    corpus: Path, tmp_path: Path, mode: str
) -> None:
    prepare_demo(tmp_path, SIZES, seed=5, nj=2, guides=GUIDES, bandwidth=mode)

    def all_but_survey(datadir: Path) -> dict[str, str]:
        return {k: v for k, v in _hashes(datadir).items() if "survey" not in k}

    assert all_but_survey(tmp_path) == all_but_survey(corpus)
    asked = (tmp_path / "survey/scores.png").exists()
    assert asked == (mode == "detect")


def test_the_survey_comes_when_all_splits_are_there(tmp_path: Path) -> None:
    # a file where the last split would be made: the run ends there
    (tmp_path / ".test.tmp").write_text("x")
    with pytest.raises(FileExistsError):
        prepare_demo(tmp_path, (1, 1, 1), seed=5, nj=1, guides=GUIDES)
    assert (tmp_path / "dev").exists()
    assert not (tmp_path / "survey").exists()


def test_another_seed_gives_another_corpus(corpus: Path, tmp_path: Path) -> None:
    prepare_demo(tmp_path, (4, 1, 1), seed=6, nj=1, guides=GUIDES)
    theirs = {r.english for r in plan(SIZES, seed=5)}
    assert not {r.english for r in plan((4, 1, 1), seed=6)} & theirs
    assert not set(_hashes(tmp_path).values()) & set(_hashes(corpus).values())


def test_killed_and_run_again_gives_the_same(corpus: Path, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from espnet_smoe.corpora.demo import *;"
        "from espnet_smoe.guide import GuideTable;"
        "guides = GuideTable.from_mapping({'bandwidth': ['nb', 'wb'],"
        " 'task': ['asr', 'st_de']});"
        f"prepare_demo(Path({str(tmp_path)!r}), (300, 4, 5), 5, 1, guides)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    partial = tmp_path / ".demo_audio.tmp" / "train"
    while not (partial.is_dir() and any(partial.iterdir())):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert [p.name for p in tmp_path.iterdir()] == [".demo_audio.tmp"]
    prepare_demo(tmp_path, SIZES, seed=5, nj=1, guides=GUIDES)
    assert _hashes(tmp_path) == _hashes(corpus)


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("guides", "reason"),
    [
        ({"bandwidth": ["wb"], "task": ["asr", "st_de"]}, "bandwidth .* lack nb"),
        ({"bandwidth": ["nb"], "task": ["asr", "st_de"]}, "bandwidth .* lack wb"),
        ({"bandwidth": ["nb", "wb"], "task": ["st_de"]}, "task .* lack asr"),
        ({"bandwidth": ["nb", "wb"], "task": ["asr", "st_es"]}, "task .* lack st_de"),
        (
            {"language": ["en"], "bandwidth": ["nb", "wb"], "task": ["asr", "st_de"]},
            "language",
        ),
    ],
)
def test_guides_that_do_not_fit_are_refused(tmp_path, guides, reason: str) -> None:
    table = GuideTable.from_mapping(guides)
    with pytest.raises(DemoError, match=reason):
        prepare_demo(tmp_path, SIZES, seed=0, nj=1, guides=table)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("sizes", "nj"), [((5, 0, 5), 1), ((5, 5), 1), (SIZES, 0)])
def test_sizes_and_jobs_must_be_positive(tmp_path: Path, sizes, nj: int) -> None:
    with pytest.raises(DemoError, match="at least 1"):
        prepare_demo(tmp_path, sizes, seed=0, nj=nj, guides=GUIDES)
    assert not list(tmp_path.iterdir())


def test_a_mode_that_there_is_not_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(SurveyError, match="'guess'"):
        prepare_demo(tmp_path, SIZES, seed=0, nj=1, guides=GUIDES, bandwidth="guess")
    assert not list(tmp_path.iterdir())


def test_a_missing_speech_package_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(SpeechError, match="pip install espeakng-loader"):
        prepare_demo(tmp_path, SIZES, seed=0, nj=1, guides=GUIDES)
    assert not list(tmp_path.iterdir())


class _Broken:
    """An engine whose every utterance goes wrong, in the fork."""

    rate = 22_050

    def __init__(self, act) -> None:
        self.act = act

    def speak(self, text: str, voice: Voice, delivery: Delivery, seed: int):
        return self.act()


def _refuse() -> None:
    raise SpeechError("eSpeak NG has no voice 'en+x'")


@pytest.mark.parametrize(
    ("act", "error", "reason"),
    [
        (_refuse, SpeechError, "no voice"),
        (lambda: np.zeros(9_000, np.int16), SpeechError, "whispered"),
        (lambda: os._exit(9), DemoError, "died"),
    ],
)
def test_what_fails_in_a_fork_is_reported_and_leaves_nothing(
    tmp_path: Path, monkeypatch, act, error, reason: str
) -> None:
    monkeypatch.setattr(demo, "Engine", lambda: _Broken(act))
    with pytest.raises(error, match=reason):
        prepare_demo(tmp_path, SIZES, seed=0, nj=2, guides=GUIDES)
    assert not list(tmp_path.iterdir())


def test_an_unknown_voice_is_refused_by_name() -> None:
    code = (
        "from espnet_smoe.corpora.demo_speech import *\n"
        "try: Engine().speak('hello', Voice('en-zz', 'f9'), Delivery(), 0)\n"
        "except SpeechError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "eSpeak NG has no voice 'en-zz+f9'"
