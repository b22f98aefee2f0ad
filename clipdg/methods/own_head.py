"""The classifier that came with supervised weights, as it is: nothing is fitted, nothing is prompted.

How ResNets stand beside zero-shot CLIP on ImageNet and its variants (Radford et al. 2021, figure 13; Taori et al.
2020). Its outputs are told by their wnids, so it needs a benchmark of WordNet classes (imagenet), and of a classifier
of 21,841 outputs the 1,000 are taken. On a domain of fewer classes its other logits are masked, for there is no other
way for a head that was trained on all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clipdg.core.benchmark import Benchmark
from clipdg.core.errors import ConfigError
from clipdg.core.model import Backbone, HeadedBackbone
from clipdg.core.plugins import Method


@dataclass(frozen=True)
class Config:
    """It has no settings."""


class OwnHead(nn.Module):
    """The logits of the benchmark's classes among the backbone's own."""

    order: Tensor

    def __init__(self, backbone: HeadedBackbone, order: Tensor) -> None:
        """``order``: (C,) the place of each class among the backbone's own."""
        super().__init__()
        self._backbone = (backbone,)  # in a tuple: it is no part of this module or of its checkpoint
        self.register_buffer("order", order)

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, C)"""
        return self._backbone[0].classify(features)[:, self.order]


def build(config: Config, backbone: Backbone, benchmark: Benchmark) -> OwnHead:
    """Raises ConfigError if the weights have no classifier, or not one of the benchmark's classes."""
    own = getattr(backbone, "head_wnids", None)
    if own is None:
        raise ConfigError(
            f"{backbone.name} with weights '{backbone.weights.tag}' has no classifier whose outputs are known; "
            "use linear_probe or erm with it"
        )
    if not benchmark.wnids:
        raise ConfigError(
            f"own_head tells classes by their wnids and {benchmark.name} has none; use it with benchmark=imagenet"
        )
    place = {wnid: i for i, wnid in enumerate(own)}
    missing = [wnid for wnid in benchmark.wnids if wnid not in place]
    if missing:
        raise ConfigError(
            f"the classifier of {backbone.name} has {len(own):,} outputs and none for {missing[0]}"
            + (f" and {len(missing) - 1} other classes" if len(missing) > 1 else "")
        )
    device = next(backbone.parameters()).device  # type: ignore[attr-defined]  # every backbone is an nn.Module
    order = torch.tensor([place[wnid] for wnid in benchmark.wnids], device=device)
    return OwnHead(backbone, order)  # type: ignore[arg-type]  # it has head_wnids, as asked above


METHOD = Method(config=Config, build=build, trains="nothing", needs_head=True)
