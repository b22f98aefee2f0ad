"""The classifier that came with supervised weights, as it is.

Nothing is fitted and there are no prompts. This is how ResNets are compared with zero-shot CLIP on ImageNet and its
variants (Radford et al. 2021, figure 13; Taori et al. 2020). Outputs are matched to classes by WordNet id, so the
benchmark must have WordNet classes (imagenet); of a classifier with 21,841 outputs the benchmark's 1,000 are taken. On
a domain with fewer classes the other logits are masked, since the head was trained on all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clipdg.core.benchmark import Benchmark
from clipdg.core.errors import ConfigError
from clipdg.core.model import Backbone, HeadedBackbone
from clipdg.core.plugins import Method, NoSettings


class OwnHead(nn.Module):
    """Picks the logits of the benchmark's classes among the backbone's own.

    Legend: N images, C classes, D features.
    """

    order: Tensor

    def __init__(self, backbone: HeadedBackbone, order: Tensor) -> None:
        """``order``: (C,), the output of the backbone's classifier that is each class."""
        super().__init__()
        self._backbone = (backbone,)  # the tuple keeps it from becoming a submodule, which checkpoints would hold
        self.register_buffer("order", order)

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, C)"""
        return self._backbone[0].classify(features)[:, self.order]


def build(config: NoSettings, backbone: Backbone, benchmark: Benchmark) -> OwnHead:
    """Raises ConfigError if the weights have no classifier, or none with an output for each class."""
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


METHOD = Method(config=NoSettings, build=build, trains="nothing", needs_head=True)
