"""Reliability diagrams: accuracy against confidence, from the stored confidence of each prediction.

Fifteen bins of equal width, as in the records' ece (Guo et al., ICML 2017). Images of all seeds are pooled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from clipdg.core.plugins import Section
from clipdg.report.figures import SOFT, SOURCE, TARGET, style, wrap
from clipdg.report.samples import Samples
from clipdg.report.section import Panel, Sheet, Shown, Studied
from clipdg.report.tables import Setting, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_BINS = 15
MAX_ROWS = 8
FEW = 10  # images, below which the figure leaves a bin out: its accuracy is noise


@dataclass(frozen=True)
class Bins:
    """Of one row on its sources or its targets; arrays of NUM_BINS, NaN where no image fell in."""

    label: str
    role: str
    counts: np.ndarray
    confidence: np.ndarray  # mean
    accuracy: np.ndarray

    @property
    def ece(self) -> float:
        """Expected calibration error of the pooled images."""
        there = self.counts > 0
        gaps = np.abs(self.accuracy[there] - self.confidence[there])
        return float((gaps * self.counts[there]).sum() / self.counts.sum())


def binned(label: str, role: str, confidence: np.ndarray, right: np.ndarray) -> Bins:
    """``confidence`` (N,) in [0, 1], ``right`` (N,) bool. A bin holds its upper edge, as torchmetrics has it."""
    place = np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    counts = np.bincount(place, minlength=NUM_BINS)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(place, confidence, NUM_BINS) / counts
        accuracy = np.bincount(place, right.astype(float), NUM_BINS) / counts
    return Bins(label, role, counts, mean, accuracy)


def of_study(study: Study, samples: Samples) -> list[Bins]:
    found = []
    for row in study.rows[:MAX_ROWS]:
        sides: tuple[tuple[str, Literal["source", "target"]], ...] = (("source", "source"), ("shifted", "target"))
        for name, role in sides:
            pooled = _pooled(row, role, samples)
            if pooled is not None:
                found.append(binned(row.label, name, *pooled))
    return found


def _pooled(row: Setting, role: Literal["source", "target"], samples: Samples) -> tuple[np.ndarray, np.ndarray] | None:
    parts = [t for r in row.records for d in r.shift.side(role) if (t := samples.of(r, d)) is not None]
    if not parts:
        return None
    return np.concatenate([t.confidence for t in parts]), np.concatenate([t.right for t in parts])


def panel(study: Study, samples: Samples) -> Panel | None:
    found = of_study(study, samples)
    if not found:
        return None
    rows = tuple(
        (
            Shown(b.label, b.label),
            Shown(b.role, b.role),
            Shown(f"{i / NUM_BINS:.3f}–{(i + 1) / NUM_BINS:.3f}", f"{i / NUM_BINS:.4f}"),
            Shown(f"{b.counts[i]:,}", int(b.counts[i])),
            Shown(f"{100 * b.confidence[i]:.1f}", round(float(b.confidence[i]), 8)),
            Shown(f"{100 * b.accuracy[i]:.1f}", round(float(b.accuracy[i]), 8)),
        )
        for b in found
        for i in range(NUM_BINS)
        if b.counts[i]
    )
    heads = ("method", "on", "bin", "images", "confidence", "accuracy")
    more = f" The first {MAX_ROWS} rows of the tables." if len(study.rows) > MAX_ROWS else ""
    caption = (
        "Accuracy against confidence in fifteen bins of equal width, images of all seeds pooled; a larger mark is more "
        "images. Below the diagonal a classifier is surer than it is right. ECE in points: the mean distance from the "
        f"diagonal over all images. Bins of fewer than {FEW} images are in the table alone.{more}"
    )
    return Panel(
        "reliability", "Reliability", caption, Sheet(heads, rows, (3, 4, 5)), lambda narrow: draw(found, narrow),
        fold=True, in_markdown=False,
    )  # fmt: skip


def draw(found: Sequence[Bins], narrow: bool = False) -> Figure:
    """A panel per row: source and shifted in their colours."""
    with style(8):
        from matplotlib.figure import Figure

        labels = list(dict.fromkeys(b.label for b in found))
        across = min(len(labels), 2 if narrow else 4)
        down = -(-len(labels) // across)
        side = 1.75
        size = (0.45 + across * side, 0.45 + down * (side + 0.3))
        figure = Figure(figsize=size, label=f"reliability-{across}")
        for i, label in enumerate(labels):
            left, top = 0.45 + (i % across) * side, 0.05 + (i // across) * (side + 0.3)
            axes = figure.add_axes(
                (left / size[0], 1 - (top + side + 0.15) / size[1], (side - 0.2) / size[0], (side - 0.2) / size[1])
            )
            axes.set_xlim(-3, 103)
            axes.set_ylim(-3, 103)
            axes.set_xticks([0, 50, 100])
            axes.set_yticks([0, 50, 100], ["0", "50", "100"] if i % across == 0 else ["", "", ""])
            axes.tick_params(axis="y", colors=SOFT)
            axes.grid(True)
            axes.set_axisbelow(True)
            axes.plot([0, 100], [0, 100], color=SOFT, linewidth=0.8, linestyle=(0, (4, 3)))
            axes.set_title(wrap(label, 22), loc="left", fontsize=7.5, fontweight="bold", pad=4, linespacing=0.95)
            for row, b in enumerate([b for b in found if b.label == label]):
                colour, marker = (SOURCE, "D") if b.role == "source" else (TARGET, "o")
                there = b.counts >= FEW
                x, y = 100 * b.confidence[there], 100 * b.accuracy[there]
                axes.plot(x, y, color=colour, linewidth=1)
                share = b.counts[there] / b.counts.sum()
                for one, other, part in zip(x, y, share, strict=True):
                    axes.plot([one], [other], marker, color=colour, markersize=2 + 5 * float(part) ** 0.5)
                axes.text(
                    100, 2 + 11 * (1 - row), f"{b.role}: ECE {100 * b.ece:.1f}", color=colour, ha="right", fontsize=6.5
                )
        figure.text((0.45 + across * side / 2) / size[0], 0.05 / size[1], "confidence (%)", ha="center", color=SOFT)
        figure.text(0.03 / size[0], 0.5, "accuracy (%)", va="center", rotation=90, color=SOFT)
    return figure


def make(studied: Studied) -> list[Panel]:
    found = panel(studied.study, studied.samples)
    return [] if found is None else [found]


SECTION = Section(order=60, make=make)
