"""Which classes a domain pulls images into."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from clipdg.core.plugins import Section
from clipdg.report.classes import class_names
from clipdg.report.figures import SOFT, SOURCE, TARGET, style, wrap
from clipdg.report.samples import Samples
from clipdg.report.section import Panel, Sheet, Shown, Studied
from clipdg.report.tables import Setting, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_DRAWN = 24  # classes of a figure; its table has all


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
    names = class_names(study)
    shares: dict[str, list[np.ndarray]] = {}
    targets = {d for r in row.records for d in r.shift.targets}
    for record in row.records:
        shift = record.shift
        for domain in (*shift.sources, *shift.targets):
            if domain in targets and domain not in shift.targets:
                continue
            tested = samples.of(record, domain)
            if tested is None or not len(tested.labels):
                return None
            said, true = (np.bincount(x, minlength=len(names)) for x in (tested.predicted, tested.labels))
            shares.setdefault(domain, []).append((said - true) / len(tested.labels))
    if not shares:
        return None
    order = [d for d in row.records[0].data.num_images if d in shares]
    order += [d for d in shares if d not in order]
    return Pull(tuple(order), names, np.stack([np.stack(shares[d]).mean(axis=0) for d in order]))


def panel(study: Study, row: Setting, samples: Samples) -> Panel | None:
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
    return Panel(
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


def make(studied: Studied) -> list[Panel]:
    found = panel(studied.study, studied.reference, studied.samples) if studied.reference is not None else None
    return [] if found is None else [found]


SECTION = Section(order=70, make=make)
