"""The rows of a benchmark as a run takes them: stored features, or images where the backbone is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from clipdg.core.benchmark import Benchmark
from clipdg.core.fit import Fit
from clipdg.core.model import Backbone, Preprocessing
from clipdg.data import augmentation, datasets
from clipdg.data.augmentation import View
from clipdg.data.rows import select
from clipdg.data.rows.joined import JoinedRows
from clipdg.runs.session import Session


@dataclass(frozen=True)
class Inputs:
    """``how``: the fit by gradient descent, if it is one; ``drawn``: on some images of each class, and not on all."""

    benchmark: Benchmark
    backbone: Backbone
    session: Session
    how: Fit | None
    trains_backbone: bool
    drawn: bool
    workers: int | None

    @property
    def spec(self) -> Preprocessing:
        """How images are resized where the backbone is trained."""
        spec = self.backbone.preprocessing
        return spec if self.how is None or not self.how.squash else squashed(spec)

    def of(self, name: str, rows: np.ndarray, augment: str | None = None) -> datasets.Samples:
        """Rows of a domain."""
        domain = self.benchmark.domains[name]
        number = list(self.benchmark.domains).index(name)
        if self.trains_backbone:
            spec = datasets.preprocessing_for(domain, self.spec)
            return datasets.ImageDataset(domain.rows, rows, spec, number, name=name, augment=augment)
        store, progress = self.session.store, self.session.progress
        features = store.encode(self.backbone, domain, progress, workers=self.workers)
        return datasets.FeatureDataset(features, domain.rows.labels, rows, number)

    def to_fit(self, fit_rows: Mapping[str, np.ndarray]) -> datasets.Samples:
        """The sources' rows that are fitted on, augmented as the fit asks for."""
        augment = self.how.augment if self.how is not None and self.how.augment in augmentation.READ else None
        views = self.how.views if self.how is not None else 0
        return datasets.concatenate(
            [
                self._views(name, rows, views) if views else self.of(name, rows, augment)
                for name, rows in fit_rows.items()
            ]
        )

    def _views(self, name: str, rows: np.ndarray, count: int) -> datasets.Samples:
        """Rows of a domain, each as one of ``count`` views whose features are stored.

        Of a domain that is fitted on whole, all images have them, for runs of other seeds; of a draw, the drawn ones.
        """
        domain = self.benchmark.domains[name]
        number = list(self.benchmark.domains).index(name)
        drawn = self.drawn or isinstance(domain.rows, JoinedRows)
        kept = np.sort(rows) if drawn else np.arange(len(domain.rows))
        shown = dataclasses.replace(domain, rows=select(domain.rows, kept)) if drawn else domain
        places = torch.from_numpy(np.searchsorted(kept, rows))
        store, progress = self.session.store, self.session.progress
        views = [
            store.encode(self.backbone, shown, progress, view=View(i), workers=self.workers)[places]
            for i in range(count)
        ]
        return datasets.ViewDataset(views, domain.rows.labels, rows, number)


def squashed(spec: Preprocessing) -> Preprocessing:
    """torchvision's ``Resize((size, size))``, as DomainBed's."""
    return dataclasses.replace(spec, resize="squash", interpolation="bilinear", crop_fraction=1.0)
