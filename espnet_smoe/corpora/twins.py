"""Narrowband twins: wideband utterances that the dump sends through a telephone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from espnet_smoe.datadir import Utterance
from espnet_smoe.guide import BANDWIDTH
from espnet_smoe.telephone import call_seed

__all__ = ["twin_name", "with_narrowband_twins"]

_PREFIX = "tel-"


def twin_name(name: str) -> str:
    """Id, or speaker, of the twin of an utterance of that id, or speaker.

    >>> twin_name("call7-0012")
    'tel-call7-0012'
    """
    return _PREFIX + name


def with_narrowband_twins(utterances: Iterable[Utterance]) -> Iterator[Utterance]:
    """Each utterance, and after each wideband one its narrowband twin.

    A twin has the same audio, texts and other guides; the dump makes its call of the
    seed in ``telephone``, which depends on the id alone. Its speaker gets the prefix
    of its id, as that of a speed-perturbed copy does: sorting by id sorts by speaker.
    """
    for utt in utterances:
        yield utt
        if utt.guides[BANDWIDTH] == "wb":
            name = twin_name(utt.id)
            yield replace(
                utt,
                id=name,
                speaker=twin_name(utt.speaker),
                guides={**utt.guides, BANDWIDTH: "nb"},
                telephone=call_seed(name),
            )
