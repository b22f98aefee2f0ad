"""Where labelled images come from: arrays in memory, files in a folder. Each is a ``core.Rows``."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from clipdg import cache, images, records
from clipdg.core import Domain
from clipdg.errors import DataError

_CHUNK = 256  # files a thread takes at a time


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


class FolderRows:
    """Image files below ``root``: N paths relative to it with ``/`` between their parts, which are the ids as well."""

    def __init__(self, root: Path, files: Sequence[str], labels: np.ndarray) -> None:
        assert len(files) == len(labels)
        self.root = root
        self.ids = tuple(files)
        self.labels = np.asarray(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> Image.Image:
        where = f"image {index} ({self.root / self.ids[index]})"
        return images.decode(self._read(index, where), where)

    def digests(self) -> tuple[str, ...]:
        """SHA-256 of each file, in order; remembered by path, size and times of change, so no file is read twice.

        Of the two times, the content's can be set by whoever copies a file; the inode's cannot.
        """
        return self._digests

    @cached_property
    def _digests(self) -> tuple[str, ...]:
        store = cache.folder("digests") / f"{hashlib.sha256(os.fsencode(self.root.resolve())).hexdigest()[:16]}.json"
        known = _recall(store)

        def of(chunk: range) -> list[tuple[list[int], str, bool]]:
            return [self._digest(i, known.get(self.ids[i])) for i in chunk]

        chunks = [range(i, min(i + _CHUNK, len(self))) for i in range(0, len(self), _CHUNK)]
        with ThreadPoolExecutor() as pool:
            found = list(chain.from_iterable(pool.map(of, chunks)))
        fresh = {
            file: [*state, digest] for file, (state, digest, settled) in zip(self.ids, found, strict=True) if settled
        }
        if not fresh.items() <= known.items():
            files = {**known, **fresh}  # another domain below this root, or a subset of it, keeps what it knew
            records.publish(store, records.canonical({"files": files, "digest": records.digest(files)}))
        return tuple(digest for _, digest, _ in found)

    def _digest(self, index: int, known: list[int | str] | None) -> tuple[list[int], str, bool]:
        """-> size and times of change, digest, and whether the file is old enough for these to name it."""
        where = f"image {index} ({self.root / self.ids[index]})"
        try:
            stat = os.stat(self.root / self.ids[index])
        except OSError as error:
            raise DataError(f"{where} cannot be read: {error.strerror or error}") from error
        state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        if known is not None and known[:-1] == state:
            return state, str(known[-1]), True
        digest = hashlib.sha256(self._read(index, where)).hexdigest()
        # A clock ticks only so often: a file changed a moment ago can change again without a new time.
        settled = stat.st_mtime_ns < time.time_ns() - 2_000_000_000
        return state, digest, settled

    def _read(self, index: int, where: str) -> bytes:
        try:
            return (self.root / self.ids[index]).read_bytes()
        except OSError as error:
            raise DataError(f"{where} cannot be read: {error.strerror or error}") from error


def fingerprint(domain: Domain, classes: Sequence[str]) -> str:
    """SHA-256 of the domain's (digest, class name) pairs in order: which images, which labels, and nothing else."""
    names = [records.canonical(name) for name in classes]
    total = hashlib.sha256()
    for digest, label in zip(domain.rows.digests(), domain.rows.labels.tolist(), strict=True):
        total.update(digest.encode() + names[label] + b"\n")
    return total.hexdigest()


def _recall(store: Path) -> dict[str, list[int | str]]:
    """What was remembered; nothing if it was cut or altered, for then all of it can be found again."""
    try:
        content = json.loads(store.read_bytes())
        files: dict[str, list[int | str]] = content["files"]
        return files if content["digest"] == records.digest(files) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
