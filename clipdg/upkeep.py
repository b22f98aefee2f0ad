"""Looking after a store of arrays: what there is, whether it is sound, and what can go. Needs no torch."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from clipdg import stored
from clipdg.errors import StorageError

LEFTOVER_AGE = 24 * 3600  # seconds after which nobody is still writing a temporary file


@dataclass(frozen=True)
class Kept:
    """One array of a store, whole or being made. ``used``: when it was last opened or added to, within an hour."""

    folder: Path
    num_bytes: int
    used: float  # seconds since 1970

    @cached_property
    def is_whole(self) -> bool:
        return stored.read_manifest(self.folder) is not None

    @cached_property
    def about(self) -> Mapping[str, Any]:
        """What it is, as its maker wrote; empty if that was lost."""
        try:
            about = json.loads((self.folder / "about.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return about if isinstance(about, dict) else {}


def kept(store: Path) -> list[Kept]:
    """The arrays of a store, the least recently used first."""
    found = []
    for folder in store.iterdir() if store.is_dir() else ():
        if not folder.is_dir():
            continue
        states = [s for s in map(_stat, folder.iterdir()) if s is not None]
        mark = _stat(folder / "manifest.json")
        used = mark[1] if mark else max((when for _, when in states), default=0.0)
        found.append(Kept(folder, sum(size for size, _ in states), used))
    return sorted(found, key=lambda one: (one.used, one.folder))


def surplus(
    arrays: Sequence[Kept], older_than: float | None, max_bytes: int | None, now: float | None = None
) -> list[Kept]:
    """Of arrays in the order of their use, those to remove: unused for ``older_than`` seconds, or over ``max_bytes``.

    The most recently used are kept, as many as fit.
    """
    now = time.time() if now is None else now
    total = sum(one.num_bytes for one in arrays)
    chosen = []
    for one in arrays:
        too_old = older_than is not None and now - one.used > older_than
        if too_old or (max_bytes is not None and total > max_bytes):
            chosen.append(one)
            total -= one.num_bytes
    return chosen


def leftovers(store: Path, now: float | None = None) -> list[Path]:
    """Files that belong to no array: cut off while they were written, or of an older form of the store."""
    now = time.time() if now is None else now
    inside = [path for one in kept(store) for path in one.folder.glob(".*")]
    beside = [path for path in store.iterdir() if path.is_file()] if store.is_dir() else []
    states = ((path, _stat(path)) for path in [*inside, *beside])
    return sorted(path for path, state in states if state is not None and now - state[1] > LEFTOVER_AGE)


def remove_file(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot remove {path}: {error.strerror or error}") from error


def size_of(folder: Path) -> int:
    """Bytes of all files below."""
    return sum(state[0] for path in folder.rglob("*") if path.is_file() and (state := _stat(path)) is not None)


def _stat(path: Path) -> tuple[int, float] | None:
    """Bytes and time of change; None if it went meanwhile."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime
