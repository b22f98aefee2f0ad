"""Curves: accuracy against shots, for rows that differ in their shots alone, and along a line between two weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Literal

from clipdg.core.plugins import Section
from clipdg.records.evaluations import reported_split
from clipdg.records.record import Record
from clipdg.report.figures import GRID, PAPER, SOFT, spread, style
from clipdg.report.numbers import format_mean
from clipdg.report.section import Panel, Sheet, Shown, Studied
from clipdg.report.tables import Cell, Row, Setting, Study, Table, row_key
from clipdg.storage.publish import digest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's, in an order in which neighbours differ in lightness; each has its own marker too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = "osD^vP"

Side = Literal["source", "target"]


@dataclass(frozen=True)
class Family:
    """Rows that differ in shots alone; by shots."""

    label: str
    rows: Mapping[int, Row]


def families(study: Study, t: Table) -> list[Family]:
    """The families with several shots, in the order of their best row."""
    by_key: dict[str, dict[int, Setting]] = {}
    for row in study.rows:
        record = row.records[0]
        shots = record.config.get("shots")
        if shots is not None:
            by_key.setdefault(_without_shots(record), {})[int(shots)] = row
    rows = {r.label: r for r in t.rows}
    found = []
    for members in by_key.values():
        if len(members) > 1:
            label = _common([members[s].label for s in sorted(members)])
            found.append(Family(label, {s: rows[members[s].label] for s in sorted(members)}))
    return found


def panel(study: Study, t: Table) -> Panel | None:
    found = families(study, t)
    if not found:
        return None
    level = zero_shot(study, t)
    rows = []
    for family in found:
        for shots, row in family.rows.items():
            cells = [row.cells[k] for k in ("source", "shifted")]
            rows.append(
                (
                    Shown(family.label, family.label),
                    Shown(str(shots), shots),
                    *(Shown(format_mean(c.mean, c.error), c.mean) for c in cells),
                    Shown(str(len(row.seeds)), len(row.seeds)),
                )
            )
    caption = (
        "Top-1 accuracy (%) against labelled images per class and source domain, mean ± standard error over seeds. "
        + (f"Dashed: “{level.label}”, which needs none. " if level else "")
        + (f"Drawn: the first {len(COLOURS)} of {len(found)}; the table has all. " if len(found) > len(COLOURS) else "")
    ).strip()
    sheet = Sheet(("method", "shots", "source", "shifted", "seeds"), tuple(rows), (1, 2, 3, 4))
    return Panel(
        "few-shot", "Few-shot curves", caption, sheet, lambda narrow: draw(found[: len(COLOURS)], level, narrow)
    )


def zero_shot(study: Study, t: Table) -> Row | None:
    """The highest row that was fitted on nothing."""
    labels = [row.label for row in study.rows if row.records[0].data.num_fit == 0]
    return next(
        (r for label in labels for r in t.rows if r.label == label and r.cells["shifted"].mean is not None), None
    )


def draw(found: Sequence[Family], level: Row | None, narrow: bool = False) -> Figure:
    """Two panels, source and shifted; below each other for a phone."""
    with style(8):
        from matplotlib.figure import Figure

        size = (3.75, 5.6) if narrow else (7.4, 3.0)
        figure = Figure(figsize=size, label=f"few-shot-{narrow}")
        panels = figure.subplots(2, 1) if narrow else figure.subplots(1, 2)
        names = max(len(f.label) for f in found) * 0.066 * 72  # points
        for axes, key in zip(panels, ("source", "shifted"), strict=True):
            _panel(axes, found, level, key)
        figure.subplots_adjust(
            left=0.5 / size[0], right=1 - (names / 72 + 0.25) / size[0], top=1 - 0.25 / size[1],
            bottom=0.42 / size[1], hspace=0.35, wspace=(names / 72 + 0.5) / ((size[0] - names / 72) / 2),
        )  # fmt: skip
    return figure


def _panel(axes: Axes, found: Sequence[Family], level: Row | None, key: str) -> None:
    from math import log2

    shots = sorted({s for f in found for s in f.rows})
    ends: list[tuple[float, float, str, str]] = []
    for number, family in enumerate(found):
        colour, marker = COLOURS[number], MARKERS[number]
        points = [(log2(s), row.cells[key]) for s, row in family.rows.items() if row.cells[key].mean is not None]
        if not points:
            continue
        xs, ys = [x for x, _ in points], [_percent(c.mean) for _, c in points]
        axes.plot(xs, ys, color=colour, linewidth=1.2, zorder=2)
        for (x, cell), y in zip(points, ys, strict=True):
            _bar(axes, x, y, cell, colour)
            face = colour if cell.error is not None else PAPER
            axes.plot([x], [y], marker, markersize=4.5, color=face, markeredgecolor=colour, zorder=3)
        ends.append((xs[-1], ys[-1], family.label, colour))
    if level is not None and level.cells[key].mean is not None:
        axes.axhline(_percent(level.cells[key].mean), color=SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.set_xticks([log2(s) for s in shots], [str(s) for s in shots])
    axes.set_xlim(log2(shots[0]) - 0.25, log2(shots[-1]) + 0.25)
    axes.tick_params(axis="y", colors=SOFT)
    axes.grid(True, color=GRID)
    axes.set_axisbelow(True)
    axes.set_title("source" if key == "source" else "mean of shifted domains", loc="left", fontsize=8.5,
                   fontweight="bold", pad=5)  # fmt: skip
    axes.set_xlabel("shots per class")
    axes.set_ylabel("top-1 accuracy (%)")
    _end_names(axes, ends)


def _bar(axes: Axes, x: float, y: float, cell: Cell, colour: str) -> None:
    if cell.error is not None:
        half = _percent(cell.error)
        axes.plot([x, x], [y - half, y + half], color=colour, linewidth=1, solid_capstyle="butt")


def _end_names(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Names right of the last points, in their colour, moved until none covers another."""
    low, high = axes.get_ylim()
    tall = 150.0  # points of a panel, about
    ordered = sorted(ends, key=lambda e: -e[1])
    heights = [(y - low) / (high - low) * tall for _, y, *_ in ordered]
    for (x, y, label, colour), at, wanted in zip(
        ordered, spread(heights, [10.0] * len(ordered), -10, tall + 10), heights, strict=True
    ):
        axes.annotate(label, (x, y), xytext=(9, at - wanted), textcoords="offset points", color=colour, va="center",
                      annotation_clip=False)  # fmt: skip


def _percent(fraction: float | None) -> float:
    assert fraction is not None
    return 100 * fraction


def _without_shots(record: Record) -> str:
    config = {**record.config, "shots": None}
    return digest(row_key(Record({**record.content, "config": config})))


def _common(labels: Sequence[str]) -> str:
    """What the labels share: "CoOp, 1 shot" and "CoOp, 4 shots" are "CoOp"."""
    words = [label.split() for label in labels]
    shared = [w[0] for w in zip(*words, strict=False) if len(set(w)) == 1]
    return " ".join(shared).strip(" ,;:(") or labels[0]


# ---------------------------------------------------------------------------------------------------------------------
# Between two weights


@dataclass(frozen=True)
class Path:
    """A row whose weights lie on a line: (alpha, source, shifted), means over seeds; alpha 0 is where it starts."""

    label: str
    points: tuple[tuple[float, float, float], ...]
    chosen: float | None  # the alpha of the row's own numbers
    num_seeds: int


def paths(study: Study) -> list[Path]:
    """Of the rows whose every record has a curve; of an alpha that one of them lacks, nothing."""
    found = []
    for row in study.rows:
        by_alpha: dict[float, dict[Side, list[float]]] = {}
        if not all(r.curve for r in row.records):
            continue
        for record in row.records:
            for alpha in dict.fromkeys(e.alpha for e in record.curve):
                there: dict[Side, list[float]] = by_alpha.setdefault(float(alpha), {"source": [], "target": []})
                for role in there:
                    value = _mean_at(record, float(alpha), role)
                    if value is not None:
                        there[role].append(value)
        num = len(row.records)
        points = tuple(
            (alpha, fmean(v["source"]), fmean(v["target"]))
            for alpha, v in sorted(by_alpha.items())
            if len(v["source"]) == len(v["target"]) == num
        )
        if points:
            chosen = row.records[0].config["method"].get("alpha")
            found.append(Path(row.label, points, chosen, len(row.seeds)))
    return found


def _mean_at(record: Record, alpha: float, role: Side) -> float | None:
    """Mean top-1 over the sources or targets of a record at one alpha, on the splits that reports use."""
    values = []
    for domain in record.shift.side(role):
        split = reported_split(record, domain)
        at = [
            e.metrics.get("top1")
            for e in record.curve
            if (e.domain, e.split) == (domain, split) and float(e.alpha) == alpha
        ]
        if not at or at[0] is None:
            return None
        values.append(float(at[0]))
    return fmean(values) if values else None


def path_panel(study: Study) -> Panel | None:
    found = paths(study)
    if not found:
        return None
    rows = tuple(
        (
            Shown(p.label, p.label),
            Shown(f"{alpha:g}", alpha),
            Shown(format_mean(source), source),
            Shown(format_mean(shifted), shifted),
            Shown(str(p.num_seeds), p.num_seeds),
        )
        for p in found
        for alpha, source, shifted in p.points
    )
    caption = (
        "Top-1 accuracy (%) with the weights (1 − α) · zero-shot + α · fine-tuned (Wortsman et al. 2022), mean over "
        "seeds. Hollow: α = 0; ringed: the α of the tables above, chosen without looking at a target."
    )
    sheet = Sheet(("method", "α", "source", "shifted", "seeds"), rows, (1, 2, 3, 4))
    return Panel("weights-between", "Between zero-shot and fine-tuned", caption, sheet, lambda n: draw_paths(found, n))


def draw_paths(found: Sequence[Path], narrow: bool = False) -> Figure:
    """Source against shifted, a line per row through its alphas."""
    with style(8):
        from matplotlib.figure import Figure

        side = 3.0
        size = (side + 0.7, side + 0.6 + 0.17 * len(found))
        figure = Figure(figsize=size, label=f"paths-{narrow}")
        axes = figure.add_axes((0.5 / size[0], 0.42 / size[1], side / size[0], side / size[1]))
        for number, path in enumerate(found):
            colour, marker = COLOURS[number], MARKERS[number]
            xs, ys = ([100 * p[i] for p in path.points] for i in (1, 2))
            axes.plot(xs, ys, marker, linestyle="-", color=colour, linewidth=1, markersize=3)
            for (alpha, *_), x, y in zip(path.points, xs, ys, strict=True):
                if alpha == 0:
                    axes.plot([x], [y], marker, color=PAPER, markeredgecolor=colour, markersize=4)
                if alpha == path.chosen:
                    axes.plot([x], [y], "o", color="none", markeredgecolor=colour, markersize=8)
            figure.text(0.5 / size[0], 1 - (0.15 + 0.17 * number) / size[1], path.label, color=colour)
        axes.tick_params(axis="y", colors=SOFT)
        axes.grid(True)
        axes.set_axisbelow(True)
        axes.set_xlabel("source, top-1 accuracy (%)")
        axes.set_ylabel("mean of shifted domains (%)")
    return figure


def make(studied: Studied) -> list[Panel]:
    found = (panel(studied.study, studied.table), path_panel(studied.study))
    return [one for one in found if one is not None]


SECTION = Section(order=20, make=make)
