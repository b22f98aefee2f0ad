"""A protocol's images as batches, for a script's Trainer and for a run: the same loaders for both.

How a fit wants its batches (``Batching``) belongs to the method. A data module asks the module that its Trainer fits,
so that ``trainer.fit(clipdg.coop(…), clipdg.datamodule(…))`` sees the batches that ``clipdg run method=coop`` sees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol as Protocol_
from typing import runtime_checkable

import lightning
import numpy as np
import torch

from clipdg.core.benchmark import Benchmark, Shift
from clipdg.core.errors import ConfigError
from clipdg.core.fit import Fit
from clipdg.core.model import Backbone
from clipdg.core.seeding import seed_hash
from clipdg.data import augmentation
from clipdg.data.datasets import concatenate, with_splits
from clipdg.data.few_shot_list import Picks
from clipdg.data.inputs import Images, Inputs
from clipdg.data.loaders import Loader, loader
from clipdg.data.protocol import Protocol, Stream, decide
from clipdg.data.splits import check_shift, with_pools
from clipdg.data.test_set import TestSet

EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Batching:
    """How a classifier wants its batches.

    ``shuffled``: anew on each pass; what is solved for sees the images once, in order. ``per_domain``: each batch has
    ``batch_size`` images of every source. ``augment``: one of augmentation.READ. ``views``: stored random views of each
    image, of which each step draws one. ``squash`` and ``val_augmented``: see core/fit.py. ``stream_batch``: images
    of a tested stream that arrive at a time. ``adapts`` and ``refits``: see data/protocol.py.
    """

    batch_size: int = EVALUATION_BATCH
    shuffled: bool = False
    drop_last: bool = False
    per_domain: bool = False
    augment: str | None = None
    views: int = 0
    squash: bool = False
    val_augmented: bool = False
    stream_batch: int = EVALUATION_BATCH
    adapts: bool = False
    refits: bool = False

    @classmethod
    def of(cls, fit: Fit | None, *, tells_domains: bool = False, stream_batch: int | None = None,
           adapts: bool = False, refits: bool = False) -> Batching:  # fmt: skip
        """What ``fit`` needs; None: nothing is fitted by gradient. ``tells_domains``: the objective compares them."""
        stream = EVALUATION_BATCH if stream_batch is None else stream_batch
        if fit is None:
            return cls(stream_batch=stream, adapts=adapts, refits=refits)
        return cls(
            fit.batch_size,
            shuffled=True,
            drop_last=fit.drop_last,
            per_domain=fit.per_domain or tells_domains,
            augment=fit.augment if fit.augment in augmentation.READ else None,
            views=fit.views,
            squash=fit.squash,
            val_augmented=fit.val_augmented,
            stream_batch=stream,
            adapts=adapts,
            refits=refits,
        )


@runtime_checkable
class HasBatching(Protocol_):
    """A LightningModule that says how it wants its batches: training/classifier.py."""

    num_steps: int

    @property
    def batching(self) -> Batching:
        """How it wants its batches."""


def fit_loader(
    protocol: Protocol,
    inputs: Inputs,
    batching: Batching,
    order: torch.Generator,
    seen: torch.Generator,
    *,
    shared: bool = False,
    workers: int | None = 0,
) -> Loader:
    """Batches of the rows that are fitted on. ``order`` and ``seen``: where shuffling and augmentation are drawn from.

    ``shared``: each of several processes reads its share of every batch.
    """
    parts = [
        inputs.views(name, rows, batching.views)
        if batching.views
        else inputs.of(name, rows, batching.augment, squash=batching.squash)
        for name, rows in protocol.fit.items()
    ]
    if not parts:
        raise ConfigError(f"{protocol.benchmark.name}, shift {protocol.shift.name}: without a source nothing is fitted")
    samples = concatenate(parts)
    return loader(
        samples,
        batching.batch_size,
        generator=order if batching.shuffled else None,
        drop_last=batching.drop_last and len(samples) >= batching.batch_size,  # Dassl keeps a lone batch
        per_domain=batching.per_domain,
        views=seen if batching.augment or batching.views else None,
        shared=shared,
        workers=workers,
    )


def validation_loader(
    protocol: Protocol, inputs: Inputs, batching: Batching, *, workers: int | None = 0
) -> Loader | None:
    """Batches of the rows that settings are chosen on; None if there are none."""
    there = {name: rows for name, rows in protocol.validation.items() if len(rows)}
    if not there:
        return None
    parts = [inputs.of(name, rows, squash=batching.squash) for name, rows in there.items()]
    return loader(concatenate(parts), EVALUATION_BATCH, workers=workers)


def stream_loader(
    protocol: Protocol, inputs: Inputs, batching: Batching, stream: Stream, step: int, *, workers: int | None = 0
) -> Loader:
    """Batches of a tested stream, in its order. ``step``: of the fit, after which augmented images differ."""
    name = stream.test_set.domain
    augmented = batching.val_augmented and protocol.is_source(name)
    views = torch.Generator().manual_seed(seed_hash(protocol.seed, "evaluation", name, step)) if augmented else None
    samples = inputs.of(name, stream.rows, "domainbed" if augmented else None, squash=batching.squash)
    return loader(with_splits(samples, stream.numbers), batching.stream_batch, views=views, workers=workers)


class DataModule(lightning.LightningDataModule):
    """One shift of a benchmark for a script of one's own: batches of uint8 images, or of features; see ``Batch``.

    train: the images that are fitted on. val: those that settings are chosen on. test: one loader for each domain in
    ``test_names``, with the images of its reported split; of a method that was fitted on the validation images in the
    end, no source is tested on them (data/protocol.py). No image of a target is read before a test loader is.

    A clipdg module says how it wants its batches; any other gets shuffled batches of ``batch_size``.
    """

    def __init__(
        self, protocol: Protocol, inputs: Inputs, *, batch_size: int | None = None, workers: int | None = 0
    ) -> None:
        """``batch_size``: for modules that are not clipdg's, 32 if not given."""
        super().__init__()
        self.protocol, self.inputs, self.workers = protocol, inputs, workers
        self.batch_size = batch_size

    @classmethod
    def of(
        cls,
        benchmark: Benchmark,
        shift: Shift,
        backbone: Backbone,
        *,
        shots: int | None = None,
        picks: Picks | None = None,
        holdout: float = 0.2,
        seed: int = 0,
        batch_size: int | None = None,
        workers: int | None = 0,
        stored: Callable[[Benchmark, bool], Inputs] | None = None,
    ) -> DataModule:
        """Decide the protocol of a shift and make its loaders, for images as ``backbone`` wants them.

        ``stored``: gives stored features in place of images, of a benchmark and of whether few images are fitted on.

        Raises:
            ConfigError: a domain that the benchmark does not have, or a source without training images.
            DataError: a class with fewer images than ``shots``.
        """
        check_shift(benchmark, shift)
        benchmark, _ = with_pools(benchmark, shift, shots, seed, holdout, picks)
        decided = decide(benchmark, shift, shots=shots, picks=picks, seed=seed, holdout=holdout)
        drawn = shots is not None or picks is not None
        inputs = Images(benchmark, backbone.preprocessing) if stored is None else stored(benchmark, drawn)
        return cls(decided, inputs, batch_size=batch_size, workers=workers)

    @property
    def benchmark(self) -> Benchmark:
        return self.protocol.benchmark

    @property
    def shift(self) -> Shift:
        return self.protocol.shift

    @property
    def classes(self) -> tuple[str, ...]:
        return self.benchmark.classes

    @property
    def fit_rows(self) -> dict[str, np.ndarray]:
        """The rows of each source that are fitted on."""
        return dict(self.protocol.fit)

    @property
    def val_rows(self) -> dict[str, np.ndarray]:
        """The rows of each source that settings are chosen on."""
        return dict(self.protocol.validation)

    @property
    def batching(self) -> Batching:
        """How the module of the Trainer wants its batches."""
        module = self._module
        if module is None:
            size = 32 if self.batch_size is None else self.batch_size
            return Batching(size, shuffled=True, stream_batch=size)
        if self.batch_size is not None and self.batch_size != module.batching.batch_size:
            raise ConfigError(
                f"this data module has batch_size={self.batch_size} and the method's is "
                f"{module.batching.batch_size}; give it to the method, and leave it out here"
            )
        return module.batching

    @property
    def _module(self) -> HasBatching | None:
        module = self.trainer.lightning_module if self.trainer is not None else None
        return module if isinstance(module, HasBatching) else None

    def _asked(self) -> Protocol:
        """The protocol for the module of the Trainer."""
        batching = self.batching
        return replace(self.protocol, refits=batching.refits, adapts=batching.adapts)

    def train_dataloader(self) -> Loader:
        """Each call begins the same order again."""
        seed = self.protocol.seed
        order = torch.Generator().manual_seed(seed)
        seen = torch.Generator().manual_seed(seed_hash(seed, "views"))
        return fit_loader(self.protocol, self.inputs, self.batching, order, seen, workers=self.workers)

    def val_dataloader(self) -> Loader | list[Loader]:
        """No loader if nothing is held out."""
        found = validation_loader(self.protocol, self.inputs, self.batching, workers=self.workers)
        return [] if found is None else found

    def test_dataloader(self) -> list[Loader]:
        """In the order of ``test_names``."""
        protocol, batching, module = self._asked(), self.batching, self._module
        step = module.num_steps if module is not None else 0
        return [
            stream_loader(protocol, self.inputs, batching, stream, step, workers=self.workers)
            for stream in protocol.streams(reported_only=True)
        ]

    @property
    def test_sets(self) -> tuple[TestSet, ...]:
        """What each test loader holds."""
        return tuple(stream.test_set for stream in self._asked().streams(reported_only=True))

    @property
    def test_names(self) -> tuple[str, ...]:
        """The domain of each test loader."""
        return tuple(test_set.domain for test_set in self.test_sets)
