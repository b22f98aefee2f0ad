"""How metrics are called and written, and how a number is written with its spread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from clipdg.core import plugins
from clipdg.records.record import Record


@dataclass(frozen=True)
class Metric:
    """How a metric is called and written: ``scale`` 100 makes percent of a fraction."""

    name: str
    title: str
    unit: str
    better: Literal["higher", "lower"]
    scale: float = 100.0
    decimals: int = 1

    @classmethod
    def of(cls, name: str, said: plugins.Metric | Mapping[str, Any]) -> Metric:
        """A metric as its plug-in says it, or as a record does that was made with one of a user's own."""
        if isinstance(said, plugins.Metric):
            return cls(name, said.title, said.unit, said.better, said.scale, said.decimals)
        better: Literal["higher", "lower"] = "lower" if said.get("better") == "lower" else "higher"
        title, unit = str(said.get("title", name)), str(said.get("unit", ""))
        return cls(name, title, unit, better, float(said.get("scale", 1.0)), int(said.get("decimals", 3)))


def _built_in() -> dict[str, Metric]:
    known = {name: plugins.metric(name) for name in plugins.names("metrics")}
    return {name: Metric.of(name, m) for name, m in sorted(known.items(), key=lambda item: (item[1].order, item[0]))}


METRICS: Mapping[str, Metric] = _built_in()


def metrics_of(records: Iterable[Record]) -> dict[str, Metric]:
    """The built-in metrics in the order of tables, then those of a user's own that the records describe, by name."""
    own: dict[str, Metric] = {}
    for record in records:
        for name, said in record.metrics.items():
            if name not in METRICS:
                own.setdefault(name, Metric.of(name, said))
    return {**METRICS, **dict(sorted(own.items()))}


def format_mean(mean: float | None, error: float | None = None, metric: Metric = METRICS["top1"]) -> str:
    """``"66.6 ± 2.5"``; ``"66.6"`` where there is no error; nothing where there is no mean. All outputs use it."""
    if mean is None:
        return ""
    text = f"{mean * metric.scale:.{metric.decimals}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    text = text.replace("-", "−")
    return text if error is None else f"{text} ± {error * metric.scale:.{metric.decimals}f}"
