"""Sums that accuracies share: for each class, how many images it has and how many of them are right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from clipdg.evaluation.scores import Scores


def per_class(scores: Scores, labels: Tensor, num_classes: int) -> dict[str, Tensor]:
    """``num_right`` and ``num_images``, both (C,) int64."""
    import torch

    right = scores.predicted == labels
    return {
        "num_right": torch.bincount(labels[right], minlength=num_classes),
        "num_images": torch.bincount(labels, minlength=num_classes),
    }


def recall(totals: Mapping[str, Tensor]) -> Tensor | None:
    """The share of right images of each class that has any; None without images.

    A class that is predicted and has no image has no accuracy.
    """
    present = totals["num_images"] > 0
    if not present.any():
        return None
    return totals["num_right"][present].double() / totals["num_images"][present]
