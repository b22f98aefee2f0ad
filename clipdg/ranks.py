"""Processes that share a fit or a test, each with its own part of the data: means and whole sets over all of them.

In one process every function gives back what it was given.
"""

from __future__ import annotations

from torch import Tensor, distributed


def count() -> int:
    """Processes, 1 where they are not several."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def mean(tensor: Tensor) -> Tensor:
    """Over all processes, element by element."""
    if count() == 1:
        return tensor
    total = tensor.clone()
    distributed.all_reduce(total)
    return total / count()
