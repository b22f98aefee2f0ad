"""Top-1 accuracy: the share of images whose likeliest class is their label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from clipdg.core.plugins import Metric
from clipdg.evaluation.metrics._per_class import per_class

if TYPE_CHECKING:
    from torch import Tensor


def value(totals: Mapping[str, Tensor]) -> float | None:
    """A ratio of counts, to the last bit."""
    total = int(totals["num_images"].sum())
    return int(totals["num_right"].sum()) / total if total else None


METRIC = Metric(title="top-1 accuracy", sums=(per_class,), value=value, order=10)
