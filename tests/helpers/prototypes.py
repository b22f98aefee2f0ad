"""A method that adapts at test time, by dotted path: nothing here is a test.

Class directions move towards the images that were classified so far, as in T3A (Iwasawa & Matsuo, NeurIPS 2021): each
image joins its predicted class, and the directions are the means of what has joined.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipdg.core.benchmark import Benchmark
from clipdg.core.model import Backbone
from clipdg.core.plugins import Method
from clipdg.text import prompts

begun: list[str] = []  # the domains whose streams began


@dataclass(frozen=True)
class Config:
    batch: int = 8


class Prototypes(nn.Module):
    """``memory`` is plain Python, which no state dict knows."""

    directions: Tensor

    def __init__(self, directions: Tensor) -> None:
        super().__init__()
        self.register_buffer("directions", directions)
        self.memory: list[list[Tensor]] = [[direction] for direction in directions]

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, C)"""
        features = F.normalize(features, dim=1)
        guesses = (features @ self._means().T).argmax(dim=1)
        for feature, guess in zip(features, guesses.tolist(), strict=True):
            self.memory[guess].append(feature)
        return 100 * features @ self._means().T

    def _means(self) -> Tensor:
        return F.normalize(torch.stack([torch.stack(own).mean(dim=0) for own in self.memory]), dim=1)


def build(config: Config, backbone: Backbone, benchmark: Benchmark) -> Prototypes:
    return Prototypes(prompts.class_directions(backbone, benchmark.classes, benchmark.templates))  # type: ignore[arg-type]


def begin(module: Prototypes, name: str) -> None:
    begun.append(name)


METHOD: Method[Any, Any] = Method(
    config=Config,
    build=build,
    trains="nothing",
    needs_text=True,
    adapts=True,
    begin_domain=begin,
    stream_batch=lambda config: config.batch,
)
