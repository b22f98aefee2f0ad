"""mixup: the risk on mixtures of two domains' images.

Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018, arXiv:1710.09412; between domains as in Yan et al.
2020, arXiv:2001.00677. Each update puts the domains into a ring in random order. The inputs of two neighbours are mixed
by one share, drawn from Beta(alpha, alpha), and the cross-entropies of their labels are averaged by the same share.
This is DomainBed's form. A run over images mixes the images. A run over stored features mixes the features, which is
another method, since an encoder is not linear. The default and the range of random search are DomainBed's
(mixup_alpha).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipdg.core.model import Model
from clipdg.core.plugins import Objective
from clipdg.objectives import _domains


@dataclass(frozen=True)
class Config:
    """``alpha``: of the Beta distribution of the shares."""

    alpha: float = field(default=0.2, metadata={"min": 1e-6})  # random: 10^U(-1, 1)


class Mixup(nn.Module):
    """The mean cross-entropy on mixtures, with a random generator that is part of its saved state."""

    def __init__(self, config: Config, domains: Sequence[int], label_smoothing: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        _domains.require_several("mixup", domains)
        self.config, self.domains, self.label_smoothing = config, tuple(domains), label_smoothing
        self.rng = np.random.default_rng(seed)

    def get_extra_state(self) -> dict[str, Any]:
        return dict(self.rng.bit_generator.state)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state = state

    def forward(self, model: Model, inputs: Tensor, labels: Tensor, domains: Tensor) -> Tensor:
        places = _domains.places_of(domains, self.domains)
        order = self.rng.permutation(len(places))
        total = inputs.new_zeros(())
        for i, j in zip(order, np.roll(order, -1), strict=True):
            share = float(self.rng.beta(self.config.alpha, self.config.alpha))
            num = min(len(places[i]), len(places[j]))
            one, other = places[i][:num], places[j][:num]
            _, logits = model(share * inputs[one] + (1 - share) * inputs[other])
            risks = [
                F.cross_entropy(logits.float(), labels[p], label_smoothing=self.label_smoothing) for p in (one, other)
            ]
            total = total + share * risks[0] + (1 - share) * risks[1]
        return torch.as_tensor(total / len(places))


def build(config: Config, domains: Sequence[int], label_smoothing: float, seed: int) -> Mixup:
    return Mixup(config, domains, label_smoothing, seed)


OBJECTIVE = Objective(config=Config, build=build, needs="domains")
