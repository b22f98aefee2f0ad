"""Vectors in the place of a prompt's words: what CoOp and its followers share.

A prompt is [SOS] [V]_1 … [V]_M [class name] [suffix] [EOS], or has the name in the middle of the V or before them. What
prompts share at their beginning goes through the text tower once a step (text.py): with a context for all classes in
front of the name that is nearly everything, with one behind it only the start token and names that begin alike.

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
class Learning:
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

    @property
    def memory(self) -> int | None:
        """Bytes that a step may take, see text.Prompts."""
        return None if self.memory_mib is None else self.memory_mib * 2**20


class Scheduled(Protocol):
    """Settings of a fit as Dassl's, of a context or of anything else."""

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


class Seen(NamedTuple):
    """One pass of a step."""

    features: Tensor  # (N, D), of unit length
    directions: Tensor  # (C, D), of unit length
    logits: Tensor  # (N, C)


# What is added to a step's loss: (loss, context, the step's passes) -> the loss whose gradient is gone down
Guide: TypeAlias = Callable[[Tensor, nn.Parameter, Sequence[Seen]], Tensor]


class Layout(NamedTuple):
    """Prompts with room for their context: (C, L) tokens, and (C, L) numbers of the vectors, -1 where there is none."""

    tokens: Tensor
    vectors: Tensor


class PromptLearner(nn.Module):
    """Scaled cosines between features and the directions of prompts whose ``context`` is the only parameter."""

    def __init__(
        self,
        tower: TextTower,
        layout: Layout,
        context: Tensor,
        scale: float,
        memory: int | None = None,
        guide: Guide | None = None,
    ) -> None:
        """``context``: (M, W), or (C, M, W) with one for each class. ``memory``: see text.Prompts."""
        super().__init__()
        self.context = nn.Parameter(context.float())
        self.scale, self.memory, self.guide = scale, memory, guide
        self._prompts = Prompts(tower, *layout)
        self._seen: list[Seen] = []

    def directions(self) -> Tensor:
        """Class directions (C, D) of unit length."""
        context = self.context.flatten(0, -2)  # (M, W) or (C * M, W)
        return F.normalize(self._prompts.encode(context, memory=self.memory), dim=1)

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, C)"""
        features, directions = F.normalize(features, dim=1), self.directions()
        logits = self.scale * features @ directions.T
        if self.guide is not None and self.training and torch.is_grad_enabled():
            self._seen.append(Seen(features, directions, logits))
        return logits

    def regularized(self, loss: Tensor) -> Tensor:
        """The loss that a step goes down, of its objective's; asked once a step, behind its passes."""
        seen, self._seen = self._seen, []
        return loss if self.guide is None else self.guide(loss, self.context, seen)


def learner(
    config: Learning, backbone: Backbone, benchmark: Benchmark, guide: Guide | None = None, *, padded: bool = False
) -> PromptLearner:
    """``padded``: a context of words keeps ``num_context`` vectors, zeros in front of the words'.

    Raises ConfigError if the tower cannot be cut at its embeddings, or a prompt with its context is too long for it.
    """
    assert isinstance(backbone, ClipBackbone)
    tower = tower_of(backbone)
    context = start(config, backbone, tower)
    if padded and len(context) < config.num_context:
        context = F.pad(context, (0, 0, config.num_context - len(context), 0))
    num_context = len(context)
    if config.class_specific:
        context = context.expand(len(benchmark.classes), -1, -1).clone()
        if not config.context_init:
            nn.init.normal_(context, std=0.02)
    layout = lay_out(config, backbone, tower, benchmark.classes, num_context)
    return PromptLearner(tower, layout, context, backbone.logit_scale, config.memory, guide)


def schedule(config: Scheduled) -> Fit:
    """CoOp's: a constant warm-up, then a cosine stepped per epoch; incomplete batches are dropped."""
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
    """Raises ConfigError if the text encoder cannot be cut at its embeddings."""
    tower = backbone.text_tower
    if tower is None:
        raise ConfigError(
            f"a context replaces token embeddings and {backbone.name}'s text encoder does not give access to them"
        )
    return tower


def start(config: Learning, backbone: ClipBackbone, tower: TextTower) -> Tensor:
    """The context (M, W) that learning starts from: a text's tokens, or N(0, 0.02)."""
    device = device_of(backbone)
    if config.context_init:
        tokens = backbone.tokenize([config.context_init]).to(device)
        stop = tower.num_prefix_tokens + int(_num_tokens(backbone, tower, [config.context_init])[0])
        with torch.no_grad():
            return tower.embed(tokens)[0, tower.num_prefix_tokens : stop].float()
    return nn.init.normal_(torch.empty(config.num_context, tower.width, device=device), std=0.02)


def lay_out(
    config: Learning, backbone: ClipBackbone, tower: TextTower, classes: tuple[str, ...], num_context: int
) -> Layout:
    """Raises ConfigError if a prompt with its context is longer than the tower's context."""
    _check_length(backbone, tower, classes, config.suffix, num_context)
    tokens = backbone.tokenize([f"{name}{config.suffix}" for name in classes]).to(device_of(backbone))
    names = None if config.position == "end" else _num_tokens(backbone, tower, classes)
    room = make_room(tower, tokens, num_context, config.position, names)
    if not config.class_specific:
        return room
    own = room.vectors + num_context * torch.arange(len(tokens))[:, None]
    return room._replace(vectors=torch.where(room.vectors < 0, -1, own))


def make_room(
    tower: TextTower, tokens: Tensor, num_context: int, position: Position = "end", names: Tensor | None = None
) -> Layout:
    """``tokens``: (C, L) of class names with suffix. ``names``: (C,) tokens of each name, not needed at the end."""
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
    source = source.masked_fill(learnt, start)  # the first token of the name holds the place, nothing embeds it
    return Layout(tokens.gather(1, source.to(tokens.device)), vector.masked_fill(~learnt, -1))


def device_of(backbone: ClipBackbone) -> torch.device:
    return next(backbone.parameters()).device  # type: ignore[attr-defined, no-any-return]  # every backbone is an nn.Module


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
