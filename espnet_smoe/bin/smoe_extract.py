"""Make a plain ESPnet model of one bandwidth and one task of an S-MoE model.

The folder holds an S2T model that ESPnet decodes without this plugin; the last line
printed says how.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_smoe.bin.cli import run
from espnet_smoe.files import MODEL_FILE

__all__ = ["get_parser", "main"]


def get_parser() -> argparse.ArgumentParser:
    """Options of this tool."""
    parser = argparse.ArgumentParser(prog="smoe_extract", description=__doc__)
    parser.add_argument("--exp_dir", type=Path, required=True, help="experiment folder")
    parser.add_argument(
        "--inference_model", default=MODEL_FILE, help="checkpoint in exp_dir"
    )
    parser.add_argument("--bandwidth", required=True, help="guide, e.g. nb")
    parser.add_argument("--task", required=True, help="guide, e.g. asr or st_de")
    parser.add_argument(
        "--guides",
        nargs="*",
        default=[],
        metavar="AXIS=GUIDE",
        help="of further axes, if the model has such",
    )
    parser.add_argument(
        "--data_dir",
        type=Path,
        help="dumped data directory: decode some of it by both models, to compare",
    )
    parser.add_argument(
        "--out_dir", type=Path, required=True, help="folder of the extracted model"
    )
    return parser


def _call(args: argparse.Namespace) -> None:
    from espnet_smoe.extract import extract, route_of

    experiment = args.exp_dir / args.inference_model
    route = route_of(experiment, args.bandwidth, args.task, args.guides)
    report = extract(experiment, route, args.out_dir, args.data_dir)
    before, after = report["parameters_before"], report["parameters_after"]
    print(
        f"{' '.join(report['prompt'])}: {before} -> {after} parameters; largest "
        f"difference of the encoder {report['difference_encoder']}, of the decoder "
        f"{report['difference_decoder']}"
    )
    if decoded := report.get("decoding"):
        print(
            f"{decoded['same_text']} of {decoded['utterances']} hypotheses are the "
            f"same, scores differ by {decoded['difference_score']:.1e}; an utterance "
            f"takes {decoded['seconds_before']:.3f} s "
            f"({decoded['seconds_before_batched']:.3f} s in a batch) with S-MoE, "
            f"{decoded['seconds_after']:.3f} s with ESPnet"
        )
    print(report["usage"])


def main(cmd: Sequence[str] | None = None) -> int:
    """Run; returns the exit status."""
    return run(get_parser(), _call, cmd)


if __name__ == "__main__":
    sys.exit(main())
