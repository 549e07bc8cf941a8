"""Scores -> ``scores.json``, ``RESULTS.md``, ``scores.png`` and a table to print."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

import espnet_smoe
from espnet_smoe.metrics import RESAMPLES
from espnet_smoe.palette import COLOURS
from espnet_smoe.score import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["commit", "draw", "markdown", "table", "write_report"]

_TITLES = {"wer": "WER", "cer": "CER", "bleu": "BLEU", "chrf2": "chrF2", "ter": "TER"}
_HATCHES = ("", "//", "..", "xx")
_PANELS = {"wer": "WER (%), lower is better", "bleu": "BLEU, higher is better"}


def table(rows: Sequence[Row]) -> str:
    """Aligned plain text, one line per score."""
    head = ("set", "task", "bandwidth", "guide", "metric")
    lines = [(*head, "value", "[95 % interval]", "utts")]
    lines += [
        (
            r.set,
            r.task,
            r.bandwidth,
            r.guide,
            r.metric,
            f"{r.value:.2f}",
            f"[{r.low:.2f}, {r.high:.2f}]",
            str(r.utterances),
        )
        for r in rows
    ]
    widths = [max(len(line[k]) for line in lines) for k in range(8)]
    return "\n".join(
        "  ".join(
            field.ljust(width) if k < len(head) else field.rjust(width)
            for k, (field, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def commit() -> str | None:
    """Commit of the source this package runs from; None outside a checkout."""
    here = Path(__file__).resolve()
    try:
        # a package installed below some other checkout is not tracked by it
        _git(here.parent, "ls-files", "--error-unmatch", here.name)
        return _git(here.parent, "describe", "--always", "--dirty", "--abbrev=12")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    )
    return done.stdout.strip()


def training_seed(decode_dir: Path) -> int | None:
    """Seed of the model that was decoded, from its ``config.yaml``, if it is there."""
    config = decode_dir.resolve().parent / "config.yaml"
    if not config.is_file():
        return None
    return yaml.safe_load(config.read_text(encoding="utf-8")).get("seed")


def markdown(
    rows: Sequence[Row], name: str, command: str, seed: int | None = None
) -> str:
    """Text of ``RESULTS.md``: how it was made, one line per cell, signatures.

    Args:
        name: heading, e.g. the experiment and decode tag.
        command: the command line that made the scores.
        seed: of the training, if known.
    """
    metrics = [m for m in _TITLES if any(r.metric == m for r in rows)]
    cells: dict[tuple[str, ...], dict[str, Row]] = {}
    for r in rows:
        cells.setdefault((r.set, r.task, r.bandwidth, r.guide), {})[r.metric] = r
    names = ["set", "task", "bandwidth", "guide"]
    head = [*names, "utterances", *(_TITLES[m] for m in metrics)]
    lines = [head, ["---"] * len(names) + ["---:"] * (len(head) - len(names))]
    for cell, scores in cells.items():
        utterances = str(next(iter(scores.values())).utterances)
        fields = [_field(scores.get(m)) for m in metrics]
        lines.append([*(_cell_text(c) for c in cell), utterances, *fields])
    made = [f"- date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"]
    made.append(f"- command: `{command}`")
    made.append(f"- espnet_smoe: {espnet_smoe.__version__}")
    if seed is not None:
        made.append(f"- training seed: {seed}")
    if found := commit():
        made.append(f"- git commit: `{found}`")
    signatures = sorted({r.signature for r in rows})
    return "\n".join(
        [
            f"# RESULTS: {name}",
            "",
            *made,
            "",
            "## Scores",
            "",
            f"Per cent; in brackets the 95 % interval over {RESAMPLES} bootstrap "
            "resamples of the utterances.",
            "WER, CER and TER: lower is better. BLEU and chrF2: higher is better.",
            "Guide: the bandwidth guide decoded with, a wrong one where it is not the "
            "bandwidth.",
            "",
            *("| " + " | ".join(line) + " |" for line in lines),
            "",
            "## Signatures",
            "",
            *(f"- `{s}`" for s in signatures),
            "",
        ]
    )


def _field(row: Row | None) -> str:
    return f"{row.value:.2f} [{row.low:.2f}, {row.high:.2f}]" if row else "-"


def _cell_text(text: str) -> str:
    return text.replace("|", "\\|")


def draw(rows: Sequence[Row], path: Path) -> None:
    """Bar chart (PNG): a panel for WER, one for BLEU, a bar per bandwidth and guide.

    Lines on the bars are the 95 % intervals.
    """
    from matplotlib.figure import Figure

    shown = [m for m in _PANELS if any(r.metric == m for r in rows)]
    groups = {m: _groups(rows, m) for m in shown}
    widths = [max(2, len(g)) for g in groups.values()]
    figure = Figure(figsize=(1.2 + 2.0 * sum(widths), 4.2), layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False, width_ratios=widths)[0]
    bars = list(dict.fromkeys((r.bandwidth, r.guide) for r in rows))
    for metric, axes in zip(shown, panels, strict=True):
        scores = [r for r in rows if r.metric == metric]
        _draw_panel(axes, scores, groups[metric], bars)
        axes.set_title(_PANELS[metric])
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        title="bandwidth (lines: 95 % intervals)",
        loc="outside lower center",
        ncols=len(labels),
        frameon=False,
    )
    figure.savefig(path, format="png", dpi=150)


def _groups(rows: Sequence[Row], metric: str) -> list[tuple[str, str]]:
    return list(dict.fromkeys((r.set, r.task) for r in rows if r.metric == metric))


def _draw_panel(
    axes: Axes,
    rows: Sequence[Row],
    groups: Sequence[tuple[str, str]],
    bars: Sequence[tuple[str, str]],
) -> None:
    width = 0.8 / len(bars)
    for k, bar in enumerate(bars):
        mine = [r for r in rows if (r.bandwidth, r.guide) == bar]
        shift = (k - (len(bars) - 1) / 2) * width
        places = [groups.index((r.set, r.task)) + shift for r in mine]
        axes.bar(
            places,
            [r.value for r in mine],
            0.92 * width,
            color=COLOURS[k % len(COLOURS)],
            hatch=_HATCHES[k % len(_HATCHES)],
            edgecolor="white",
            label=bar[0] if bar[0] == bar[1] else f"{bar[0]} as {bar[1]}",
        )
        # ends as they are: an interval need not lie around the score
        axes.vlines(
            places, [r.low for r in mine], [r.high for r in mine], "#222222", lw=1.6
        )
        for place, r in zip(places, mine, strict=True):
            axes.annotate(
                f"{r.value:.1f}",
                (place, max(r.value, r.high)),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=9,
            )
    axes.set_xticks(range(len(groups)), [f"{name}\n{task}" for name, task in groups])
    axes.set_xlim(-0.6, max(len(groups), 1) - 0.4)
    axes.set_ylim(0, 1.12 * max(max(r.value, r.high, 1.0) for r in rows))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def write_report(decode_dir: Path, rows: Sequence[Row], command: str) -> None:
    """Write ``scores.json``, ``RESULTS.md`` and ``scores.png`` under ``decode_dir``.

    Each file appears complete or not at all; ``scores.json`` comes last.
    """
    decode_dir = Path(decode_dir)
    name = "/".join(decode_dir.resolve().parts[-2:])
    text = markdown(rows, name, command, training_seed(decode_dir))
    content = {"rows": [dataclasses.asdict(row) for row in rows]}
    scores = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    _place(decode_dir / "scores.png", lambda path: draw(rows, path))
    _place(decode_dir / "RESULTS.md", lambda path: _write(path, text))
    _place(decode_dir / "scores.json", lambda path: _write(path, scores))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _place(path: Path, make: Callable[[Path], None]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        make(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
