"""Narrowband twins: wideband utterances that the dump sends through a telephone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace

from espnet_smoe.datadir import Utterance
from espnet_smoe.guide import BANDWIDTH

__all__ = ["twin_id", "with_narrowband_twins"]

_PREFIX = "tel-"


def twin_id(utt: str) -> str:
    """Id of the twin of an utterance.

    >>> twin_id("call7-0012")
    'tel-call7-0012'
    """
    return _PREFIX + utt


def with_narrowband_twins(utterances: Iterable[Utterance]) -> Iterator[Utterance]:
    """Each utterance, and after each wideband one its narrowband twin.

    A twin has the same audio, texts and other guides; the dump makes its call of the
    seed in ``telephone``, which depends on the id alone. Its speaker gets the prefix
    of its id, as that of a speed-perturbed copy does: sorting by id sorts by speaker.
    """
    for utt in utterances:
        yield utt
        if utt.guides[BANDWIDTH] == "wb":
            name = twin_id(utt.id)
            yield replace(
                utt,
                id=name,
                speaker=_PREFIX + utt.speaker,
                guides={**utt.guides, BANDWIDTH: "nb"},
                telephone=int(hashlib.sha256(name.encode()).hexdigest()[:8], 16),
            )
