"""A benchmark and a method of a user's own in one file, under one dotted path. Nothing here is a test.

Tests name both ``plugins_of.a_user``, see conftest.py, and worker processes can import it. The benchmark has squares of
three colours in two domains, each of which is left out once. The method can be made to fail in the ways in which runs
fail.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from clipdg.core.benchmark import Benchmark, Domain, leave_one_out
from clipdg.core.errors import DivergedError, UnsafeError
from clipdg.core.plugins import BenchmarkSource, Method, NoSettings
from clipdg.data.rows import ArrayRows


@dataclass(frozen=True)
class Config:
    """Settings of the method. ``how``: the way in which it fails, or "well"."""

    how: str = "well"
    once: str = ""  # a file that the first attempt makes; later attempts do not fail
    scale: float = 1.0


class Random(nn.Module):
    """A linear classifier with random weights."""

    def __init__(self, config: Config, dim: int, num_classes: int) -> None:
        super().__init__()
        self.scale = config.scale
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("weight", torch.randn(dim, num_classes, generator=generator))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.scale * features @ self.weight  # type: ignore[operator, no-any-return]


def build(config: Config, backbone: Any, benchmark: Benchmark) -> Random:
    first = not config.once or not Path(config.once).exists()
    if config.once:
        Path(config.once).touch()
    if first:
        _fail(config.how)
    return Random(config, backbone.embed_dim, len(benchmark.classes))


def _fail(how: str) -> None:
    if how == "killed":
        os.write(2, b"the last words\n")
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "slow":
        time.sleep(60)
    if how == "bug":
        raise RuntimeError("a bug of the method")
    if how == "oom":
        torch.empty(2**60, dtype=torch.uint8)
    if how == "diverged":
        raise DivergedError("the loss is nan at step 3")
    if how == "refused":
        raise UnsafeError("weights.pt could run code")


def squares(config: NoSettings, root: str | None) -> Benchmark:
    rng = np.random.default_rng(0)
    domains = {}
    for name, low, high in (("bright", 150, 250), ("dark", 50, 120)):
        labels = np.repeat(np.arange(3), 12)
        images = rng.integers(0, 30, (36, 32, 32, 3)).astype(np.uint8)
        for i, label in enumerate(labels):
            images[i, 8:24, 8:24, label] = rng.integers(low, high, (16, 16))
        domains[name] = Domain(name, ArrayRows(images, labels, [f"{name}/{i}" for i in range(36)]), noun=name)
    classes = ("red square", "green square", "blue square")
    return Benchmark("squares", classes, domains, leave_one_out(["bright", "dark"]), ("a {}",))


BENCHMARK = BenchmarkSource(config=NoSettings, build=squares)
METHOD = Method(config=Config, build=build, trains="nothing")
