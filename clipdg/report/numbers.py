"""TODO clipdg.report.numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Metric:
    """How a metric is called and written: ``scale`` 100 makes percent of a fraction."""

    name: str
    title: str
    unit: str
    better: Literal["higher", "lower"]
    scale: float = 100.0
    decimals: int = 1


METRICS = {
    m.name: m
    for m in (
        Metric("top1", "top-1 accuracy", "%", "higher"),
        Metric("top5", "top-5 accuracy", "%", "higher"),
        Metric("mean_per_class", "mean per-class accuracy", "%", "higher"),
        Metric("worst_class", "accuracy on the worst class", "%", "higher"),
        Metric("ece", "expected calibration error", "%", "lower"),
        Metric("nll", "negative log-likelihood", "nats", "lower", 1.0, 2),
    )
}


def format_mean(mean: float | None, error: float | None = None, metric: Metric = METRICS["top1"]) -> str:
    """``"66.6 ± 2.5"``; ``"66.6"`` where there is no error; nothing where there is no mean. All outputs use it."""
    if mean is None:
        return ""
    text = f"{mean * metric.scale:.{metric.decimals}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    text = text.replace("-", "−")
    return text if error is None else f"{text} ± {error * metric.scale:.{metric.decimals}f}"
