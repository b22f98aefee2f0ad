"""CoCoOp: a learnt context that each image shifts.

Zhou et al., Conditional Prompt Learning for Vision-Language Models, CVPR 2022, arXiv:2203.05557. A network of two
layers (D to D / 16, ReLU, to a token's width) maps the image feature of unit length to a vector ``pi(x)``, which is
added to every vector of the context. Each image therefore has class directions of its own, and the text tower runs once
for each image. The settings are those of the authors' code (KaiyangZhou/CoOp, vit_b16_c4_ep10_batch1_ctxv1): batches of
one image, 10 epochs, a context that starts from "a photo of a". Different from it, features are stored, so each image
has as many random crops and flips as ``fit.views`` says, and none by default.

Images go through the tower in groups of about ``PROMPTS`` prompts. Where a batch has several groups, the backward pass
computes each of them again, so that memory holds the activations of only one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from clipdg.core.benchmark import Benchmark
from clipdg.core.errors import ConfigError
from clipdg.core.model import Backbone, ClipBackbone, TextTower
from clipdg.core.plugins import Method
from clipdg.methods import _context
from clipdg.text.prompt_encoder import Prompts

PROMPTS = 256  # about as many prompts of a group of images
REDUCTION = 16  # how many times narrower than the feature the inner layer is


@dataclass(frozen=True)
class Config(_context.ContextConfig):
    """See _context.py. ``class_specific`` is refused, since the context already depends on the image."""

    context_init: str | None = "a photo of a"
    num_context: int = field(default=4, metadata={"min": 1})
    epochs: int = field(default=10, metadata={"min": 1})
    batch_size: int = field(default=1, metadata={"min": 1})


class CoCoOp(nn.Module):
    """Scaled cosines between features and class directions whose context depends on the feature.

    Legend: N images, C classes, M context vectors, L tokens, W token width, D features, G images in a group.
    """

    def __init__(
        self,
        tower: TextTower,
        layout: _context.Layout,
        context: Tensor,
        embed_dim: int,
        scale: float,
        memory: int | None = None,
    ) -> None:
        """``context``: (M, W). ``memory``: bytes that a group may take, see ``Prompts.encode``."""
        super().__init__()
        self.context = nn.Parameter(context.float())
        inner = max(1, embed_dim // REDUCTION)
        self.reduce = nn.Linear(embed_dim, inner, device=context.device)
        self.expand = nn.Linear(inner, context.shape[1], device=context.device)
        self.scale, self.memory = scale, memory
        self.group = max(1, PROMPTS // len(layout.tokens))
        self._tower, self._layout = (tower,), layout  # the tuple keeps the tower from becoming a submodule
        self._prompts: dict[int, Prompts] = {}  # by G

    def directions(self, features: Tensor) -> Tensor:
        """Features (G, D) of unit length -> each image's class directions (G, C, D), of unit length."""
        shift = self.expand(self.reduce(features).relu())  # (G, W)
        vectors = (self.context + shift[:, None]).flatten(0, 1)  # (G * M, W)
        encoded = self._laid_out(len(features)).encode(vectors, memory=self.memory)  # (G * C, D)
        return F.normalize(encoded, dim=1).view(len(features), -1, encoded.shape[1])

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, C)"""
        groups = torch.split(F.normalize(features, dim=1), self.group)
        if len(groups) == 1 or not torch.is_grad_enabled():
            return torch.cat([self._logits(group) for group in groups])
        again = [checkpoint(self._logits, group, use_reentrant=False) for group in groups]
        return torch.cat(again)

    def _logits(self, features: Tensor) -> Tensor:
        return self.scale * torch.einsum("gd,gcd->gc", features, self.directions(features))

    def _laid_out(self, num_images: int) -> Prompts:
        """Lay out all classes' prompts once for each of ``num_images`` images; each image has M vectors of its own."""
        if num_images not in self._prompts:
            tokens, vectors = self._layout
            offset = len(self.context) * torch.arange(num_images)[:, None, None]
            numbered = torch.where(vectors < 0, vectors, vectors + offset).flatten(0, 1)
            self._prompts[num_images] = Prompts(self._tower[0], tokens.repeat(num_images, 1), numbered)
        return self._prompts[num_images]


def build(config: Config, backbone: Backbone, benchmark: Benchmark) -> CoCoOp:
    """Raises ConfigError for a class-specific context, or one that cannot be put into the text tower."""
    assert isinstance(backbone, ClipBackbone)
    if config.class_specific:
        raise ConfigError("cocoop's context is each image's own and no class's; give class_specific=false")
    tower = _context.tower_of(backbone)
    context = _context.initial_context(config, backbone, tower)
    layout = _context.lay_out(config, backbone, tower, benchmark.classes, len(context))
    return CoCoOp(tower, layout, context, backbone.embed_dim, backbone.logit_scale, config.memory)


METHOD = Method(
    config=Config, build=build, trains="method", fit=_context.schedule, needs_text=True, learns_context=True
)
