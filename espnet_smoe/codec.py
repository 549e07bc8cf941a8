"""Telephone codecs: what coding and decoding leave of a call.

They run in memory, one call at a time; AMR-NB in PyAV, all others in libsndfile:

=======  ==============================  ============
name     codec                           kbit/s
=======  ==============================  ============
mulaw    ITU-T G.711 mu-law              64
alaw     ITU-T G.711 A-law               64
gsm      GSM 06.10 full rate             13.2
opus     Opus (RFC 6716), variable rate  12 on average
amr      AMR-NB (3GPP TS 26.071)         12.2
=======  ==============================  ============

PyAV is an optional extra, ``espnet_smoe[amr]``: its releases 17 and 18 have an encoder
of AMR-NB, release 19 has only the decoder.
"""

from __future__ import annotations

import io

import numpy as np

from espnet_smoe.audio import FULL_SCALE, NARROWBAND_RATE
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

_AMR_ENCODER = "libopencore_amrnb"
_AMR_BITS = 12_200  # a second
_AMR_DELAY = 40  # samples: the 5 ms that the encoder looks ahead

CODECS = (*_FORMATS, "amr")
"""Names that ``through_codec`` knows."""


def check_codec(name: object) -> None:
    """Refuse what is no name of a codec, and AMR-NB where its encoder is missing.

    Raises:
        ConfigError: names the codec, and the known ones or the package to install.
    """
    if name not in CODECS:
        raise ConfigError(f"unknown codec {name!r}; known: {', '.join(CODECS)}")
    if name == "amr" and not _has_amr():
        raise ConfigError(
            f"codec 'amr' needs PyAV with the encoder {_AMR_ENCODER}: "
            'pip install "av>=17,<19"'
        )


def through_codec(samples: np.ndarray, name: str) -> np.ndarray:
    """Encode and decode a call.

    Args:
        samples: (S,) int16 at 8 kHz, S > 0.
        name: one of ``CODECS``.

    Returns:
        (S,) int16, aligned with ``samples``: the silence that fills up the last frame
        of a codec is cut off. The same samples give the same result.

    Raises:
        ConfigError: as ``check_codec``.
    """
    check_codec(name)
    return _through_amr(samples) if name == "amr" else _through_file(samples, name)


def _through_file(samples: np.ndarray, name: str) -> np.ndarray:
    import soundfile

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


def _has_amr() -> bool:
    try:
        from av.codec import Codec, codec
    except ImportError:
        return False
    try:
        Codec(_AMR_ENCODER, "w")
    except codec.UnknownCodecError:
        return False
    return True


def _through_amr(samples: np.ndarray) -> np.ndarray:
    import av

    encoder = av.CodecContext.create(_AMR_ENCODER, "w")
    encoder.format, encoder.bit_rate = "s16", _AMR_BITS
    decoder = av.CodecContext.create("amrnb", "r")
    for context in (encoder, decoder):
        context.sample_rate, context.layout = NARROWBAND_RATE, "mono"
    call = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
    call.sample_rate = NARROWBAND_RATE
    # None: no more follows. The encoder then adds silence for what it looks ahead
    packets = [packet for frame in (call, None) for packet in encoder.encode(frame)]
    parts = [
        frame.to_ndarray()[0]
        for packet in (*packets, None)
        for frame in decoder.decode(packet)
    ]
    heard = np.rint(np.concatenate(parts) * FULL_SCALE)
    heard = heard[_AMR_DELAY : _AMR_DELAY + len(samples)]
    return heard.clip(-FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
