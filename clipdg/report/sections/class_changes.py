"""What a method gains and loses on each class beside another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clipdg.core.plugins import Section
from clipdg.report.classes import class_names
from clipdg.report.figures import INK, PAPER, SOURCE, TARGET, style, wrap
from clipdg.report.samples import Samples
from clipdg.report.section import Panel, Sheet, Shown, Studied
from clipdg.report.tables import Setting, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_DRAWN = 24  # classes of a figure; its table has all


@dataclass(frozen=True)
class Change:
    """A class's accuracy (recall) under two methods: per seed and target, then the mean over targets, then seeds."""

    name: str
    first: float
    second: float
    num_images: int  # of the first, all targets and seeds

    @property
    def difference(self) -> float:
        return self.first - self.second


def changes(study: Study, first: Setting, second: Setting, samples: Samples) -> list[Change]:
    """Every class that both have images of, the largest gain first."""
    names = class_names(study)
    a, b = (_recalls(row, samples, len(names)) for row in (first, second))
    if a is None or b is None:
        return []
    (one, num), (other, _) = a, b
    found = [
        Change(names[i], float(one[i]), float(other[i]), int(num[i]))
        for i in range(len(names))
        if np.isfinite(one[i]) and np.isfinite(other[i])
    ]
    return sorted(found, key=lambda c: (-c.difference, c.name))


def _recalls(row: Setting, samples: Samples, num_classes: int) -> tuple[np.ndarray, np.ndarray] | None:
    """(C,) accuracies on each class's images, NaN where it has none, and the number of these images."""
    by_seed: dict[str, list[np.ndarray]] = {}
    counts = np.zeros(num_classes, dtype=int)
    for (_, seed), record in row.runs.items():
        for domain in record.shift.targets:
            tested = samples.of(record, domain)
            if tested is None:
                return None
            num = np.bincount(tested.labels, minlength=num_classes)
            right = np.bincount(tested.labels[tested.right], minlength=num_classes)
            counts += num
            by_seed.setdefault(seed, []).append(np.where(num > 0, right / np.maximum(num, 1), np.nan))
    if not by_seed:
        return None
    seeds = [_mean(np.stack(domains)) for domains in by_seed.values()]
    return _mean(np.stack(seeds)), counts


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the first axis, of what is there."""
    there = np.isfinite(values)
    num = there.sum(axis=0)
    return np.where(num > 0, np.where(there, values, 0).sum(axis=0) / np.maximum(num, 1), np.nan)


def panel(study: Study, first: Setting, second: Setting, samples: Samples) -> Panel | None:
    found = changes(study, first, second, samples)
    if not found:
        return None

    def percent(value: float) -> Shown:
        return Shown(f"{100 * value:.1f}".replace("-", "−"), round(value, 8))

    rows = tuple(
        (Shown(c.name, c.name), percent(c.first), percent(c.second), percent(c.difference),
         Shown(f"{c.num_images:,}", c.num_images))
        for c in found
    )  # fmt: skip
    some = f" The figure shows the {MAX_DRAWN} that change most." if len(found) > MAX_DRAWN else ""
    caption = (
        f"Accuracy on the images of each class under “{first.label}” and under “{second.label}”, and their difference "
        f"in points: mean over the shifted domains that have the class, then over seeds.{some}"
    )
    heads = ("class", "first", "second", "difference", "images")
    return Panel(
        "classes", "Classes that change", caption, Sheet(heads, rows, (1, 2, 3, 4)),
        lambda narrow: draw_changes(found, first.label, second.label, narrow), fold=True, in_markdown=False,
    )  # fmt: skip


def draw_changes(found: Sequence[Change], first: str, second: str, narrow: bool = False) -> Figure:
    """A dumbbell per class: hollow the second method, filled the first."""
    shown = sorted(sorted(found, key=lambda c: -abs(c.difference))[:MAX_DRAWN], key=lambda c: -c.difference)
    with style(8):
        from matplotlib.figure import Figure

        margin = 0.2 + 0.07 * max(len(wrap(c.name, 18).split("\n")[0]) for c in shown)
        size = (3.75 if narrow else 6.4, 0.17 * len(shown) + 0.95)
        figure = Figure(figsize=size, label=f"classes-{narrow}")
        axes = figure.add_axes((margin / size[0], 0.42 / size[1], 1 - (margin + 0.15) / size[0], 1 - 0.95 / size[1]))
        for y, c in enumerate(shown):
            colour = SOURCE if c.difference >= 0 else TARGET
            axes.plot([100 * c.second, 100 * c.first], [y, y], color=colour, linewidth=1.4, zorder=2)
            axes.plot([100 * c.second], [y], "o", markersize=4, color=PAPER, markeredgecolor=colour, zorder=3)
            axes.plot([100 * c.first], [y], "o", markersize=4.5, color=colour, zorder=3)
        axes.set_yticks(range(len(shown)), [wrap(c.name, 18).split("\n")[0] for c in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlim(-3, 103)
        axes.grid(True, axis="x")
        axes.set_axisbelow(True)
        axes.set_xlabel("accuracy on the class, mean of shifted domains (%)")
        chars = 44 if narrow else 90
        for height, text in ((0.16, f"filled: {first}"), (0.33, f"hollow: {second}")):
            figure.text(0.08 / size[0], 1 - height / size[1], wrap(text, chars).split("\n")[0], color=INK, fontsize=7.5)
    return figure


def make(studied: Studied) -> list[Panel]:
    """The reference beside the next row, or the next row beside it where the reference was asked for by name."""
    reference = studied.reference
    others = [row for row in studied.study.rows if row is not reference]
    if reference is None or not others:
        return []
    first, second = (others[0], reference) if studied.baseline else (reference, others[0])
    found = panel(studied.study, first, second, studied.samples)
    return [] if found is None else [found]


SECTION = Section(order=50, make=make)
