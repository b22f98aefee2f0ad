"""Multinomial logistic regression to convergence, for one strength of its penalty after another.

The objective is scikit-learn's, ``C sum_i CE(W x_i + b, y_i) + 1/2 |W - W_0|^2``, divided by ``C N``. scikit-learn has
W_0 = 0. The intercept is not penalised. With two classes scikit-learn penalises the difference w of their rows by
1/2 |w|^2, which is |W|^2 here, without the half.

The solver is L-BFGS (Nocedal 1980; Nocedal & Wright, Numerical Optimization, algorithm 7.4) with three additions:

    metric      The first guess of the Hessian is its exact diagonal in the eigenbasis of the centred features, where
                the Hessian is nearly diagonal. It is computed at the start of each strength from at most 8,192 rows;
                it changes the way to the solution, not the solution.
    start       The descent starts on the line through the solutions of the two nearest strengths, over log C. It
                interpolates between a smaller and a larger strength, and else extrapolates, by no more than the two
                are apart.
    precision   Products are in fp32 and sums over rows in float64. Where fp32's rounding ends the descent before the
                gradient is small enough, the descent goes on in float64.

Legend: N rows, D features, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from clipdg.core.errors import DivergedError

HISTORY = 20  # corrections that are kept
SKETCH = 8192  # rows from which the metric is made
CHUNK = 2048  # rows at a time, so that their logits stay in the cache
PATIENCE = 30  # iterations without a smaller gradient; after so many, only rounding is left
SLACK = {torch.float32: 1e-7, torch.float64: 1e-15}  # relative rounding of the objective

# Of one step: the step, the gradient's change along it, and the inverse of their product
Correction: TypeAlias = tuple[Tensor, Tensor, float]


@dataclass(frozen=True)
class Solution:
    """The weights at one strength ``c``.

    ``gradient``: the largest magnitude among the entries of the gradient of the objective divided by C N.
    """

    c: float
    weight: Tensor  # (C, D)
    bias: Tensor  # (C,)
    gradient: float
    iterations: int
    converged: bool


class Logistic:
    """One data set (N, D), and the solutions found for it so far, each of which helps to find the next."""

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        num_classes: int,
        *,
        tolerance: float,
        max_iterations: int,
        origin: Tensor | None = None,
    ) -> None:
        """``origin``: W_0, (C, D); zeros if None. ``max_iterations``: for each strength."""
        self.features, self.labels, self.num_classes = features, labels, num_classes
        self.tolerance, self.max_iterations = tolerance, max_iterations
        self.mean = features.mean(dim=0, dtype=torch.float64)  # (D,)
        self.origin = features.new_zeros(features.shape[1], num_classes) if origin is None else origin.T.to(features)
        self._found: dict[float, Tensor] = {}  # C -> (D + 1, C); the last row is the logits at the mean feature
        # The rows come in the order of the loader. Which of them make the metric depends on their number alone.
        rows = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:SKETCH].sort().values
        self._sketch = (features[rows.to(features.device)] - self.mean).float()
        covariance = self._sketch.T @ self._sketch / len(self._sketch)
        self._basis = torch.linalg.eigh(covariance.double()).eigenvectors.float()  # (D, D)
        self._squares = (self._sketch @ self._basis).square_()

    def solve(self, c: float, near: Solution | None = None) -> Solution:
        """Solve for ``c``, from the solutions found so far, or from ``near``, a solution for other data.

        Raises DivergedError if the objective is not finite.
        """
        penalty = (2 if self.num_classes == 2 else 1) / (c * len(self.features))  # see the top of this file
        at = self._start(c) if near is None else self._inside(near)
        metric, iterations, gradient, converged = self._metric(at, penalty), 0, math.inf, False
        for dtype in (torch.float32, torch.float64):
            descent = _Descent(self, penalty, dtype)
            at, gradient, used = descent.run(at.to(dtype), metric, self.max_iterations - iterations)
            iterations += used
            converged = gradient <= self.tolerance
            if converged or iterations >= self.max_iterations:
                break
        self._found[c] = at.float()
        weight = at[:-1].double()
        bias = at[-1].double() - self.mean @ weight
        return Solution(c, weight.T.contiguous(), bias, gradient, iterations, converged)

    def _start(self, c: float) -> Tensor:
        """Where the descent starts (D + 1, C), see the top of this file."""
        if not self._found:
            return torch.cat([self.origin, self.origin.new_zeros(1, self.num_classes)]).float()
        strengths = sorted(self._found)
        below = [s for s in strengths if s <= c][-2:]
        above = [s for s in strengths if s > c]
        if not below:
            return self._found[above[0]]
        nearest = (below[-1], above[0]) if above else tuple(reversed(below))
        if len(nearest) == 1:
            return self._found[nearest[0]]
        one, two = nearest
        along = (math.log(c) - math.log(one)) / (math.log(two) - math.log(one))
        return self._found[one] + max(along, -1.0) * (self._found[two] - self._found[one])

    def _inside(self, solution: Solution) -> Tensor:
        """A solution as the descent holds it (D + 1, C), the last row being the logits at the mean feature."""
        weight = solution.weight.T
        return torch.cat([weight, (solution.bias + self.mean @ weight)[None]]).float()

    def _metric(self, at: Tensor, penalty: float) -> Callable[[Tensor], Tensor]:
        """The first guess of the inverse of the Hessian, as a function (D + 1, C) -> (D + 1, C)."""
        probabilities = (self._sketch @ at[:-1] + at[-1]).softmax(dim=1)
        spread = probabilities * (1 - probabilities)  # (rows, C)
        curvature = self._squares.T @ spread / len(self._sketch) + penalty  # (D, C)
        of_bias = spread.mean(dim=0).clamp_min(1e-6)  # (C,)

        def divide(q: Tensor) -> Tensor:
            basis = self._basis.to(q.dtype)
            return torch.cat([basis @ ((basis.T @ q[:-1]) / curvature), (q[-1] / of_bias)[None]])

        return divide


class _Descent:
    """L-BFGS at one strength in one precision."""

    def __init__(self, problem: Logistic, penalty: float, dtype: torch.dtype) -> None:
        self.features, self.labels = problem.features, problem.labels
        self.mean, self.origin = problem.mean.to(dtype), problem.origin.to(dtype)
        self.tolerance, self.penalty, self.dtype = problem.tolerance, penalty, dtype

    def run(self, at: Tensor, metric: Callable[[Tensor], Tensor], max_iterations: int) -> tuple[Tensor, float, int]:
        """Descend from ``at``: the end, the largest entry of the gradient there, and the number of iterations.

        Raises DivergedError if the objective is not finite.
        """
        value, slope = self.evaluate(at)
        if not math.isfinite(value):
            raise DivergedError("the linear probe's objective is not finite; look at the features' range and at c")
        largest = self.largest(slope)
        corrections: list[Correction] = []
        best, since = largest, 0
        iterations = 0
        while largest > self.tolerance and iterations < max_iterations and since < PATIENCE:
            direction = _two_loops(slope, corrections, metric)
            found = self._search(at, value, slope, direction)
            if found is None:
                break
            iterations += 1
            new, value, new_slope = found
            step, change = new - at, new_slope - slope
            curvature = _dot(step, change)
            if curvature > 0:
                corrections = [*corrections, (step, change, 1 / curvature)][-HISTORY:]
            at, slope = new, new_slope
            largest = self.largest(slope)
            best, since = (largest, 0) if largest < best else (best, since + 1)
        return at, largest, iterations

    def _search(
        self, at: Tensor, value: float, slope: Tensor, direction: Tensor
    ) -> tuple[Tensor, float, Tensor] | None:
        """Find a step along ``direction`` that fulfils Armijo's condition; None if rounding hides the descent.

        It backtracks to where the secant of the slope is 0.
        """
        along = _dot(slope, direction)
        size = 1.0
        while size > 1e-4 and along < 0:
            new = at + size * direction
            new_value, new_slope = self.evaluate(new)
            if new_value <= value + 1e-4 * size * along + SLACK[self.dtype] * abs(value):
                return new, new_value, new_slope
            there = _dot(new_slope, direction)
            secant = along / (along - there) if math.isfinite(there) else 0.0
            size *= min(0.7, max(0.1, secant))
        return None

    def evaluate(self, at: Tensor) -> tuple[float, Tensor]:
        """The objective divided by C N, and its gradient (D + 1, C) in weights and logits at the mean feature."""
        weight, bias = at[:-1], at[-1] - self.mean @ at[:-1]
        gradient = torch.zeros_like(weight)
        of_bias = torch.zeros_like(bias)
        loss = torch.zeros((), dtype=torch.float64, device=at.device)
        for start in range(0, len(self.features), CHUNK):
            x = self.features[start : start + CHUNK].to(self.dtype)
            y = self.labels[start : start + CHUNK, None]
            logits = torch.addmm(bias, x, weight)  # (n, C)
            logits -= logits.amax(dim=1, keepdim=True)
            own = logits.gather(1, y)
            total = logits.exp_().sum(dim=1, keepdim=True)
            loss += (total.log() - own).sum(dtype=torch.float64)
            residual = logits.div_(total)
            residual.scatter_add_(1, y, torch.full_like(own, -1.0))
            gradient.addmm_(x.T, residual)
            of_bias += residual.sum(dim=0)
        num_rows = len(self.features)
        moved = weight - self.origin
        gradient = (gradient - self.mean[:, None] * of_bias) / num_rows + self.penalty * moved
        value = float(loss) / num_rows + 0.5 * self.penalty * float(moved.double().square().sum())
        return value, torch.cat([gradient, of_bias[None] / num_rows])

    def largest(self, slope: Tensor) -> float:
        """The largest entry of the gradient in weights and intercept, as scikit-learn measures it."""
        return max(float((slope[:-1] + self.mean[:, None] * slope[-1]).abs().max()), float(slope[-1].abs().max()))


def _two_loops(slope: Tensor, corrections: list[Correction], metric: Callable[[Tensor], Tensor]) -> Tensor:
    """The direction of descent: minus the slope times the inverse of the Hessian that the corrections suggest."""
    q = slope.clone()
    factors = []
    for step, change, inverse in reversed(corrections):
        factors.append(inverse * _dot(step, q))
        q -= factors[-1] * change
    q = metric(q)
    if corrections:
        _, change, inverse = corrections[-1]
        q /= inverse * _dot(change, metric(change))
    for (step, change, inverse), factor in zip(corrections, reversed(factors), strict=True):
        q += (factor - inverse * _dot(change, q)) * step
    return -q


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum(dtype=torch.float64))
