"""Linear probe: logistic regression on frozen features.

It is multinomial and solved to convergence by full-batch L-BFGS. The objective is scikit-learn's,
``C * sum_i CE(W f_i + b, y_i) + 1/2 ||W - W_0||^2``; the intercept is not penalised. The README of openai/CLIP fits it
on the features as they come (after the projection, not of unit length) with C = 0.316.

``sweep`` is the CLIP paper's search of C (Radford et al. 2021, appendix A.3). It tries seven values from 1e-6 to 1e6,
then both neighbours of the best one at half the distance, and so on down to eight values a decade. It takes the value
with the highest accuracy on validation images of the sources, and the smallest of equally good ones; it never sees a
target. With ``refit`` the probe is then fitted again on the fitted and the validation images together. Each strength is
solved from the solutions of others, see _logistic.py.

A solution has converged if no entry of the gradient of the mean objective is above ``tolerance``; a record says how
large the largest entry is. Where the classes can be separated and C is large, the objective itself is not much larger
than that: it may end some percent above its least value at C = 1000, and at twice its least value at 1e6 (the default
of scikit-learn stops earlier). The predictions are the same. A comparison of losses there needs a smaller
``tolerance``.

``start="zero_shot"`` makes W_0 the zero-shot classifier instead of 0, so that few images move it little. The distance
from W_0 is penalised, since a convex problem that is solved to its end forgets where it began.

``solver="sgd"`` and ``"adamw"`` pass over the data in batches instead, for sets that do not fit into memory.
``weight_decay`` then takes the place of C, which has no meaning there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipdg.core.benchmark import Benchmark
from clipdg.core.errors import ConfigError, DataError
from clipdg.core.fit import Fit
from clipdg.core.model import Backbone, ClipBackbone
from clipdg.core.plugins import Method
from clipdg.methods._logistic import Logistic, Solution
from clipdg.text import prompts

DECADES, PER_DECADE = 6, 8  # the paper's grid: 1e-6 to 1e6
LAST = 2 * DECADES * PER_DECADE  # its last index; the first is 0


@dataclass(frozen=True)
class Config:
    """``c``: inverse strength of the penalty if there is no sweep. ``normalize``: bring features to unit length first.

    ``epochs``, ``lr``, ``batch_size`` and ``weight_decay`` are for sgd and adamw. They start at lr 0.1, as the probe of
    CLIP_benchmark does, and follow a cosine to 0.
    """

    c: float = field(default=0.316, metadata={"min": 1e-8, "max": 1e8})  # openai/CLIP, README
    sweep: bool = False
    refit: bool = True
    normalize: bool = False
    start: Literal["zeros", "zero_shot"] = "zeros"
    solver: Literal["lbfgs", "sgd", "adamw"] = "lbfgs"
    max_iterations: int = field(default=1000, metadata={"min": 1})
    tolerance: float = field(default=3e-6, metadata={"min": 0.0})  # largest gradient entry of the mean objective
    epochs: int = field(default=10, metadata={"min": 1})
    lr: float = field(default=0.1, metadata={"min": 0.0, "max": 100.0})
    batch_size: int = field(default=256, metadata={"min": 1})
    weight_decay: float = field(default=0.0, metadata={"min": 0.0})


class LinearProbe(nn.Module):
    """A linear classifier. ``weight`` is W - W_0, (C, D), and ``origin`` is W_0.

    ``converged`` is None before ``solve``, and for sgd and adamw. ``story``: what the solver found, for the record.
    Legend: N images, C classes, D features.
    """

    origin: Tensor

    def __init__(self, config: Config, embed_dim: int, num_classes: int, origin: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        learns = config.solver != "lbfgs"
        self.weight = nn.Parameter(torch.zeros(num_classes, embed_dim), requires_grad=learns)
        self.bias = nn.Parameter(torch.zeros(num_classes), requires_grad=learns)
        self.register_buffer("origin", torch.zeros_like(self.weight) if origin is None else origin.float())
        self.converged: bool | None = None
        self.story: dict[str, Any] = {}

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, C)"""
        return F.linear(self._inputs(features), self.origin + self.weight, self.bias)

    def solve(self, features: Tensor, labels: Tensor, validation: tuple[Tensor, Tensor] | None = None) -> None:
        """Set the weights from (N, D) features and (N,) labels; a sweep chooses C on those of ``validation``.

        Raises DivergedError if the objective is not finite, DataError if a sweep has no validation images.
        """
        x = self._inputs(features)
        problem = self._problem(x, labels)
        if not self.config.sweep:
            solution = problem.solve(self.config.c)
            self.story = _told(solution)
        else:
            if validation is None or not len(validation[1]):
                raise DataError("the sweep of linear_probe needs validation images of the sources; hold some out")
            val_x, val_labels = self._inputs(validation[0]), validation[1]
            solution, tried = search(problem, val_x, val_labels)
            self.story = _told(solution) | {"sweep": tried, "num_validation": len(val_labels)}
            if self.config.refit:
                both = self._problem(torch.cat([x, val_x]), torch.cat([labels, val_labels]))
                solution = both.solve(solution.c, near=solution)
                self.story |= _told(solution)
        self.converged = solution.converged and all(t["converged"] for t in self.story.get("sweep", []))
        self.weight.data.copy_(solution.weight - self.origin)
        self.bias.data.copy_(solution.bias)

    def _problem(self, x: Tensor, labels: Tensor) -> Logistic:
        return Logistic(
            x,
            labels,
            len(self.bias),
            tolerance=self.config.tolerance,
            max_iterations=self.config.max_iterations,
            origin=self.origin,
        )

    def _inputs(self, features: Tensor) -> Tensor:
        return F.normalize(features, dim=1) if self.config.normalize else features


def search(problem: Logistic, features: Tensor, labels: Tensor) -> tuple[Solution, list[dict[str, Any]]]:
    """Find the best C on ``features`` (M, D) and ``labels`` (M,): its solution, and all that was tried, sorted by C."""
    solutions: dict[int, Solution] = {}
    accuracies: dict[int, float] = {}

    def look(index: int) -> None:
        if index not in solutions:
            solution = problem.solve(10.0 ** (index / PER_DECADE - DECADES))
            logits = F.linear(features, solution.weight.to(features), solution.bias.to(features))
            solutions[index] = solution
            accuracies[index] = int((logits.argmax(dim=1) == labels).sum()) / len(labels)

    def best() -> int:
        return max(sorted(accuracies), key=lambda index: accuracies[index])  # the smallest of equally good ones

    distance = LAST // 6
    for index in range(0, LAST + 1, distance):
        look(index)
    while distance > 1:
        distance //= 2
        peak = best()
        for index in (peak - distance, peak + distance):
            look(min(max(index, 0), LAST))
    tried = [_told(solutions[i]) | {"validation_accuracy": accuracies[i]} for i in sorted(solutions)]
    return solutions[best()], tried


def _told(solution: Solution) -> dict[str, Any]:
    """What the record says of a solution."""
    return {
        "c": solution.c,
        "converged": solution.converged,
        "gradient": solution.gradient if math.isfinite(solution.gradient) else None,
        "iterations": solution.iterations,
    }


def build(config: Config, backbone: Backbone, benchmark: Benchmark) -> LinearProbe:
    """Raises ConfigError for settings that exclude each other."""
    if config.sweep and config.solver != "lbfgs":
        raise ConfigError(f"method.sweep is a search of C, which solver={config.solver} does not have; use lbfgs")
    origin = None
    if config.start == "zero_shot":
        if not isinstance(backbone, ClipBackbone):
            raise ConfigError(f"start=zero_shot needs a text encoder and {backbone.name} has none; use start=zeros")
        if not config.normalize:
            raise ConfigError("start=zero_shot is a classifier of unit features; give method.normalize=true")
        directions = prompts.class_directions(backbone, benchmark.classes, benchmark.templates)
        origin = backbone.logit_scale * directions
    return LinearProbe(config, backbone.embed_dim, len(benchmark.classes), origin)


def fit(config: Config) -> Fit | None:
    """How sgd and adamw go down the gradient; None for lbfgs, which solves."""
    if config.solver == "lbfgs":
        return None
    return Fit(
        optimizer=config.solver,
        lr=config.lr,
        epochs=config.epochs,
        batch_size=config.batch_size,
        weight_decay=config.weight_decay,
        schedule="cosine_step",
    )


METHOD = Method(
    config=Config,
    build=build,
    trains="solver",
    fit=fit,
    solve=LinearProbe.solve,
    validates=lambda config: config.sweep,
    refits=lambda config: config.sweep and config.refit,
    story=lambda method: method.story,
    converged=lambda method: method.converged,
)
