"""Rows -> batches: splits, shots, loaders. Fitting is never given a target domain.

Legend: N images, D features, S pixels a side.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from clipdg.core.benchmark import Domain, Rows
from clipdg.core.errors import DataError
from clipdg.core.model import Preprocessing
from clipdg.data import augmentation, preprocessing
from clipdg.data.rows import ArrayRows

IN_MEMORY = 2**29  # bytes of preprocessed images that a data set made from an array keeps


def preprocessing_for(domain: Domain, spec: Preprocessing) -> Preprocessing:
    """``spec``, which belongs to the weights; of images stored as evaluation leaves them no border is cut off again."""
    return replace(spec, crop_fraction=1.0) if domain.cropped else spec


# Data sets


class Batch(NamedTuple):
    """What a loader gives. A LightningModule that only knows ``inputs, labels, *_ = batch`` works with it as well."""

    inputs: Tensor  # (N, 3, S, S) uint8, to be normalised on the device by images.normalize; or (N, D) features
    labels: Tensor  # (N,) int64
    domains: Tensor | None  # (N,) int64, the domain's place in the benchmark; None where a script's loader has none
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
                    batch[place] = preprocessing.to_uint8(image, self.spec)
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
