"""Data loaders over the images and the stored features of a domain."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Sampler, SequentialSampler

from clipdg.core.errors import DataError
from clipdg.data.datasets import Batch, Samples

PREFETCH = 4  # batches a worker is ahead
MOST_WORKERS = 16


# Loaders


class Shuffled(Sampler[int]):
    """A new permutation on each pass, and one draw for it.

    torch's RandomSampler draws once more when it is read to its end, which only processes that read ahead do: with it,
    the order of the second pass would depend on their number.
    """

    def __init__(self, num_samples: int, generator: torch.Generator) -> None:
        self.num_samples, self.generator = num_samples, generator

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(self.num_samples, generator=self.generator).tolist())


class PerDomain(Sampler[list[int]]):
    """Batches with ``batch_size`` samples of each domain, drawn with replacement as in DomainBed; domains in order.

    A pass has as many batches as it takes to draw as many samples as there are. Each batch is one draw a domain from
    the generator, whoever reads ahead.
    """

    def __init__(self, domains: Tensor, batch_size: int, generator: torch.Generator) -> None:
        """``domains``: (N,), the domain of each sample."""
        self.places = [(domains == d).nonzero().squeeze(1) for d in sorted(set(domains.tolist()))]
        self.batch_size, self.generator = batch_size, generator
        self.num_batches = max(1, math.ceil(len(domains) / (batch_size * len(self.places))))

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self.num_batches):
            drawn = [p[torch.randint(len(p), (self.batch_size,), generator=self.generator)] for p in self.places]
            yield torch.cat(drawn).tolist()


class Seeded(Sampler[list[tuple[int, int]]]):
    """Batches of (position, seed): each sample's augmentation has a seed of its own, drawn anew for each batch."""

    def __init__(self, batches: Sampler[list[int]], generator: torch.Generator) -> None:
        self.batches, self.generator = batches, generator

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]  # each that is made here has a length

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self.batches:
            seeds = torch.randint(2**62, (len(batch),), generator=self.generator).tolist()
            yield list(zip(batch, seeds, strict=True))


class Shared(Sampler[list[Any]]):
    """Of each batch this process's share, where several train one model: every n-th sample from its rank on.

    With batches that n divides and a loss that is a mean over images, the gradient is that of the whole batch.
    """

    def __init__(self, batches: Sampler[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]  # each that is made here has a length

    def __iter__(self) -> Iterator[list[Any]]:
        alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
        rank, num = (0, 1) if alone else (torch.distributed.get_rank(), torch.distributed.get_world_size())
        for batch in self.batches:
            yield batch[rank::num]


class Loader(DataLoader[Batch]):
    """torch's loader, except that a sample that cannot be read is one clear sentence from worker processes too."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch names its private iterator class
        for batch in super().__iter__():
            if isinstance(batch, DataError):
                raise batch
            yield batch

    @property
    def num_samples(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # Samples, whose class torch does not keep


def loader(
    samples: Samples,
    batch_size: int,
    *,
    generator: torch.Generator | None = None,
    drop_last: bool = False,
    per_domain: bool = False,
    views: torch.Generator | None = None,
    shared: bool = False,
    workers: int | None = 0,
) -> Loader:
    """Batches in order, or shuffled anew by ``generator`` on each pass, or by it with ``batch_size`` of each domain.

    ``views``: where the seeds of augmentation come from, for samples that are augmented. ``shared``: each of several
    processes that train one model reads its share of every batch.

    The order does not depend on ``workers``: processes that read ahead, used where images are read from files. None
    for as many as are of use.
    """
    batches: Sampler[Any]
    if per_domain:
        assert generator is not None
        batches = PerDomain(samples.domains, batch_size, generator)
    else:
        order = SequentialSampler(samples) if generator is None else Shuffled(len(samples), generator)
        batches = BatchSampler(order, batch_size, drop_last)
    if views is not None:
        batches = Seeded(batches, views)
    if shared:
        batches = Shared(batches)
    num_workers = 0 if samples.in_memory else useful_workers(len(samples)) if workers is None else workers
    return Loader(
        samples,
        batch_sampler=batches,
        collate_fn=_as_is,
        num_workers=num_workers,
        persistent_workers=num_workers > 0 and generator is not None,  # those of one pass end with it
        prefetch_factor=PREFETCH if num_workers else None,
        pin_memory=torch.cuda.is_available() and not samples.in_memory,
        worker_init_fn=_one_thread if num_workers else None,
        generator=torch.Generator().manual_seed(0),  # seeds the workers, which draw nothing; without it, the global one
    )


def useful_workers(num_images: int, sharing: int = 1) -> int:
    """How many processes should read ahead, by what takes longer here: reading images or encoding them.

    ``sharing``: how many loaders like this one are read at the same time on this machine.

    One core decodes and resizes some 300 photographs a second (experiments/performance). A GPU takes thousands, and all
    cores but one read for it. Where the CPU encodes, at a few to some dozens a second a core, one process that reads
    ahead leaves nothing to wait for; few images, or a single core, are not worth starting it.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if torch.cuda.is_available():
        return max(1, min((cores - 1) // sharing, MOST_WORKERS, num_images // 64))
    return 1 if cores > sharing and num_images >= 1024 else 0


def _as_is(batch: Any) -> Any:
    return batch


def _one_thread(worker: int) -> None:
    """The workers are many already."""
    torch.set_num_threads(1)
