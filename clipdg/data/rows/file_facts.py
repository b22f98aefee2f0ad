"""What was found out about files, believed only while their sizes and times of change are the same.

Of the two times, the content's can be set by whoever copies a file; the inode's cannot. A clock ticks only so often: a
file changed a moment ago can change again without a new time, so what is found in it is not remembered yet.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from clipdg.core.errors import DataError
from clipdg.storage import cache_folder
from clipdg.storage.publish import canonical, digest, publish

State = list[int]  # size, time of the content's change, time of the inode's change; one after the other for many files
_SETTLED = 2_000_000_000  # nanoseconds


def state(*files: str | Path) -> State:
    """Size and times of each file. Raises OSError."""
    found: State = []
    for file in files:
        stat = os.stat(file)
        found += [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    return found


def is_settled(of: State) -> bool:
    """Whether the files are old enough for their times to name their content."""
    return all(when < time.time_ns() - _SETTLED for when in of[1::3])


def cannot_be_read(where: object, error: OSError) -> DataError:
    return DataError(f"{where} cannot be read: {error.strerror or error}")


class Memory:
    """Values by (name, state) for one place, in one file of the cache; one that was cut or altered counts as none."""

    def __init__(self, kind: str, place: str | Path) -> None:
        name = os.fsencode(place.resolve() if isinstance(place, Path) else place)
        self._store = cache_folder.folder(kind) / f"{hashlib.sha256(name).hexdigest()[:16]}.json"

    def recall(self, name: str, state: State) -> Any:
        """What was kept under ``name`` while its files were in this state; None if there is nothing."""
        known = self._known.get(name)
        return known[1] if known is not None and known[0] == state else None

    def keep(self, found: Mapping[str, tuple[State, Any]]) -> None:
        """Remember those whose files are old enough, beside what was known."""
        new = {n: [state, value] for n, (state, value) in found.items() if self._known.get(n) != [state, value]}
        fresh = {name: entry for name, entry in new.items() if is_settled(entry[0])}
        if not fresh:
            return
        self._known.update(fresh)
        content = {"known": self._known, "digest": digest(self._known)}
        publish(self._store, canonical(content))

    @cached_property
    def _known(self) -> dict[str, list[Any]]:
        try:
            content = json.loads(self._store.read_bytes())
            known: dict[str, list[Any]] = content["known"]
            return known if content["digest"] == digest(known) else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}
