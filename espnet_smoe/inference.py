"""Audio -> text in every task of a model, from one encoding."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from espnet_smoe.checkpoint import load_model
from espnet_smoe.config import ConfigError, check_device
from espnet_smoe.files import MODEL_FILE
from espnet_smoe.host import Hypothesis
from espnet_smoe.query import Query, Speech, make_query
from espnet_smoe.search import RowSearch, SearchConfig
from espnet_smoe.tokens import BpeTokenizer

__all__ = ["Result", "Speech2Text"]

Result = tuple[str | None, list[str], list[int], Hypothesis]
"""Text, tokens, token ids and the host's hypothesis."""


class Speech2Text:
    """Transcribe and translate telephone and wideband audio.

    Args:
        asr_train_config: ``config.yaml`` of an experiment folder.
        asr_model_file: a checkpoint of it.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        beam_size, ctc_weight, penalty, maxlenratio, minlenratio, normalize_length,
            nbest, batch_size: see ``SearchConfig``.

    Raises:
        ConfigError: a file is missing, or the checkpoint is of another model (names
            the first keys that differ).

    Example:
        >>> s2t = Speech2Text.from_pretrained("exp/smoe_demo")  # doctest: +SKIP
        >>> s2t("call.wav", task=["asr", "st_de"])              # doctest: +SKIP
    """

    def __init__(
        self,
        asr_train_config: str | Path,
        asr_model_file: str | Path,
        *,
        device: str = "cpu",
        beam_size: int = SearchConfig.beam_size,
        ctc_weight: float = SearchConfig.ctc_weight,
        penalty: float = SearchConfig.penalty,
        maxlenratio: float = SearchConfig.maxlenratio,
        minlenratio: float = SearchConfig.minlenratio,
        normalize_length: bool = SearchConfig.normalize_length,
        nbest: int = SearchConfig.nbest,
        batch_size: int = SearchConfig.batch_size,
    ) -> None:
        config = SearchConfig(
            beam_size=beam_size,
            ctc_weight=ctc_weight,
            penalty=penalty,
            maxlenratio=maxlenratio,
            minlenratio=minlenratio,
            normalize_length=normalize_length,
            nbest=nbest,
            batch_size=batch_size,
        )
        check_device(device)
        self.device = device
        self.model, bpemodel = load_model(Path(asr_train_config), Path(asr_model_file))
        self.model.to(device).eval()
        self.batch_size = config.batch_size
        self._search = RowSearch(self.model, config)
        self._tokenizer = BpeTokenizer(bpemodel)
        self._tokenizer.load()  # the file may be gone later: packs are unpacked aside

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        inference_model: str = MODEL_FILE,
        inference_config: str | Path | None = None,
        device: str = "cpu",
    ) -> Speech2Text:
        """Load an experiment folder, a packed zip or a model of the hub.

        Args:
            model: folder with ``config.yaml``, zip of stage 14, or hub tag
                ``user/name``.
            inference_model: checkpoint in the folder.
            inference_config: decoding YAML; default ``decode.yaml`` beside the
                config if there, else the defaults of ``SearchConfig``.
            device: see the constructor.

        Raises:
            ConfigError: a file is missing or does not fit.
        """
        path = Path(model)
        if path.is_dir():
            files = (path / "config.yaml", path / inference_model)
            return cls._from_files(*files, inference_config, device)
        if path.suffix == ".zip":
            from espnet2.main_funcs.pack_funcs import unpack

            if not path.is_file():
                raise ConfigError(f"packed model {path} is missing")
            if not zipfile.is_zipfile(path):
                raise ConfigError(f"packed model {path} is no complete zip file")
            with tempfile.TemporaryDirectory() as folder:
                files = unpack(os.fspath(path), folder)
                return cls._from_pack(files, inference_config, device)
        if path.exists() or str(model).count("/") != 1 or str(model).startswith("."):
            raise ConfigError(
                f"{model} is no experiment folder, packed zip or hub tag 'user/name'"
            )
        from espnet2.utils.pretrained import download_pretrained

        try:
            files = download_pretrained(str(model))
        except Exception as error:  # the hub's client raises many kinds
            raise ConfigError(
                f"{model} is no local folder or zip, and the hub does not give it: "
                f"{error}"
            ) from error
        return cls._from_pack(files, inference_config, device)

    @classmethod
    def _from_pack(
        cls, files: Mapping[str, str], inference_config: str | Path | None, device: str
    ) -> Speech2Text:
        names = ("asr_train_config", "asr_model_file")
        if missing := [n for n in names if n not in files]:
            raise ConfigError(f"the pack lacks {missing}; it holds {sorted(files)}")
        return cls._from_files(
            *(Path(files[n]) for n in names), inference_config, device
        )

    @classmethod
    def _from_files(
        cls, config: Path, model: Path, inference_config: str | Path | None, device: str
    ) -> Speech2Text:
        beside = config.parent / "decode.yaml"
        if inference_config is None and beside.is_file():
            inference_config = beside
        search = SearchConfig()
        if inference_config is not None:
            search = SearchConfig.from_yaml(Path(inference_config))
        return cls(config, model, device=device, **search.__dict__)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks of the model."""
        return self.model.guides.tasks

    @property
    def bandwidths(self) -> tuple[str, ...]:
        """Bandwidths of the model."""
        return self.model.guides.bandwidths

    def __call__(
        self,
        speech: Speech,
        fs: int | None = None,
        task: str | Sequence[str] = "asr",
        bandwidth: str | None = None,
        channel: int | None = None,
        guides: Mapping[str, str] | None = None,
    ) -> list[Result] | dict[str, list[Result]]:
        """Decode one utterance.

        Args:
            speech: path, or (S,) array: float in [-1, 1] or int16.
            fs: rate of an array, Hz; a file brings its own.
            task: one task or several, which share one encoding.
            bandwidth: guide; None = by the rate (8 kHz ``nb``, 16 kHz and up ``wb``);
                ``"auto"`` = what ``detect_bandwidth`` hears in the speech. Where it
                hears no speech, the rate says, and a warning is logged.
            channel: of a file with several, from 0.
            guides: further utterance axis -> guide, if the model has such axes.

        Returns:
            n-best list of (text, tokens, token ids, hypothesis), best first; for
            several tasks a dict of them.

        Raises:
            ValueError: unreadable or unusable audio, an array without ``fs``, a task
                or bandwidth that the model does not have.
        """
        query = make_query(
            self.model.guides, speech, fs, task, bandwidth, channel, guides
        )
        result = self.decode([query])[0]
        return result[task] if isinstance(task, str) else result

    def batch_decode(
        self,
        speech: Sequence[Speech],
        fs: int | Sequence[int | None] | None = None,
        task: str | Sequence[str] | Sequence[str | Sequence[str]] = "asr",
        bandwidth: str | Sequence[str | None] | None = None,
        channel: int | Sequence[int | None] | None = None,
        guides: Mapping[str, str] | Sequence[Mapping[str, str]] | None = None,
    ) -> list[list[Result] | dict[str, list[Result]]]:
        """Decode many utterances, ``batch_size`` at a time.

        Args:
            speech: see ``__call__``.
            fs, bandwidth, channel, guides: one value for all utterances, or a list of
                one each.
            task: a task or a list of tasks for all; or one entry per utterance, of
                which at least one is itself a list of tasks: ``[["asr"], ["st_de"]]``.

        Returns:
            What ``__call__`` returns for each utterance, in order.

        Raises:
            ValueError: as ``__call__``, or a list of another length than ``speech``.
        """
        if isinstance(speech, (str, os.PathLike)):
            raise ConfigError(f"batch_decode takes a list, got {speech!r}")
        if not isinstance(task, str) and all(isinstance(t, str) for t in task or ()):
            task = [task] * len(speech)
        columns = {
            "fs": fs,
            "task": task,
            "bandwidth": bandwidth,
            "channel": channel,
            "guides": guides,
        }
        for name, value in columns.items():
            if not isinstance(value, (list, tuple, np.ndarray)):
                columns[name] = [value] * len(speech)
            elif len(value) != len(speech):
                raise ConfigError(
                    f"{len(value)} values of {name} for {len(speech)} utterances"
                )
        asked = zip(speech, *columns.values(), strict=True)
        results = self.decode([make_query(self.model.guides, *a) for a in asked])
        return [
            result[wanted] if isinstance(wanted, str) else result
            for result, wanted in zip(results, columns["task"], strict=True)
        ]

    @torch.inference_mode()
    def decode(self, queries: Sequence[Query]) -> list[dict[str, list[Result]]]:
        """Decode prepared utterances: task -> n-best list for each, in order.

        Utterances of like length are batched together; each is encoded once.
        """
        results: list[dict[str, list[Result]]] = [{} for _ in queries]
        order = sorted(range(len(queries)), key=lambda i: -len(queries[i].samples))
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            batch = [queries[i] for i in places]
            for place, result in zip(places, self._decode_batch(batch), strict=True):
                results[place] = result
        return results

    def _decode_batch(self, batch: Sequence[Query]) -> list[dict[str, list[Result]]]:
        table = self.model.guides
        lengths = torch.tensor([len(q.samples) for q in batch])
        speech = torch.zeros(len(batch), int(lengths.max()))
        for row, query in zip(speech, batch, strict=True):
            row[: len(query.samples)] = torch.from_numpy(query.samples)
        guide_ids = {
            axis.name: torch.tensor([axis.index(q.guides[axis.name]) for q in batch])
            for axis in table.utterance_axes
        }
        wanted = torch.tensor([[t in q.tasks for q in batch] for t in table.tasks])
        encoded, frames = self.model.encode(
            speech.to(self.device), lengths.to(self.device), guide_ids
        )
        rows = self.model.rows_of(guide_ids, wanted)
        nbests = self._search(encoded, frames, rows)
        results: list[dict[str, list[Result]]] = [{} for _ in batch]
        for utterance, task, nbest in zip(
            rows.utterances.tolist(), rows.tasks.tolist(), nbests, strict=True
        ):
            results[utterance][table.tasks[task]] = [self._result(h) for h in nbest]
        return [
            {t: result[t] for t in q.tasks}
            for q, result in zip(batch, results, strict=True)
        ]

    def _result(self, hyp: Hypothesis) -> Result:
        start = 1 + len(self.model.guides.axes)  # <sos> and the prompt
        ids = [i for i in hyp.yseq[start:].tolist() if i != self.model.eos]
        tokens = [self.model.token_list[i] for i in ids]
        return self._tokenizer.decode(tokens).strip(), tokens, ids, hyp
