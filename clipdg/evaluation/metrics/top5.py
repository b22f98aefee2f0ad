"""Top-5 accuracy: the share of images whose label is among the five likeliest of more than five classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from clipdg.core.plugins import Metric
from clipdg.evaluation.metrics._per_class import per_class

if TYPE_CHECKING:
    from torch import Tensor

    from clipdg.evaluation.scores import Scores


def among_five(scores: Scores, labels: Tensor, num_classes: int) -> dict[str, Tensor]:
    """``num_top5``: (), images whose label is among the five likeliest of more than five classes."""
    import torch

    if num_classes <= 5:
        return {"num_top5": torch.zeros((), dtype=torch.int64, device=labels.device)}
    return {"num_top5": (scores.log_probabilities.topk(5, dim=1).indices == labels[:, None]).sum()}


def value(totals: Mapping[str, Tensor]) -> float | None:
    total = int(totals["num_images"].sum())
    return int(totals["num_top5"]) / total if total and len(totals["num_images"]) > 5 else None


METRIC = Metric(title="top-5 accuracy", sums=(per_class, among_five), value=value, order=20)
