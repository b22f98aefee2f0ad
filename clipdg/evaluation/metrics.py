"""TODO clipdg.evaluation.metrics."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from clipdg.core.benchmark import Subset

METRICS = ("top1", "top5", "mean_per_class", "worst_class", "ece", "nll")
NUM_BINS = 15  # of the expected calibration error, equally wide; Guo et al. 2017


class Predictions(NamedTuple):
    """Of one test loader, in the order it came."""

    indices: Tensor  # (N,) rows of the domain
    labels: Tensor  # (N,)
    predicted: Tensor  # (N,)
    confidence: Tensor  # (N,) probability of the predicted class


class Tally(Metric):
    """METRICS of all images so far, from sums alone: its size is that of the classes and not of the images.

    A confidence of exactly 1, which a saturated softmax gives, counts in the last bin.
    """

    full_state_update = False
    num_right: Tensor
    num_images: Tensor
    num_top5: Tensor
    nll: Tensor
    bin_images: Tensor
    bin_right: Tensor
    bin_confidence: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        for name in ("num_right", "num_images"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.int64), "sum")
        self.add_state("num_top5", torch.zeros((), dtype=torch.int64), "sum")
        self.add_state("nll", torch.zeros((), dtype=torch.float64), "sum")
        for name in ("bin_images", "bin_right", "bin_confidence"):
            self.add_state(name, torch.zeros(NUM_BINS, dtype=torch.float64), "sum")

    def update(self, scores: Scores, labels: Tensor) -> None:
        """``labels``: (N,)."""
        right = scores.predicted == labels
        self.num_right += torch.bincount(labels[right], minlength=self.num_classes)
        self.num_images += torch.bincount(labels, minlength=self.num_classes)
        self.nll -= scores.log_probabilities.gather(1, labels[:, None]).sum()
        if self.num_classes > 5:
            self.num_top5 += (scores.log_probabilities.topk(5, dim=1).indices == labels[:, None]).sum()
        number = (scores.confidence * NUM_BINS).long().clamp(max=NUM_BINS - 1)
        self.bin_images += torch.bincount(number, minlength=NUM_BINS)
        self.bin_right += torch.bincount(number, right.double(), NUM_BINS)
        self.bin_confidence += torch.bincount(number, scores.confidence, NUM_BINS)

    def compute(self) -> dict[str, float | None]:
        """METRICS by name; None where there is none: no image at all, or a top 5 of five classes or fewer."""
        total = int(self.num_images.sum())
        if not total:
            return dict.fromkeys(METRICS)
        present = self.num_images > 0  # a class that is predicted and has no image has no accuracy
        recall = self.num_right[present].double() / self.num_images[present]
        return {
            "top1": int(self.num_right.sum()) / total,
            "top5": int(self.num_top5) / total if self.num_classes > 5 else None,
            "mean_per_class": float(recall.mean()),
            "worst_class": float(recall.min()),
            "ece": float((self.bin_right - self.bin_confidence).abs().sum()) / total,
            "nll": float(self.nll) / total,
        }


class Scores(NamedTuple):
    """What a batch of logits says."""

    log_probabilities: Tensor  # (N, C) float64
    predicted: Tensor  # (N,)
    confidence: Tensor  # (N,)

    @classmethod
    def of(cls, logits: Tensor) -> Scores:
        """Of (N, C) logits in float64."""
        log_probabilities = logits.log_softmax(dim=1)
        best, predicted = log_probabilities.max(dim=1)
        return cls(log_probabilities, predicted, best.exp())

    def chosen(self, which: Tensor) -> Scores:
        return Scores(*(column[which] for column in self))


def restrict(logits: Tensor, labels: Tensor, subset: Subset | None) -> tuple[Tensor, Tensor]:
    """(N, C) logits and (N,) labels as they count among the classes of ``subset``; see there.

    The logits of all other classes are minus infinity, and so are a group's but its first.
    """
    if subset is None:
        return logits, labels
    absent = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
    absent[list(subset.ids)] = False
    logits = logits.masked_fill(absent, -math.inf)
    for first, *others in subset.groups:
        logits[:, first] = logits[:, [first, *others]].amax(dim=1)
        logits[:, others] = -math.inf
        labels = torch.where(torch.isin(labels, labels.new_tensor(others)), first, labels)
    return logits, labels
