"""Gradient cosines -> ``interference.json``, ``interference.md``, ``.png``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import espnet_smoe
from espnet_smoe.config import check_out_dir
from espnet_smoe.files import write_atomically
from espnet_smoe.guide_pairs import ATTENTION, WITH_CTC
from espnet_smoe.interference import Row
from espnet_smoe.palette import COLOURS
from espnet_smoe.places import FFNS, PARTS
from espnet_smoe.report import commit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from espnet_smoe.interference_data import Measured

__all__ = ["FILES", "ranking", "write_interference"]

FILES = ("interference.json", "interference.md", "interference.png")
"""What is written."""

_MARKERS = ("o", "s", "^", "D")

Pair = tuple[str, str, str]
"""Axis and two of its guides."""


def write_interference(
    out_dir: Path, measured: Measured, settings: Mapping[str, str | int]
) -> str:
    """Write the three files; ``out_dir`` appears complete or not at all.

    Args:
        settings: how it was made, name -> value, with ``command`` and ``seed``.

    Returns:
        The text of ``interference.md``.
    """
    check_out_dir(out_dir, FILES)
    made = {
        **settings,
        "utterances": measured.utterances,
        "batches": measured.batches,
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "espnet_smoe": espnet_smoe.__version__,
        "commit": commit(),
    }
    content = {
        **made,
        "rows": [dataclasses.asdict(row) for row in measured.rows],
        "skipped": [dataclasses.asdict(skip) for skip in measured.skipped],
    }
    text = "\n".join(_markdown(measured, made)) + "\n"
    with write_atomically(out_dir) as folder:
        json_text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        (folder / "interference.json").write_text(json_text, encoding="utf-8")
        (folder / "interference.md").write_text(text, encoding="utf-8")
        _draw(measured.rows, folder / "interference.png")
    return text


def ranking(rows: Sequence[Row]) -> list[tuple[Row, float]]:
    """FFNs of single blocks by interference, strongest first.

    Args:
        rows: of one pair of guides.

    Returns:
        (row, interference): of the loss of training (with CTC where it reaches).
        Interference is the ``mean`` of the control, 1 where the same utterances are
        compared and there is none, less the ``mean`` of the row.
    """
    ceiling = {(r.place, r.loss): r.mean for r in rows if r.control}
    best: dict[str, Row] = {}
    for row in rows:
        counts = row.block is not None and row.part in FFNS and not row.control
        if counts and (row.place not in best or row.loss == WITH_CTC):
            best[row.place] = row
    gaps = [
        (row, ceiling.get((row.place, row.loss), 1.0), row.mean)
        for row in best.values()
    ]
    known = [(r, c - m) for r, c, m in gaps if c is not None and m is not None]
    return sorted(known, key=lambda item: -item[1])


def _pairs(rows: Sequence[Row]) -> dict[Pair, list[Row]]:
    pairs: dict[Pair, list[Row]] = {}
    for row in rows:
        pairs.setdefault((row.axis, row.a, row.b), []).append(row)
    return pairs


def _variants(rows: Sequence[Row]) -> list[tuple[str, bool]]:
    """Loss and control of the columns, in order."""
    return list(dict.fromkeys((r.loss, r.control) for r in rows))


def _markdown(measured: Measured, made: Mapping[str, object]) -> Iterator[str]:
    yield "# Cosines between gradients"
    yield ""
    for name, value in made.items():
        yield f"- {name}: " + (f"`{value}`" if name == "command" else f"{value}")
    yield ""
    yield "Per column: mean over batches ± its standard error, and the cosine of the"
    yield "gradients summed over all batches. 1: both pull the same way; below 0:"
    yield "against each other. Control: the same utterances parted at random into sides"
    yield "of the same sizes, what chance alone makes of it. CTC is part of asr and"
    yield "does not reach the decoder."
    for (axis, a, b), rows in _pairs(measured.rows).items():
        yield from ("", f"## {axis}: {a} and {b}", "")
        yield _matched(rows[0])
        yield ""
        variants = _variants(rows)
        titles = [f"{loss}, control" if c else loss for loss, c in variants]
        head = ["place", *(x for t in titles for x in (t, "sum"))]
        yield _line(head)
        yield _line(["---", *["---:"] * (len(head) - 1)])
        cells = {(r.place, r.loss, r.control): r for r in rows}
        for place in dict.fromkeys(r.place for r in rows):
            found = [cells.get((place, *variant)) for variant in variants]
            yield _line([place, *(x for r in found for x in _fields(r))])
        yield ""
        ranked = ", ".join(f"{r.place} {gap:.2f}" for r, gap in ranking(rows))
        what = "control" if any(r.control for r in rows) else "1"
        yield f"FFNs by interference ({what} less cosine): {ranked or 'none'}."
    if measured.skipped:
        yield from ("", "## Not compared", "")
        for s in measured.skipped:
            where = "" if s.place is None else f" at {s.place}"
            yield f"- {s.axis}, {s.a} and {s.b}{where}: {s.reason}"


def _matched(row: Row) -> str:
    if row.axis == "task":
        if row.matched:
            return "Both on the utterances that have both references."
        return "No utterance has both references: each on its own utterances."
    if row.matched:
        return "On the utterances that have references of all tasks."
    return (
        "No utterances of both have references of all tasks: each with the references "
        "it has, so part of the difference is that of the tasks."
    )


def _fields(row: Row | None) -> tuple[str, str]:
    if row is None or row.mean is None:
        mean = "-"
    else:
        mean = f"{row.mean:.3f}"
        mean += "" if row.error is None else f" ± {row.error:.3f}"
    total = "-" if row is None or row.total is None else f"{row.total:.3f}"
    return mean, total


def _line(fields: Sequence[str]) -> str:
    return "| " + " | ".join(fields) + " |"


def _draw(rows: Sequence[Row], path: Path) -> None:
    """A line of panels per pair of guides (PNG): means over batches by block."""
    from matplotlib.figure import Figure

    columns = [("encoder", ATTENTION), ("encoder", WITH_CTC), ("decoder", ATTENTION)]
    single = [r for r in rows if r.block is not None]
    columns = [c for c in columns if any((r.stack, r.loss) == c for r in single)]
    pairs = _pairs(single)
    figure = Figure(
        figsize=(1.0 + 3.6 * len(columns), 0.8 + 2.8 * len(pairs)), layout="constrained"
    )
    panels = figure.subplots(len(pairs), len(columns), squeeze=False, sharey="row")
    for line, ((axis, a, b), of_pair) in zip(panels, pairs.items(), strict=True):
        for axes, (stack, loss) in zip(line, columns, strict=True):
            mine = [r for r in of_pair if (r.stack, r.loss) == (stack, loss)]
            _draw_panel(axes, stack, mine)
            axes.set_title(f"{a} and {b}: {stack}, {loss}", fontsize=10)
        line[0].set_ylabel(f"cosine ({axis})")
    for axes, (stack, _) in zip(panels[-1], columns, strict=True):
        axes.set_xlabel(f"block of the {stack}")
    figure.suptitle(
        "Gradient cosines, mean over batches ± standard error; dashed: control",
        fontsize=11,
    )
    figure.savefig(path, format="png", dpi=150)


def _draw_panel(axes: Axes, stack: str, rows: Sequence[Row]) -> None:
    axes.axhline(0.0, color="#222222", lw=0.8)
    for k, part in enumerate(PARTS[stack]):
        for control in (False, True):
            mine = [
                r
                for r in rows
                if (r.part, r.control) == (part, control) and r.mean is not None
            ]
            if not mine:
                continue
            axes.errorbar(
                # side by side, or the bars would hide each other
                [r.block + 0.06 * (k - 1.5) for r in mine],
                [r.mean for r in mine],
                [r.error or 0.0 for r in mine],
                color=COLOURS[k],
                marker=_MARKERS[k],
                ms=4,
                lw=1.0,
                ls="--" if control else "-",
                alpha=0.5 if control else 1.0,
                label=None if control else part,
            )
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False)
