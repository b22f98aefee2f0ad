"""Code that objectives share which treat the domains of a batch apart.

Legend: N images in a batch, E domains, n_e images of one of them, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipdg.core.errors import ConfigError


def require_several(name: str, domains: Sequence[int]) -> None:
    """Raises ConfigError for a fit on one source domain, where an objective ``name`` has nothing to compare."""
    if len(domains) < 2:
        raise ConfigError(f"objective {name} compares source domains and this shift has one; use erm")


def places_of(domains: Tensor, ids: Sequence[int]) -> list[Tensor]:
    """Find each domain's places (n_e,) in a batch, in the order of ``ids``, from the (N,) domains of its images.

    Each domain must be in the batch.
    """
    found = [(domains == i).nonzero().squeeze(1) for i in ids]
    assert all(len(f) for f in found), "objectives that tell domains apart get batches with images of each"
    return found


def losses(logits: Tensor, labels: Tensor, places: Sequence[Tensor], label_smoothing: float) -> Tensor:
    """Mean cross-entropy of each domain (E,), from logits (N, C) and labels (N,)."""
    return torch.stack([F.cross_entropy(logits[p], labels[p], label_smoothing=label_smoothing) for p in places])


class Annealed(nn.Module):
    """The weight of irm's and vrex's penalty: 1 for the first ``anneal_steps`` updates, and ``full`` after them.

    As in DomainBed, the optimiser starts anew when the weight changes. Batches whose gradients add up to one update
    count once, since ``updated`` is called at each update and not at each batch.
    """

    num_updates: Tensor

    def __init__(self, full: float, anneal_steps: int) -> None:
        super().__init__()
        self.full, self.anneal_steps = full, anneal_steps
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    @property
    def weight(self) -> float:
        return self.full if int(self.num_updates) >= self.anneal_steps else 1.0

    def restarts_optimizer(self) -> bool:
        """Whether to drop the optimiser's state before the next update."""
        return int(self.num_updates) == self.anneal_steps

    def updated(self) -> None:
        """Count an update of the weights."""
        self.num_updates += 1
