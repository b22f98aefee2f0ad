"""What logits say about images: probabilities, the likeliest class, and how sure it is.

Legend: N images, C classes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from clipdg.core.benchmark import Subset


class Predictions(NamedTuple):
    """What was predicted for the images of one domain, in the order they came."""

    indices: Tensor  # (N,) rows of the domain
    labels: Tensor  # (N,)
    predicted: Tensor  # (N,)
    confidence: Tensor  # (N,) probability of the predicted class


class Scores(NamedTuple):
    """What a batch of logits says."""

    log_probabilities: Tensor  # (N, C) float64
    predicted: Tensor  # (N,)
    confidence: Tensor  # (N,)

    @classmethod
    def of(cls, logits: Tensor) -> Scores:
        """Read (N, C) logits in float64."""
        log_probabilities = logits.log_softmax(dim=1)
        best, predicted = log_probabilities.max(dim=1)
        return cls(log_probabilities, predicted, best.exp())

    def chosen(self, which: Tensor) -> Scores:
        """The scores of some of the images."""
        return Scores(*(column[which] for column in self))


def restrict(logits: Tensor, labels: Tensor, subset: Subset | None) -> tuple[Tensor, Tensor]:
    """(N, C) logits and (N,) labels as they count among the classes of ``subset``.

    The logits of all other classes become minus infinity. In a group of classes that count as one, the first gets the
    highest logit of the group and the others minus infinity, and their labels become the first.
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
