"""CoCoOp: a context that each image shifts (Zhou et al., CVPR 2022, arXiv:2203.05557).

Every vector of the context gets the same ``pi(x)``: a network of two layers (D to D / 16, ReLU, to a token's width) of
the image feature of unit length. So each image has class directions of its own, and the text tower runs once an image.
Settings are those of the authors' code (KaiyangZhou/CoOp, vit_b16_c4_ep10_batch1_ctxv1): batches of one image, 10
epochs, a context that starts from "a photo of a". Different from it: features are stored, with as many random crops
and flips to an image as ``fit.views`` says, none by default.

Images go through the tower in groups of about ``PROMPTS`` prompts; where a batch has several groups, each is computed
again on the way back, so that memory is that of one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from clipdg.core.benchmark import Benchmark
from clipdg.core.errors import ConfigError
from clipdg.core.fit import Fit
from clipdg.core.model import Backbone, ClipBackbone, TextTower
from clipdg.core.plugins import Method
from clipdg.methods import _context
from clipdg.text.prompt_encoder import Prompts

PROMPTS = 256
REDUCTION = 16  # of the network's inner layer


@dataclass(frozen=True)
class Config(_context.Learning):
    """See _context.py; a context that is each image's own cannot be each class's too."""

    context_init: str | None = "a photo of a"
    num_context: int = field(default=4, metadata={"min": 1})
    epochs: int = field(default=10, metadata={"min": 1})
    batch_size: int = field(default=1, metadata={"min": 1})


class CoCoOp(nn.Module):
    """Legend: N images, C classes, M context vectors, L tokens, W token width, D features, G images in a group."""

    def __init__(
        self,
        tower: TextTower,
        layout: _context.Layout,
        context: Tensor,
        embed_dim: int,
        scale: float,
        memory: int | None = None,
    ) -> None:
        """``context``: (M, W). ``memory``: bytes that a group may take, see text.Prompts."""
        super().__init__()
        self.context = nn.Parameter(context.float())
        inner = max(1, embed_dim // REDUCTION)
        self.reduce = nn.Linear(embed_dim, inner, device=context.device)
        self.expand = nn.Linear(inner, context.shape[1], device=context.device)
        self.scale, self.memory = scale, memory
        self.group = max(1, PROMPTS // len(layout.tokens))
        self._tower, self._layout = (tower,), layout  # in a tuple: it is no part of this module
        self._prompts: dict[int, Prompts] = {}  # by G

    def directions(self, features: Tensor) -> Tensor:
        """Class directions (G, C, D) of unit length for each of (G, D) features of unit length."""
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
        """Prompts of all classes for each image in turn, whose vectors are M further on."""
        if num_images not in self._prompts:
            tokens, vectors = self._layout
            offset = len(self.context) * torch.arange(num_images)[:, None, None]
            numbered = torch.where(vectors < 0, vectors, vectors + offset).flatten(0, 1)
            self._prompts[num_images] = Prompts(self._tower[0], tokens.repeat(num_images, 1), numbered)
        return self._prompts[num_images]


def build(config: Config, backbone: Backbone, benchmark: Benchmark) -> CoCoOp:
    """Raises ConfigError for a class-specific context; see _context.py for more."""
    assert isinstance(backbone, ClipBackbone)
    if config.class_specific:
        raise ConfigError("cocoop's context is each image's own and no class's; give class_specific=false")
    tower = _context.tower_of(backbone)
    context = _context.start(config, backbone, tower)
    layout = _context.lay_out(config, backbone, tower, benchmark.classes, len(context))
    return CoCoOp(tower, layout, context, backbone.embed_dim, backbone.logit_scale, config.memory)


def fit(config: Config) -> Fit:
    return _context.schedule(config)


METHOD = Method(config=Config, build=build, trains="method", needs_text=True, fit=fit, learns_context=True)
