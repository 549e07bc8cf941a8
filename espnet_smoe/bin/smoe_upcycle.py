"""Make an S-MoE model out of dense checkpoints: experts begin as copies.

A dense experiment is a folder with config.yaml and valid.acc.ave.pth, or a checkpoint
with config.yaml beside: hard sharing of ours, or a stock Conformer-Transformer of
ESPnet's ASR or S2T task. Train on with --init_param OUT_DIR/valid.acc.ave.pth.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_smoe.bin.cli import run

__all__ = ["get_parser", "main"]


def _expert(text: str) -> tuple[str, Path]:
    guide, equals, path = text.partition("=")
    if not (guide and equals and path):
        raise argparse.ArgumentTypeError(f"expected GUIDE=EXPERIMENT, got {text!r}")
    return guide, Path(path)


def get_parser() -> argparse.ArgumentParser:
    """Options of this tool."""
    parser = argparse.ArgumentParser(prog="smoe_upcycle", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="training YAML")
    parser.add_argument(
        "--token_dir", type=Path, required=True, help="folder that stage 5 made"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--dense", type=Path, help="dense experiment: its folder, or a checkpoint in it"
    )
    source.add_argument(
        "--expert",
        type=_expert,
        action="append",
        metavar="GUIDE=EXPERIMENT",
        help="dense experiment for the experts of a guide; give it for several",
    )
    parser.add_argument(
        "--shared",
        default="average",
        metavar="average|GUIDE",
        help="with --expert: all else is the mean of the experiments, or comes from "
        "the one of this guide (default: %(default)s)",
    )
    parser.add_argument(
        "--encoder_only",
        action="store_true",
        help="leave decoder and CTC fresh: the vocabularies may differ",
    )
    parser.add_argument(
        "--out_dir", type=Path, required=True, help="experiment folder to make"
    )
    return parser


def _call(args: argparse.Namespace) -> None:
    from espnet_smoe.upcycle import upcycle

    pairs = args.expert or []
    experts = dict(pairs)
    if len(experts) < len(pairs):
        raise ValueError(f"--expert names a guide twice: {[g for g, _ in pairs]}")
    if args.dense is None and args.shared not in ("average", *experts):
        raise ValueError(
            f"--shared must be average or a guide of --expert {sorted(experts)}, got "
            f"{args.shared!r}"
        )
    shared = args.dense or experts.get(args.shared)
    report = upcycle(
        args.config, args.token_dir, shared, experts, args.encoder_only, args.out_dir
    )
    copies = report["copied_to_experts"]
    for number in sorted(set(copies.values())):
        names = [name for name, n in copies.items() if n == number]
        print(f"copied to {number} experts: {len(names)} tensors")
    for kind in ("copied", "fresh", "unused"):
        print(f"{kind}: {len(report[kind])} tensors {' '.join(report[kind][:3])}")
    for warning in report["warnings"]:
        print(f"warning: {warning}")
    for row in report["routes"]:
        route = " ".join(row["route"].values())
        values = ", ".join(f"{k} {v:.1e}" for k, v in row.items() if k != "route")
        print(f"{route}: largest {values}")
    print(f"all names: {args.out_dir}/upcycle.json")


def main(cmd: Sequence[str] | None = None) -> int:
    """Run; returns the exit status."""
    return run(get_parser(), _call, cmd)


if __name__ == "__main__":
    sys.exit(main())
