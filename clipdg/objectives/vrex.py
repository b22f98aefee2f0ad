"""vrex: risks that are equal in every domain.

Krueger et al., Out-of-Distribution Generalization via Risk Extrapolation, ICML 2021, arXiv:2003.00688. The loss is the
mean risk plus ``weight`` times the variance of the domains' risks, which is their mean squared deviation, not corrected
for the number of domains. As in DomainBed, the weight is 1 for the first ``anneal_steps`` updates, and the optimiser
starts anew when it changes. Defaults and the ranges of random search are DomainBed's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from clipdg.core.model import Model
from clipdg.core.plugins import Objective
from clipdg.objectives import _domains


@dataclass(frozen=True)
class Config:
    """``weight``: of the variance. ``anneal_steps``: updates before it counts in full."""

    weight: float = field(default=10.0, metadata={"min": 0.0})  # random: 10^U(-1, 5)
    anneal_steps: int = field(default=500, metadata={"min": 0})  # random: int(10^U(0, 4))


class VREx(_domains.Annealed):
    """The mean risk and an annealed penalty on its variance."""

    def __init__(self, config: Config, domains: Sequence[int], label_smoothing: float = 0.0) -> None:
        super().__init__(config.weight, config.anneal_steps)
        _domains.require_several("vrex", domains)
        self.domains, self.label_smoothing = tuple(domains), label_smoothing

    def forward(self, model: Model, inputs: Tensor, labels: Tensor, domains: Tensor) -> Tensor:
        _, logits = model(inputs)
        risks = _domains.losses(logits.float(), labels, _domains.places_of(domains, self.domains), self.label_smoothing)
        return risks.mean() + self.weight * (risks - risks.mean()).square().mean()


def build(config: Config, domains: Sequence[int], label_smoothing: float, seed: int) -> VREx:
    return VREx(config, domains, label_smoothing)


OBJECTIVE = Objective(
    config=Config,
    build=build,
    needs="domains",
    updated=_domains.Annealed.updated,
    restarts_optimizer=_domains.Annealed.restarts_optimizer,
)
