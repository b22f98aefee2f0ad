"""irm: risks that one classifier minimises in every domain at once (Arjovsky et al. 2019, arXiv:1907.02893, IRMv1).

The mean risk plus ``weight`` times the mean squared gradient of each domain's risk with respect to a scale on the
logits. DomainBed's form, which this is: the square is the product of the gradients on the even and on the odd images of
the domain, which is unbiased; the weight is 1 for the first ``anneal_steps`` updates, and the optimiser starts anew
when it changes. Defaults and the ranges of random search are DomainBed's.
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
    weight: float = field(default=100.0, metadata={"min": 0.0})  # random: 10^U(-1, 5)
    anneal_steps: int = field(default=500, metadata={"min": 0})  # random: int(10^U(0, 4))


class IRM(_domains.Annealed):
    def __init__(self, config: Config, domains: Sequence[int], label_smoothing: float = 0.0) -> None:
        super().__init__(config.weight, config.anneal_steps)
        _domains.check_several("irm", domains)
        self.domains, self.label_smoothing = tuple(domains), label_smoothing

    def forward(self, model: Model, inputs: Tensor, labels: Tensor, domains: Tensor) -> Tensor:
        _, logits = model(inputs)
        logits = logits.float()
        places = _domains.split(domains, self.domains)
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
    updated=_domains.Annealed.updated,
    restarts_optimizer=_domains.Annealed.restarts_optimizer,
    least=2,
)
