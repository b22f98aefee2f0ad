"""Scatter plots of many models on logit axes, with a baseline line, its bootstrap band and a name under each point."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clipdg.report.effective_robustness import Line, logit
from clipdg.report.figures import INK, PAPER, SOFT, SOURCE, TARGET, render, spread, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 5.2, 4.3  # inches
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)


@dataclass(frozen=True)
class Series:
    """Models drawn alike. ``labelled``: the names of those whose name is written beside the point."""

    title: str
    look: str  # of LOOKS
    names: tuple[str, ...]
    x: np.ndarray  # (M,) fractions
    y: np.ndarray  # (M,)
    labelled: tuple[tuple[str, str], ...] = ()  # (name, what is written)


# marker, size, face, edge, opacity: told apart by shape and lightness too.
LOOKS = {
    "baseline": ("o", 2.6, SOFT, SOFT, 1.0),
    "other": ("o", 2.4, "none", SOFT, 0.4),
    "resnet": ("s", 4.6, SOURCE, SOURCE, 1.0),
    "clip": ("D", 4.6, TARGET, TARGET, 1.0),
    "other clip": ("D", 3.2, "none", TARGET, 1.0),
}


def draw(series: Sequence[Series], line: Line, x_title: str, y_title: str, name: str) -> Figure:
    """Series in the order of drawing; a model with 0 or 100 % is not drawn, since it has no place on logit axes."""
    with style(8):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(WIDTH, HEIGHT), label=name)
        axes = figure.add_axes((0.105, 0.105, 0.88, 0.88))
        x, y = (np.concatenate([getattr(s, key)[_drawn(s)] for s in series]) for key in ("x", "y"))
        for axis, values, setter in ((axes.xaxis, x, axes.set_xlim), (axes.yaxis, y, axes.set_ylim)):
            low, high = logit(values.min()), logit(values.max())
            setter(float(low - 0.04 * (high - low)), float(high + 0.04 * (high - low)))
            there = [t for t in TICKS if low <= logit(np.array(t)) <= high]
            axis.set_ticks([float(logit(np.array(t))) for t in there], [f"{100 * t:g}" for t in there])
        axes.tick_params(axis="y", colors=SOFT)
        axes.grid(True)
        axes.set_axisbelow(True)
        _line(axes, line)
        for number, one in enumerate(series):
            keep = _drawn(one)
            marker, size, face, edge, alpha = LOOKS[one.look]
            axes.plot(
                logit(one.x[keep]), logit(one.y[keep]), marker, markersize=size, color=face, markeredgecolor=edge,
                markeredgewidth=0.7, alpha=alpha, label=one.title, gid=f"series-{number}", linestyle="none",
            )  # fmt: skip
            _write_names(axes, one)
        axes.set_xlabel(x_title)
        axes.set_ylabel(y_title)
        axes.legend(loc="lower right", frameon=False, fontsize=7, handletextpad=0.4, borderaxespad=0.2)
    return figure


def _write_names(axes: Axes, series: Series) -> None:
    """Names left of their points, moved up or down until none covers another, with a thin line to the point."""
    at = {n: (a, b) for n, a, b in zip(series.names, series.x, series.y, strict=True) if 0 < b < 1}
    shown = sorted(((logit(np.array(at[n])), text) for n, text in series.labelled if n in at), key=lambda s: -s[0][1])
    if not shown:
        return
    low, high = axes.get_ylim()
    points = 72 * HEIGHT * 0.88  # of the axes' height
    heights = [(y - low) / (high - low) * points for (_, y), _ in shown]
    for ((x, y), text), wanted, placed in zip(
        shown, heights, spread([h + 5 for h in heights], [8.0] * len(shown), 0, points), strict=True
    ):
        axes.annotate(
            text,
            (x, y),
            xytext=(-14, placed - wanted),
            textcoords="offset points",
            fontsize=6.5,
            color=INK,
            va="center",
            ha="right",
            bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.85, "pad": 0.6},
            arrowprops={"arrowstyle": "-", "color": SOFT, "linewidth": 0.5, "shrinkB": 3, "relpos": (1, 0.5)},
        )


def svg(figure: Figure, series: Sequence[Series]) -> bytes:
    """The drawing, each point with its model's name and numbers as a title that a browser shows under the pointer."""
    text = render(figure, "svg").decode()
    for number, one in enumerate(series):
        titles = [f"{one.names[i]}: {100 * one.x[i]:.2f} → {100 * one.y[i]:.2f}" for i in np.flatnonzero(_drawn(one))]
        head, mark, rest = text.partition(f'<g id="series-{number}">')
        drawn, following, tail = rest.partition(f'<g id="series-{number + 1}">')
        pieces = re.split(r"(<use [^>]*)/>", drawn)  # text, mark, text, mark, …
        marks = dict(zip(range(1, len(pieces), 2), titles, strict=False))
        assert len(marks) == len(titles), "a point was not drawn"
        for place in range(1, len(pieces), 2):  # ticks and the legend's marks follow the last series' points
            title = marks.get(place)
            pieces[place] += "/>" if title is None else f"><title>{html.escape(title)}</title></use>"
        text = head + mark + "".join(pieces) + following + tail
    return text.encode()


def _line(axes: Axes, line: Line) -> None:
    low, high = axes.get_xlim()
    at = np.linspace(low, high, 60)
    fractions = 1 / (1 + np.exp(-at))
    bottom, top = line.band(fractions)
    axes.fill_between(at, logit(bottom), logit(top), color=SOFT, alpha=0.18, linewidth=0)
    axes.plot(at, line.slope * at + line.intercept, color=INK, linewidth=1.1)


def _drawn(series: Series) -> np.ndarray:
    return np.asarray((series.x > 0) & (series.x < 1) & (series.y > 0) & (series.y < 1))
