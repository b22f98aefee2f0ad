"""What every place of images gives, a ``Table``, and the rows of a domain made from it or from an array in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
from PIL import Image

from clipdg.core import plugins
from clipdg.core.benchmark import Domain, Rows
from clipdg.core.errors import DataError
from clipdg.data import decode
from clipdg.storage.publish import canonical


class Table(Protocol):
    """Samples wherever they lie: their columns without decoding an image, and an image's stored bytes by index."""

    @property
    def where(self) -> str:
        """For messages: "flwrlabs/pacs at 1a2b3c4, split train"; the folder."""

    @property
    def columns(self) -> tuple[str, ...]:
        """All but the image's. "path" is there for files and shards: "domain/class/x.jpg", always with "/".

        A data set of the hub has it if every image kept the path it was made from, which may be the mere file name.
        """

    @property
    def provenance(self) -> Mapping[str, object]:
        """Which data these are, for the record: repository, commit, config, split, files; empty for a local place."""

    def __len__(self) -> int: ...

    def column(self, name: str) -> np.ndarray | list[str]:
        """N numbers or N texts. Raises DataError naming the columns that there are, or a row without a value."""

    def names(self, name: str) -> tuple[str, ...] | None:
        """The names that a column's numbers stand for, where the data have them."""

    def at(self, index: int) -> str:
        """How a message calls a sample: "DIR/photo/cat/1.jpg", "flwrlabs/pacs at 1a2b3c4, split train, row 17"."""

    def read(self, index: int) -> bytes:
        """The stored bytes of an image. Raises DataError that begins with ``at(index)``."""

    def digests(self, indices: np.ndarray | None = None) -> Sequence[str]:
        """SHA-256 of the stored bytes, of all samples or of those at ``indices``.

        Remembered by the files' sizes and times of change, so that no file is read twice.
        """


class ArrayRows:
    """Images in memory: (N, H, W, 3) uint8, (N,) class indices, and N ids that say which image is which."""

    def __init__(self, array: np.ndarray, labels: np.ndarray, ids: Sequence[str]) -> None:
        assert array.dtype == np.uint8
        assert array.ndim == 4
        assert array.shape[3] == 3
        assert len(array) == len(labels) == len(ids)
        self.array = array
        self.labels = np.asarray(labels, dtype=np.int64)
        self.ids = tuple(ids)

    def __len__(self) -> int:
        return len(self.array)

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.array[index])

    def digests(self) -> tuple[str, ...]:
        """SHA-256 of each image's height, width and bytes, in order."""
        return self._digests

    @cached_property
    def _digests(self) -> tuple[str, ...]:
        shape = np.array(self.array.shape[1:3], dtype="<u4").tobytes()
        return tuple(hashlib.sha256(shape + np.ascontiguousarray(a).tobytes()).hexdigest() for a in self.array)


class TableRows:
    """Chosen rows of a table as a domain's rows: N indices into it, class indices, and ids that stay the same.

    ``border``: pixels taken off each side of a decoded image (ObjectNet's red frame); the digests say so.

    Once the digests are known, an image's bytes are compared with them whenever it is read: what is stored under a
    digest was made of those bytes and no others. It takes a hundredth of the time of decoding and resizing.
    """

    def __init__(
        self,
        table: Table,
        indices: Sequence[int] | np.ndarray,
        labels: np.ndarray,
        ids: Sequence[str],
        *,
        border: int = 0,
    ) -> None:
        assert len(indices) == len(labels) == len(ids)
        assert border >= 0
        self.table, self.border = table, border
        self.indices = np.asarray(indices, dtype=np.int64)
        self.labels = np.asarray(labels, dtype=np.int64)
        self.ids = tuple(ids)

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int) -> Image.Image:
        row = int(self.indices[index])
        at = self.table.at(row)
        where = f"image {index} ({at})"
        try:
            data = self.table.read(row)
        except DataError as error:
            raise DataError(where + str(error).removeprefix(at)) from error
        known: tuple[str, ...] | None = self.__dict__.get("_stored")  # computed only where somebody needs them
        if known is not None and hashlib.sha256(data).hexdigest() != known[index]:
            raise DataError(f"{where} has changed since its digest was taken; let nothing write there, and run again")
        image = decode.decode(data, where)
        if not self.border:
            return image
        width, height = image.size
        if min(width, height) <= 2 * self.border:
            raise DataError(
                f"{where} has {width} × {height} pixels, which leaves nothing inside a border of {self.border}"
            )
        return image.crop((self.border, self.border, width - self.border, height - self.border))

    def digests(self) -> tuple[str, ...]:
        """SHA-256 of each image's stored bytes, in order; with a border, of the border's width and that digest."""
        return self._digests

    @cached_property
    def _digests(self) -> tuple[str, ...]:
        if not self.border:
            return self._stored
        return tuple(hashlib.sha256(f"border {self.border} {digest}".encode()).hexdigest() for digest in self._stored)

    @cached_property
    def _stored(self) -> tuple[str, ...]:
        return tuple(self.table.digests(self.indices))


def select(rows: Rows, kept: np.ndarray, labels: np.ndarray | None = None) -> Rows:
    """Some rows, in the order of their indices ``kept``; with other ``labels`` if they are given."""
    ids = [rows.ids[i] for i in kept.tolist()]
    labels = rows.labels[kept] if labels is None else labels
    if isinstance(rows, ArrayRows):
        return ArrayRows(rows.array[kept], labels, ids)
    if isinstance(rows, TableRows):
        return TableRows(rows.table, rows.indices[kept], labels, ids, border=rows.border)
    return _Chosen(rows, kept, labels, ids)


class _Chosen:
    """Some of the rows that a plug-in makes itself."""

    def __init__(self, rows: Rows, kept: np.ndarray, labels: np.ndarray, ids: Sequence[str]) -> None:
        self.rows, self.kept = rows, kept
        self.labels = labels
        self.ids = tuple(ids)

    def __len__(self) -> int:
        return len(self.kept)

    def image(self, index: int) -> Image.Image:
        return self.rows.image(int(self.kept[index]))

    def digests(self) -> tuple[str, ...]:
        found = self.rows.digests()
        return tuple(found[i] for i in self.kept.tolist())


def fingerprint(domain: Domain, classes: Sequence[str]) -> str:
    """SHA-256 of the domain's (digest, class name) pairs in order, and its published splits: nothing else of it."""
    # A name that two classes share does not say which of them it is (two missiles in ImageNet).
    names = [canonical(name if classes.count(name) == 1 else [name, i]) for i, name in enumerate(classes)]
    total = hashlib.sha256()
    for digest, label in zip(domain.rows.digests(), domain.rows.labels.tolist(), strict=True):
        total.update(digest.encode() + names[label] + b"\n")
    if domain.splits is not None and not isinstance(domain.rows, ArrayRows):  # an array's follow from the settings
        total.update(canonical({name: rows.tolist() for name, rows in domain.splits.items()}))
    return total.hexdigest()


def no_column(where: str, name: str, columns: Sequence[str]) -> DataError:
    hint = plugins.nearest(name, list(columns))
    return DataError(f"{where} has no column '{name}'.{hint} It has: {', '.join(columns)}.")
