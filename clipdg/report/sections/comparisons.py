"""Every row beside the reference, image by image: differences, their intervals and corrected p-values."""

from __future__ import annotations

from collections.abc import Sequence

from clipdg.core.plugins import Section
from clipdg.report.comparisons import MAX_ROWS, Comparison
from clipdg.report.numbers import METRICS, format_mean
from clipdg.report.section import Panel, Sheet, Shown, Studied
from clipdg.report.tables import Study


def panel(study: Study, found: Sequence[Comparison]) -> Panel | None:
    if not found:
        return None

    def points(value: float) -> Shown:
        return Shown(format_mean(value, None, METRICS["top1"]), round(value, 8))

    def chance(value: float) -> Shown:
        return Shown("< 0.001" if value < 0.001 else f"{value:.3f}", float(f"{value:.6g}"))

    rows = []
    for c in found:
        low, high = c.over_seeds or (None, None)
        rows.append(
            (
                Shown(c.label, c.label),
                Shown(c.domain, c.domain),
                points(c.paired.difference),
                points(c.paired.low),
                points(c.paired.high),
                chance(c.paired.p),
                chance(c.adjusted),
                Shown("", None) if low is None else points(low),
                Shown("", None) if high is None else points(high),
                Shown(f"{c.paired.num_images:,}", c.paired.num_images),
                Shown(str(len(c.seeds)), len(c.seeds)),
            )
        )
    more = f" The first {MAX_ROWS} of {len(study.rows):,} rows." if len(study.rows) > MAX_ROWS else ""
    heads = ("method", "domain", "difference", "low", "high", "p", "p (Holm)", "seeds, low", "seeds, high", "images",
             "seeds")  # fmt: skip
    caption = (
        f"Difference of top-1 accuracy from “{found[0].reference}” in points. Low and high: 95 % percentile bootstrap "
        "over images, which are drawn with all seeds that share them. p: exact test of exchanging the two on each "
        f"image (McNemar's with one seed); Holm-adjusted over these {len(found)} tests. Both speak of other images for "
        "these trained classifiers. Seeds, low and high: Student's 95 % interval of the difference over the seeds that "
        f"both have; it is what speaks of training again.{more}"
    )
    return Panel(
        "comparisons",
        "Paired comparisons",
        caption,
        Sheet(heads, tuple(rows), tuple(range(2, 11))),
        fold=True,
        in_markdown=False,
    )


def make(studied: Studied) -> list[Panel]:
    found = panel(studied.study, studied.comparisons)
    return [] if found is None else [found]


SECTION = Section(order=40, make=make)
