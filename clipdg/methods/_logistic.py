"""Multinomial logistic regression to convergence, for one strength of its penalty after the other.

The objective is scikit-learn's, ``C sum_i CE(W x_i + b, y_i) + 1/2 |W - W_0|^2`` with W_0 = 0, divided by ``C N``; the
intercept is not penalised. With two classes it penalises the difference w of their rows by 1/2 |w|^2, which is |W|^2
here, without the half. L-BFGS (Nocedal 1980; Nocedal & Wright, Numerical Optimization, algorithm 7.4), and:

    metric      the exact diagonal of the Hessian in the eigenbasis of the centred features, where the Hessian is nearly
                diagonal, at the start of each strength. Of at most 8,192 rows: it changes the way, not the solution.
    start       on the line through the solutions of the two nearest strengths, over log C: inside it between smaller
                and larger ones, else beyond it, by no more than they are apart.
    precision   products in fp32, sums over rows in float64. Where fp32's rounding ends the descent before the gradient
                is small enough, the same goes on in float64.

Legend: N rows, D features, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from clipdg.core.errors import DivergedError

HISTORY = 20  # pairs of steps and gradient differences
SKETCH = 8192  # rows that the metric is made from
CHUNK = 2048  # rows at a time: their logits stay in the cache
PATIENCE = 30  # iterations without a smaller gradient, after which rounding rules
SLACK = {torch.float32: 1e-7, torch.float64: 1e-15}  # of the objective's rounding, relative


@dataclass(frozen=True)
class Solution:
    """``gradient``: largest entry, by magnitude, of the gradient of the objective divided by C N."""

    c: float
    weight: Tensor  # (C, D)
    bias: Tensor  # (C,)
    gradient: float
    iterations: int
    converged: bool


class Logistic:
    """One data set (N, D), and the solutions that were found for it, each of which helps to find the next."""

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
        # The order of the rows is the loader's; which of them make the metric depends on their number only.
        rows = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:SKETCH].sort().values
        self._sketch = (features[rows.to(features.device)] - self.mean).float()
        covariance = self._sketch.T @ self._sketch / len(self._sketch)
        self._basis = torch.linalg.eigh(covariance.double()).eigenvectors.float()  # (D, D)
        self._squares = (self._sketch @ self._basis).square_()

    def solve(self, c: float, near: Solution | None = None) -> Solution:
        """The solution at ``c``, started from those found so far, or from ``near``, one of other data.

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
        """(D + 1, C), see the top of this file."""
        if not self._found:
            return torch.cat([self.origin, self.origin.new_zeros(1, self.num_classes)]).float()
        strengths = sorted(self._found)
        below = [s for s in strengths if s <= c][-2:]
        above = [s for s in strengths if s > c]
        if not below:
            return self._found[above[0]]
        pair = (below[-1], above[0]) if above else tuple(reversed(below))
        if len(pair) == 1:
            return self._found[pair[0]]
        one, two = pair
        along = (math.log(c) - math.log(one)) / (math.log(two) - math.log(one))
        return self._found[one] + max(along, -1.0) * (self._found[two] - self._found[one])

    def _inside(self, solution: Solution) -> Tensor:
        weight = solution.weight.T
        return torch.cat([weight, (solution.bias + self.mean @ weight)[None]]).float()

    def _metric(self, at: Tensor, penalty: float) -> Callable[[Tensor], Tensor]:
        """What the inverse of the Hessian is taken for until the descent knows better: (D + 1, C) -> (D + 1, C)."""
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
        """Where it ends, the largest gradient entry there, and the number of iterations."""
        value, slope = self.evaluate(at)
        if not math.isfinite(value):
            raise DivergedError("the linear probe's objective is not finite; look at the features' range and at c")
        largest = self.largest(slope)
        pairs: list[tuple[Tensor, Tensor, float]] = []
        best, since = largest, 0
        iterations = 0
        while largest > self.tolerance and iterations < max_iterations and since < PATIENCE:
            direction = _two_loops(slope, pairs, metric)
            found = self._search(at, value, slope, direction)
            if found is None:
                break
            iterations += 1
            new, value, new_slope = found
            step, change = new - at, new_slope - slope
            curvature = _dot(step, change)
            if curvature > 0:
                pairs = [*pairs, (step, change, 1 / curvature)][-HISTORY:]
            at, slope = new, new_slope
            largest = self.largest(slope)
            best, since = (largest, 0) if largest < best else (best, since + 1)
        return at, largest, iterations

    def _search(
        self, at: Tensor, value: float, slope: Tensor, direction: Tensor
    ) -> tuple[Tensor, float, Tensor] | None:
        """Armijo's condition, backtracking to where the slope's secant is 0; None if rounding hides the descent."""
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
        """The objective divided by C N, and its gradient (D + 1, C) in the weights and the logits at the mean."""
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
        """Of the gradient in weights and intercept, as scikit-learn measures it."""
        return max(float((slope[:-1] + self.mean[:, None] * slope[-1]).abs().max()), float(slope[-1].abs().max()))


def _two_loops(slope: Tensor, pairs: list[tuple[Tensor, Tensor, float]], metric: Callable[[Tensor], Tensor]) -> Tensor:
    """Minus the slope times what ``pairs`` say about the Hessian's inverse."""
    q = slope.clone()
    factors = []
    for step, change, inverse in reversed(pairs):
        factors.append(inverse * _dot(step, q))
        q -= factors[-1] * change
    q = metric(q)
    if pairs:
        _, change, inverse = pairs[-1]
        q /= inverse * _dot(change, metric(change))
    for (step, change, inverse), factor in zip(pairs, reversed(factors), strict=True):
        q += (factor - inverse * _dot(change, q)) * step
    return -q


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum(dtype=torch.float64))
