"""Classes: what a method gains and loses on each beside another one, and which of them a domain pulls images into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from clipdg.records.record import Record
from clipdg.report.figures import INK, PAPER, SOFT, SOURCE, TARGET, style, wrap
from clipdg.report.sections.predictions import Samples
from clipdg.report.sections.section import Section, Sheet, Shown
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
    names = _classes(study)
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
        for domain in record.content["shift"]["targets"]:
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


def changes_section(study: Study, first: Setting, second: Setting, samples: Samples) -> Section | None:
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
    return Section(
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


@dataclass(frozen=True)
class Pull:
    """Shares of a domain's images predicted as each class less the shares labelled so: (D, C), mean over seeds."""

    domains: tuple[str, ...]
    classes: tuple[str, ...]
    values: np.ndarray


def pull(study: Study, row: Setting, samples: Samples) -> Pull | None:
    """What a method says too often and too rarely, by domain; a row of it sums to zero.

    A domain that is source in one shift and target in another counts as target.
    """
    names = _classes(study)
    shares: dict[str, list[np.ndarray]] = {}
    targets = {d for r in row.records for d in r.content["shift"]["targets"]}
    for record in row.records:
        shift = record.content["shift"]
        for domain in (*shift["sources"], *shift["targets"]):
            if domain in targets and domain not in shift["targets"]:
                continue
            tested = samples.of(record, domain)
            if tested is None or not len(tested.labels):
                return None
            said, true = (np.bincount(x, minlength=len(names)) for x in (tested.predicted, tested.labels))
            shares.setdefault(domain, []).append((said - true) / len(tested.labels))
    if not shares:
        return None
    order = [d for d in row.records[0].content["data"]["num_images"] if d in shares]
    order += [d for d in shares if d not in order]
    return Pull(tuple(order), names, np.stack([np.stack(shares[d]).mean(axis=0) for d in order]))


def pull_section(study: Study, row: Setting, samples: Samples) -> Section | None:
    found = pull(study, row, samples)
    if found is None:
        return None
    rows = tuple(
        (Shown(d, d), Shown(found.classes[c], found.classes[c]),
         Shown(f"{100 * found.values[i, c]:+.2f}".replace("-", "−"), round(float(found.values[i, c]), 8)))
        for i, d in enumerate(found.domains)
        for c in np.argsort(-np.abs(found.values[i]), kind="stable")[:MAX_DRAWN]
    )  # fmt: skip
    share = fmean(float(np.abs(v).sum() / 2) for v in found.values)
    caption = (
        f"Confusion by domain, of “{row.label}”: the share of a domain's images predicted as a class less the share "
        "labelled so, in points, mean over seeds. Above zero (blue) a domain pulls images of other classes in, below "
        f"zero (orange) it loses them; on average {100 * share:.1f} % of a domain's images are in excess. It compares "
        "what is said of domains, not images; a class may lose and gain the same number unseen."
    )
    return Section(
        "pulls", "Where domains pull predictions", caption, Sheet(("domain", "class", "points"), rows, (2,)),
        lambda narrow: draw_pull(found, narrow), fold=True, in_markdown=False,
    )  # fmt: skip


def draw_pull(found: Pull, narrow: bool = False) -> Figure:
    """Classes down, domains across, squares as strong as the excess; numbers where one has room."""
    order = np.argsort(-np.abs(found.values).max(axis=0), kind="stable")[:MAX_DRAWN]
    order = np.sort(order)
    top = float(np.abs(found.values[:, order]).max()) or 1.0
    with style(8):
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle

        names = [wrap(found.classes[i], 16).split("\n")[0] for i in order]
        margin = 0.15 + 0.07 * max(map(len, names))
        cell = (3.6 - margin) / len(found.domains) if narrow else min(0.75, (7.4 - margin) / len(found.domains))
        heads = 0.2 + 0.055 * max(len(d) for d in found.domains)
        size = (margin + cell * len(found.domains) + 0.1, heads + 0.19 * len(order) + 0.05)
        figure = Figure(figsize=size, label=f"pulls-{narrow}")
        axes = figure.add_axes(
            (margin / size[0], 0.05 / size[1], cell * len(found.domains) / size[0], 0.19 * len(order) / size[1])
        )
        for i in range(len(found.domains)):
            for y, c in enumerate(order):
                value = float(found.values[i, c])
                colour = SOURCE if value >= 0 else TARGET
                axes.add_patch(
                    Rectangle((i + 0.03, y + 0.05), 0.94, 0.9, color=colour, alpha=0.75 * abs(value) / top, linewidth=0)
                )
                text = f"{100 * value:+.1f}".replace("-", "−")
                if cell > 0.34 and text not in ("+0.0", "−0.0"):
                    axes.text(i + 0.5, y + 0.52, text, ha="center", va="center", fontsize=6.5)
        axes.set_xlim(0, len(found.domains))
        axes.set_ylim(len(order), 0)
        axes.set_xticks([i + 0.5 for i in range(len(found.domains))], found.domains, rotation=60, ha="left",
                        rotation_mode="anchor")  # fmt: skip
        axes.xaxis.tick_top()
        axes.tick_params(axis="x", colors=SOFT, pad=1)
        axes.set_yticks([y + 0.5 for y in range(len(order))], names)
        for spine in axes.spines.values():
            spine.set_visible(False)
    return figure


def _classes(study: Study) -> tuple[str, ...]:
    """Names by number; numbers as names where records do not say them."""
    said = _said(study.records[0])
    most = max((_num(r) for r in study.records), default=0)
    return tuple(said) if said else tuple(str(i) for i in range(most))


def _said(record: Record) -> list[str]:
    classes = record.content["data"]["classes"]
    return list(map(str, classes)) if isinstance(classes, list) else []


def _num(record: Record) -> int:
    classes = record.content["data"]["classes"]
    return classes if isinstance(classes, int) else len(classes)
