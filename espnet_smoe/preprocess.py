"""One utterance -> arrays: samples, token ids per task, guide ids."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
from espnet2.text.token_id_converter import TokenIDConverter
from espnet2.train.preprocessor import AbsPreprocessor

from espnet_smoe.audio import FULL_SCALE
from espnet_smoe.augment import Augmentation
from espnet_smoe.datadir import Utterance
from espnet_smoe.guide import BANDWIDTH, GuideError, GuideTable
from espnet_smoe.tokens import BpeTokenizer

__all__ = ["SMoEPreprocessor", "make_targets"]


def make_targets(utterances: Sequence[Utterance], guides: GuideTable) -> dict[str, str]:
    """Utterance id -> JSON of its references, ``{"<task>": "<reference>", ...}``.

    One entry for all tasks, because an utterance may lack tasks and the host wants
    every data file to name every utterance.

    Raises:
        GuideError: an utterance has none of the model's tasks, or an unknown guide.
    """
    table = {}
    for utt in utterances:
        for axis in guides.utterance_axes:
            if axis.name not in utt.guides:
                raise GuideError(f"{utt.id}: utt2{axis.name} is missing")
            axis.index(utt.guides[axis.name])
        texts = {t: utt.texts[t] for t in guides.tasks if t in utt.texts}
        if not texts:
            raise GuideError(
                f"{utt.id}: has references of {sorted(utt.texts)} only; the tasks "
                f"to learn are {list(guides.tasks)}"
            )
        table[utt.id] = json.dumps(texts, ensure_ascii=False)
    return table


class SMoEPreprocessor(AbsPreprocessor):
    """Turn what the host's data set read into the model's batch entries.

    Only ``augmentation`` alters the audio; it says which guide is true afterwards.

    Args:
        train: whether the data is for training; the host says no for validation and
            for the statistics of stage 10.
        token_list: the vocabulary.
        bpemodel: path of the sentencepiece model.
        guides: axis -> guides of the model (YAML ``guides``).
        augmentation: happens to training data only.
    """

    def __init__(
        self,
        train: bool,
        token_list: Sequence[str],
        bpemodel: str,
        guides: Mapping[str, Sequence[str]],
        augmentation: Augmentation | None = None,
    ) -> None:
        super().__init__(train)
        self.augmentation = augmentation
        self.guides = GuideTable.from_mapping(guides)
        self.tokenizer = BpeTokenizer(bpemodel)
        self.converter = TokenIDConverter(list(token_list))

    def __call__(
        self, uid: str, data: dict[str, str | np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Convert one utterance.

        Args:
            uid: utterance id, for messages.
            data: ``speech`` (S,) int16 as dumped or float in [-1, 1], 16 kHz;
                ``targets`` JSON of task -> text; one guide name per utterance axis.

        Returns:
            ``speech`` (S',) float32; ``text_<task>`` (U,) int64 for every task, empty
            if the utterance lacks it; ``<axis>`` (1,) int64 guide id.

        Raises:
            GuideError: an unknown guide or task; names the utterance.
            ValueError: audio that is empty, not one channel or not finite.
        """
        axes = {axis.name: axis for axis in self.guides.utterance_axes}
        if unknown := sorted(set(data) - {"speech", "targets", *axes}):
            raise GuideError(
                f"{uid}: unknown data {unknown}; known: speech, targets, "
                f"{', '.join(axes)}"
            )
        speech = np.asarray(data["speech"])
        # the host hands over a dump's integers as they are; the API's audio is scaled
        scale = np.float32(FULL_SCALE if speech.dtype.kind == "i" else 1)
        speech = speech.astype(np.float32) / scale
        if speech.ndim != 1 or not speech.size or not np.isfinite(speech).all():
            raise ValueError(
                f"{uid}: expected finite samples of one channel, got shape "
                f"{speech.shape}"
            )
        names = {name: data[name] for name in axes}
        if self.train and self.augmentation is not None:
            speech, names[BANDWIDTH] = self.augmentation(speech, names[BANDWIDTH])
        arrays = {"speech": speech}
        for name, axis in axes.items():
            try:
                arrays[name] = np.array([axis.index(names[name])], dtype=np.int64)
            except GuideError as error:
                raise GuideError(f"{uid}: {error}") from None
        targets = json.loads(data["targets"])
        if unknown := sorted(set(targets) - set(self.guides.tasks)):
            raise GuideError(
                f"{uid}: unknown tasks {unknown}; known: {list(self.guides.tasks)}"
            )
        for task in self.guides.tasks:
            tokens = self.tokenizer.encode(targets[task]) if task in targets else []
            ids = self.converter.tokens2ids(tokens)
            arrays[f"text_{task}"] = np.array(ids, dtype=np.int64)
        return arrays
