"""Negative log-likelihood of the labels, in nats an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from clipdg.core.plugins import Metric
from clipdg.evaluation.metrics._per_class import per_class

if TYPE_CHECKING:
    from torch import Tensor

    from clipdg.evaluation.scores import Scores


def likelihood(scores: Scores, labels: Tensor, num_classes: int) -> dict[str, Tensor]:
    """``nll``: () float64, the sum over images."""
    return {"nll": -scores.log_probabilities.gather(1, labels[:, None]).sum()}


def value(totals: Mapping[str, Tensor]) -> float | None:
    total = int(totals["num_images"].sum())
    return float(totals["nll"]) / total if total else None


METRIC = Metric(
    title="negative log-likelihood",
    sums=(per_class, likelihood),
    value=value,
    unit="nats",
    better="lower",
    scale=1.0,
    decimals=2,
    high=None,
    order=60,
)
