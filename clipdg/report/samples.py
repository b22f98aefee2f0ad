"""Per-sample predictions of records, as reports need them: what was said of each image, and how surely.

A file is read once, and only if its digest is the one that its record was published with.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from clipdg.core.errors import RecordError
from clipdg.records.evaluations import reported_split
from clipdg.records.folder import files_beside
from clipdg.records.record import Record, check_predictions


@dataclass(frozen=True)
class Tested:
    """One run on the reported split of one domain; N images in the order of its file."""

    ids: np.ndarray  # (N,) str
    labels: np.ndarray  # (N,) class numbers
    predicted: np.ndarray  # (N,)
    confidence: np.ndarray  # (N,) probability of the predicted class

    @cached_property
    def right(self) -> np.ndarray:
        """(N,) bool."""
        return np.asarray(self.labels == self.predicted)


class Samples:
    """The predictions of records below some folders. ``problems``: one sentence for each file that is not a record's
    own; ``missing``: runs whose file is not there.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.problems: list[str] = []
        self.missing: list[str] = []
        self._folders = folders
        self._runs: dict[str, dict[tuple[str, str], Tested]] = {}

    def of(self, record: Record, domain: str) -> Tested | None:
        """None if the run kept no predictions, or if they cannot be trusted (``problems``, ``missing``)."""
        if record.run_id not in self._runs:
            self._runs[record.run_id] = self._read(record)
        split = reported_split(record, domain)
        return None if split is None else self._runs[record.run_id].get((domain, split))

    @cached_property
    def _files(self) -> dict[str, Callable[[], bytes]]:
        """What reads the files beside the records, by name."""
        return files_beside(self._folders)

    def _read(self, record: Record) -> dict[tuple[str, str], Tested]:
        if record.predictions is None:
            return {}
        name = Path(record.predictions.file).name
        if name not in self._files:
            self.missing.append(record.run_id)
            return {}
        try:
            content = self._files[name]()
            check_predictions(record, content, name)
        except RecordError as error:
            self.problems.append(str(error))
            return {}
        return _by_split(content)


def _by_split(content: bytes) -> dict[tuple[str, str], Tested]:
    """By (domain, split), and by (domain, "all") over the splits."""
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(content)).to_pandas()
    found = {}
    for domain, rows in table.groupby("domain", observed=True, sort=False):
        for split, part in [("all", rows), *rows.groupby("split", observed=True, sort=False)]:
            found[str(domain), str(split)] = Tested(
                part["id"].to_numpy(dtype=object),
                part["label"].to_numpy(),
                part["prediction"].to_numpy(),
                part["confidence"].to_numpy(),
            )
    return found
