"""ImageNet's shifts as papers show them: subsets beside the accuracy on the same classes, mCE, effective robustness."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from clipdg.core.plugins import Section
from clipdg.records.statistics import (
    ALEXNET_ERRORS,
    corruption_accuracies,
    mean_corruption_accuracy,
    mean_corruption_error,
)
from clipdg.report import effective_robustness
from clipdg.report.published.beside import numbers
from clipdg.report.section import Panel, Sheet, Shown, Studied
from clipdg.report.tables import Study, Table

COLUMNS = {
    "imagenet": "ImageNet",
    "imagenet-v2": "V2",
    "imagenet-sketch": "Sketch",
    "imagenet-a": "A",
    "imagenet-a-clean": "ImageNet, classes of A",
    "imagenet-r": "R",
    "imagenet-r-clean": "ImageNet, classes of R",
    "objectnet": "ObjectNet",
    "objectnet-clean": "ImageNet, classes of ObjectNet",
}


def panels(study: Study, t: Table) -> list[Panel]:
    """Nothing for another benchmark."""
    if study.records[0].data.benchmark != "imagenet":
        return []
    found = [_natural(study), _effective(study), _corruptions(study, t)]
    return [s for s in found if s is not None]


def accuracies(study: Study) -> dict[str, Mapping[str, float]]:
    """label -> data set -> top-1, mean over the row's seeds; nothing of a data set that misses a seed."""
    return {row.label: {dataset: own for dataset, own, _ in numbers(row)} for row in study.rows}


def _natural(study: Study) -> Panel | None:
    by_row = accuracies(study)
    there = [c for c in COLUMNS if any(c in values for values in by_row.values())]
    if len(there) < 2:
        return None
    rows = tuple((Shown(label, label), *(_percent(values.get(c)) for c in there)) for label, values in by_row.items())
    caption = (
        "Top-1 accuracy (%), mean over seeds; its spread is in the table of domains. A, R and ObjectNet are scored "
        "among their own classes; beside each is the accuracy on ImageNet's validation images of the same classes, "
        "among these."
    )
    sheet = Sheet(("method", *(COLUMNS[c] for c in there)), rows, tuple(range(1, len(there) + 1)))
    return Panel("imagenet-shifts", "ImageNet and its shifts", caption, sheet)


def _effective(study: Study) -> Panel | None:
    by_row = accuracies(study)
    baseline = None
    rows: list[tuple[Shown, ...]] = []
    for variant, x in effective_robustness.X_OF.items():
        if not any({variant, x} <= set(values) for values in by_row.values()):
            continue
        if baseline is None:
            baseline = effective_robustness.baseline_models("testbed_standard")
        line = effective_robustness.fit(baseline, x, variant, "testbed_standard")
        for label, values in by_row.items():
            if {variant, x} <= set(values):
                own, expected = values[variant], float(line.expected(np.array(values[x])))
                rows.append(
                    (Shown(label, label), Shown(variant, variant), _percent(values[x]), _percent(own),
                     _percent(expected), _points(own - expected))
                )  # fmt: skip
    if not rows:
        return None
    caption = (
        "Effective robustness ρ in points (Taori et al. 2020): accuracy under shift less what the line of the ImageNet "
        "testbed's 85 standard models predicts from the accuracy on ImageNet, of the same classes for A, R and "
        "ObjectNet; means over seeds. One axis of ImageNet accuracy is disputed for models of other training data "
        "(arXiv:2302.01381)."
    )
    heads = ("method", "shift", "ImageNet", "accuracy", "expected", "ρ")
    return Panel("effective-robustness", "Effective robustness", caption, Sheet(heads, tuple(rows), (2, 3, 4, 5)))


def _corruptions(study: Study, t: Table) -> Panel | None:
    rows = []
    for row in t.rows:
        domains = {c.head: mean for c in t.domains if (mean := row.cells[c.key].mean) is not None}
        found = corruption_accuracies(domains)
        if not found:
            continue
        whole = len(found) == len(ALEXNET_ERRORS)
        kinds = [sum(found[k]) / len(found[k]) if k in found else None for k in ALEXNET_ERRORS]
        rows.append(
            (Shown(row.label, row.label), _percent(mean_corruption_accuracy(found) if whole else None),
             _percent(mean_corruption_error(found) if whole else None), *map(_percent, kinds))
        )  # fmt: skip
    if not rows:
        return None
    caption = (
        "ImageNet-C: top-1 accuracy (%) of each corruption, mean over five severities and over seeds; their mean, and "
        "mCE (%, lower is better; Hendrycks & Dietterich 2019), the mean of errors relative to AlexNet's. Both are "
        "empty where a corruption is missing."
    )
    heads = ("method", "mean", "mCE", *(k.replace("_", " ") for k in ALEXNET_ERRORS))
    return Panel("corruptions", "Corruptions", caption, Sheet(heads, tuple(rows), tuple(range(1, len(heads)))))


def _percent(value: float | None) -> Shown:
    return Shown("", None) if value is None or math.isnan(value) else Shown(f"{100 * value:.1f}", round(value, 8))


def _points(value: float) -> Shown:
    return Shown(f"{100 * value:+.1f}".replace("-", "−"), round(value, 8))


def make(studied: Studied) -> list[Panel]:
    return list(panels(studied.study, studied.table))


SECTION = Section(order=10, make=make)
