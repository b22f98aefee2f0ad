"""Accuracy on the worst class: the lowest accuracy of a class that has images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from clipdg.core.plugins import Metric
from clipdg.evaluation.metrics._per_class import per_class, recall

if TYPE_CHECKING:
    from torch import Tensor


def value(totals: Mapping[str, Tensor]) -> float | None:
    found = recall(totals)
    return None if found is None else float(found.min())


METRIC = Metric(title="accuracy on the worst class", sums=(per_class,), value=value, order=40)
