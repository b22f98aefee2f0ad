"""Processes that share a fit or a test, each with its own part of the data: means and whole sets over all of them.

Lightning deals a data set out like cards, sample i to process i mod R, and gives samples from its beginning a second
time where it does not come out even. In one process every function gives back what it was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def count() -> int:
    """Processes, 1 where they are not several."""
    from torch import distributed

    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    from torch import distributed

    return distributed.get_rank() if count() > 1 else 0


def mean(tensor: Tensor) -> Tensor:
    """Over all processes, element by element."""
    if count() == 1:
        return tensor
    from torch import distributed

    total = tensor.clone()
    distributed.all_reduce(total)
    return total / count()


def num_own(num_samples: int) -> int:
    """How many of a data set's samples this process was dealt once: those behind them it has a second time."""
    return -(-(num_samples - rank()) // count())


def num_dealt(loader: Any) -> int | None:
    """Samples of a data set that a loader's sampler deals out; None if each process has a loader of its own."""
    from torch.utils.data import DistributedSampler

    sampler = getattr(loader, "sampler", None)
    return len(sampler.dataset) if count() > 1 and isinstance(sampler, DistributedSampler) else None  # type: ignore[arg-type]  # the ones that are dealt out have a length


def whole(parts: Sequence[Tensor], num_samples: int | None) -> list[Tensor]:
    """Tensors (n, …) of this process's part, in the order it came -> (N, …) of all, in the order they were dealt.

    ``num_samples``: N, without those that were dealt twice; None for parts that were not dealt, which are all kept.
    """
    if count() == 1:
        return list(parts)
    import torch
    from torch import distributed

    device = parts[0].device
    own = len(parts[0]) if num_samples is None else num_own(num_samples)
    gathered: list[Any] = [None] * count()
    distributed.all_gather_object(gathered, [part[:own].cpu() for part in parts])
    joined = []
    for tensors in zip(*gathered, strict=True):
        num_given = sum(len(tensor) for tensor in tensors)
        if num_given != num_samples:  # not dealt, or cut by drop_last
            joined.append(torch.cat(tensors).to(device))
            continue
        out = tensors[0].new_empty((num_given, *tensors[0].shape[1:]))
        for first, tensor in enumerate(tensors):
            out[first :: count()] = tensor
        joined.append(out.to(device))
    return joined
