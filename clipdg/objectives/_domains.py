"""What objectives share that treat the domains of a batch apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from clipdg.errors import ConfigError


def check_several(name: str, domains: Sequence[int]) -> None:
    """Raises ConfigError for a fit on one source domain, of which there is nothing to compare."""
    if len(domains) < 2:
        raise ConfigError(f"objective {name} compares source domains and this shift has one; use erm")


def split(domains: Tensor, ids: Sequence[int]) -> list[Tensor]:
    """The places (n_e,) in a batch of each domain, in the order of ``ids``. Each domain must be in the batch."""
    found = [(domains == i).nonzero().squeeze(1) for i in ids]
    assert all(len(f) for f in found), "objectives that tell domains apart get batches with images of each"
    return found


def losses(logits: Tensor, labels: Tensor, places: Sequence[Tensor], label_smoothing: float) -> Tensor:
    """Mean cross-entropy of each domain (E,)."""
    return torch.stack([F.cross_entropy(logits[p], labels[p], label_smoothing=label_smoothing) for p in places])
