"""Send a packed model to the Hugging Face hub, with a model card."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from espnet_smoe.bin.cli import run

__all__ = ["UploadError", "card", "get_parser", "main", "upload", "upload_files"]

_REPO = re.compile(r"[\w.-]+/[\w.-]+")

_CARD = """\
---
tags:
- espnet
- audio
- automatic-speech-recognition
- speech-translation
---

# {repo}

Speech recognition and translation model trained with `espnet_smoe`.

```python
from espnet_smoe import Speech2Text

s2t = Speech2Text.from_pretrained("{repo}")
s2t("call.wav")
```
"""


class UploadError(ValueError):
    """Nothing fit to send, or the hub did not take it."""


def upload_files(packed: Path) -> list[str]:
    """Names of the files of a packed model, sorted.

    Raises:
        UploadError: no zip, no packed model, or a name that leaves the folder.
    """
    if not packed.is_file():
        raise UploadError(f"{packed} is missing; run stage 14 first")
    if not zipfile.is_zipfile(packed):
        raise UploadError(f"{packed} is no zip; expected what stage 14 makes")
    with zipfile.ZipFile(packed) as archive:
        names = sorted(n for n in archive.namelist() if not n.endswith("/"))
    if "meta.yaml" not in names:
        raise UploadError(f"{packed} holds no meta.yaml; expected what stage 14 makes")
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise UploadError(f"{packed}: {name!r} leaves the folder of the model")
    return names


def card(repo: str, results: Sequence[str]) -> str:
    """Text of the model card: how to load the model, then its results."""
    # a heading of the results becomes one below the card's own
    lower = [re.sub(r"^#", "##", text, flags=re.MULTILINE) for text in results]
    return "\n".join([_CARD.format(repo=repo), *lower])


def upload(packed: Path, repo: str, private: bool) -> None:
    """Send the unpacked model and a card; makes the repository if needed.

    Raises:
        UploadError: nothing fit to send, not logged in, or the hub refused.
    """
    if not _REPO.fullmatch(repo):
        raise UploadError(f"--hf_repo must be user/name, got {repo!r}")
    names = upload_files(packed)
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise UploadError(
            "not logged in to the Hugging Face hub; run 'hf auth login' or set HF_TOKEN"
        )
    with tempfile.TemporaryDirectory(prefix="smoe_upload") as folder:
        with zipfile.ZipFile(packed) as archive:
            archive.extractall(folder, members=names)
        found = [n for n in names if PurePosixPath(n).name == "RESULTS.md"]
        results = [Path(folder, n).read_text("utf-8") for n in found]
        Path(folder, "README.md").write_text(card(repo, results), encoding="utf-8")
        try:
            api = HfApi()
            api.create_repo(repo, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=folder)
        # the hub's client raises many kinds: offline, refused, full, timed out
        except Exception as error:
            reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
            raise UploadError(f"upload of {packed} to {repo}: {reason[0]}") from error


def get_parser() -> argparse.ArgumentParser:
    """Options of ``smoe_upload``."""
    parser = argparse.ArgumentParser(prog="smoe_upload", description=__doc__)
    parser.add_argument("--packed", type=Path, required=True, help="zip of stage 14")
    parser.add_argument("--hf_repo", required=True, help="user/name on the hub")
    parser.add_argument("--private", action="store_true", help="make it private")
    return parser


def main(cmd: Sequence[str] | None = None) -> int:
    """Run ``smoe_upload``; returns the exit status."""

    def call(args: argparse.Namespace) -> None:
        upload(args.packed, args.hf_repo, args.private)

    return run(get_parser(), call, cmd)


if __name__ == "__main__":
    sys.exit(main())
