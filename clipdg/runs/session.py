"""What consecutive runs share: opened benchmarks and backbones, and the feature store."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from clipdg.core import plugins
from clipdg.core.benchmark import Benchmark
from clipdg.core.errors import ConfigError
from clipdg.core.model import Backbone
from clipdg.core.progress import Progress
from clipdg.data import base_to_new, skip_list
from clipdg.data.preprocessing import fast
from clipdg.data.rows import fingerprint
from clipdg.data.rows.folder import unlooked
from clipdg.runs.config import BackboneSettings, BenchmarkSettings
from clipdg.runs.feature_store import FeatureStore
from clipdg.storage.publish import digest
from clipdg.weights import precision


@dataclass
class Session:
    """What consecutive runs share: opened benchmarks and backbones, and the feature store."""

    store: FeatureStore = field(default_factory=FeatureStore)
    progress: Progress | None = None
    _benchmarks: dict[str, Benchmark] = field(default_factory=dict)
    _backbones: dict[str, Backbone] = field(default_factory=dict)
    _fingerprints: dict[int, tuple[Benchmark, str]] = field(default_factory=dict)

    def benchmark(self, settings: BenchmarkSettings) -> Benchmark:
        """The benchmark of these settings, opened once."""
        key = repr(settings)
        if key not in self._benchmarks:
            self._benchmarks[key] = open_benchmark(settings)
        return self._benchmarks[key]

    def backbone(self, settings: BackboneSettings) -> Backbone:
        """The backbone of these settings, loaded once."""
        key = repr(settings)
        if key not in self._backbones:
            self._backbones[key] = open_backbone(settings)
        return self._backbones[key]

    def data_fingerprint(self, benchmark: Benchmark) -> str:
        """SHA-256 over the classes and, by domain, which images with which labels; read once a session."""
        if id(benchmark) not in self._fingerprints:
            domains = {name: fingerprint(domain, benchmark.classes) for name, domain in benchmark.domains.items()}
            found = digest([benchmark.classes, domains])
            self._fingerprints[id(benchmark)] = benchmark, found  # kept with it, so that no other gets its id
        return self._fingerprints[id(benchmark)][1]


def open_benchmark(settings: BenchmarkSettings) -> Benchmark:
    """The benchmark of checked settings, without the images and classes that ``skip`` and ``half`` leave out."""
    source = plugins.benchmark(settings.name)
    if settings.skip is None:
        return base_to_new.of(source.build(settings.own, settings.root), settings.half)
    file = Path(settings.skip).expanduser()
    names = skip_list.read(file)
    with unlooked():  # what the list leaves out may be no image at all
        benchmark = source.build(settings.own, settings.root)
    return base_to_new.of(skip_list.without(benchmark, names, str(file)), settings.half)


def open_backbone(settings: BackboneSettings) -> Backbone:
    """The backbone of checked settings, on the accelerator if there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    precision.resolve(settings.precision, device)  # before the slow part
    family, _, model = settings.name.partition(":")
    backbone = plugins.backbone(family).load(model or None, settings.weights, settings.own)
    named = backbone.weights.backbone.partition(":")[0]
    if named != family and not family.endswith(f".{named}"):
        raise ConfigError(
            f"{family} calls its weights '{backbone.weights.backbone}'; a family's weights are called "
            f"'{family}:MODEL', by which the versions of its libraries are found"
        )
    if settings.pixels == "fast":
        backbone.preprocessing = fast(backbone.preprocessing)
    return precision.place(backbone, settings.precision, device, settings.compile, settings.features)
