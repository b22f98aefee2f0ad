"""Parquet files read where they lie, through a file system of fsspec: columns at once, images by groups of rows.

A few groups are kept, so reading in order fetches each group once. Reading at random fetches a group for almost every
image, which is what downloading is for.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from clipdg.core.errors import DataError
from clipdg.data.rows import arrow
from clipdg.data.rows.file_facts import Memory
from clipdg.data.rows.table import no_column

KEPT = 2  # groups of rows; a group of 100 photographs is about 10 MB


class StreamTable:
    """The rows of ``files``, addresses in ``system`` at which the content never changes."""

    def __init__(self, system: Any, files: Sequence[str], where: str, provenance: Mapping[str, object]) -> None:
        import datasets
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.where, self.provenance = where, provenance
        self.files = tuple(files)
        try:
            self._parquet = [pq.ParquetFile(system.open(file, "rb")) for file in self.files]
        except Exception as error:  # fsspec's, the network's and pyarrow's errors are of many kinds
            raise DataError(f"{where} cannot be streamed: {arrow.first_line(error)}") from error
        self._features = datasets.Features.from_arrow_schema(self._parquet[0].schema_arrow)
        self._image = arrow.image_column(self._features, where)
        kind = self._parquet[0].schema_arrow.field(self._image).type
        self._has_paths = pa.types.is_struct(kind) and kind.get_field_index("path") >= 0
        own = tuple(name for name in self._features if name != self._image)
        self.columns = own if "path" in own or self._paths is None else (*own, "path")
        groups = [(f, g) for f, file in enumerate(self._parquet) for g in range(file.num_row_groups)]
        self._groups = groups
        counts = [self._parquet[f].metadata.row_group(g).num_rows for f, g in groups]
        self._ends = np.cumsum(np.array(counts, dtype=np.int64))
        self._kept: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def column(self, name: str) -> np.ndarray | list[str]:
        if name not in self.columns:
            raise no_column(self.where, name, self.columns)
        if name == "path" and name not in self._features:
            assert self._paths is not None
            return self._paths
        return arrow.values(self._column(name, name), name, self.where)

    def names(self, name: str) -> tuple[str, ...] | None:
        if name not in self.columns:
            raise no_column(self.where, name, self.columns)
        return arrow.class_names(self._features.get(name))

    def at(self, index: int) -> str:
        return f"{self.where}, row {index}"

    def read(self, index: int) -> bytes:
        group = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[group - 1]) if group else 0
        return arrow.stored_bytes(self._group(group)[index - start], self.at(index))

    def digests(self, indices: np.ndarray | None = None) -> tuple[str, ...]:
        return self._digests if indices is None else tuple(self._digests[i] for i in indices.tolist())

    @cached_property
    def _digests(self) -> tuple[str, ...]:
        memory = Memory("digests", "\n".join(self.files))
        known: list[str] | None = memory.recall("rows", [])
        if known is None:
            known = [hashlib.sha256(self.read(i)).hexdigest() for i in range(len(self))]
            memory.keep({"rows": ([], known)})
        return tuple(known)

    @cached_property
    def _paths(self) -> list[str] | None:
        return arrow.paths(self._column(self._image, f"{self._image}.path")) if self._has_paths else None

    def _column(self, name: str, leaf: str) -> Any:
        """A column, or a part of one that is fetched alone: of the images, their paths without their bytes."""
        import pyarrow as pa

        parts = [file.read(columns=[leaf]).column(name) for file in self._parquet]
        return pa.chunked_array([chunk for part in parts for chunk in part.chunks], type=parts[0].type)

    def _group(self, number: int) -> Any:
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        file, group = self._groups[number]
        try:
            cells = self._parquet[file].read_row_group(group, columns=[self._image]).column(self._image)
        except Exception as error:
            start = int(self._ends[number - 1]) if number else 0
            raise DataError(f"{self.at(start)} and on cannot be read: {arrow.first_line(error)}") from error
        self._kept[number] = cells
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return cells
