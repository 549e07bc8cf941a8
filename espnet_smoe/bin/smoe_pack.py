"""Pack a trained model, and what its config names, into one zip."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from espnet_smoe.bin.cli import run
from espnet_smoe.files import MODEL_FILE

__all__ = ["PackError", "get_parser", "main", "named_files", "pack_model"]


class PackError(ValueError):
    """The experiment folder lacks something the model needs."""


def named_files(config: Mapping[str, object]) -> Iterator[tuple[dict, str]]:
    """(mapping, key) of each file name in a training config.

    These are ``bpemodel`` and ``*_file`` entries of ``*_conf`` blocks, such as the
    statistics of ``normalize_conf``.
    """
    for key, value in config.items():
        if key == "bpemodel" and isinstance(value, str):
            yield config, key
        if key.endswith("_conf") and isinstance(value, dict):
            for name, entry in value.items():
                if name.endswith("_file") and isinstance(entry, str):
                    yield value, name


def pack_model(
    exp_dir: Path, out: Path, model: str, inference_config: Path | None = None
) -> None:
    """Write ``out``: config, model, files of the config, decode YAML, RESULTS.

    The sentencepiece model is the ``bpe.model`` beside the config if there, so that
    a moved folder packs as well as it loads. The config in the zip names
    its files by their place in the zip, which the host's ``unpack`` and the hub's
    downloader turn into real paths. The zip appears complete or not at all.

    Raises:
        PackError: a file is missing, or ``out`` is no zip.
    """
    import yaml
    from espnet2.main_funcs.pack_funcs import pack

    if out.suffix != ".zip":
        raise PackError(f"--out must end in .zip, got {out}")
    needed = [exp_dir / "config.yaml", exp_dir / model]
    if missing := [p for p in needed if not p.is_file()]:
        raise PackError(f"{missing[0]} is missing; run stage 11 first")
    if inference_config and not inference_config.is_file():
        raise PackError(f"inference config {inference_config} is missing")
    config = yaml.safe_load(needed[0].read_text("utf-8"))
    if not isinstance(config, dict):
        raise PackError(f"{needed[0]}: expected a mapping, got {type(config).__name__}")

    extra = _collect(config, needed[0])
    if inference_config:
        extra["decode.yaml"] = inference_config
    for found in sorted(exp_dir.glob("*/RESULTS.md")):
        extra[f"{found.parent.name}/RESULTS.md"] = found

    # the host stores paths as seen from the current folder, so pack from a folder
    # that looks as the zip shall look
    out = out.absolute()
    folder = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        for name, source in {model: needed[1], **extra}.items():
            _link(source, folder / name)
        text = yaml.safe_dump(config, allow_unicode=True, sort_keys=False)
        (folder / "config.yaml").write_text(text, encoding="utf-8")
        with contextlib.chdir(folder), contextlib.redirect_stdout(sys.stderr):
            pack(
                files={"asr_model_file": model},
                yaml_files={"asr_train_config": "config.yaml"},
                outpath="packed.zip",
                option=sorted(extra),
            )
        os.replace(folder / "packed.zip", out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    logging.getLogger(__name__).info("packed %s", out)


def _collect(config: dict, path: Path) -> dict[str, Path]:
    """Place in the zip -> file, for what the config names; renames them in it."""
    files = {}
    for mapping, key in named_files(config):
        source = Path(mapping[key])
        if key == "bpemodel" and (path.parent / "bpe.model").is_file():
            source = path.parent / "bpe.model"
        if not source.is_file():
            raise PackError(
                f"{path}: {key} names {source}, which is no file; run from the folder "
                "the model was trained in"
            )
        # the downloader takes only names with a folder in them for paths
        mapping[key] = f"data/{key}/{source.name}"
        files[mapping[key]] = source
    return files


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def get_parser() -> argparse.ArgumentParser:
    """Options of ``smoe_pack``."""
    parser = argparse.ArgumentParser(prog="smoe_pack", description=__doc__)
    parser.add_argument("--exp_dir", type=Path, required=True, help="exp/smoe_<tag>")
    parser.add_argument("--out", type=Path, required=True, help="zip to write")
    parser.add_argument(
        "--inference_model",
        default=MODEL_FILE,
        help="file in --exp_dir (default: %(default)s)",
    )
    parser.add_argument(
        "--inference_config", type=Path, help="decode YAML; packed as decode.yaml"
    )
    return parser


def main(cmd: Sequence[str] | None = None) -> int:
    """Run ``smoe_pack``; returns the exit status."""

    def call(args: argparse.Namespace) -> None:
        pack_model(args.exp_dir, args.out, args.inference_model, args.inference_config)

    return run(get_parser(), call, cmd)


if __name__ == "__main__":
    sys.exit(main())
