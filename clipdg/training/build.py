"""A method's module and the LightningModule around it, made the same way for a script and for a run."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from clipdg.core import plugins
from clipdg.core.benchmark import Benchmark
from clipdg.core.fit import Fit
from clipdg.core.model import Backbone
from clipdg.training.classifier import Classifier, Minimised
from clipdg.training.random_state import RandomState, seeded


def classifier(
    definition: plugins.Method[Any, Any],
    config: Any,
    backbone: Backbone,
    benchmark: Benchmark,
    fit: Fit | None,
    *,
    objective: Minimised | None = None,
    metrics: Mapping[str, plugins.Metric] | None = None,
    seed: int = 0,
) -> Classifier:
    """Build the classifier in its state before fitting.

    What the method draws follows ``seed`` and nothing else. A backbone that is trained is copied first, so that the one
    given stays as it is.
    """
    if definition.trains_backbone:
        backbone = copy.deepcopy(backbone)
    with seeded(seed):
        method = definition.build(config, backbone, benchmark)
        drawn = RandomState.now()
    assert isinstance(method, nn.Module)
    built = Classifier(
        backbone,
        method,
        len(benchmark.classes),
        fit,
        definition,
        config,
        objective=objective,
        metrics=metrics,
        seed=seed,
    )
    built.random_state, built.classes = drawn, tuple(benchmark.classes)
    return built


def minimised(name: str, config: Any, benchmark: Benchmark, sources: Sequence[str], fit: Fit, seed: int) -> Minimised:
    """The objective ``name`` of a fit on ``sources``, which it knows by their places in the benchmark."""
    definition = plugins.objective(name)
    names = list(benchmark.domains)
    places = sorted(names.index(source) for source in sources)
    return Minimised(definition.build(config, places, fit.label_smoothing, seed), definition)
