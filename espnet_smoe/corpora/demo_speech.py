"""Speech of the demo corpus: eSpeak NG through ctypes.

The library and its voices come from the PyPI package ``espeakng-loader``, loaded
when an engine is made, not when this module is imported. eSpeak NG is under the
GPL-3.0-or-later: it is optional, nothing of it is part of this package, and no other
module loads it.

The library keeps state from one utterance to the next, in one global instance per
process. Speech depends on the seed and on everything spoken before in the process,
so whoever wants repeatable speech makes one engine, never speaks in that process, and
forks for each fixed list of utterances, which have seeds of their own.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

__all__ = [
    "DEV_VARIANTS",
    "TEST_VARIANTS",
    "TRAIN_VARIANTS",
    "Delivery",
    "Engine",
    "SpeechError",
    "Voice",
]

# Voice variants of eSpeak NG 1.52. Left out: whispers, robots, croaks and others
# that are no likeness of a speaker.
TRAIN_VARIANTS = (
    *("Alex", "Andrea", "Annie", "Denis", "Diogo", "Gene", "Henrique", "Hugo", "Lee"),
    *("Marco", "Mr serious", "Nguyen", "Reed", "RicishayMax", "RicishayMax2"),
    *("RicishayMax3", "Tweaky", "adam", "announcer", "antonio", "aunty", "benjamin"),
    *("boris", "david", "ed", "edward", "edward2", "f1", "f3", "f5", "grandpa"),
    *(
        "gustave",
        "ian",
        "iven3",
        "iven4",
        "john",
        "kaukovalta",
        "klatt",
        "klatt2",
        "klatt4",
        "klatt5",
    ),
    *("klatt6", "m1", "m2", "m3", "m4", "m6", "m8", "marcelo", "max", "michel"),
    *("miguel", "mike2", "paul", "pedro", "rob", "robert", "sandro", "shelby", "steph"),
    *("steph3", "travis", "victor"),
)
DEV_VARIANTS = ("f2", "m5", "Mario", "linda", "norbert", "Michael")
TEST_VARIANTS = (
    *("f4", "m7", "belinda", "Mike", "steph2", "quincy", "klatt3", "grandma", "Gene2"),
    *("pablo", "anika", "Andy"),
)

_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: samples go to the callback
_DONT_EXIT = 0x8000  # espeakINITIALIZE_DONT_EXIT
_POSITION_CHARACTER = 1
_UTF8 = 1  # espeakCHARS_UTF8
_PARAMETERS = {"words_per_minute": 1, "pitch": 3, "pitch_range": 4, "word_gap": 7}
_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


class SpeechError(ValueError):
    """The speech synthesiser is missing, or refused a voice or a text."""


@dataclass(frozen=True)
class Voice:
    """Who speaks.

    Args:
        accent: a voice of eSpeak NG, e.g. ``en-us``.
        variant: a variant of it, e.g. ``f3``.
    """

    accent: str
    variant: str

    @property
    def name(self) -> str:
        """Name that eSpeak NG knows it by."""
        return f"{self.accent}+{self.variant}"


class Delivery(NamedTuple):
    """How it is spoken.

    Args:
        words_per_minute: speed; 175 is normal.
        pitch: 0..99; 50 is normal.
        pitch_range: 0..99; 0 is a monotone.
        word_gap: pause between words, in 10 ms at normal speed.
    """

    words_per_minute: int = 175
    pitch: int = 50
    pitch_range: int = 50
    word_gap: int = 0


class Engine:
    """The process's eSpeak NG; make it once.

    Attributes:
        rate: sample rate of the speech, Hz.

    Raises:
        SpeechError: the package is not installed or does not start.
    """

    def __init__(self) -> None:
        try:
            import espeakng_loader

            self._library = ctypes.CDLL(espeakng_loader.get_library_path())
            data = espeakng_loader.get_data_path()
        except (ImportError, OSError) as error:
            raise SpeechError(
                "the demo corpus needs the package espeakng-loader (pip install "
                f"espeakng-loader): {error}"
            ) from None
        self._declare()
        self.rate = self._library.espeak_Initialize(
            _SYNCHRONOUS, 0, str(data).encode(), _DONT_EXIT
        )
        if self.rate <= 0:
            raise SpeechError(f"eSpeak NG did not start with the voices in {data}")
        self._pieces: list[bytes] = []
        # the library keeps a bare pointer: this reference keeps its target alive
        self._callback = _CALLBACK(self._collect)
        self._library.espeak_SetSynthCallback(self._callback)

    def speak(
        self, text: str, voice: Voice, delivery: Delivery, seed: int
    ) -> np.ndarray:
        """Speech as (S,) int16 at ``rate`` Hz.

        Args:
            text: English; no markup.
            seed: of the library's noise, 0..2**31 - 1.

        Raises:
            SpeechError: the voice is unknown, or nothing came back.
        """
        self._library.espeak_ng_SetRandSeed(seed)
        if self._library.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise SpeechError(f"eSpeak NG has no voice {voice.name!r}")
        for name, number in _PARAMETERS.items():
            if self._library.espeak_SetParameter(number, getattr(delivery, name), 0):
                raise SpeechError(f"eSpeak NG refused {delivery}")
        self._pieces.clear()
        raw = text.encode()
        failed = self._library.espeak_Synth(
            raw, len(raw) + 1, 0, _POSITION_CHARACTER, 0, _UTF8, None, None
        )
        samples = np.frombuffer(b"".join(self._pieces), dtype=np.int16)
        if failed or not samples.any():
            raise SpeechError(f"eSpeak NG said nothing for {text!r} as {voice.name!r}")
        return samples

    def _collect(self, samples, count: int, _events) -> int:
        if samples and count > 0:
            self._pieces.append(ctypes.string_at(samples, 2 * count))
        return 0  # go on

    def _declare(self) -> None:
        library = self._library
        library.espeak_Initialize.argtypes = [
            *(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int)
        ]
        library.espeak_SetSynthCallback.argtypes = [_CALLBACK]
        library.espeak_SetVoiceByName.argtypes = [ctypes.c_char_p]
        library.espeak_SetParameter.argtypes = [ctypes.c_int] * 3
        library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
        library.espeak_Synth.argtypes = [
            *(ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int),
            *(ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p),
        ]
