"""The survey of a corpus on disk and in the log.

``<datadir>/survey`` holds

    bandwidth.tsv   a line per utterance
    survey.md       counts, conflicts and warnings per split
    scores.png      histogram of the detector's scores, if there are any
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from espnet_smoe.bandwidth import UNKNOWN
from espnet_smoe.files import some_of, write_atomically
from espnet_smoe.palette import COLOURS
from espnet_smoe.survey import Finding

__all__ = ["FOLDER", "write_survey"]

log = logging.getLogger(__name__)

FOLDER = "survey"  # in the folder of the data directories

_COLUMNS = (
    *("id", "split", "rate_hz", "seconds", "declared", "declared_by", "heard"),
    *("detected", "score_db", "label", "conflict", "warnings"),
)
_LISTED = 20  # utterances spelled out in a list
_ABSENT = "-"
_BINS = 60


def write_survey(
    datadir: Path, findings: Sequence[Finding], mode: str, twins: int = 0
) -> None:
    """Write ``datadir/survey``, log a line per split and a warning on conflicts.

    The folder appears complete or not at all.

    Args:
        findings: at least one, in the order of the table.
        mode: of ``survey.MODES`` that they were made in.
        twins: narrowband twins in the data directories; no finding is about one.
    """
    datadir = Path(datadir)
    splits: dict[str, list[Finding]] = {}
    for finding in findings:
        splits.setdefault(finding.entry.split, []).append(finding)
    with write_atomically(datadir / FOLDER) as folder:
        rows = ("\t".join(row) + "\n" for row in (_COLUMNS, *map(_row, findings)))
        (folder / "bandwidth.tsv").write_text("".join(rows), encoding="utf-8")
        text = "\n".join(_markdown(splits, mode, twins)) + "\n"
        (folder / "survey.md").write_text(text, encoding="utf-8")
        _draw(findings, folder / "scores.png")
    for split, part in splits.items():
        log.info("%s/%s: %s", datadir, split, _summary(part))
    if conflicts := [f.entry.id for f in findings if f.conflict]:
        log.warning(
            "%d utterances sound unlike their bandwidth label (%s), see %s: %s",
            *(len(conflicts), some_of(conflicts), datadir / FOLDER / "bandwidth.tsv"),
            'correct their "bandwidth" key if it is wrong'
            if mode == "detect"
            else '--bandwidth detect labels by sound, a key "bandwidth" by your word',
        )


def _row(finding: Finding) -> tuple[str, ...]:
    entry = finding.entry
    estimate = entry.evidence.estimate
    return (
        entry.id,
        entry.split,
        str(entry.rate),
        f"{entry.evidence.seconds:.3f}",
        entry.declared or _ABSENT,
        _ABSENT if entry.declared is None else "rate" if entry.word is None else "key",
        estimate.bandwidth if estimate else _ABSENT,
        finding.detected or _ABSENT,
        f"{estimate.score:.1f}" if estimate else _ABSENT,
        finding.label or _ABSENT,
        "yes" if finding.conflict else "no",
        "; ".join(entry.evidence.warnings) or _ABSENT,
    )


def _counts(findings: Iterable[Finding]) -> dict[str, int]:
    """What a survey counts: name -> number of utterances."""
    findings = list(findings)
    return {
        "utterances": len(findings),
        "unknown": sum(f.detected == UNKNOWN for f in findings),
        "relabelled": sum(f.relabelled for f in findings),
        "conflicts": sum(f.conflict for f in findings),
        "with warnings": sum(bool(f.entry.evidence.warnings) for f in findings),
    }


def _kinds(findings: Iterable[Finding]) -> dict[tuple[int, str], list[Finding]]:
    """Findings by rate (Hz) and label, in order."""
    kinds: dict[tuple[int, str], list[Finding]] = {}
    for f in findings:
        kinds.setdefault((f.entry.rate, f.label or _ABSENT), []).append(f)
    return dict(sorted(kinds.items()))


def _summary(findings: Sequence[Finding]) -> str:
    total, *others = _counts(findings).items()
    kinds = [
        f"{len(k)} of {rate} Hz {label}"
        for (rate, label), k in _kinds(findings).items()
    ]
    named = [f"{number} {name}" for name, number in others if number]
    return f"{total[1]} {total[0]}: {', '.join([*kinds, *named])}"


def _markdown(splits: dict[str, list[Finding]], mode: str, twins: int) -> Iterator[str]:
    names = list(_counts([]))
    yield "# Survey of the corpus"
    yield ""
    yield f"Made by stage 1 with `--bandwidth {mode}`. All of it: `bandwidth.tsv`."
    yield ""
    yield "| split | rate (Hz) | label | hours | " + " | ".join(names) + " |"
    yield "| --- | ---: | --- | ---: |" + " ---: |" * len(names)
    for split, part in splits.items():
        for (rate, label), kind in _kinds(part).items():
            hours = sum(f.entry.evidence.seconds for f in kind) / 3600
            counts = " | ".join(map(str, _counts(kind).values()))
            yield f"| {split} | {rate} | {label} | {hours:.2f} | {counts} |"
    yield ""
    yield "unknown: the detector could not tell; relabelled: the label is not what was"
    yield "declared; conflicts: sounds unlike its label."
    yield ""
    yield f"Narrowband twins in the data directories, not counted above: {twins}."
    for split, part in splits.items():
        clashes = [f for f in part if f.conflict]
        yield from _listed(
            f"{split}: sounds unlike its label",
            [f"{f.entry.id}: {f.label}, sounds like {f.detected}" for f in clashes],
        )
        yield from _listed(
            f"{split}: warnings",
            [f"{f.entry.id}: {w}" for f in part for w in f.entry.evidence.warnings],
        )


def _listed(title: str, items: Sequence[str]) -> Iterator[str]:
    """A section, if there is something to list."""
    if not items:
        return
    yield from ("", f"## {title}", "")
    yield from (f"- {item}" for item in items[:_LISTED])
    if (more := len(items) - _LISTED) > 0:
        yield f"- and {more} more"


def _draw(findings: Sequence[Finding], path: Path) -> None:
    """Histogram (PNG) of the scores, by declared bandwidth; no scores, no file."""
    scores: dict[str, list[float]] = {}
    verdicts: Counter[str] = Counter()
    for f in findings:
        if estimate := f.entry.evidence.estimate:
            verdicts[estimate.bandwidth] += 1
            if estimate.bandwidth != UNKNOWN:
                name = f.entry.declared or "not declared"
                scores.setdefault(name, []).append(estimate.score)
    if not scores:
        return
    from matplotlib.figure import Figure

    scores = dict(sorted(scores.items()))
    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    axes = figure.subplots()
    axes.hist(
        list(scores.values()),
        _BINS,
        histtype="stepfilled",
        alpha=0.6,
        color=[COLOURS[k % len(COLOURS)] for k in range(len(scores))],
        label=[f"{name} ({len(s)})" for name, s in scores.items()],
    )
    axes.axvline(0.0, color="#222222", lw=1)
    axes.set_xlabel("detector's score (dB): narrowband below 0, wideband above")
    axes.set_ylabel("utterances")
    heard = ", ".join(f"{verdicts[v]} {v}" for v in sorted(verdicts))
    axes.set_title(f"Sounds like: {heard}")
    axes.legend(title="declared")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png", dpi=150)
