"""A small benchmark by dotted path, ``benchmark=helpers_of.three_styles``: nothing here is a test.

Four colours as squares on noise, in three domains that differ in brightness; each is left out once. ``published``: the
domains have train, val and test splits of their own; ``nouns``: what a domain-aware prompt calls an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clipdg.core.benchmark import Benchmark, Domain, leave_one_out
from clipdg.core.plugins import BenchmarkSource
from clipdg.data.rows import ArrayRows

CLASSES = ("red square", "green square", "blue square", "white square")
STYLES = {"bright": (170, 250), "dim": (90, 160), "dark": (40, 90)}


@dataclass(frozen=True)
class Config:
    published: bool = False
    per_class: int = 15


def build(config: Config, root: str | None = None) -> Benchmark:
    rng = np.random.default_rng(0)
    domains = {}
    for name, (low, high) in STYLES.items():
        labels = rng.permutation(np.repeat(np.arange(len(CLASSES)), config.per_class))
        images = rng.integers(0, 60, (len(labels), 32, 32, 3)).astype(np.uint8)
        for i, label in enumerate(labels):
            left, top = rng.integers(0, 12, 2)
            channels = [label] if label < 3 else [0, 1, 2]
            for channel in channels:
                images[i, top : top + 18, left : left + 18, channel] = rng.integers(low, high, (18, 18))
        order = np.arange(len(labels))
        splits = {"train": order[:36], "val": order[36:46], "test": order[46:]} if config.published else None
        ids = [f"{name}/{i}" for i in range(len(labels))]
        domains[name] = Domain(name, ArrayRows(images, labels, ids), splits, noun=name)
    return Benchmark("three styles", CLASSES, domains, leave_one_out(list(domains)), ("a {}", "this is {a}"))


BENCHMARK = BenchmarkSource(config=Config, build=build)
