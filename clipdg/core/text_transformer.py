"""The interface of a text transformer. This file needs torch and is imported by its name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    pass

Activation = Literal["gelu", "tanh_gelu", "quick_gelu"]
Pool = Literal["argmax", "end", "first", "last"]


@dataclass(frozen=True)
class Norm:
    weight: Tensor
    bias: Tensor | None
    eps: float

    @classmethod
    def of(cls, module: nn.LayerNorm) -> Norm:
        return cls(module.weight, module.bias, module.eps)

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class Linear:
    """``weight``: (out, in)."""

    weight: Tensor
    bias: Tensor | None = None

    @classmethod
    def of(cls, module: nn.Linear) -> Linear:
        return cls(module.weight, module.bias)

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class Block:
    """Pre-norm: attention, then the MLP. ``scales``: of a LayerScale behind each."""

    norm1: Norm
    query_key_value: Linear | tuple[Linear, Linear, Linear]  # one of 3 W rows, or three
    out: Linear
    norm2: Norm
    up: Linear
    down: Linear
    scales: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Transformer:
    """A text tower, from token numbers to features. ``pool``: which position's state they are made from.

    argmax: the highest token's; end: the first ``end_token``'s; first; last.
    """

    tokens: Tensor  # (vocabulary, W)
    positions: Tensor  # (L, W)
    blocks: tuple[Block, ...]
    norm: Norm
    projection: Linear | None
    heads: int
    activation: Activation
    causal: bool
    pool: Pool
    end_token: int | None = None

    @property
    def width(self) -> int:
        return int(self.positions.shape[1])

    @property
    def dtype(self) -> torch.dtype:
        return self.blocks[0].out.weight.dtype

    def pooled(self, tokens: Tensor) -> Tensor:
        """(C, L) -> (C,), the position of each prompt's features."""
        if self.pool == "argmax":
            return tokens.argmax(dim=1)
        if self.pool == "end":
            assert self.end_token is not None
            return tokens.eq(self.end_token).int().argmax(dim=1)
        return tokens.new_full((len(tokens),), 0 if self.pool == "first" else tokens.shape[1] - 1)
