"""Rows -> batches: splits, shots, loaders. Fitting is never given a target domain.

Legend: N images, D features, S pixels a side.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, SequentialSampler

from clipdg import augmentation, images
from clipdg.core import Backbone, Benchmark, Domain, Preprocessing, Rows, Shift, Subset
from clipdg.draws import seed_hash
from clipdg.errors import ConfigError, DataError
from clipdg.picks import Picks
from clipdg.rows import ArrayRows, select
from clipdg.rows.parts import JoinedRows

PREFETCH = 4  # batches a worker is ahead
MOST_WORKERS = 16
IN_MEMORY = 2**29  # bytes of preprocessed images that a data set made from an array keeps

# Splits and shots


def splits(domain: Domain, index: int, seed: int, holdout: float = 0.2) -> dict[str, np.ndarray]:
    """Disjoint row indices by split: {in, out}, {train, val, test}, or what the domain's authors published.

    Without published splits, DomainBed's holdout exactly (lib/misc.py, split_dataset), for sources and targets alike;
    ``index`` is the domain's place among the sorted domain names. A published ``train`` without a ``val`` gives
    ``holdout`` of itself to ``val``. RandomState, whose streams numpy has frozen, so that a split stays what it is.
    """
    if domain.splits is None:
        keys = list(range(len(domain.rows)))
        np.random.RandomState(seed_hash(seed, index)).shuffle(keys)
        order = np.array(keys, dtype=np.int64)
        num_out = int(len(order) * holdout)
        return {"in": order[num_out:], "out": order[:num_out]}
    published = {name: np.asarray(rows, dtype=np.int64) for name, rows in domain.splits.items()}
    if "train" not in published or "val" in published:
        return published
    train = published.pop("train")
    order = np.random.RandomState(seed_hash("val", seed, index)).permutation(len(train))
    num_val = int(len(train) * holdout)
    return {"train": train[np.sort(order[num_val:])], "val": train[np.sort(order[:num_val])], **published}


def few_shot(
    labels: np.ndarray, order: np.ndarray, shots: int | None, classes: Sequence[str] | None = None, where: str = ""
) -> np.ndarray:
    """The first ``shots`` indices of each class in ``order``, in that order; all of them if ``shots`` is None.

    More shots of the same order contain the fewer. ``classes`` and ``where`` are for the message.

    Raises:
        DataError: a class that ``labels`` has is in ``order`` fewer times than ``shots``.
    """
    if shots is None:
        return order
    ordered = labels[order]
    present, counts = np.unique(ordered, return_counts=True)
    available = dict(zip(present.tolist(), counts.tolist(), strict=True))
    for label in np.unique(labels).tolist():
        count = available.get(label, 0)
        if count < shots:
            name = f"'{classes[label]}'" if classes is not None else label
            raise DataError(
                f"class {name}{where} has {count} training image{'' if count == 1 else 's'}, fewer than {shots} shots"
            )
    return order[_rank(ordered) < shots]


def _rank(labels: np.ndarray) -> np.ndarray:
    """Which of its class each one is: 0 for the first with its label, 1 for the second, …"""
    by_class = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[by_class], return_index=True, return_counts=True)
    rank = np.empty(len(labels), dtype=np.int64)
    rank[by_class] = np.arange(len(labels)) - np.repeat(starts, counts)
    return rank


def pick(
    domain: Domain,
    classes: Sequence[str],
    order: np.ndarray,
    shots: int | None,
    seed: int,
    *,
    enough: bool = True,
) -> np.ndarray:
    """``shots`` rows of every class from ``order``, drawn by ``seed``; ``order`` as it is if ``shots`` is None.

    A class with fewer is a DataError, or gives what it has if not ``enough``.
    """
    if shots is None:
        return order
    drawn = _drawn(domain.name, order, seed)
    if not enough:
        labels = domain.rows.labels[drawn]
        places = [np.flatnonzero(labels == label)[:shots] for label in np.unique(labels)]
        chosen: np.ndarray = drawn[np.sort(np.concatenate([*places, np.empty(0, dtype=np.int64)]))]
        return chosen
    return few_shot(domain.rows.labels, drawn, shots, classes, f" of domain '{domain.name}'")


def _drawn(name: str, order: np.ndarray, seed: int) -> np.ndarray:
    """Rows in the order in which shots are taken from them."""
    return np.random.RandomState(seed_hash("shots", seed, name)).permutation(np.sort(order))


def with_pool(
    domain: Domain,
    index: int,
    classes: Sequence[str],
    shots: int | None,
    seed: int,
    holdout: float = 0.2,
    picks: Picks | None = None,
) -> Domain:
    """The domain with the images of its pool that a run needs: split "train" to fit on, "val", and its rows, "test".

    ``shots`` images of each class are drawn to train on, or are the ``picks``, and of the others min(shots, 4) are
    drawn to validate on, fewer where no more are left (CoOp's numbers). Without either, ``holdout`` of the pool
    validates and the rest trains.

    Raises:
        DataError: a class of the pool has fewer images than ``shots``.
    """
    assert domain.pool is not None
    pool = domain.pool()
    whole = Domain(domain.name, pool, {"train": np.arange(len(pool))})
    rows = np.arange(len(pool))
    if shots is None and picks is None:
        parts = splits(whole, index, seed, holdout)
        train, val = parts["train"], parts["val"]
    else:
        train = picks.rows(whole, classes, rows, shots) if picks else pick(whole, classes, rows, shots, seed)
        others = _drawn(domain.name, rows, seed)
        others = others[~np.isin(others, train)]
        num_val = min(shots or int(np.bincount(pool.labels[train]).max()), 4)
        val = others[_rank(pool.labels[others]) < num_val]
    chosen = [domain.rows, select(pool, np.sort(val)), select(pool, np.sort(train))]
    ends = np.cumsum([len(rows) for rows in chosen])
    names = ("test", "val", "train")
    numbers = {name: np.arange(end - len(rows), end) for name, rows, end in zip(names, chosen, ends, strict=True)}
    return replace(domain, rows=JoinedRows(chosen), splits=numbers, pool=None)


def preprocessing_for(domain: Domain, spec: Preprocessing) -> Preprocessing:
    """``spec``, which belongs to the weights; of images stored as evaluation leaves them no border is cut off again."""
    return replace(spec, crop_fraction=1.0) if domain.cropped else spec


def check_shift(benchmark: Benchmark, shift: Shift) -> None:
    """Raises ConfigError for a domain that the benchmark does not have, and for a source whose licence forbids it."""
    for name in (*shift.sources, *shift.targets):
        if name not in benchmark.domains:
            raise ConfigError(f"{benchmark.name} has no domain '{name}'; it has {', '.join(benchmark.domains)}")
    for name in shift.sources:
        if benchmark.domains[name].eval_only:
            raise ConfigError(
                f"{name} is for evaluation only: its licence forbids to fit or to choose anything on it; "
                "it can be a target and no source"
            )


# Data sets


class Batch(NamedTuple):
    """What a loader gives. A LightningModule that only knows ``inputs, labels, *_ = batch`` works with it as well."""

    inputs: Tensor  # (N, 3, S, S) uint8, to be normalised on the device by images.normalize; or (N, D) features
    labels: Tensor  # (N,) int64
    domains: Tensor  # (N,) int64, the domain's place in the benchmark
    indices: Tensor  # (N,) int64, row of that domain
    splits: Tensor | None = None  # (N,) int64, number of the split among those that the loader mixes


class Samples(Dataset[Batch]):
    """Some rows of a domain; ``samples[i]`` is one of them, without the first axis of a ``Batch``."""

    in_memory = True  # reading needs no worker processes

    def __init__(self, labels: np.ndarray, indices: Sequence[int] | np.ndarray, domain_id: int) -> None:
        rows = np.asarray(indices, dtype=np.int64)
        self.indices = torch.from_numpy(rows.copy())
        self.labels = torch.from_numpy(labels[rows].astype(np.int64))
        self.domains = torch.full_like(self.indices, domain_id)
        self.splits = torch.zeros_like(self.indices)

    def inputs(self, positions: Tensor, seeds: Tensor | None = None) -> Tensor:
        """(n,) places in this data set -> (n, ...). ``seeds``: (n,), for a data set that augments; see ``Seeded``."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Batch:
        if not -len(self) <= position < len(self):
            raise IndexError(position)
        batch = self.take([position % len(self)])
        return Batch(*(column[0] for column in batch if column is not None))

    def __getitems__(self, positions: Sequence[int] | Sequence[tuple[int, int]]) -> Batch | DataError:
        # torch's loader asks for a whole batch here. An error from a worker process would come out wrapped in the
        # worker's traceback, so it travels as a value and is raised where the batch arrives.
        try:
            return self.take(positions)
        except DataError as error:
            return error

    def take(self, positions: Sequence[int] | Sequence[tuple[int, int]]) -> Batch:
        """The samples at ``positions``, or at (position, seed), as one batch.

        Raises DataError naming the one that cannot be read.
        """
        given = torch.as_tensor(positions, dtype=torch.int64)
        at, seeds = given.T.contiguous() if given.ndim == 2 else (given, None)
        return Batch(self.inputs(at, seeds), self.labels[at], self.domains[at], self.indices[at], self.splits[at])


class ImageDataset(Samples):
    """Images of ``rows`` as (3, S, S) uint8, read when they are asked for; an array of moderate size only once.

    ``name`` stands before a message about an image that cannot be read: the benchmark, the domain. ``augment``: one of
    augmentation.READ, by the seed that comes with each place. ``view``: always the same view of each image.
    """

    def __init__(
        self,
        rows: Rows,
        indices: Sequence[int] | np.ndarray,
        spec: Preprocessing,
        domain_id: int,
        *,
        name: str = "",
        augment: str | None = None,
        view: augmentation.View | None = None,
    ) -> None:
        super().__init__(rows.labels, indices, domain_id)
        self.rows, self.spec, self.name = rows, spec, name
        self.augment = view.how if view else augment
        self._seeds: Tensor | None = None
        if view is not None:
            digests = rows.digests()
            self._seeds = torch.tensor([view.seed_of(digests[i]) for i in self.indices.tolist()], dtype=torch.int64)
        self.in_memory = isinstance(rows, ArrayRows) and len(self) * 3 * spec.size**2 <= IN_MEMORY
        self.in_memory &= self.augment is None
        self._ready: Tensor | None = None

    def inputs(self, positions: Tensor, seeds: Tensor | None = None) -> Tensor:
        if self._seeds is not None:
            assert seeds is None, "a fixed view has its own seeds"
            seeds = self._seeds[positions]
        if not self.in_memory:
            return self._read(self.indices[positions].tolist(), None if seeds is None else seeds.tolist())
        if self._ready is None:
            self._ready = self._as_it_is() if self._fits() else self._read(self.indices.tolist())
        return self._ready[positions]

    def _fits(self) -> bool:
        """Whether the array's images have the backbone's size already, so that preprocessing leaves them alone."""
        size = self.spec.size
        return (
            isinstance(self.rows, ArrayRows)
            and self.rows.array.shape[1:3] == (size, size)
            and self.spec.crop_fraction == 1
        )

    def _as_it_is(self) -> Tensor:
        assert isinstance(self.rows, ArrayRows)
        return torch.from_numpy(self.rows.array[self.indices.numpy()]).permute(0, 3, 1, 2).contiguous()

    def _read(self, rows: list[int], seeds: list[int] | None = None) -> Tensor:
        assert (seeds is None) == (self.augment is None), "an augmented data set is read with seeds"
        size = self.spec.size
        batch = torch.empty(len(rows), 3, size, size, dtype=torch.uint8)
        for place, row in enumerate(rows):
            try:
                image = self.rows.image(row)
                if seeds is not None and self.augment is not None:
                    batch[place] = augmentation.augmented(image, self.spec, self.augment, seeds[place])
                else:
                    batch[place] = images.to_uint8(image, self.spec)
            except DataError as error:
                raise DataError(f"{self.name}: {error}" if self.name else str(error)) from error
        return batch


class FeatureDataset(Samples):
    """Stored features (rows of the domain, D) -> (N, D) of the chosen rows, without copying the others."""

    def __init__(
        self, features: Tensor, labels: np.ndarray, indices: Sequence[int] | np.ndarray, domain_id: int
    ) -> None:
        assert len(features) == len(labels)
        super().__init__(labels, indices, domain_id)
        self.features = features

    def inputs(self, positions: Tensor, seeds: Tensor | None = None) -> Tensor:
        assert seeds is None, "features are not augmented"
        return self.features[self.indices[positions]]


class ViewDataset(Samples):
    """Stored features of several views of the same rows -> (N, D), of each sample the view that its seed draws."""

    def __init__(
        self, views: Sequence[Tensor], labels: np.ndarray, indices: Sequence[int] | np.ndarray, domain_id: int
    ) -> None:
        """``views``: of each view the features (N, D) of the rows at ``indices``, in that order."""
        super().__init__(labels, indices, domain_id)
        assert views
        assert all(len(features) == len(self) for features in views)
        self.views = tuple(views)

    def inputs(self, positions: Tensor, seeds: Tensor | None = None) -> Tensor:
        assert seeds is not None, "views are drawn by seeds"
        drawn = seeds % len(self.views)
        found = self.views[0][positions]
        for number, features in enumerate(self.views[1:], 1):
            mine = drawn == number
            found[mine] = features[positions[mine]]
        return found


class _Joined(Samples):
    def __init__(self, parts: Sequence[Samples]) -> None:
        self.parts = tuple(parts)
        self.in_memory = all(part.in_memory for part in parts)
        self.ends = torch.tensor([len(part) for part in parts]).cumsum(0)
        for column in ("labels", "domains", "indices", "splits"):
            setattr(self, column, torch.cat([getattr(part, column) for part in parts]))

    def inputs(self, positions: Tensor, seeds: Tensor | None = None) -> Tensor:
        owner = torch.searchsorted(self.ends, positions, right=True)
        found: Tensor | None = None
        for number, part in enumerate(self.parts):
            mine = (owner == number).nonzero().squeeze(1)
            if len(mine):
                own = None if seeds is None else seeds[mine]
                values = part.inputs(positions[mine] - (self.ends[number] - len(part)), own)
                if found is None:
                    found = values.new_empty(len(positions), *values.shape[1:])
                found[mine] = values
        assert found is not None
        return found


def concatenate(parts: Sequence[Samples]) -> Samples:
    """One data set after the other; every sample keeps its domain and row."""
    assert parts
    return parts[0] if len(parts) == 1 else _Joined(parts)


def with_splits(samples: Samples, numbers: np.ndarray) -> Samples:
    """The same samples, each in the split of its number."""
    assert len(numbers) == len(samples)
    marked = copy.copy(samples)
    marked.splits = torch.from_numpy(np.asarray(numbers, dtype=np.int64).copy())
    return marked


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


@dataclass(frozen=True)
class TestSet:
    """What one test loader holds: images of ``domain``, each in one of ``splits``.

    ``subset``: the classes the domain has, where they are fewer than the benchmark's; other logits are masked.
    ``whole``: also evaluate all splits together, as the split "all". ``views``: also evaluate the images of the split
    "test", or all if there is none, that are of these classes, among these classes, under these names.
    """

    __test__ = False  # not a test case, whatever pytest reads in its name

    domain: str
    splits: tuple[str, ...]
    subset: Subset | None = None
    whole: bool = False
    views: Mapping[str, Subset] = field(default_factory=dict)

    @property
    def evaluations(self) -> tuple[str, ...]:
        return (*self.splits, *(("all",) if self.whole else ()), *self.views)


class DataModule(lightning.LightningDataModule):
    """One shift of a benchmark for a script of one's own: batches of uint8 images, see ``Batch``.

    train: the sources' fit split, ``shots`` of every class in it, or the ``picks``. val: the sources' held-out split,
    less the images whose bytes are among the training images (``left_out`` names them), so that the two are disjoint by
    content. test: one loader for each domain in ``test_names``: of a source its published test split, else what
    validation has; of a target its published test split, else all of it. No image of a target is read before a test
    loader is iterated.

    Raises:
        ConfigError: a domain that the benchmark does not have.
        DataError: a source without training images, or a class with fewer images than ``shots``.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        shift: Shift,
        backbone: Backbone,
        *,
        shots: int | None = None,
        picks: Picks | None = None,
        seed: int = 0,
        batch_size: int = 32,
        workers: int = 0,
        holdout: float = 0.2,
    ) -> None:
        super().__init__()
        check_shift(benchmark, shift)
        domains = {
            name: with_pool(domain, index, benchmark.classes, shots, seed, holdout, picks)
            if domain.pool is not None and name in shift.sources
            else domain
            for index, (name, domain) in enumerate(benchmark.domains.items())
        }
        benchmark = replace(benchmark, domains=domains)
        self.benchmark, self.shift, self.spec = benchmark, shift, backbone.preprocessing
        self.classes = benchmark.classes
        self.seed, self.batch_size, self.workers = seed, batch_size, workers
        self.fit_rows: dict[str, np.ndarray] = {}
        self.val_rows: dict[str, np.ndarray] = {}
        self._test_rows: dict[str, np.ndarray] = {}
        self.left_out: tuple[str, ...] = ()  # "domain/id"
        test_sets = []
        for index, (name, domain) in enumerate(benchmark.domains.items()):
            if name not in shift.sources and name not in shift.targets:
                continue
            parts = splits(domain, index, seed, holdout)
            if name in shift.sources:
                self._take_source(name, domain, parts, shots, picks)
            if "test" in parts:
                split, rows = "test", parts["test"]
            elif name in shift.sources:
                split, rows = ("val", parts["val"]) if "val" in parts else ("out", parts["out"])
            else:
                split, rows = "all", np.sort(np.concatenate(list(parts.values())))
            if len(rows):
                self._test_rows[name] = rows
                test_sets.append(TestSet(name, (split,), domain.subset, views=domain.views))
        self.test_sets = tuple(test_sets)
        self.test_names = tuple(test_set.domain for test_set in test_sets)
        self._leave_duplicates_out()

    def train_dataloader(self) -> Loader:
        """Shuffled by the seed; each call begins the same order again."""
        return self._loader(self.fit_rows, torch.Generator().manual_seed(self.seed))

    def val_dataloader(self) -> Loader | list[Loader]:
        """No loader if nothing is held out."""
        return self._loader(self.val_rows) if any(map(len, self.val_rows.values())) else []

    def test_dataloader(self) -> list[Loader]:
        """In the order of ``test_names``."""
        return [self._loader({name: rows}) for name, rows in self._test_rows.items()]

    def _take_source(
        self, name: str, domain: Domain, parts: dict[str, np.ndarray], shots: int | None, picks: Picks | None
    ) -> None:
        fit = parts.get("train", parts.get("in"))
        if fit is None or not len(fit):
            raise DataError(
                f"{self.benchmark.name} has no training images in '{name}' (only {', '.join(parts)}); "
                "it can be a target and no source"
            )
        if picks is not None:
            self.fit_rows[name] = picks.rows(domain, self.classes, fit, shots)
        else:
            self.fit_rows[name] = pick(domain, self.classes, fit, shots, self.seed)
        self.val_rows[name] = parts.get("val", parts.get("out", np.empty(0, dtype=np.int64)))

    def _leave_duplicates_out(self) -> None:
        if not any(map(len, self.val_rows.values())):
            return
        digests = {name: self.benchmark.domains[name].rows.digests() for name in self.fit_rows}
        fitted = {digests[name][row] for name, rows in self.fit_rows.items() for row in rows}
        for name, rows in self.val_rows.items():
            again = np.array([digests[name][row] in fitted for row in rows], dtype=bool)
            if again.any():
                ids = self.benchmark.domains[name].rows.ids
                self.left_out += tuple(f"{name}/{ids[row]}" for row in rows[again])
                self.val_rows[name] = rows[~again]

    def _loader(self, chosen: dict[str, np.ndarray], generator: torch.Generator | None = None) -> Loader:
        numbers = {name: number for number, name in enumerate(self.benchmark.domains)}
        parts = [
            ImageDataset(
                self.benchmark.domains[name].rows,
                rows,
                preprocessing_for(self.benchmark.domains[name], self.spec),
                numbers[name],
                name=f"{self.benchmark.name}, {name}",
            )
            for name, rows in chosen.items()
        ]
        return loader(concatenate(parts), self.batch_size, generator=generator, workers=self.workers)
