"""A linear probe's sweep over ten strengths: against scikit-learn's LogisticRegression, fitted to each from the start.

The features are synthetic and CLIP-like: a power-law spectrum, a common mean direction, length 10; about 85 % of
held-out images are classified rightly. A set that is nearly separable would not do: there every solver stops early.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from harness import Case, Setting, Side, Step
from torch.nn import functional as F

from clipdg.methods import linear_probe
from clipdg.methods._logistic import Logistic

STRENGTHS = np.logspace(-3, 1, 10)


def problem(setting: Setting, num_rows: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Features (N, D) in fp32, labels (N,), and the number of classes."""
    num_rows, width, classes = (2_000, 64, 10) if setting.small else (num_rows, 512, 100)
    rng = np.random.default_rng(setting.seed)
    centres = 0.18 * rng.standard_normal((classes, width))
    scale = (1 + np.arange(width)) ** -0.5
    turn, _ = np.linalg.qr(rng.standard_normal((width, width)))
    mean = 0.08 * rng.standard_normal(width)
    labels = rng.integers(0, classes, num_rows)
    x = ((centres[labels] + rng.standard_normal((num_rows, width))) * scale) @ turn.T + mean
    x *= 10 / np.linalg.norm(x, axis=1, keepdims=True)
    return x.astype(np.float32), labels, classes


def objective(x: np.ndarray, labels: np.ndarray, weight: Any, bias: Any, c: float) -> float:
    """sum_i CE_i + |W|^2 / (2 C)"""
    weight, bias = (torch.as_tensor(a).double() for a in (weight, bias))
    loss = 0.0
    for i in range(0, len(x), 4096):
        logits = torch.from_numpy(x[i : i + 4096]).double() @ weight.T + bias
        loss += float(F.cross_entropy(logits, torch.from_numpy(labels[i : i + 4096]), reduction="sum"))
    return loss + float(weight.square().sum()) / (2 * c)


def theirs(num_rows: int) -> Any:
    def prepare(setting: Setting) -> Step:
        from sklearn.linear_model import LogisticRegression

        x, labels, _ = problem(setting, num_rows)

        def step() -> Any:
            fitted = [LogisticRegression(C=c, max_iter=1000).fit(x, labels) for c in STRENGTHS]
            return x, labels, [(f.coef_, f.intercept_) for f in fitted]

        return step

    return prepare


def ours(num_rows: int, tolerance: float = linear_probe.Config().tolerance) -> Any:
    def prepare(setting: Setting) -> Step:
        x, labels, classes = problem(setting, num_rows)
        features, targets = torch.from_numpy(x).to(setting.device), torch.from_numpy(labels).to(setting.device)

        def step() -> Any:
            path = Logistic(features, targets, classes, tolerance=tolerance, max_iterations=1000)
            found = [path.solve(float(c)) for c in STRENGTHS]
            assert all(f.converged for f in found)
            return x, labels, [(f.weight.cpu(), f.bias.cpu()) for f in found]

        return step

    return prepare


def excess(outcomes: Sequence[Any]) -> dict[str, float]:
    """How far the last side's objective lies above the first's at the strength where it does worst."""
    first, last = (
        [objective(x, labels, w, b, float(c)) for (w, b), c in zip(solutions, STRENGTHS, strict=True)]
        for x, labels, solutions in (outcomes[0], outcomes[-1])
    )
    return {"largest relative excess of the objective": max(b / a - 1 for a, b in zip(first, last, strict=True))}


CASES = (
    Case(
        "linear-probe-10k",
        "ten strengths of a probe, 10,000 × 512 features, 100 classes, to a gradient of 3e-6",
        (Side("scikit-learn, gradient 1e-4", theirs(10_000), turns=1), Side("clipdg", ours(10_000))),
        excess,
        {"largest relative excess of the objective": 0.0},
        at_least=3,
    ),
    Case(
        "linear-probe-50k",
        "ten strengths of a probe, 50,000 × 512 features, 100 classes, to a gradient of 3e-6",
        (
            Side("scikit-learn, gradient 1e-4", theirs(50_000), turns=1, memory=False),
            Side("clipdg, gradient 1e-4", ours(50_000, 1e-4)),
            Side("clipdg", ours(50_000)),
        ),
        excess,
        {"largest relative excess of the objective": 0.0},
        at_least=3,
    ),
)
