"""Data directory -> sentencepiece model and token list."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

import sentencepiece

from espnet_smoe.config import check_out_dir
from espnet_smoe.datadir import read_datadir
from espnet_smoe.files import some_of, write_atomically
from espnet_smoe.guide import GuideError, GuideTable, token

__all__ = [
    "BLANK",
    "SOS_EOS",
    "UNK",
    "BpeTokenizer",
    "TokenError",
    "guide_token_ids",
    "read_token_list",
    "special_ids",
    "train_tokens",
    "warn_of_unknown",
]

BLANK, UNK, SOS_EOS = "<blank>", "<unk>", "<sos/eos>"  # the host's names and places

_SPECIAL = re.compile(r"<[a-z][a-z0-9_]*>")

logger = logging.getLogger(__name__)


class TokenError(ValueError):
    """Token training data or a token list cannot be used."""


class BpeTokenizer:
    """sentencepiece, loaded on first use so that the object pickles to workers.

    Args:
        model: path of the sentencepiece model.
    """

    def __init__(self, model: str | Path) -> None:
        self.model = str(model)
        self._processor = None

    def __getstate__(self) -> dict[str, object]:
        return {"model": self.model, "_processor": None}

    def encode(self, text: str) -> list[str]:
        """Text -> tokens.

        >>> BpeTokenizer("bpe.model").encode("good morning")  # doctest: +SKIP
        ['▁good', '▁mor', 'ning']
        """
        return self.load().encode(text, out_type=str)

    def decode(self, tokens: Sequence[str]) -> str:
        """Tokens -> text."""
        return self.load().decode(list(tokens))

    def load(self) -> sentencepiece.SentencePieceProcessor:
        """Read the model now.

        Raises:
            TokenError: the file is missing.
        """
        if self._processor is None:
            if not Path(self.model).is_file():
                raise TokenError(f"sentencepiece model {self.model} is missing")
            self._processor = sentencepiece.SentencePieceProcessor(self.model)
        return self._processor


def guide_token_ids(
    guides: GuideTable, token_list: Sequence[str], added_guides: Sequence[str] = ()
) -> dict[str, list[int]]:
    """Axis -> ids of its guiding tokens, in guide order.

    Args:
        added_guides: guides whose tokens stand behind the V tokens of the list: the
            first has id V. They are read in a prompt and can never be emitted.

    Raises:
        GuideError: the token list lacks a guiding token, or an added guide is no
            guide.
    """
    added = [token(g) for g in added_guides]
    if unknown := sorted(set(added) - set(guides.tokens)):
        raise GuideError(
            f"added_guides {unknown} are no guides; known: {list(guides.tokens)}"
        )
    place = {t: i for i, t in enumerate([*token_list, *added])}
    if missing := [t for t in guides.tokens if t not in place]:
        raise GuideError(
            f"the token list of {len(token_list)} tokens lacks the guiding tokens "
            f"{missing}; make it anew with stage 5"
        )
    return {a.name: [place[t] for t in a.tokens] for a in guides.axes}


def read_token_list(tokens: str | Sequence[str]) -> list[str]:
    """The vocabulary, from its file or as config.yaml records it.

    Raises:
        TokenError: the file is missing, or special tokens are not at their places.
    """
    if isinstance(tokens, str):
        if not Path(tokens).is_file():
            raise TokenError(f"token list {tokens} is missing; stage 5 makes it")
        tokens = Path(tokens).read_text(encoding="utf-8").splitlines()
    ends = (*tokens[:2], *tokens[-1:])
    if ends != (BLANK, UNK, SOS_EOS):
        raise TokenError(
            f"a token list must start with {BLANK}, {UNK} and end with {SOS_EOS}, got "
            f"{list(ends)}"
        )
    return list(tokens)


def special_ids(token_list: Sequence[str]) -> list[int]:
    """Ids of the tokens that are no text: blank, unknown and guiding tokens.

    Every token in the form of a guiding token counts, a guide of the model or not, so
    that it makes no difference when a task is added later.

    >>> special_ids(["<blank>", "<unk>", "<nb>", "▁a", "<sos/eos>"])
    [0, 1, 2]
    """
    return [i for i, t in enumerate(token_list) if _SPECIAL.fullmatch(t)]


def train_tokens(train_dir: Path, guides: GuideTable, nbpe: int, out_dir: Path) -> None:
    """Train one BPE over the references of all tasks of the training set.

    Writes ``bpe.model``, ``bpe.vocab`` and ``tokens.txt`` (a token a line: ``<blank>``,
    ``<unk>``, the guiding tokens, pieces, ``<sos/eos>``). Guiding tokens are
    user-defined symbols of sentencepiece: single ids.

    Args:
        train_dir: data directory.
        nbpe: vocabulary size of sentencepiece, guiding tokens and ``<unk>`` included.

    Raises:
        ConfigError: ``out_dir`` holds anything but an earlier token list.
        TokenError: too little text for ``nbpe``, or a reference holds a guiding token.
        DataDirError: the data directory is broken.
    """
    # an experiment folder can be a token list too, but not be made here
    check_out_dir(out_dir, ("bpe.model", "bpe.vocab", "tokens.txt"))
    if not Path(train_dir).is_dir():
        raise TokenError(f"{train_dir} is missing; run stage 4 first")
    texts = [
        utt.texts[task]
        for utt in read_datadir(train_dir)
        for task in guides.tasks
        if task in utt.texts
    ]
    if not texts:
        raise TokenError(
            f"{train_dir} has no reference of the tasks {list(guides.tasks)}"
        )
    for text in texts:
        if found := [t for t in (*guides.tokens, BLANK, UNK, SOS_EOS) if t in text]:
            raise TokenError(f"the reference {text!r} holds the special token {found}")
    with write_atomically(out_dir) as folder:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_prefix=os.fspath(folder / "bpe"),
                model_type="bpe",
                vocab_size=nbpe,
                character_coverage=1.0,
                user_defined_symbols=list(guides.tokens),
                unk_id=0,
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            found = re.search(r"<= (\d+)", str(error))
            hint = f"at most {found[1]}" if found else "more: every character needs one"
            raise TokenError(
                f"nbpe {nbpe} does not fit the {len(texts)} references of {train_dir}; "
                f"expected {hint}"
            ) from None
        lines = (folder / "bpe.vocab").read_text(encoding="utf-8").splitlines()
        pieces = [line.split("\t")[0] for line in lines]
        tokens = [BLANK, UNK, *(p for p in pieces if p != UNK), SOS_EOS]
        (folder / "tokens.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    logger.info("%d tokens -> %s", len(tokens), out_dir)


def warn_of_unknown(token_dir: Path, texts: Sequence[str], name: str) -> None:
    """Log what a token list made of other texts cannot write, if there is any.

    Args:
        token_dir: holds ``bpe.model``.
        name: of the texts.
    """
    processor = BpeTokenizer(token_dir / "bpe.model").load()
    unknown = processor.unk_id()
    rare = {c for c in set().union(*texts) if unknown in processor.encode(c)}
    # sentencepiece may know a letter with its accent and not the accent alone
    lost = [
        t for t in texts if not rare.isdisjoint(t) and unknown in processor.encode(t)
    ]
    if lost:
        found = sorted(rare & set().union(*lost))
        logger.warning(
            "%s: %d of %d references hold characters that the token list %s lacks; "
            "they become %s: %s",
            *(name, len(lost), len(texts), token_dir, UNK, some_of(found, 40)),
        )
