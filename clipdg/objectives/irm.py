"""irm: one classifier minimises the risk in every domain at once.

Arjovsky et al., Invariant Risk Minimization, 2019, arXiv:1907.02893, IRMv1. The loss is the mean risk plus ``weight``
times the mean over domains of the squared gradient of the domain's risk with respect to a scale on the logits. This is
DomainBed's form. There the square is the product of two gradients, on the even and on the odd images of the domain,
which is unbiased. The weight is 1 for the first ``anneal_steps`` updates, and the optimiser starts anew when it
changes. Defaults and the ranges of random search are DomainBed's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from clipdg.core.model import Model
from clipdg.core.plugins import Objective
from clipdg.objectives import _domains


@dataclass(frozen=True)
class Config:
    """``weight``: of the penalty. ``anneal_steps``: updates before it counts in full."""

    weight: float = field(default=100.0, metadata={"min": 0.0})  # random: 10^U(-1, 5)
    anneal_steps: int = field(default=500, metadata={"min": 0})  # random: int(10^U(0, 4))


class IRM(_domains.Annealed):
    """The mean risk and an annealed penalty on its gradients."""

    def __init__(self, config: Config, domains: Sequence[int], label_smoothing: float = 0.0) -> None:
        super().__init__(config.weight, config.anneal_steps)
        _domains.require_several("irm", domains)
        self.domains, self.label_smoothing = tuple(domains), label_smoothing

    def forward(self, model: Model, inputs: Tensor, labels: Tensor, domains: Tensor) -> Tensor:
        _, logits = model(inputs)
        logits = logits.float()
        places = _domains.places_of(domains, self.domains)
        risks = _domains.losses(logits, labels, places, self.label_smoothing)
        penalties = [self._penalty(logits[p], labels[p]) for p in places]
        return risks.mean() + self.weight * torch.stack(penalties).mean()

    def _penalty(self, logits: Tensor, labels: Tensor) -> Tensor:
        scale = torch.ones((), device=logits.device, requires_grad=True)
        gradients = [
            torch.autograd.grad(
                F.cross_entropy(scale * logits[half::2], labels[half::2], label_smoothing=self.label_smoothing),
                scale,
                create_graph=True,
            )[0]
            for half in (0, 1)
        ]
        return gradients[0] * gradients[1]


def build(config: Config, domains: Sequence[int], label_smoothing: float, seed: int) -> IRM:
    return IRM(config, domains, label_smoothing)


OBJECTIVE = Objective(
    config=Config,
    build=build,
    needs="domains",
    least=2,  # the penalty takes two halves of a domain's images
    updated=_domains.Annealed.updated,
    restarts_optimizer=_domains.Annealed.restarts_optimizer,
)
