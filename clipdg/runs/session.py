"""What consecutive runs share: opened benchmarks and backbones, and the feature store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from clipdg.core import plugins
from clipdg.core.benchmark import Benchmark
from clipdg.core.model import Backbone
from clipdg.core.progress import Progress
from clipdg.data import base_to_new, skip_list
from clipdg.data.preprocessing import fast
from clipdg.data.rows import fingerprint
from clipdg.data.rows.folder import unlooked
from clipdg.runs import config
from clipdg.runs.feature_store import FeatureStore
from clipdg.storage.publish import digest
from clipdg.weights import precision


@dataclass
class Session:
    """What consecutive runs share: opened benchmarks and backbones, and the feature store."""

    store: FeatureStore = field(default_factory=FeatureStore)
    progress: Progress | None = None
    _opened: dict[str, Any] = field(default_factory=dict)
    _fingerprints: dict[int, tuple[Benchmark, str]] = field(default_factory=dict)

    def benchmark(self, settings: Mapping[str, Any]) -> Benchmark:
        key = digest(["benchmark", settings])
        if key not in self._opened:
            self._opened[key] = open_benchmark(settings)
        return self._opened[key]  # type: ignore[no-any-return]

    def backbone(self, settings: Mapping[str, Any]) -> Backbone:
        key = digest(["backbone", settings])
        if key not in self._opened:
            self._opened[key] = open_backbone(settings)
        return self._opened[key]  # type: ignore[no-any-return]

    def data_fingerprint(self, benchmark: Benchmark) -> str:
        """SHA-256 over the classes and, by domain, which images with which labels; read once a session."""
        if id(benchmark) not in self._fingerprints:
            domains = {name: fingerprint(domain, benchmark.classes) for name, domain in benchmark.domains.items()}
            found = digest([benchmark.classes, domains])
            self._fingerprints[id(benchmark)] = benchmark, found  # kept with it, so that no other gets its id
        return self._fingerprints[id(benchmark)][1]


def open_benchmark(settings: Mapping[str, Any]) -> Benchmark:
    """The benchmark of checked settings (config.BenchmarkConfig and its own), less what skip and half leave out."""
    module = plugins.plugin("benchmarks", settings["name"])
    own = config.plugin_config("benchmark", settings)
    if settings["skip"] is None:
        return base_to_new.of(module.build(own, settings["root"]), settings["half"])
    file = Path(settings["skip"]).expanduser()
    names = skip_list.read(file)
    with unlooked():  # what the list leaves out may be no image at all
        benchmark: Benchmark = module.build(own, settings["root"])
    return base_to_new.of(skip_list.without(benchmark, names, str(file)), settings["half"])


def open_backbone(settings: Mapping[str, Any]) -> Backbone:
    """The backbone of checked settings (config.BackboneConfig and its family's own), on the accelerator if any."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    precision.resolve(settings["precision"], device)  # before the slow part
    family, _, model = settings["name"].partition(":")
    own = config.plugin_config("backbone", settings)
    arguments = (model or None, settings["weights"], *([own] if own is not None else []))
    backbone = plugins.plugin("backbones", family).load(*arguments)
    if settings["pixels"] == "fast":
        backbone.preprocessing = fast(backbone.preprocessing)
    return precision.place(backbone, settings["precision"], device, settings["compile"], settings["features"])
