"""Linear probe: multinomial logistic regression on frozen features, solved to convergence by full-batch L-BFGS.

The objective is scikit-learn's: ``C * sum_i CE(W f_i + b, y_i) + 1/2 ||W||^2``, the intercept not penalised. The
README of openai/CLIP fits it on the features as they come (after the projection, not of unit length) with C = 0.316.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipdg.core import Backbone, Benchmark
from clipdg.errors import DivergedError

TRAINS = "solver"
NEEDS_TEXT = False


@dataclass
class Config:
    """``c``: inverse strength of the penalty. ``normalize``: features to unit length first."""

    c: float = field(default=0.316, metadata={"min": 1e-8, "max": 1e8})  # openai/CLIP, README
    normalize: bool = False
    max_iterations: int = field(default=1000, metadata={"min": 1})
    tolerance: float = field(default=1e-5, metadata={"min": 0.0})  # largest gradient entry of the mean objective


class LinearProbe(nn.Module):
    def __init__(self, config: Config, embed_dim: int, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.zeros(num_classes, embed_dim), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(num_classes), requires_grad=False)
        self.converged = False

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, C)"""
        if self.config.normalize:
            features = F.normalize(features, dim=1)
        return F.linear(features, self.weight, self.bias)

    def solve(self, features: Tensor, labels: Tensor) -> None:
        """Set the weights from (N, D) features and (N,) labels.

        float64: at small penalties the last digits of the objective decide where the line search stops.
        Raises DivergedError if the solution is not finite.
        """
        x = (F.normalize(features, dim=1) if self.config.normalize else features).double()
        weight = torch.zeros_like(self.weight, dtype=torch.float64, requires_grad=True)
        bias = torch.zeros_like(self.bias, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [weight, bias],
            max_iter=self.config.max_iterations,
            tolerance_grad=self.config.tolerance,
            tolerance_change=0.0,  # the gradient alone says when it is done
            history_size=20,
            line_search_fn="strong_wolfe",
        )
        penalty = 0.5 / (self.config.c * len(x))

        def objective() -> Tensor:  # divided by C N, so that the tolerance does not depend on either
            optimizer.zero_grad()
            loss = F.cross_entropy(F.linear(x, weight, bias), labels) + penalty * weight.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        with torch.enable_grad():
            optimizer.step(objective)  # type: ignore[no-untyped-call, unused-ignore]
            loss = objective()
        if not torch.isfinite(loss):
            raise DivergedError("the linear probe's objective is not finite; look at the features' range and at c")
        gradients = [p.grad.abs().max() for p in (weight, bias) if p.grad is not None]
        self.converged = bool(max(gradients) <= self.config.tolerance)
        self.weight.data.copy_(weight.detach())
        self.bias.data.copy_(bias.detach())


def build(config: Config, backbone: Backbone, benchmark: Benchmark) -> LinearProbe:
    return LinearProbe(config, backbone.embed_dim, len(benchmark.classes))
