"""The rows of a benchmark as a frozen backbone's features, each encoded once and stored (runs/feature_store.py)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from clipdg.core.benchmark import Benchmark
from clipdg.core.model import Backbone
from clipdg.core.progress import Progress
from clipdg.data.augmentation import View
from clipdg.data.datasets import FeatureDataset, Samples, ViewDataset
from clipdg.data.rows import select
from clipdg.data.rows.joined import JoinedRows
from clipdg.runs.feature_store import FeatureStore


@dataclass(frozen=True)
class StoredFeatures:
    """Features from ``store``. ``drawn``: the fit is on some images of each class, and not on all of them."""

    benchmark: Benchmark
    backbone: Backbone
    store: FeatureStore
    drawn: bool
    progress: Progress | None = None
    workers: int | None = None

    def of(self, name: str, rows: np.ndarray, augment: str | None = None, *, squash: bool = False) -> Samples:
        """The rows of domain ``name``; stored features are of images as they are evaluated."""
        assert augment is None, "what trains on augmented images goes over images"
        domain = self.benchmark.domains[name]
        features = self.store.encode(self.backbone, domain, self.progress, workers=self.workers)
        return FeatureDataset(features, domain.rows.labels, rows, self._number(name))

    def views(self, name: str, rows: np.ndarray, count: int) -> Samples:
        """The rows of domain ``name``, each as one of ``count`` views whose features are stored.

        Where a whole domain is fitted on, the views of all its images are stored, for runs of other seeds; where some
        images are drawn, those of the drawn ones.
        """
        domain = self.benchmark.domains[name]
        drawn = self.drawn or isinstance(domain.rows, JoinedRows)
        kept = np.sort(rows) if drawn else np.arange(len(domain.rows))
        shown = dataclasses.replace(domain, rows=select(domain.rows, kept)) if drawn else domain
        places = torch.from_numpy(np.searchsorted(kept, rows))
        views = [
            self.store.encode(self.backbone, shown, self.progress, view=View(i), workers=self.workers)[places]
            for i in range(count)
        ]
        return ViewDataset(views, domain.rows.labels, rows, self._number(name))

    def _number(self, name: str) -> int:
        return list(self.benchmark.domains).index(name)
