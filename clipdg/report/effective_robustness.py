"""Effective robustness: accuracy under shift beyond what accuracy without it predicts.

Taori et al., Measuring Robustness to Natural Distribution Shifts in Image Classification, NeurIPS 2020,
arXiv:2007.00644. A line is fitted to the logits of both accuracies over a baseline set of models, by least squares;
``rho = accuracy under shift - sigmoid(slope * logit(accuracy) + intercept)``. A number depends on its baseline set,
which is therefore named beside it:

    testbed_standard   the 85 models of the ImageNet testbed with standard training: those of its list (plotting/
                       model_types.py) less the variants named aws, batch64 and subsample, with its six self-supervised
                       ResNets and its ViT-S, which were trained on ImageNet-1k alone
    timm_in1k          timm's models whose tag names training on ImageNet-1k alone: no larger data set, no pseudo
                       labels, no distillation

A model with 0 or 100 % has no logit and is left out of a fit, by name. Beware: one axis of in-distribution accuracy is
itself disputed for models trained on other data (Shi et al., ICML 2023, arXiv:2302.01381), which every CLIP is.

Legend: M models, R resamples.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from clipdg.report.published import numbers

if TYPE_CHECKING:
    import pandas as pd

BaselineSet = Literal["testbed_standard", "timm_in1k"]
NUM_RESAMPLES = 1000
# What a variant is measured against: ImageNet's validation images, of the same classes where these are fewer.
X_OF = {
    "imagenet-v2": "imagenet",
    "imagenet-v2-format-val": "imagenet",
    "imagenet-sketch": "imagenet",
    "imagenet-a": "imagenet-a-clean",
    "imagenet-r": "imagenet-r-clean",
    "objectnet": "objectnet-clean",
}
# Words in timm's tags for data beyond ImageNet-1k, for labels made by a larger model, and for such a model as teacher.
_MORE_DATA = re.compile(
    r"in(11|12|21|22)k|.*clip|laion.*|ig1b|yfcc.*|webli|jft|wsl|swsl|ssl|swag|m3[08]m|openai|dino|seer|6m"
    r"|ns|c2ns|dist|distilled|ssld|miil|teacher"
)


def logit(fraction: np.ndarray) -> np.ndarray:
    """``ln(p / (1 - p))``; infinite at 0 and 1."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(fraction) - np.log1p(-fraction))


def sigmoid(value: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-value)))


@dataclass(frozen=True)
class Line:
    """``logit(y) = slope * logit(x) + intercept`` over a baseline set; ``draws`` are the same of R resamples of it."""

    x: str
    y: str
    baseline: str
    models: tuple[str, ...]
    left_out: tuple[str, ...]  # with 0 or 100 %
    slope: float
    intercept: float
    r2: float
    draws: np.ndarray  # (R, 2) slopes and intercepts

    def expected(self, x: np.ndarray) -> np.ndarray:
        """Accuracies under shift that the baseline has at accuracies ``x``: fractions."""
        return sigmoid(self.slope * logit(np.asarray(x, dtype=float)) + self.intercept)

    def rho(self, x: float, y: float) -> float:
        """Effective robustness, a difference of fractions."""
        return float(y - self.expected(np.array(x)))

    def band(self, x: np.ndarray, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Percentile bootstrap of the line at each of ``x``, resampling the baseline's models."""
        tail = (1 - confidence) / 2
        lines = sigmoid(self.draws[:, :1] * logit(np.asarray(x, dtype=float)) + self.draws[:, 1:])
        low, high = np.quantile(lines, [tail, 1 - tail], axis=0)
        return low, high

    def interval(self, confidence: float = 0.95) -> tuple[tuple[float, float], tuple[float, float]]:
        """Percentile bootstrap of slope and of intercept."""
        tail = (1 - confidence) / 2
        slope, intercept = np.quantile(self.draws, [tail, 1 - tail], axis=0).T.tolist()
        return tuple(slope), tuple(intercept)


@dataclass(frozen=True)
class Pieces:
    """The testbed's rule where a baseline model has 0 %: a line on each side of its x, and none of it in either."""

    pivot: float
    pivot_model: str
    below: Line
    above: Line

    def rho(self, x: float, y: float) -> float:
        return (self.above if x > self.pivot else self.below).rho(x, y)


def fit(frame: pd.DataFrame, x: str, y: str, baseline: str, seed: int = 0) -> Line:
    """The line over the rows of ``frame`` (index: model names; columns x and y: fractions) that have both.

    Raises ValueError if fewer than three models have them.
    """
    known = frame[[x, y]].dropna()
    usable = known[((known > 0) & (known < 1)).all(axis=1)]
    if len(usable) < 3:
        raise ValueError(f"a line from {x} to {y} needs three models; {baseline} has {len(usable)}")
    a, b = logit(usable[x].to_numpy()), logit(usable[y].to_numpy())  # (M,)
    across, along = a - a.mean(), b - b.mean()
    slope = float(across @ along / (across @ across))
    r = float(across @ along / np.sqrt((across @ across) * (along @ along)))
    left_out = tuple(map(str, known.index.difference(usable.index)))
    return Line(
        x, y, baseline, tuple(map(str, usable.index)), left_out, slope, float(b.mean() - slope * a.mean()), r**2,
        _resampled(a, b, seed),
    )  # fmt: skip


def fit_pieces(frame: pd.DataFrame, x: str, y: str, baseline: str) -> Pieces | None:
    """Two lines, split at the one baseline model that has 0 % on ``y``; None if there is none."""
    known = frame[[x, y]].dropna()
    zero = known[known[y] == 0]
    if zero.empty:
        return None
    pivot = float(zero[x].iloc[0])
    below, above = (fit(known[side], x, y, baseline) for side in (known[x] < pivot, known[x] > pivot))
    return Pieces(pivot, str(zero.index[0]), below, above)


def baseline_models(name: BaselineSet) -> pd.DataFrame:
    """Top-1 accuracies of a baseline set: a row per model (of timm's: model and resolution), a column per data set."""
    import pandas as pd

    if name == "testbed_standard":
        frame = numbers.wide("testbed")
        frame.index = frame.index.get_level_values("model")
        standard = pd.read_csv(Path(numbers.RESULTS).with_name("testbed_standard.csv"))["model"]
        return frame.loc[standard]
    frame = numbers.wide("timm")
    alone = [in1k_alone(model) for model in frame.index.get_level_values("model")]
    frame = frame[alone]
    frame.index = pd.Index([f"{model} {size}" for model, _, size, _ in frame.index], name="model")
    return frame


def in1k_alone(model: str) -> bool:
    """Whether a timm name's tag says that ImageNet-1k is all that the model was trained on."""
    words = model.partition(".")[2].split("_")
    return "in1k" in words and not any(_MORE_DATA.fullmatch(word) for word in words)


def _resampled(a: np.ndarray, b: np.ndarray, seed: int) -> np.ndarray:
    """(R, 2) slopes and intercepts of least squares over models drawn with replacement.

    A draw of one x alone has no line and is left out; among more than a dozen models there is none.
    """
    pick = np.random.default_rng(seed).integers(0, len(a), (NUM_RESAMPLES, len(a)))
    x, y = a[pick], b[pick]  # (R, M)
    several = np.ptp(x, axis=1) > 0
    x, y = x[several], y[several]
    centred = x - x.mean(axis=1, keepdims=True)
    slope = (centred * y).sum(axis=1) / (centred**2).sum(axis=1)
    return np.stack([slope, y.mean(axis=1) - slope * x.mean(axis=1)], axis=1)
