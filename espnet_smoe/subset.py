"""Part of a data directory: the utterances with some guides, the texts of some tasks.

For models of one condition: ``guides: {bandwidth: [nb], task: [asr]}`` in YAML needs
sets without wideband utterances and without other texts than the transcripts.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from espnet_smoe.datadir import Utterance, read_datadir, write_datadir
from espnet_smoe.files import DataDirError
from espnet_smoe.guide import TASK

__all__ = ["keep_guides"]

logger = logging.getLogger(__name__)


def keep_guides(
    in_dir: Path, out_dir: Path, keep: Mapping[str, Collection[str]]
) -> None:
    """Keep the utterances whose guides are all among ``keep``.

    For the task: the utterances with a reference of one of the tasks, and of their
    texts only these. ``wav.scp`` of the result points to the audio of ``in_dir``,
    which must stay.

    Args:
        in_dir: data directory, before or after stage 3.
        out_dir: appears complete or not at all.
        keep: axis -> guides; ``task`` -> tasks. Axes not named keep all theirs.

    Raises:
        DataDirError: ``in_dir`` is no data directory or also ``out_dir``, nothing is
            to be kept, an axis or guide does not occur (lists those that do), or no
            utterance is left.
    """
    in_dir, out_dir = Path(in_dir), Path(out_dir)
    if in_dir.resolve() == out_dir.resolve():
        raise DataDirError(f"{in_dir} is both input and output; give two folders")
    if not keep:
        raise DataDirError(f"no guides of {in_dir} to keep were named")
    utterances = read_datadir(in_dir)
    known: dict[str, set[str]] = {}
    for utt in utterances:
        for axis, guide in (*utt.guides.items(), *((TASK, t) for t in utt.texts)):
            known.setdefault(axis, set()).add(guide)
    for axis, guides in keep.items():
        if axis not in known:
            raise DataDirError(f"{in_dir} has no axis {axis!r}; known: {sorted(known)}")
        if unknown := sorted(set(guides) - known[axis]):
            raise DataDirError(
                f"{in_dir} has no {axis} {', '.join(map(repr, unknown))}; known: "
                f"{sorted(known[axis])}"
            )
    kept = [part for utt in utterances if (part := _part(utt, keep)) is not None]
    if not kept:
        wanted = "; ".join(f"{a} {', '.join(sorted(g))}" for a, g in keep.items())
        raise DataDirError(f"{in_dir}: no utterance has all of: {wanted}")
    write_datadir(out_dir, kept)
    logger.info("%s: %d of %d utterances", out_dir, len(kept), len(utterances))


def _part(utt: Utterance, keep: Mapping[str, Collection[str]]) -> Utterance | None:
    """What is to be kept of an utterance; None = nothing."""
    if any(utt.guides[axis] not in keep[axis] for axis in keep if axis != TASK):
        return None
    texts = {t: x for t, x in utt.texts.items() if t in keep.get(TASK, utt.texts)}
    return replace(utt, texts=texts) if texts else None
