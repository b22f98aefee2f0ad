"""Zero-shot CLIP: the class with the nearest prompts.

Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021, arXiv:2103.00020.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipdg.core.benchmark import Benchmark
from clipdg.core.model import Backbone, ClipBackbone
from clipdg.core.plugins import Method
from clipdg.text import prompts
from clipdg.text.templates import Prompted, texts_of


@dataclass(frozen=True)
class Config(Prompted):
    """The settings of the prompts, see text/templates.py."""


class ZeroShot(nn.Module):
    """Scaled cosines between features and class directions.

    Legend: N images, C classes, D features, E domains.
    """

    directions: Tensor

    def __init__(self, directions: Tensor, scale: float) -> None:
        """``directions``: (C, D), or (E, C, D) with one set for each domain."""
        super().__init__()
        self.register_buffer("directions", directions)
        self.scale = scale

    @property
    def domain_aware(self) -> bool:
        """Whether the prompts name the domain, so that each domain has directions of its own."""
        return self.directions.ndim == 3

    def forward(self, features: Tensor, domains: Tensor | None = None) -> Tensor:
        """(N, D), and for domain-aware prompts the (N,) domains -> (N, C)."""
        features = F.normalize(features, dim=1)
        if not self.domain_aware:
            return self.scale * features @ self.directions.T
        assert domains is not None, "domain-aware prompts need each image's domain"
        return self.scale * torch.einsum("nd,ncd->nc", features, self.directions[domains])


def build(config: Config, backbone: Backbone, benchmark: Benchmark) -> ZeroShot:
    """Encode the prompts, once for each domain if they name it."""
    assert isinstance(backbone, ClipBackbone)
    texts = texts_of(config, benchmark)
    nouns: list[str | None] = [None]
    if texts.domain_aware:
        nouns = [domain.noun for domain in benchmark.domains.values()] or [None]
    frozen = not any(p.requires_grad for p in backbone.parameters())  # type: ignore[attr-defined]  # every backbone is an nn.Module
    directions = [
        prompts.prompt_directions(backbone, texts.prompts(benchmark.classes, noun), config.ensemble, store=frozen)
        for noun in nouns
    ]
    return ZeroShot(directions[0] if nouns == [None] else torch.stack(directions), backbone.logit_scale)


METHOD = Method(
    config=Config,
    build=build,
    trains="nothing",
    needs_text=True,
    takes_domains=lambda method: method.domain_aware,
)
