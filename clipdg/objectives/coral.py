"""coral: features with the same mean and covariance in each domain.

Sun & Saenko, Deep CORAL, ECCV 2016 workshops, arXiv:1607.01719. The loss is the mean risk plus ``weight`` times a
penalty. The penalty of two domains is the mean squared difference of their features' means plus that of their
covariances; it is averaged over all pairs of domains. This is DomainBed's form, which aligns the sources with one
another and never sees a target. The penalty acts on what the classifier reads, so a backbone or an adapter must learn;
with fixed features this objective is refused. The default and the range of random search are DomainBed's (mmd_gamma).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from clipdg.core.model import Model
from clipdg.core.plugins import Objective
from clipdg.objectives import _domains


@dataclass(frozen=True)
class Config:
    """``weight``: of the penalty."""

    weight: float = field(default=1.0, metadata={"min": 0.0})  # random: 10^U(-1, 1)


class CORAL(nn.Module):
    """Legend: n images of a domain, D what the classifier reads of each."""

    def __init__(self, config: Config, domains: Sequence[int], label_smoothing: float = 0.0) -> None:
        super().__init__()
        _domains.require_several("coral", domains)
        self.config, self.domains, self.label_smoothing = config, tuple(domains), label_smoothing

    def forward(self, model: Model, inputs: Tensor, labels: Tensor, domains: Tensor) -> Tensor:
        features, logits = model(inputs)
        places = _domains.places_of(domains, self.domains)
        risks = _domains.losses(logits.float(), labels, places, self.label_smoothing)
        moments = [_moments(features[p].float()) for p in places]
        distances = [
            sum((a - b).square().mean() for a, b in zip(first, second, strict=True))
            for first, second in itertools.combinations(moments, 2)
        ]
        return risks.mean() + self.config.weight * torch.stack(distances).mean()  # type: ignore[arg-type]  # sum of tensors


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Features (n, D) -> their mean (D,) and covariance (D, D), over n - 1."""
    mean = features.mean(dim=0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def build(config: Config, domains: Sequence[int], label_smoothing: float, seed: int) -> CORAL:
    return CORAL(config, domains, label_smoothing)


OBJECTIVE = Objective(
    config=Config,
    build=build,
    needs="features",
    least=2,  # one image has no covariance
)
