"""Expected calibration error over 15 equally wide bins (Guo et al. 2017, arXiv:1706.04599).

A confidence of exactly 1, which a saturated softmax gives, counts in the last bin.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from clipdg.core.plugins import Metric
from clipdg.evaluation.metrics._per_class import per_class

if TYPE_CHECKING:
    from torch import Tensor

    from clipdg.evaluation.scores import Scores

NUM_BINS = 15


def bins(scores: Scores, labels: Tensor, num_classes: int) -> dict[str, Tensor]:
    """For each bin of confidence, (15,) float64: how many images are right, and the sum of their confidences."""
    import torch

    right = scores.predicted == labels
    number = (scores.confidence * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    return {
        "bin_right": torch.bincount(number, right.double(), NUM_BINS),
        "bin_confidence": torch.bincount(number, scores.confidence, NUM_BINS),
    }


def value(totals: Mapping[str, Tensor]) -> float | None:
    total = int(totals["num_images"].sum())
    return float((totals["bin_right"] - totals["bin_confidence"]).abs().sum()) / total if total else None


METRIC = Metric(title="expected calibration error", sums=(per_class, bins), value=value, better="lower", order=50)
