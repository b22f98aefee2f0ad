"""group_dro: the risk of the worst domain, by adaptive weights.

Sagawa et al., Distributionally Robust Neural Networks for Group Shifts, ICLR 2020, arXiv:1911.08731, algorithm 1.
Before each update, the weight of each domain is multiplied by ``exp(step_size * risk)``, and the weights are divided by
their sum. The loss is the weighted sum of the risks. The weights are part of a run's saved state. The default and the
range of random search are DomainBed's (groupdro_eta).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from clipdg.core.model import Model
from clipdg.core.plugins import Objective
from clipdg.objectives import _domains


@dataclass(frozen=True)
class Config:
    """``step_size``: how fast the weights follow the risks."""

    step_size: float = field(default=1e-2, metadata={"min": 0.0})  # random: 10^U(-3, -1)


class GroupDRO(nn.Module):
    """Legend: E domains."""

    weights: Tensor

    def __init__(self, config: Config, domains: Sequence[int], label_smoothing: float = 0.0) -> None:
        super().__init__()
        _domains.require_several("group_dro", domains)
        self.config, self.domains, self.label_smoothing = config, tuple(domains), label_smoothing
        self.register_buffer("weights", torch.ones(len(domains)))  # (E,)

    def forward(self, model: Model, inputs: Tensor, labels: Tensor, domains: Tensor) -> Tensor:
        _, logits = model(inputs)
        risks = _domains.losses(logits.float(), labels, _domains.places_of(domains, self.domains), self.label_smoothing)
        weights = self.weights * (self.config.step_size * risks.detach()).exp()
        self.weights = weights / weights.sum()
        return risks @ self.weights


def build(config: Config, domains: Sequence[int], label_smoothing: float, seed: int) -> GroupDRO:
    return GroupDRO(config, domains, label_smoothing)


OBJECTIVE = Objective(config=Config, build=build, needs="domains")
