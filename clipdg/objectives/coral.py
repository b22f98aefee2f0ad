"""coral: features whose mean and covariance are the same in every domain (Sun & Saenko, Deep CORAL, ECCV 2016
workshops, arXiv:1607.01719).

The mean risk plus ``weight`` times, averaged over all pairs of domains, the mean squared difference of their features'
means and of their covariances: DomainBed's form, which aligns the sources with one another and never sees a target. It
acts on what the classifier reads, so it needs a backbone or an adapter that learns; where features are fixed it is
refused. The default and the range of random search are DomainBed's (mmd_gamma).
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
    weight: float = field(default=1.0, metadata={"min": 0.0})  # random: 10^U(-1, 1)


class CORAL(nn.Module):
    def __init__(self, config: Config, domains: Sequence[int], label_smoothing: float = 0.0) -> None:
        super().__init__()
        _domains.check_several("coral", domains)
        self.config, self.domains, self.label_smoothing = config, tuple(domains), label_smoothing

    def forward(self, model: Model, inputs: Tensor, labels: Tensor, domains: Tensor) -> Tensor:
        features, logits = model(inputs)
        places = _domains.split(domains, self.domains)
        risks = _domains.losses(logits.float(), labels, places, self.label_smoothing)
        moments = [_moments(features[p].float()) for p in places]
        distances = [
            sum((a - b).square().mean() for a, b in zip(first, second, strict=True))
            for first, second in itertools.combinations(moments, 2)
        ]
        return risks.mean() + self.config.weight * torch.stack(distances).mean()  # type: ignore[arg-type]  # sum of tensors


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """(n, D) -> mean (D,), covariance (D, D) over n - 1."""
    mean = features.mean(dim=0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def build(config: Config, domains: Sequence[int], label_smoothing: float, seed: int) -> CORAL:
    return CORAL(config, domains, label_smoothing)


OBJECTIVE = Objective(config=Config, build=build, needs="features", least=2)
