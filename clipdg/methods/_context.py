"""Learnt vectors in place of a prompt's words: the code that CoOp and its followers share.

A prompt is [SOS] [V]_1 … [V]_M [class name] [suffix] [EOS], or has the class name in the middle of the V or in front of
them. Tokens that prompts share at their beginning go through the text tower once a step (text/prefix_packing.py). With
one context for all classes in front of the name, prompts share nearly everything; with the name in front, they share
only the start token and the beginnings of names that begin alike.

Legend: N images, C classes, M context vectors, L tokens, W token width, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipdg.core.benchmark import Benchmark
from clipdg.core.errors import ConfigError, DataError
from clipdg.core.fit import Fit
from clipdg.core.model import Backbone, ClipBackbone, TextTower
from clipdg.text.prompt_encoder import Prompts

Position = Literal["end", "middle", "front"]


@dataclass(frozen=True)
class ContextConfig:
    """Settings of a learnt context.

    ``context_init``: text whose token embeddings the context starts from. The context then has one vector for each
    token of the text. ``class_specific``: each class has a context of its own. ``position`` of the class name: behind
    the context (end), within it (middle) or in front of it (front). ``memory_mib``: what a step's activations may take;
    None is half of the memory that is free. Where a step needs more, classes go through the tower in groups, and the
    backward pass computes them again.
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

    @property
    def memory(self) -> int | None:
        """Bytes that a step may take, see ``Prompts.encode``."""
        return None if self.memory_mib is None else self.memory_mib * 2**20


class Scheduled(Protocol):
    """Settings of a fit that follows Dassl's schedule."""

    @property
    def epochs(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def momentum(self) -> float: ...
    @property
    def warmup_epochs(self) -> int: ...
    @property
    def warmup_lr(self) -> float: ...


class Pass(NamedTuple):
    """What one forward pass of a step computed."""

    features: Tensor  # (N, D), of unit length
    directions: Tensor  # (C, D), of unit length
    logits: Tensor  # (N, C)


# (loss, context, the step's passes) -> the loss whose gradient the step goes down
Regularizer: TypeAlias = Callable[[Tensor, nn.Parameter, Sequence[Pass]], Tensor]


class Layout(NamedTuple):
    """Prompts with places for their context.

    ``tokens``: (C, L). ``vectors``: (C, L), the number of the vector that stands at a place, -1 for a token.
    """

    tokens: Tensor
    vectors: Tensor


class PromptLearner(nn.Module):
    """Scaled cosines between features and the directions of prompts. ``context`` is the only parameter."""

    def __init__(
        self,
        tower: TextTower,
        layout: Layout,
        context: Tensor,
        scale: float,
        memory: int | None = None,
        regularizer: Regularizer | None = None,
    ) -> None:
        """``context``: (M, W), or (C, M, W) with one for each class. ``memory``: bytes, see ``Prompts.encode``."""
        super().__init__()
        self.context = nn.Parameter(context.float())
        self.scale, self.memory, self.regularizer = scale, memory, regularizer
        self._prompts = Prompts(tower, *layout)
        self._passes: list[Pass] = []  # of this step, kept for the regularizer

    def directions(self) -> Tensor:
        """Encode the prompts: class directions (C, D) of unit length."""
        context = self.context.flatten(0, -2)  # (M, W) or (C * M, W)
        return F.normalize(self._prompts.encode(context, memory=self.memory), dim=1)

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, C)"""
        features, directions = F.normalize(features, dim=1), self.directions()
        logits = self.scale * features @ directions.T
        if self.regularizer is not None and self.training and torch.is_grad_enabled():
            self._passes.append(Pass(features, directions, logits))
        return logits

    def regularize(self, loss: Tensor) -> Tensor:
        """Turn the objective's loss into the one that a step goes down. Called once a step, after its passes."""
        passes, self._passes = self._passes, []
        return loss if self.regularizer is None else self.regularizer(loss, self.context, passes)


def prompt_learner(
    config: ContextConfig,
    backbone: Backbone,
    benchmark: Benchmark,
    regularizer: Regularizer | None = None,
    *,
    padded: bool = False,
) -> PromptLearner:
    """Build the module of a method that learns a context.

    ``padded``: a context that starts from words has ``num_context`` vectors all the same, with zeros in front of the
    words'.

    Raises ConfigError if the tower cannot be cut at its embeddings, or a prompt with its context is too long for it.
    """
    assert isinstance(backbone, ClipBackbone)
    tower = tower_of(backbone)
    context = initial_context(config, backbone, tower)
    if padded and len(context) < config.num_context:
        context = F.pad(context, (0, 0, config.num_context - len(context), 0))
    num_context = len(context)
    if config.class_specific:
        context = context.expand(len(benchmark.classes), -1, -1).clone()
        if not config.context_init:
            nn.init.normal_(context, std=0.02)
    layout = lay_out(config, backbone, tower, benchmark.classes, num_context)
    return PromptLearner(tower, layout, context, backbone.logit_scale, config.memory, regularizer)


def schedule(config: Scheduled) -> Fit:
    """CoOp's schedule: a constant warm-up, then a cosine stepped per epoch. Incomplete batches are dropped."""
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


def tower_of(backbone: ClipBackbone) -> TextTower:
    """The text encoder, cut at its embeddings. Raises ConfigError if it cannot be."""
    tower = backbone.text_tower
    if tower is None:
        raise ConfigError(
            f"a context replaces token embeddings and {backbone.name}'s text encoder does not give access to them"
        )
    return tower


def initial_context(config: ContextConfig, backbone: ClipBackbone, tower: TextTower) -> Tensor:
    """The context (M, W) that a fit starts from: the embeddings of a text's tokens, or draws from N(0, 0.02²)."""
    device = device_of(backbone)
    if config.context_init:
        tokens = backbone.tokenize([config.context_init]).to(device)
        stop = tower.num_prefix_tokens + int(_num_tokens(backbone, tower, [config.context_init])[0])
        with torch.no_grad():
            return tower.embed(tokens)[0, tower.num_prefix_tokens : stop].float()
    return nn.init.normal_(torch.empty(config.num_context, tower.width, device=device), std=0.02)


def lay_out(
    config: ContextConfig, backbone: ClipBackbone, tower: TextTower, classes: tuple[str, ...], num_context: int
) -> Layout:
    """Lay out the prompts of all classes. Raises ConfigError if one is longer than the tower's context length."""
    _require_room(backbone, tower, classes, config.suffix, num_context)
    tokens = backbone.tokenize([f"{name}{config.suffix}" for name in classes]).to(device_of(backbone))
    names = None if config.position == "end" else _num_tokens(backbone, tower, classes)
    layout = make_room(tower, tokens, num_context, config.position, names)
    if not config.class_specific:
        return layout
    own = layout.vectors + num_context * torch.arange(len(tokens))[:, None]
    return layout._replace(vectors=torch.where(layout.vectors < 0, -1, own))


def make_room(
    tower: TextTower, tokens: Tensor, num_context: int, position: Position = "end", names: Tensor | None = None
) -> Layout:
    """Move the tokens (C, L) of class names with their suffix apart, so that a context of ``num_context`` fits in.

    ``names``: (C,), how many tokens each name has; not needed if the name stands at the end.
    """
    assert names is not None or position == "end"
    start = tower.num_prefix_tokens
    ahead = {"end": num_context, "middle": num_context // 2, "front": 0}[position]  # vectors before the name
    names = torch.zeros(len(tokens), dtype=torch.long) if names is None else names.cpu()
    length = min(tokens.shape[1] + num_context, tower.context_length)
    place = torch.arange(length) - start  # (L,), from the first place behind the start tokens
    behind = names[:, None] + ahead  # (C, 1), where the rest of the vectors stands
    vector = torch.where(place < ahead, place, place - names[:, None])  # (C, L)
    learnt = ((place >= 0) & (place < ahead)) | ((place >= behind) & (place < behind + num_context - ahead))
    source = torch.where(place < behind, place - ahead, place - num_context).clamp(min=0) + start
    source = torch.where(place < 0, place + start, source)
    source = source.masked_fill(learnt, start)  # any token may hold a vector's place; it is never embedded
    return Layout(tokens.gather(1, source.to(tokens.device)), vector.masked_fill(~learnt, -1))


def device_of(backbone: ClipBackbone) -> torch.device:
    return next(backbone.parameters()).device  # type: ignore[attr-defined, no-any-return]  # every backbone is an nn.Module


def _num_tokens(backbone: ClipBackbone, tower: TextTower, texts: Sequence[str]) -> Tensor:
    """How many tokens each text has (number of texts,), without start and end.

    A text ends at the first token that differs from the same text with one more word.
    """
    one, two = (backbone.tokenize(given).cpu() for given in (list(texts), [f"{text} x" for text in texts]))
    length = min(one.shape[1], two.shape[1])
    return (one[:, :length] != two[:, :length]).int().argmax(dim=1) - tower.num_prefix_tokens


def _require_room(
    backbone: ClipBackbone, tower: TextTower, classes: tuple[str, ...], suffix: str, num_context: int
) -> None:
    """Raises ConfigError if the context leaves too little room for a class name.

    The tokenizer decides this, with one-token words in place of the context.
    """
    filler = " ".join(["x"] * num_context)
    try:
        backbone.tokenize([f"{filler} {name}{suffix}" for name in classes])
    except DataError as error:
        limit = tower.context_length
        raise ConfigError(f"{num_context} context vectors leave too little of {limit} tokens: {error}") from error
