"""The zero-shot classifier as a linear layer, from which lora and wise_ft start."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipdg.core.benchmark import Benchmark
from clipdg.core.errors import ConfigError
from clipdg.core.model import ClipBackbone
from clipdg.text import prompts
from clipdg.text.templates import Prompted, texts_of


class ZeroShotHead(nn.Module):
    """A linear classifier over features of unit length.

    Its weights start as the class directions times the logit scale, and its bias as 0.
    Legend: N images, C classes, D features.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, directions: Tensor, scale: float, *, learns: bool = True) -> None:
        """``directions``: (C, D) of unit length. ``learns``: whether weights and bias are parameters."""
        super().__init__()
        weight, bias = scale * directions, torch.zeros(len(directions), device=directions.device)
        if learns:
            self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        else:
            self.register_buffer("weight", weight)
            self.register_buffer("bias", bias)

    def represent(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, D), of unit length."""
        return F.normalize(features, dim=1)

    def classify(self, represented: Tensor) -> Tensor:
        """(N, D) -> (N, C)"""
        return F.linear(represented, self.weight, self.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, C)"""
        return self.classify(self.represent(features))


def zero_shot_directions(method: str, config: Prompted, backbone: ClipBackbone, benchmark: Benchmark) -> Tensor:
    """Class directions (C, D) of unit length. ``method`` is named in errors.

    Raises ConfigError for prompts that differ between domains, since all domains share one head.
    """
    texts = texts_of(config, benchmark)
    if texts.domain_aware:
        raise ConfigError(f"{method} starts from one classifier for all domains; leave {{domain}} out of its templates")
    return prompts.prompt_directions(backbone, texts.prompts(benchmark.classes), config.ensemble)
