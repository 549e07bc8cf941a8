"""Telephone codecs: what coding and decoding leave of a call.

All of them run in libsndfile, in memory and one call at a time:

=======  ==============================  ============
name     codec                           kbit/s
=======  ==============================  ============
mulaw    ITU-T G.711 mu-law              64
alaw     ITU-T G.711 A-law               64
gsm      GSM 06.10 full rate             13.2
opus     Opus (RFC 6716), variable rate  12 on average
=======  ==============================  ============

AMR-NB is missing: libsndfile has none, and the wheels of PyAV, which had an encoder up
to 17.0, have only the decoder left in 19.0.
"""

from __future__ import annotations

import io

import numpy as np

from espnet_smoe.audio import NARROWBAND_RATE
from espnet_smoe.config import ConfigError

__all__ = ["CODECS", "check_codec", "through_codec"]

# libsndfile spreads 256 to 6 kbit/s over its scale of 0 to 1; 12 kbit/s is the upper
# end of what RFC 7587, section 3.1.1, recommends for narrowband speech
_OPUS_LEVEL = (256 - 12) / (256 - 6)

# name -> libsndfile's container, subtype and compression level
_FORMATS = {
    "mulaw": ("RAW", "ULAW", None),
    "alaw": ("RAW", "ALAW", None),
    "gsm": ("RAW", "GSM610", None),
    "opus": ("OGG", "OPUS", _OPUS_LEVEL),
}

CODECS = tuple(_FORMATS)
"""Names that ``through_codec`` knows."""


def check_codec(name: object) -> None:
    """Refuse what is no name of a codec.

    Raises:
        ConfigError: names it and the known ones.
    """
    if name not in CODECS:
        raise ConfigError(f"unknown codec {name!r}; known: {', '.join(CODECS)}")


def through_codec(samples: np.ndarray, name: str) -> np.ndarray:
    """Encode and decode a call.

    Args:
        samples: (S,) int16 at 8 kHz, S > 0.
        name: one of ``CODECS``.

    Returns:
        (S,) int16, aligned with ``samples``: the silence that fills up the last frame
        of a codec is cut off. The same samples give the same result.

    Raises:
        ConfigError: an unknown codec; lists the known ones.
    """
    import soundfile

    check_codec(name)
    container, subtype, level = _FORMATS[name]
    file = io.BytesIO()
    soundfile.write(
        file,
        samples,
        NARROWBAND_RATE,
        format=container,
        subtype=subtype,
        compression_level=level,
    )
    file.seek(0)
    # a file without a header must be described; one with a header must not
    header = {}
    if container == "RAW":
        header = {"format": container, "subtype": subtype, "channels": 1}
        header["samplerate"] = NARROWBAND_RATE
    return soundfile.read(file, len(samples), dtype="int16", **header)[0]
