"""CoOp: learned context vectors in the place of a prompt's words (Zhou et al. 2022, arXiv:2109.01134).

The prompt is [SOS] [V]_1 … [V]_M [class name] [suffix] [EOS], or has the name in the middle of the V or before them;
only the V are trained, by SGD on the cross-entropy of the scaled cosines, and they stay in fp32. Settings are those of
the authors' code (KaiyangZhou/CoOp, on Dassl): constant warm-up of one epoch at 1e-5, cosine stepped per epoch, last
epoch evaluated. Different from it: features are stored, so that of its random crops and flips there are as many to an
image as ``fit.views`` says, none by default, and M counts tokens, not words, if the context starts from text.

What prompts share at their beginning goes through the text tower once a step (text.py): with a context for all classes
in front of the name that is nearly everything, with one behind it only the start token and names that begin alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipdg.core import Backbone, Benchmark, ClipBackbone, Fit, TextTower
from clipdg.errors import ConfigError, DataError
from clipdg.text import Prompts

Position = Literal["end", "middle", "front"]
TRAINS = "method"
NEEDS_TEXT = True


@dataclass
class Config:
    """``context_init``: text whose token embeddings the context starts from; it then has as many vectors as tokens.

    ``position`` of the class name: behind the context (end), within it (middle) or before it (front). ``memory_mib``:
    what a step's activations may take, None for half of what is free; where they need more, classes go through the
    tower in groups, and again on the way back.
    """

    num_context: int = field(default=16, metadata={"min": 1})
    context_init: str | None = None
    class_specific: bool = False
    position: Position = "end"
    suffix: str = "."
    epochs: int = field(default=50, metadata={"min": 1})  # 50 for 1 shot, 100 for 2 and 4, 200 for 8 and 16
    lr: float = field(default=2e-3, metadata={"min": 0.0, "max": 100.0})
    batch_size: int = field(default=32, metadata={"min": 1})
    weight_decay: float = field(default=5e-4, metadata={"min": 0.0})
    momentum: float = field(default=0.9, metadata={"min": 0.0, "max": 1.0})
    warmup_epochs: int = field(default=1, metadata={"min": 0})
    warmup_lr: float = field(default=1e-5, metadata={"min": 0.0})
    memory_mib: int | None = field(default=None, metadata={"min": 1})


class CoOp(nn.Module):
    """Legend: C classes, M context vectors, L tokens, W token width, D features."""

    def __init__(
        self,
        tower: TextTower,
        tokens: Tensor,
        context: Tensor,
        scale: float,
        position: Position = "end",
        name_lengths: Tensor | None = None,
        memory: int | None = None,
    ) -> None:
        """``tokens``: (C, L) of class names with suffix, without context. ``context``: (M, W) or (C, M, W).

        ``name_lengths``: (C,) tokens of each name, which the context stands behind or around; not needed at the end.
        ``memory``: bytes that a step may take, see text.Prompts.
        """
        super().__init__()
        self.context = nn.Parameter(context.float())
        self.scale, self.memory = scale, memory
        num_context = context.shape[-2]
        start = tower.num_prefix_tokens
        ahead = {"end": num_context, "middle": num_context // 2, "front": 0}[position]  # vectors before the name
        names = torch.zeros(len(tokens), dtype=torch.long) if name_lengths is None else name_lengths.cpu()
        assert name_lengths is not None or position == "end"
        length = min(tokens.shape[1] + num_context, tower.context_length)
        place = torch.arange(length) - start  # (L,), from the first place behind the start tokens
        behind = names[:, None] + ahead  # (C, 1), where the rest of the vectors stands
        vector = torch.where(place < ahead, place, place - names[:, None])  # (C, L)
        learnt = ((place >= 0) & (place < ahead)) | ((place >= behind) & (place < behind + num_context - ahead))
        source = torch.where(place < behind, place - ahead, place - num_context).clamp(min=0) + start
        source = torch.where(place < 0, place + start, source)
        source = source.masked_fill(learnt, start)  # the first token of the name holds the place, nothing embeds it
        with_context = tokens.gather(1, source.to(tokens.device))  # (C, L)
        if context.ndim == 3:
            vector = vector + num_context * torch.arange(len(tokens))[:, None]
        self._prompts = Prompts(tower, with_context, vector.masked_fill(~learnt, -1))

    def directions(self) -> Tensor:
        """Class directions (C, D) of unit length."""
        context = self.context.flatten(0, -2)  # (M, W) or (C * M, W)
        return F.normalize(self._prompts.encode(context, memory=self.memory), dim=1)

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
    names = None if config.position == "end" else _num_tokens(backbone, tower, benchmark.classes)
    memory = None if config.memory_mib is None else config.memory_mib * 2**20
    return CoOp(tower, tokens, context, backbone.logit_scale, config.position, names, memory)


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
    """The embeddings (M, W) of ``text``'s own tokens."""
    tokens = backbone.tokenize([text]).to(device)
    stop = tower.num_prefix_tokens + int(_num_tokens(backbone, tower, [text])[0])
    with torch.no_grad():
        return tower.embed(tokens)[0, tower.num_prefix_tokens : stop].float()


def _num_tokens(backbone: ClipBackbone, tower: TextTower, texts: Sequence[str]) -> Tensor:
    """(number of texts,), their own tokens: a text ends where the same with one more word goes on."""
    one, two = (backbone.tokenize(given).cpu() for given in (list(texts), [f"{text} x" for text in texts]))
    length = min(one.shape[1], two.shape[1])
    return (one[:, :length] != two[:, :length]).int().argmax(dim=1) - tower.num_prefix_tokens


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
