"""Rows one after the other: a test set, and the training images that a run drew from a pool too large to read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from clipdg.core.benchmark import Rows


class JoinedRows:
    """The rows of ``parts``, which stay apart for the feature store: a part that runs share is encoded once."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        assert parts
        self.parts = tuple(parts)
        self.labels = np.concatenate([part.labels for part in parts])
        self.ids = tuple(name for part in parts for name in part.ids)
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        number = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[number]) - len(self.parts[number])
        return self.parts[number].image(index - start)

    def digests(self) -> tuple[str, ...]:
        """SHA-256 of each sample's stored bytes, in order."""
        return tuple(digest for part in self.parts for digest in part.digests())
