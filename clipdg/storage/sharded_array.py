"""An array on disk that is made shard by shard: resumed after a kill, checked when it is opened, mapped into memory.

    FOLDER/about.json     what is being made, for people; written first
    FOLDER/part-00003     shard 3 while the array is not whole yet: 32 bytes of SHA-256, then its rows
    FOLDER/array          all rows, float32 in little-endian order
    FOLDER/manifest.json  written last: the shape, and each shard's size and SHA-256
    FOLDER/lock           locked by the process that makes the array

An array without a valid manifest is not there. Each part is published by link, so of two processes that make the same
shard the first wins, and both go on with its bytes. The lock saves work and is not needed for correctness: where the
file system has none, or another machine does not see it, a shard is made twice and kept once. The kernel drops it with
the process that held it, however that ends.

What is promised on opening: every byte had the digest it was written with when this process first opened the array in
the file state (inode, size, times of change) it has now. The bytes are hashed once a process, at about 1 GB/s a core.

Legend: N rows, D numbers a row.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from clipdg.core.errors import StorageError
from clipdg.storage.publish import canonical, digest, publish

SCHEMA = 1
USED_EVERY = 3600  # seconds after which a use is noted again, as the manifest's time of change
_POLL = 1.0  # seconds between looks at what another process has made
_PART = re.compile(r"part-(\d{5,})")
_NAME = re.compile(r"[0-9a-f]{64}")  # of an array's folder: a hash of all that can change it
_OWN = re.compile(r"about\.json|array|manifest\.json|lock|part-\d{5,}")
_CUT_OFF = re.compile(rf"\.(?:{_OWN.pattern})\.[0-9a-f]{{32}}")  # the temporary files of publish.py

_State = tuple[int, int, int, int]
_verified: dict[Path, _State] = {}  # of this process


@dataclass(frozen=True)
class StoredArray:
    """The array (N, D) in ``folder``, cut after every ``size`` rows. ``about``: what it is, JSON for people."""

    folder: Path
    num_rows: int
    width: int
    size: int
    about: Mapping[str, object]

    @cached_property
    def ranges(self) -> list[range]:
        """The rows of each shard."""
        return [range(i, min(i + self.size, self.num_rows)) for i in range(0, self.num_rows, self.size)]

    def open(self) -> np.ndarray | None:
        """The array, mapped copy-on-write: writing to it changes nobody else's. None if it is not whole."""
        manifest = self._manifest()
        if manifest is None:
            return None
        with suppress(OSError, ValueError):  # gone or cut meanwhile: not there
            array = self._map()
            state = _state(self.folder / "array")
            if _verified.get(self.folder) != state:
                if not all(self._sound(array, manifest)):
                    return None
                _verified[self.folder] = state
            _note_use(self.folder / "manifest.json")
            return array
        return None

    def missing(self) -> list[int]:
        """The shards that are not stored yet; a part whose bytes are not those that were written is removed."""
        return [i for i in range(len(self.ranges)) if self._part(i) is None]

    def num_stored(self) -> int:
        """Rows in parts, from their names alone."""
        numbers = [int(m.group(1)) for path in self.folder.glob("part-*") if (m := _PART.fullmatch(path.name))]
        return sum(len(self.ranges[i]) for i in numbers if i < len(self.ranges))

    def write(self, index: int, rows: np.ndarray) -> None:
        """Store a shard, unless another process was first."""
        assert rows.shape == (len(self.ranges[index]), self.width)
        content = rows.astype("<f4").tobytes()
        self._publish(f"part-{index:05}", hashlib.sha256(content).digest() + content, replace=False)

    def begin(self) -> None:
        """Say what is being made; of an array that has lost some shards to the disk, keep the others as parts."""
        self._publish("about.json", canonical(self.about))
        manifest = self._manifest()
        if manifest is None:
            return
        with suppress(OSError, ValueError):
            array = self._map()
            for index, sound in enumerate(self._sound(array, manifest)):
                if sound:
                    self.write(index, array[self.ranges[index].start : self.ranges[index].stop])
        (self.folder / "manifest.json").unlink(missing_ok=True)

    def join(self) -> bool:
        """Make the array of its parts; False if one is not there (another process may have joined them)."""
        if self.missing():
            return False
        digests: list[str] = []

        def parts() -> Iterator[bytes]:
            for index in range(len(self.ranges)):
                content = self._part(index)
                if content is None:
                    raise LookupError
                digests.append(hashlib.sha256(content).hexdigest())
                yield content

        try:
            publish(self.folder / "array", parts())
        except LookupError:
            return False
        manifest = {
            "schema": SCHEMA,
            "shape": [self.num_rows, self.width],
            "shards": [[4 * len(rows) * self.width, d] for rows, d in zip(self.ranges, digests, strict=True)],
            "about": dict(self.about),
        }
        self._publish("manifest.json", canonical({**manifest, "digest": digest(manifest)}))
        for path in self.folder.glob("part-*"):
            path.unlink(missing_ok=True)
        return True

    @contextmanager
    def lease(self, waiting: Callable[[int], None] | None = None) -> Iterator[None]:
        """Be the one process that makes the array; ``waiting`` is told the rows that another one has made so far."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot write {self.folder}: {error.strerror or error}") from error
        handle = _lock(self.folder, lambda: waiting(self.num_stored()) if waiting else None)
        try:
            yield
        finally:
            if handle is not None:
                os.close(handle)

    def _manifest(self) -> dict[str, Any] | None:
        manifest = read_manifest(self.folder)
        return manifest if manifest is not None and manifest["shape"] == [self.num_rows, self.width] else None

    def _map(self) -> np.ndarray:
        return np.memmap(self.folder / "array", "<f4", "c", shape=(self.num_rows, self.width))

    def _sound(self, array: np.ndarray, manifest: Mapping[str, Any]) -> list[bool]:
        flat = array.reshape(-1).view(np.uint8)
        return _check(flat, manifest["shards"])

    def _part(self, index: int) -> bytes | None:
        path = self.folder / f"part-{index:05}"
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
        if len(content) == 32 + 4 * len(self.ranges[index]) * self.width and _is_sealed(content):
            return content[32:]
        path.unlink(missing_ok=True)
        return None

    def _publish(self, name: str, content: bytes, *, replace: bool = True) -> None:
        publish(self.folder / name, content, replace=replace)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest in a folder; None if there is none, or one that was cut, altered or made by another version."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        sealed = manifest.pop("digest")
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    whole = sealed == digest(manifest) and manifest.get("schema") == SCHEMA
    return manifest if whole else None


def is_sound(folder: Path) -> bool:
    """Whether every byte of the array in ``folder`` has the digest it was written with, read anew."""
    manifest = read_manifest(folder)
    if manifest is None:
        return False
    try:
        content = np.memmap(folder / "array", np.uint8, "r")
    except (OSError, ValueError):
        return False
    return len(content) == sum(size for size, _ in manifest["shards"]) and all(_check(content, manifest["shards"]))


def is_array(folder: Path) -> bool:
    """Whether a folder is one of ours by its name, and no link to another place."""
    return _NAME.fullmatch(folder.name) is not None and folder.is_dir() and not folder.is_symlink()


def is_cut_off(path: Path) -> bool:
    """Whether a file was being written when its writer ended, or is being written now."""
    return _CUT_OFF.fullmatch(path.name) is not None


def remove(folder: Path) -> bool:
    """Remove an array; False if a process is making it at this moment. Files that are no part of it stay.

    Who has it mapped keeps it. The manifest goes first, so that what is left after a kill is not taken for an array.
    """
    assert _NAME.fullmatch(folder.name)
    assert not folder.is_symlink()
    try:
        handle = _try_lock(folder)
    except BlockingIOError:
        return False
    except StorageError:
        if not folder.exists():  # another process was first
            return True
        raise
    try:
        own = [path for path in folder.iterdir() if _OWN.fullmatch(path.name) or is_cut_off(path)]
        for path in sorted(own, key=lambda path: path.name != "manifest.json"):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # somebody begins it again at this moment, or has put something else there
            folder.rmdir()
    except OSError as error:
        raise StorageError(f"cannot remove {folder}: {error.strerror or error}") from error
    finally:
        if handle is not None:
            os.close(handle)
    return True


def _lock(folder: Path, waiting: Callable[[], None]) -> int | None:
    while True:
        try:
            return _try_lock(folder)
        except BlockingIOError:
            waiting()
            time.sleep(_POLL)


def _try_lock(folder: Path) -> int | None:
    """A handle that holds the lock; None where the file system has none. Raises BlockingIOError if another holds it."""
    try:
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror or error}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:
        os.close(handle)
        return None
    return handle


def _check(content: np.ndarray, shards: list[tuple[int, str]]) -> list[bool]:
    ends = np.cumsum([size for size, _ in shards]).tolist()

    def sound(number: int) -> bool:
        size, digest = shards[number]
        return hashlib.sha256(content[ends[number] - size : ends[number]].data).hexdigest() == digest

    with ThreadPoolExecutor() as pool:  # hashing leaves the interpreter to others
        return list(pool.map(sound, range(len(shards))))


def _is_sealed(content: bytes) -> bool:
    return hashlib.sha256(content[32:]).digest() == content[:32]


def _state(path: Path) -> _State:
    stat = os.stat(path)
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _note_use(path: Path) -> None:
    with suppress(OSError):  # a store that may only be read
        if time.time() - path.stat().st_mtime > USED_EVERY:
            os.utime(path)
