"""Mean per-class accuracy: every class that has images counts the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from clipdg.core.plugins import Metric
from clipdg.evaluation.metrics._per_class import per_class, recall

if TYPE_CHECKING:
    from torch import Tensor


def value(totals: Mapping[str, Tensor]) -> float | None:
    found = recall(totals)
    return None if found is None else float(found.mean())


METRIC = Metric(title="mean per-class accuracy", sums=(per_class,), value=value, order=30)
