"""Data directory -> dump: 16 kHz audio in arks, length filter.

Stages 3 and 4 of the recipe. A dump is a data directory whose ``wav.scp`` points into
``data_wav.<k>.ark`` files beside it: Kaldi archives of 16-bit wav entries at 16 kHz,
250 utterances each in id order, so the files do not depend on the number of
processes. ``utt2fs`` keeps the native rate, ``utt2bandwidth`` what was recorded.
"""

from __future__ import annotations

import io
import logging
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import numpy as np

from espnet_smoe.audio import (
    FULL_SCALE,
    MODEL_RATE,
    NARROWBAND_RATE,
    change_speed,
    narrow_band,
    read_audio,
    to_model_rate,
)
from espnet_smoe.datadir import (
    Utterance,
    fill_datadir,
    read_datadir,
    write_datadir,
)
from espnet_smoe.files import DataDirError, write_atomically
from espnet_smoe.guide import BANDWIDTH
from espnet_smoe.progress import progress
from espnet_smoe.telephone import TelephoneLine, through_telephone

__all__ = ["DumpError", "dump", "filter_by_length", "load_dumped", "read_stage"]

log = logging.getLogger(__name__)

_SHARD = 250  # utterances per ark


class DumpError(ValueError):
    """A stage's input is missing or unusable, or its output cannot be written."""


def dump(in_dir: Path, out_dir: Path, nj: int) -> None:
    """Write the audio of a data directory as 16 kHz, 16-bit arks.

    Each utterance is cut out of its file and channel, changed in speed and sent
    through a telephone if asked, in this order, and resampled by the one resampler
    that inference uses. The result is the same, byte for byte, whatever ``nj`` is.
    Memory holds one utterance per process.

    Args:
        in_dir: data directory of stage 1 or 2.
        out_dir: dump to write; appears complete or not at all.
        nj: processes.

    Raises:
        DumpError: ``in_dir`` is missing, an utterance's audio cannot be used, or the
            output cannot be written (disk full).
        DataDirError: ``in_dir`` is no data directory.
    """
    in_dir, out_dir = Path(in_dir), Path(out_dir)
    made_by = 2 if in_dir.name.endswith("_sp") else 1
    utterances = read_stage(in_dir, out_dir, made_by)
    if nj < 1:
        raise DumpError(f"nj must be at least 1, got {nj}")
    try:
        with write_atomically(out_dir) as folder:
            shards = [
                (folder / f"data_wav.{k}.ark", utterances[i : i + _SHARD])
                for k, i in enumerate(range(0, len(utterances), _SHARD), 1)
            ]
            places = _write_shards(shards, min(nj, len(shards)))
            final = out_dir.absolute()
            dumped = []
            for utt, (ark, offset, length) in zip(
                utterances,
                progress(places, len(utterances), f"dump {out_dir.name}"),
                strict=True,
            ):
                dumped.append(
                    replace(
                        utt,
                        audio=f"{final / ark}:{offset}",
                        num_samples=length,
                        segment=None,
                        channel=None,
                        speed=1.0,
                        telephone=None,
                        recording=None,
                    )
                )
            fill_datadir(folder, dumped)
    except OSError as error:
        raise DumpError(
            f"{out_dir} cannot be written and nothing is left of it: "
            f"{error.strerror or error}"
        ) from error
    seconds = sum(u.num_samples for u in dumped) / MODEL_RATE
    log.info("%s: %d utterances, %.2f h", out_dir, len(dumped), seconds / 3600)


Place = tuple[str, int, int]  # ark name, byte offset, samples at 16 kHz


def _write_shards(
    shards: Sequence[tuple[Path, list[Utterance]]], nj: int
) -> Iterator[Place]:
    """Write the arks; give the place of each utterance, in order."""
    if nj == 1:
        for shard in shards:
            yield from _write_shard(shard)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    # spawn: a fork would copy the locks of threads it does not copy
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(nj, mp_context=context)
    try:
        for places in pool.map(_write_shard, shards):
            yield from places
    except BrokenProcessPool:
        raise DumpError("a dump process was killed; out of memory?") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _write_shard(shard: tuple[Path, list[Utterance]]) -> list[Place]:
    import kaldiio

    path, utterances = shard
    places = []
    with path.open("wb") as ark:
        for utt in utterances:
            samples = _read_samples(utt)
            offset = ark.tell() + len(f"{utt.id} ".encode())
            # through memory: kaldiio's writer flushes where an error is lost
            entry = io.BytesIO()
            kaldiio.save_ark(entry, {utt.id: (MODEL_RATE, samples)})
            ark.write(entry.getbuffer())
            places.append((path.name, offset, len(samples)))
    return places


def _read_samples(utt: Utterance) -> np.ndarray:
    """Audio of an utterance as stored in a dump: (S,) int16 at 16 kHz."""
    try:
        samples, rate = read_audio(utt.audio, segment=utt.segment, channel=utt.channel)
        if rate != utt.fs:
            raise DumpError(
                f"{utt.audio} has {rate} Hz, utt2fs says {utt.fs} Hz; run stage 1 again"
            )
        if utt.speed != 1.0:
            samples = change_speed(samples, utt.speed)
        if utt.telephone is not None:
            rng = np.random.default_rng(utt.telephone)
            call = through_telephone(samples, rate, TelephoneLine(), rng)
            samples, rate = call / np.float32(FULL_SCALE), NARROWBAND_RATE
        elif utt.speed != 1.0 and utt.guides[BANDWIDTH] == "nb":
            # a fast copy has moved the telephone's band above 4 kHz
            samples = narrow_band(samples, rate)
        samples = to_model_rate(samples, rate)
    except (ValueError, OSError) as error:
        raise DumpError(f"utterance {utt.id}: {error}") from error
    return (samples * FULL_SCALE).astype(np.int16)  # exact: k / 32768 came in


def load_dumped(utt: Utterance) -> np.ndarray:
    """Audio of a dumped utterance, through kaldiio.

    Returns:
        (S,) float32 at 16 kHz, in [-1, 1).

    Raises:
        DataDirError: it is not there, or not as long as ``utt2num_samples`` says.
    """
    import kaldiio

    try:
        _, samples = kaldiio.load_mat(utt.audio)
    except (OSError, ValueError) as error:
        raise DataDirError(
            f"{utt.id}: cannot read {utt.audio} ({error}); run stage 3 again"
        ) from None
    if samples.dtype != np.int16 or samples.shape != (utt.num_samples,):
        raise DataDirError(
            f"{utt.id}: expected {utt.num_samples} int16 samples in {utt.audio}, got "
            f"{samples.dtype} {samples.shape}; run stage 3 again"
        )
    return samples / np.float32(FULL_SCALE)


def filter_by_length(in_dir: Path, out_dir: Path, min_s: float, max_s: float) -> None:
    """Keep the utterances of ``min_s`` to ``max_s`` seconds, both included.

    ``wav.scp`` of the result points to the arks of ``in_dir``, which must stay.

    Args:
        in_dir: dump of stage 3.
        out_dir: dump to write.
        min_s: shortest duration, seconds.
        max_s: longest duration, seconds; may be infinite.

    Raises:
        DumpError: ``in_dir`` or one of its arks is missing, the bounds are no
            interval, or no utterance is left.
        DataDirError: ``in_dir`` is no data directory.
    """
    utterances = read_stage(in_dir, out_dir, 3)
    if not (0 <= min_s < max_s) or math.isinf(min_s):
        raise DumpError(
            f"expected 0 <= min_wav_duration < max_wav_duration (s), got {min_s:g} "
            f"and {max_s:g}"
        )
    for ark in sorted({u.audio.rpartition(":")[0] for u in utterances}):
        if not os.path.isfile(ark):
            raise DumpError(
                f"{Path(in_dir) / 'wav.scp'} points to {ark or utterances[0].audio}, "
                "which is missing: run stage 3 again"
            )
    low, high = min_s * MODEL_RATE, max_s * MODEL_RATE
    kept = [u for u in utterances if low <= u.num_samples <= high]
    if not kept:
        lengths = [u.num_samples / MODEL_RATE for u in utterances]
        raise DumpError(
            f"{in_dir}: no utterance lasts {min_s:g} to {max_s:g} s; the shortest has "
            f"{min(lengths):.2f} s, the longest {max(lengths):.2f} s"
        )
    write_datadir(out_dir, kept)
    removed = Counter(
        "short" if u.num_samples < low else "long"
        for u in utterances
        if not low <= u.num_samples <= high
    )
    log.info(
        "%s: %d utterances kept, %d removed as under %g s, %d as over %g s",
        *(out_dir, len(kept), removed["short"], min_s, removed["long"], max_s),
    )


def read_stage(in_dir: Path, out_dir: Path, made_by: int) -> list[Utterance]:
    """Read a stage's input folder, or say which stage makes it."""
    in_dir = Path(in_dir)
    if not in_dir.is_dir():
        raise DumpError(f"{in_dir} is missing: run stage {made_by} first")
    if in_dir.resolve() == Path(out_dir).resolve():
        raise DumpError(f"{in_dir} is both input and output; give two folders")
    return read_datadir(in_dir)
