"""A small benchmark that contracts are held on, made in memory: squares of seven colours on noise.

Its three domains differ in brightness, and each is left out once. ``benchmark=clipdg.testing.coloured_squares`` makes
a run on it that takes seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from clipdg.core.benchmark import Benchmark, Domain, leave_one_out
from clipdg.core.plugins import BenchmarkSource
from clipdg.data.rows import ArrayRows

# Which channels are bright in a square of each colour.
COLOURS = {"red": [0], "green": [1], "blue": [2], "yellow": [0, 1], "pink": [0, 2], "cyan": [1, 2], "white": [0, 1, 2]}
STYLES = {"bright": (170, 250), "dim": (90, 160), "dark": (40, 90)}  # the range of a bright channel
SIZE = 32  # pixels a side


@dataclass(frozen=True)
class Config:
    """``per_class``: images of each class in each domain."""

    per_class: int = field(default=8, metadata={"min": 2, "max": 1000})


def build(config: Config, root: str | None = None) -> Benchmark:
    """Draw the images, the same each time."""
    rng = np.random.default_rng(0)
    channels = list(COLOURS.values())
    domains = {}
    for name, (low, high) in STYLES.items():
        labels = rng.permutation(np.repeat(np.arange(len(channels)), config.per_class))
        images = rng.integers(0, 40, (len(labels), SIZE, SIZE, 3)).astype(np.uint8)
        for image, label in zip(images, labels.tolist(), strict=True):
            left, top = rng.integers(0, 12, 2)
            for channel in channels[label]:
                image[top : top + 18, left : left + 18, channel] = rng.integers(low, high, (18, 18))
        ids = [f"{name}/{i}" for i in range(len(labels))]
        domains[name] = Domain(name, ArrayRows(images, labels, ids), noun=name)
    return Benchmark(
        "coloured squares",
        tuple(f"{colour} square" for colour in COLOURS),
        domains,
        leave_one_out(list(domains)),
        templates=("a {}", "this is a {}"),
        wnids=tuple(f"n{number:08}" for number in range(len(COLOURS))),  # made up, for weights that come with a head
    )


BENCHMARK = BenchmarkSource(config=Config, build=build)
