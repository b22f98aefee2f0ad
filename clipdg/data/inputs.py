"""The rows of a benchmark as a classifier takes them: images, read when they are asked for.

The other kind, features that were encoded once and stored, is runs/stored_features.py; both give ``Samples``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from clipdg.core.benchmark import Benchmark
from clipdg.core.errors import ConfigError
from clipdg.core.model import Preprocessing
from clipdg.data.datasets import ImageDataset, Samples, preprocessing_for


class Inputs(Protocol):
    """Rows of a domain as samples."""

    def of(self, name: str, rows: np.ndarray, augment: str | None = None, *, squash: bool = False) -> Samples:
        """The rows of domain ``name``, augmented as they are read or not; ``squash``: resized as DomainBed does."""

    def views(self, name: str, rows: np.ndarray, count: int) -> Samples:
        """The rows of domain ``name``, each as one of ``count`` stored random views."""


@dataclass(frozen=True)
class Images:
    """Images of a benchmark, preprocessed for a backbone."""

    benchmark: Benchmark
    spec: Preprocessing

    def of(self, name: str, rows: np.ndarray, augment: str | None = None, *, squash: bool = False) -> Samples:
        domain = self.benchmark.domains[name]
        spec = preprocessing_for(domain, squashed(self.spec) if squash else self.spec)
        number = list(self.benchmark.domains).index(name)
        return ImageDataset(domain.rows, rows, spec, number, name=f"{self.benchmark.name}, {name}", augment=augment)

    def views(self, name: str, rows: np.ndarray, count: int) -> Samples:
        raise ConfigError("fit.views is for features that are stored; give the data module stored=True")


def squashed(spec: Preprocessing) -> Preprocessing:
    """Both sides to the size, bilinearly: torchvision's ``Resize((size, size))``, as DomainBed's."""
    return dataclasses.replace(spec, resize="squash", interpolation="bilinear", crop_fraction=1.0)
