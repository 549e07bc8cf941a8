"""Plan of the demo corpus: who reads which sentence, and how; no audio yet."""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

from espnet_smoe.corpora.demo_grammar import sentence_pairs
from espnet_smoe.corpora.demo_speech import (
    DEV_VARIANTS,
    TEST_VARIANTS,
    TRAIN_VARIANTS,
    Delivery,
    Voice,
)

__all__ = ["SPLITS", "Reading", "Speaker", "plan", "speakers"]

SPLITS = ("train", "dev", "test")

_ACCENTS = {  # short name -> voice of eSpeak NG
    "us": "en-us",
    "uk": "en",
    "caribbean": "en-029",
    "scotland": "en-GB-scotland",
    "rp": "en-GB-x-rp",
    "nyc": "en-US-nyc",
}
_VARIANTS = dict(
    zip(SPLITS, (TRAIN_VARIANTS, DEV_VARIANTS, TEST_VARIANTS), strict=True)
)
_TRAIN_ACCENTS = 2  # accents that each training variant speaks with


@dataclass(frozen=True)
class Speaker:
    """A voice with habits; ``id`` holds only a-z, 0-9 and ``_``."""

    id: str
    voice: Voice
    habit: Delivery


@dataclass(frozen=True)
class Reading:
    """One sentence read by one speaker, to be recorded once or twice.

    Args:
        split: of the corpus.
        number: of the sentence in the split, from 0.
        bandwidths: ``nb`` or ``wb`` or both.
        english: transcript.
        german: translation.
        seed: of speech and noise.
    """

    split: str
    number: int
    speaker: Speaker
    delivery: Delivery
    bandwidths: tuple[str, ...]
    english: str
    german: str
    seed: int

    def utterance_id(self, bandwidth: str) -> str:
        """Starts with the speaker's id: sorting by id groups speakers."""
        return f"{self.speaker.id}-{self.split}{self.number:05d}-{bandwidth}"


def speakers(seed: int) -> dict[str, list[Speaker]]:
    """Split -> speakers; no two splits share a variant."""
    rng = Random(f"speakers {seed}")
    found: dict[str, list[Speaker]] = {}
    for split, variants in _VARIANTS.items():
        count = _TRAIN_ACCENTS if split == "train" else 1
        found[split] = [
            Speaker(
                id=f"{re.sub('[^a-z0-9]', '', variant.lower())}_{accent}",
                voice=Voice(_ACCENTS[accent], variant),
                habit=Delivery(
                    words_per_minute=rng.randint(165, 215),
                    pitch=rng.randint(30, 70),
                    pitch_range=rng.randint(30, 75),
                ),
            )
            for variant in variants
            for accent in rng.sample(sorted(_ACCENTS), count)
        ]
    return found


def plan(sizes: tuple[int, int, int], seed: int) -> list[Reading]:
    """Who reads what, and how: everything but the audio.

    Args:
        sizes: sentences in train, dev and test.

    Raises:
        GrammarError: more sentences are asked for than the grammar has.
    """
    sentences = iter(sentence_pairs(sum(sizes), seed))
    everyone = speakers(seed)
    readings = []
    for split, size in zip(SPLITS, sizes, strict=True):
        rng = Random(f"{split} {seed}")
        for number in range(size):
            english, german = next(sentences)
            speaker = rng.choice(everyone[split])
            once = ("nb",) if number % 2 else ("wb",)
            readings.append(
                Reading(
                    split=split,
                    number=number,
                    speaker=speaker,
                    delivery=Delivery(
                        words_per_minute=speaker.habit.words_per_minute
                        + rng.randint(-8, 8),
                        pitch=speaker.habit.pitch + rng.randint(-6, 6),
                        pitch_range=speaker.habit.pitch_range,
                        word_gap=rng.choice((0, 0, 0, 1, 2)),
                    ),
                    bandwidths=once if split == "train" else ("wb", "nb"),
                    english=english,
                    german=german,
                    seed=rng.getrandbits(31),
                )
            )
    return readings
