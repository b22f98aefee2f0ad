"""Weights on the line between two states of one model (Wortsman et al. 2022; Frankle et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

Tensors: TypeAlias = Mapping[str, Tensor]  # by name


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Copy what training may change: parameters with a gradient, and floating-point buffers."""
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    buffers = {name: b for name, b in module.named_buffers() if b.is_floating_point()}
    return {name: value.detach().clone() for name, value in (trained | buffers).items()}


@torch.no_grad()
def put(module: nn.Module, start: Tensors, end: Tensors, alpha: float) -> None:
    """Give ``module`` the weights (1 - alpha) · start + alpha · end.

    At 0 and 1 they are start and end to the last bit.
    """
    places = dict(module.named_parameters()) | dict(module.named_buffers())
    for name, place in places.items():
        if name not in start:
            continue
        if alpha in (0, 1):
            place.copy_(end[name] if alpha else start[name])
        else:
            place.copy_((1 - alpha) * start[name].to(place.device) + alpha * end[name].to(place.device))
