"""Metrics of all images so far, made from sums alone: a tally grows with the classes and not with the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import torch
from torch import Tensor
from torchmetrics import Metric

from clipdg.core import plugins
from clipdg.core.errors import ConfigError
from clipdg.evaluation.scores import Scores


@cache
def chosen_metrics(own: tuple[str, ...] = ()) -> Mapping[str, plugins.Metric]:
    """The built-in metrics in the order of tables, then those of a user's ``own``, which are dotted paths.

    A metric of one's own is called by the last part of its path. Raises ConfigError if two have one name.
    """
    known = {name: plugins.metric(name) for name in plugins.names("metrics")}
    found = dict(sorted(known.items(), key=lambda item: (item[1].order, item[0])))
    for path in own:
        name = path.rpartition(".")[2]
        if name in found:
            raise ConfigError(f"two metrics are called '{name}'; give '{path}' another file name")
        found[name] = plugins.metric(path)
    return found


class Tally(Metric):
    """Adds up what the metrics need, batch by batch; several processes add theirs together."""

    full_state_update = False

    def __init__(self, num_classes: int, metrics: Mapping[str, plugins.Metric] | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.metrics = chosen_metrics() if metrics is None else metrics
        self._sums = list(dict.fromkeys(f for metric in self.metrics.values() for f in metric.sums))
        nothing = Scores.of(torch.zeros(0, num_classes, dtype=torch.float64))
        self._keys: list[tuple[str, ...]] = []
        for function in self._sums:
            zeros = function(nothing, torch.zeros(0, dtype=torch.int64), num_classes)
            self._keys.append(tuple(zeros))
            for key, zero in zeros.items():
                if key in self._defaults:
                    raise ConfigError(f"two sums of metrics are called '{key}'; give one of them another name")
                self.add_state(key, zero, "sum")

    def update(self, scores: Scores, labels: Tensor) -> None:
        """Add a batch; ``labels``: (N,)."""
        for function in self._sums:
            for key, value in function(scores, labels, self.num_classes).items():
                setattr(self, key, getattr(self, key) + value)

    def compute(self) -> dict[str, float | None]:
        """Every metric by name; None where there is none, as for no image at all."""
        totals: dict[str, Tensor] = {key: getattr(self, key) for keys in self._keys for key in keys}
        return {name: metric.value(totals) for name, metric in self.metrics.items()}


def tallies(names: Sequence[str], num_classes: int, metrics: Mapping[str, plugins.Metric] | None) -> dict[str, Tally]:
    """A fresh tally for each name."""
    return {name: Tally(num_classes, metrics) for name in names}
