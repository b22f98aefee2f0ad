"""CoOp: learned context vectors in the place of a prompt's words (Zhou et al. 2022, arXiv:2109.01134).

The prompt is [SOS] [V]_1 … [V]_M [class name] [suffix] [EOS]; only the V are trained, by SGD on the cross-entropy of
the scaled cosines, and they stay in fp32. Settings are those of the authors' code (KaiyangZhou/CoOp, on Dassl):
constant warm-up of one epoch at 1e-5, cosine stepped per epoch, last epoch evaluated. Different from it: features may
be stored, which leaves out its random crops and flips, and M counts tokens, not words, if the context starts from text.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipdg.core import Backbone, Benchmark, ClipBackbone, Fit, TextTower
from clipdg.errors import ConfigError, DataError

TRAINS = "method"
NEEDS_TEXT = True


@dataclass
class Config:
    """``context_init``: text whose token embeddings the context starts from; it then has as many vectors as tokens."""

    num_context: int = field(default=16, metadata={"min": 1})
    context_init: str | None = None
    class_specific: bool = False
    suffix: str = "."
    epochs: int = field(default=50, metadata={"min": 1})  # 50 for 1 shot, 100 for 2 and 4, 200 for 8 and 16
    lr: float = field(default=2e-3, metadata={"min": 0.0, "max": 100.0})
    batch_size: int = field(default=32, metadata={"min": 1})
    weight_decay: float = field(default=5e-4, metadata={"min": 0.0})
    momentum: float = field(default=0.9, metadata={"min": 0.0, "max": 1.0})
    warmup_epochs: int = field(default=1, metadata={"min": 0})
    warmup_lr: float = field(default=1e-5, metadata={"min": 0.0})


class CoOp(nn.Module):
    """Legend: C classes, M context vectors, L tokens, W token width, D features."""

    tokens: Tensor
    embeddings: Tensor

    def __init__(self, tower: TextTower, tokens: Tensor, context: Tensor, scale: float) -> None:
        """``tokens``: (C, L) of class names with suffix, without context. ``context``: (M, W) or (C, M, W)."""
        super().__init__()
        self._tower = (tower,)  # in a tuple: it is the backbone's, not a part of this module or of its checkpoint
        self.context = nn.Parameter(context.float())
        self.scale = scale
        start, num_context = tower.num_prefix_tokens, context.shape[-2]
        length = min(tokens.shape[1] + num_context, tower.context_length)
        # The context's own ids are never embedded; the first id of the name only holds their place.
        placeholders = tokens[:, start : start + 1].expand(-1, num_context)
        with_context = torch.cat([tokens[:, :start], placeholders, tokens[:, start:]], dim=1)
        with torch.no_grad():
            self.register_buffer("embeddings", tower.embed(tokens).float()[:, : length - num_context])  # (C, L - M, W)
        self.register_buffer("tokens", with_context[:, :length])  # (C, L)

    def directions(self) -> Tensor:
        """Class directions (C, D) of unit length."""
        tower = self._tower[0]
        start = tower.num_prefix_tokens
        context = self.context.expand(len(self.tokens), -1, -1)  # (C, M, W)
        prompts = torch.cat([self.embeddings[:, :start], context, self.embeddings[:, start:]], dim=1)  # (C, L, W)
        return F.normalize(tower.encode(prompts, self.tokens).float(), dim=1)

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, C)"""
        return self.scale * F.normalize(features, dim=1) @ self.directions().T


def build(config: Config, backbone: Backbone, benchmark: Benchmark) -> CoOp:
    """Raises ConfigError if a prompt with its context is longer than the tower's context; see CoOp."""
    assert isinstance(backbone, ClipBackbone)
    tower = backbone.text_tower
    if tower is None:
        raise ConfigError(
            f"coop replaces token embeddings and {backbone.name}'s text encoder does not give access to them"
        )
    device = next(backbone.parameters()).device  # type: ignore[attr-defined]  # every backbone is an nn.Module
    tokens = backbone.tokenize([f"{name}{config.suffix}" for name in benchmark.classes]).to(device)
    num_context = config.num_context
    context = torch.empty(num_context, tower.width, device=device)
    nn.init.normal_(context, std=0.02)
    if config.context_init:
        context = _embedded_text(backbone, tower, config.context_init, device)
        num_context = len(context)
    if config.class_specific:
        context = context.expand(len(tokens), -1, -1).clone()
        if not config.context_init:
            nn.init.normal_(context, std=0.02)
    _check_length(backbone, tower, benchmark.classes, config.suffix, num_context)
    return CoOp(tower, tokens, context, backbone.logit_scale)


def fit(config: Config) -> Fit:
    return Fit(
        optimizer="sgd",
        lr=config.lr,
        epochs=config.epochs,
        batch_size=config.batch_size,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        schedule="cosine_epoch",
        warmup_epochs=config.warmup_epochs,
        warmup_lr=config.warmup_lr,
        drop_last=True,
    )


def _embedded_text(backbone: ClipBackbone, tower: TextTower, text: str, device: torch.device) -> Tensor:
    """The embeddings (M, W) of ``text``'s own tokens: it ends where the same text with one more word goes on."""
    one, two = (backbone.tokenize([longer]).to(device)[0] for longer in (text, f"{text} x"))
    length = min(len(one), len(two))
    num_shared = int((one[:length] != two[:length]).int().argmax())
    with torch.no_grad():
        return tower.embed(one[None])[0, tower.num_prefix_tokens : num_shared].float()


def _check_length(
    backbone: ClipBackbone, tower: TextTower, classes: tuple[str, ...], suffix: str, num_context: int
) -> None:
    """A name may be as long as the context leaves room for: the tokenizer is asked, with fillers in its place."""
    filler = " ".join(["x"] * num_context)
    try:
        backbone.tokenize([f"{filler} {name}{suffix}" for name in classes])
    except DataError as error:
        limit = tower.context_length
        raise ConfigError(f"{num_context} context vectors leave too little of {limit} tokens: {error}") from error
