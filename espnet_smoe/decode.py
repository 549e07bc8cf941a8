"""Dumped data directory -> hypotheses of every task (stage 12)."""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import yaml

from espnet_smoe.config import ConfigError
from espnet_smoe.datadir import Utterance, read_datadir
from espnet_smoe.dump import load_dumped
from espnet_smoe.files import write_atomically, write_table
from espnet_smoe.guide import BANDWIDTH, TASK
from espnet_smoe.inference import Speech2Text
from espnet_smoe.progress import progress
from espnet_smoe.query import Query
from espnet_smoe.search import SearchConfig

__all__ = ["decode_datadir", "searched_with"]

logger = logging.getLogger(__name__)

Line = tuple[str, str, str, str, float]
"""Utterance id, task, text, tokens, score."""


def decode_datadir(
    exp_dir: Path,
    inference_model: str,
    data_dir: Path,
    output_dir: Path,
    config: Path,
    tasks: Sequence[str] | None,
    nj: int,
    device: str,
    force_bandwidth: str | None = None,
) -> None:
    """Decode a dumped set; ``output_dir`` appears complete or not at all.

    Writes ``text.<task>``, ``token.<task>`` and ``score.<task>`` (log probability of
    the search), ``<id> <value>`` lines sorted by id; an empty text is the id alone;
    ``utt2bandwidth``, the guide that each utterance was decoded with; and
    ``search.yaml``, the options of the search; see ``searched_with``.

    Args:
        exp_dir: experiment folder; inference_model: checkpoint in it.
        data_dir: dumped data directory, audio at 16 kHz.
        config: decoding YAML.
        tasks: tasks to decode for every utterance; None = those it has references of.
        nj: processes, 1 on a GPU.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        force_bandwidth: guide for every utterance, true or not, to see what a wrong
            one costs; None = that of the data directory.

    Raises:
        ValueError: an input is missing or refused, or no utterance is left to decode.
    """
    if not data_dir.is_dir():
        raise ConfigError(f"{data_dir} is missing; run stages 3 and 4 first")
    if not exp_dir.is_dir():
        raise ConfigError(f"{exp_dir} is missing; run stage 11 first")
    search = _search_options(config)
    load = partial(
        Speech2Text.from_pretrained,
        exp_dir,
        inference_model=inference_model,
        inference_config=config,
        device=device,
    )
    s2t = load()
    for task in tasks or ():
        s2t.model.guides.axis(TASK).index(task)
    if force_bandwidth is not None:
        s2t.model.guides.axis(BANDWIDTH).index(force_bandwidth)
    utterances = [
        (_with_bandwidth(utt, force_bandwidth), wanted)
        for utt in read_datadir(data_dir)
        if (wanted := [t for t in s2t.tasks if t in (tasks or utt.texts)])
    ]
    if not utterances:
        raise ConfigError(f"{data_dir} has no reference of the tasks {s2t.tasks}")
    # like lengths together, every process the same share of long and short ones
    utterances.sort(key=lambda pair: (-pair[0].num_samples, pair[0].id))
    size = s2t.batch_size
    batches = [utterances[i : i + size] for i in range(0, len(utterances), size)]
    lines: list[Line] = []
    if nj == 1:
        for batch in progress(batches, len(batches), f"decode {data_dir.name}"):
            lines += _decode_batch(s2t, batch)
    else:
        # a forked torch may hang: start afresh
        context = multiprocessing.get_context("spawn")
        try:
            with ProcessPoolExecutor(nj, context, _start_worker, (load,)) as pool:
                done = pool.map(_work, batches)
                for part in progress(done, len(batches), f"decode {data_dir.name}"):
                    lines += part
        except BrokenProcessPool:
            raise ConfigError(
                f"one of {nj} decoding processes was killed; out of memory?"
            ) from None
    bandwidths = {u.id: u.guides[BANDWIDTH] for u, _ in utterances}
    _write(output_dir, lines, bandwidths, search)


def searched_with(output_dir: Path, config: Path) -> bool:
    """Whether a set was decoded, with what a YAML says of the search now.

    Raises:
        ConfigError: the YAML is missing or refused.
    """
    wanted = _search_options(config)
    path = Path(output_dir) / "search.yaml"
    return path.is_file() and yaml.safe_load(path.read_text("utf-8")) == wanted


def _search_options(config: Path) -> dict[str, object]:
    options = dataclasses.asdict(SearchConfig.from_yaml(config))
    del options["batch_size"]  # changes no hypothesis
    return options


def _with_bandwidth(utt: Utterance, forced: str | None) -> Utterance:
    if forced is None:
        return utt
    return dataclasses.replace(utt, guides={**utt.guides, BANDWIDTH: forced})


def _decode_batch(
    s2t: Speech2Text, batch: Sequence[tuple[Utterance, Sequence[str]]]
) -> list[Line]:
    queries = [Query(load_dumped(utt), utt.guides, wanted) for utt, wanted in batch]
    lines = []
    for (utt, _), result in zip(batch, s2t.decode(queries), strict=True):
        for task, nbest in result.items():
            text, tokens, _, hyp = nbest[0]
            lines.append((utt.id, task, text, " ".join(tokens), float(hyp.score)))
    return lines


_worker: list[Speech2Text] = []  # one per process of the pool


def _start_worker(load: partial) -> None:
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    logging.disable(logging.WARNING)
    _worker.append(load())


def _work(batch: Sequence[tuple[Utterance, Sequence[str]]]) -> list[Line]:
    return _decode_batch(_worker[0], batch)


def _write(
    output_dir: Path,
    lines: Sequence[Line],
    bandwidths: Mapping[str, str],
    search: Mapping[str, object],
) -> None:
    with write_atomically(output_dir) as folder:
        text = yaml.safe_dump(dict(search), sort_keys=False)
        (folder / "search.yaml").write_text(text, encoding="utf-8")
        write_table(folder / "utt2bandwidth", bandwidths)
        for task in sorted({line[1] for line in lines}):
            of_task = sorted(line for line in lines if line[1] == task)
            for name, column in (("text", 2), ("token", 3), ("score", 4)):
                content = "".join(
                    f"{ln[0]} {ln[column]}".rstrip() + "\n" for ln in of_task
                )
                (folder / f"{name}.{task}").write_text(content, encoding="utf-8")
    logger.info("%d hypotheses -> %s", len(lines), output_dir)
