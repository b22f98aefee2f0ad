"""TODO clipdg.data.datamodule."""

from __future__ import annotations

from dataclasses import replace

import lightning
import numpy as np
import torch

from clipdg.core.benchmark import Benchmark, Domain, Shift
from clipdg.core.errors import DataError
from clipdg.core.model import Backbone
from clipdg.data.datasets import ImageDataset, concatenate, preprocessing_for
from clipdg.data.few_shot_list import Picks
from clipdg.data.loaders import Loader, loader
from clipdg.data.splits import check_shift, pick, splits, with_pool
from clipdg.data.test_set import TestSet


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
