"""Looking after a store of arrays: what there is, whether it is sound, and what can go. Needs no torch."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from clipdg.core.errors import StorageError
from clipdg.storage import sharded_array

LEFTOVER_AGE = 24 * 3600  # seconds after which nobody is still writing a temporary file
_OLDER_FORM = re.compile(r"\.?[0-9a-f]{64}\.safetensors(\.[0-9a-f]{32})?")  # one file an array


@dataclass(frozen=True)
class Kept:
    """One array of a store, whole or being made. ``used``: when it was last opened or added to, within an hour."""

    folder: Path
    num_bytes: int
    used: float  # seconds since 1970

    @cached_property
    def is_whole(self) -> bool:
        return sharded_array.read_manifest(self.folder) is not None

    @cached_property
    def about(self) -> Mapping[str, Any]:
        """What it is, as its maker wrote; empty if that was lost."""
        try:
            about = json.loads((self.folder / "about.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return about if isinstance(about, dict) else {}


def kept(store: Path) -> list[Kept]:
    """The arrays of a store, the least recently used first; what else lies there is left alone."""
    found = []
    for folder in filter(sharded_array.is_array, _inside(store)):
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
    inside = [path for one in kept(store) for path in one.folder.iterdir() if sharded_array.is_cut_off(path)]
    beside = [path for path in _inside(store) if _OLDER_FORM.fullmatch(path.name) and path.is_file()]
    states = ((path, _stat(path)) for path in [*inside, *beside])
    return sorted(path for path, state in states if state is not None and now - state[1] > LEFTOVER_AGE)


def strangers(store: Path) -> list[str]:
    """The names of what lies in a store and is no part of it, sorted."""
    return sorted(p.name for p in _inside(store) if not sharded_array.is_array(p) and not _OLDER_FORM.fullmatch(p.name))


def remove_file(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot remove {path}: {error.strerror or error}") from error


def size_of(paths: Iterable[Path]) -> int:
    """Bytes of those that are files."""
    return sum(state[0] for path in paths if path.is_file() and (state := _stat(path)) is not None)


def _inside(store: Path) -> list[Path]:
    return list(store.iterdir()) if store.is_dir() else []


def _stat(path: Path) -> tuple[int, float] | None:
    """Bytes and time of change; None if it went meanwhile."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime
