"""What consecutive runs share: opened benchmarks and backbones, and the feature store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from clipdg import catalog, config, halves, placement, records, skipping
from clipdg.core import Backbone, Benchmark
from clipdg.features import FeatureStore
from clipdg.images import fast
from clipdg.rows import fingerprint
from clipdg.rows.folder import unlooked
from clipdg.trainer import Progress


@dataclass
class Session:
    """What consecutive runs share: opened benchmarks and backbones, and the feature store."""

    store: FeatureStore = field(default_factory=FeatureStore)
    progress: Progress | None = None
    _opened: dict[str, Any] = field(default_factory=dict)
    _fingerprints: dict[int, tuple[Benchmark, str]] = field(default_factory=dict)

    def benchmark(self, settings: Mapping[str, Any]) -> Benchmark:
        key = records.digest(["benchmark", settings])
        if key not in self._opened:
            self._opened[key] = open_benchmark(settings)
        return self._opened[key]  # type: ignore[no-any-return]

    def backbone(self, settings: Mapping[str, Any]) -> Backbone:
        key = records.digest(["backbone", settings])
        if key not in self._opened:
            self._opened[key] = open_backbone(settings)
        return self._opened[key]  # type: ignore[no-any-return]

    def data_fingerprint(self, benchmark: Benchmark) -> str:
        """SHA-256 over the classes and, by domain, which images with which labels; read once a session."""
        if id(benchmark) not in self._fingerprints:
            domains = {name: fingerprint(domain, benchmark.classes) for name, domain in benchmark.domains.items()}
            found = records.digest([benchmark.classes, domains])
            self._fingerprints[id(benchmark)] = benchmark, found  # kept with it, so that no other gets its id
        return self._fingerprints[id(benchmark)][1]


def open_benchmark(settings: Mapping[str, Any]) -> Benchmark:
    """The benchmark of checked settings (config.BenchmarkConfig and its own), less what skip and half leave out."""
    module = catalog.plugin("benchmarks", settings["name"])
    own = config.plugin_config("benchmark", settings)
    if settings["skip"] is None:
        return halves.of(module.build(own, settings["root"]), settings["half"])
    file = Path(settings["skip"]).expanduser()
    names = skipping.read(file)
    with unlooked():  # what the list leaves out may be no image at all
        benchmark: Benchmark = module.build(own, settings["root"])
    return halves.of(skipping.without(benchmark, names, str(file)), settings["half"])


def open_backbone(settings: Mapping[str, Any]) -> Backbone:
    """The backbone of checked settings (config.BackboneConfig and its family's own), on the accelerator if any."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    placement.resolve(settings["precision"], device)  # before the slow part
    family, _, model = settings["name"].partition(":")
    own = config.plugin_config("backbone", settings)
    arguments = (model or None, settings["weights"], *([own] if own is not None else []))
    backbone = catalog.plugin("backbones", family).load(*arguments)
    if settings["pixels"] == "fast":
        backbone.preprocessing = fast(backbone.preprocessing)
    return placement.place(backbone, settings["precision"], device, settings["compile"], settings["features"])
