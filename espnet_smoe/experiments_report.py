"""Compared experiments -> ``RESULTS.md``, ``experiments.json``, ``experiments.png``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import espnet_smoe
from espnet_smoe.compare import Comparison
from espnet_smoe.config import check_out_dir
from espnet_smoe.cost import SECONDS, TOKENS, Cost
from espnet_smoe.files import write_atomically
from espnet_smoe.metrics import RESAMPLES
from espnet_smoe.palette import COLOURS
from espnet_smoe.report import commit

__all__ = ["FILES", "Results", "draw", "markdown", "write_results"]

FILES = ("RESULTS.md", "experiments.json", "experiments.png")
"""What `write_results` writes."""

_MAIN = {"wer": "WER", "bleu": "BLEU"}
_OTHER = {"cer": "CER", "chrf2": "chrF2", "ter": "TER"}


@dataclass(frozen=True)
class Results:
    """Everything that is reported.

    Args:
        comparisons: every system in every cell, systems in the order of the list.
        costs: system -> cost.
        commands: experiment -> command that trained, decoded and scored it.
    """

    baseline: str
    seeds: tuple[int, ...]
    comparisons: Sequence[Comparison]
    costs: Mapping[str, Cost]
    commands: Mapping[str, str]


def write_results(folder: Path, results: Results, command: str, jobs: int) -> str:
    """Write the three files; the folder appears complete or stays as it was.

    Args:
        command: the command line that made them.
        jobs: trainings that ran at a time.

    Returns:
        The text of ``RESULTS.md``.

    Raises:
        ConfigError: the folder holds anything else.
    """
    check_out_dir(folder, FILES)
    text = markdown(results, folder.name, command, jobs)
    content = {
        "baseline": results.baseline,
        "seeds": results.seeds,
        "command": command,
        "commit": commit(),
        "rows": [dataclasses.asdict(c) for c in results.comparisons],
        "costs": {s: dataclasses.asdict(c) for s, c in results.costs.items()},
        "commands": dict(results.commands),
    }
    with write_atomically(folder) as new:
        tables, numbers, chart = (new / name for name in FILES)
        tables.write_text(text, encoding="utf-8")
        numbers.write_text(
            json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        draw(results, chart)
    return text


def markdown(results: Results, name: str, command: str, jobs: int) -> str:
    """Text of ``RESULTS.md``; see `write_results` for its arguments."""
    seeds = ", ".join(map(str, results.seeds))
    made = [
        f"- date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        f"- command: `{command}`",
        f"- espnet_smoe: {espnet_smoe.__version__}",
        f"- training seeds: {seeds}",
    ]
    if found := commit():
        made.append(f"- git commit: `{found}`")
    return "\n".join(
        [
            f"# RESULTS: {name}",
            "",
            *made,
            "",
            "## Scores",
            "",
            *_score_notes(results),
            "",
            *_utterances(results),
            "",
            *_score_table(results, _MAIN),
            "",
            *_score_table(results, _OTHER),
            "",
            "![Scores](experiments.png)",
            "",
            "## Cost",
            "",
            *_cost_notes(jobs),
            "",
            *_cost_table(results),
            "",
            "## Signatures",
            "",
            *(f"- `{s}`" for s in sorted({c.signature for c in results.comparisons})),
            "",
            "## Experiments",
            "",
            *(f"- `{n}`: `{c}`" for n, c in results.commands.items()),
            "",
        ]
    )


def _score_notes(results: Results) -> list[str]:
    return [
        "Per cent: mean over the seeds (the single values, in the order of the seeds);",
        f"relative difference to {results.baseline}; two-sided p of the difference, by",
        f"a paired bootstrap over the utterances of the cell ({RESAMPLES} resamples,",
        "the same ones for all systems and seeds). p tells about these utterances;",
        "the single values tell about the luck of a training.",
        "WER, CER and TER: lower is better. BLEU and chrF2: higher is better.",
    ]


def _utterances(results: Results) -> list[str]:
    counts = {_place(c)[:3]: c.utterances for c in results.comparisons}
    cells = (f"{' '.join(place)} {counts[place]}" for place in sorted(counts))
    return [f"Utterances: {', '.join(cells)}."]


def _cost_notes(jobs: int) -> list[str]:
    return [
        "Parameters: of all models of a system. Active: those that one utterance in",
        "one task touches. GFLOP: operations, a multiplication and an addition being",
        f"two, to encode {SECONDS:g} s and score {TOKENS} given tokens in one task.",
        "Seconds per training step: mean over epochs and seeds, as each training",
        f"recorded them; this command trained up to {jobs} at a time with one thread",
        "each, and all else that the machine did counts too.",
    ]


def _score_table(results: Results, titles: Mapping[str, str]) -> list[str]:
    fields = {
        (c.system, _place(c)): c for c in results.comparisons if c.metric in titles
    }
    places = sorted({place for _, place in fields})
    several = len({place[0] for place in places}) > 1
    head = ["system"]
    for name, task, band, metric in places:
        head.append(f"{name} " * several + f"{task} {band} {titles[metric]}")
    base = {p: fields.get((results.baseline, p)) for p in places}
    lines = [head, ["---"] + ["---:"] * len(places)]
    for system in results.costs:
        row = [_field(fields.get((system, p)), base[p]) for p in places]
        lines.append([system, *row])
    return _table(lines)


def _place(c: Comparison) -> tuple[str, str, str, str]:
    return c.set, c.task, c.bandwidth, c.metric


def _field(c: Comparison | None, base: Comparison | None) -> str:
    if c is None:
        return "-"
    text = f"{c.mean:.2f}"
    if len(c.values) > 1:
        text += f" ({', '.join(f'{v:.2f}' for v in c.values)})"
    if c.p is not None:
        if base.mean:
            text += f"; {100 * (c.mean / base.mean - 1):+.1f} %"
        text += f", p {c.p:.3f}"
    return text


def _cost_table(results: Results) -> list[str]:
    lines = [
        ["system", "parameters (M)", "active (M)", "GFLOP", "s per step"],
        ["---", *["---:"] * 4],
    ]
    for system, cost in results.costs.items():
        lines.append(
            [
                system,
                f"{cost.parameters / 1e6:.3f}",
                f"{cost.active / 1e6:.3f}",
                f"{cost.flops / 1e9:.3f}",
                f"{cost.step_seconds:.3f}",
            ]
        )
    return _table(lines)


def _table(lines: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(f.replace("|", "\\|") for f in line) + " |" for line in lines
    ]


def draw(results: Results, path: Path) -> None:
    """Chart (PNG): a panel per cell, a line per system, a dot per seed.

    A diamond is the mean, the dashed line the mean of the baseline.
    """
    from matplotlib.figure import Figure

    shown = [c for c in results.comparisons if c.metric in _MAIN]
    places = sorted({_place(c) for c in shown})
    systems = list(results.costs)
    figure = Figure(
        figsize=(2.0 + 2.6 * len(places), 1.4 + 0.4 * len(systems)),
        layout="constrained",
    )
    panels = figure.subplots(1, len(places), squeeze=False, sharey=True)[0]
    for place, axes in zip(places, panels, strict=True):
        for c in (c for c in shown if _place(c) == place):
            line = systems.index(c.system)
            axes.plot(c.mean, line, "D", color=COLOURS[1], ms=8)
            axes.plot(c.values, [line] * len(c.values), "o", color=COLOURS[0], ms=4)
            if c.system == results.baseline:
                axes.axvline(c.mean, color="#222222", ls="--", lw=1)
        better = "lower" if place[3] == "wer" else "higher"
        axes.set_title(
            f"{place[0]}: {place[1]} {place[2]}\n"
            f"{_MAIN[place[3]]} (%), {better} is better",
            fontsize=9,
        )
        axes.margins(x=0.15)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    panels[0].set_yticks(range(len(systems)), systems)
    panels[0].set_ylim(len(systems) - 0.5, -0.5)
    figure.savefig(path, format="png", dpi=150)
