"""Records that were read and checked before, kept together so that thousands are found again in a second.

``DIR/.runs/records.index`` is derived from the records and can be deleted at any time: what changed since, by the
file's size, times and number, is read from its own file again. The first line is the digest of the rest; then one JSON
text a line. Values that many records share (versions, weights, classes) are written once and shared in memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from clipdg.core.errors import StorageError
from clipdg.storage.publish import canonical
from clipdg.storage.publish import publish as publish_file

WORTH = 200  # files read anew from which on an index is written
SETTLED = 2_000_000_000  # nanoseconds after which a file that changes again has another time
_EVALUATION = {"domain", "split", "step", "num_images", "metrics"}

State = tuple[int, int, int, int]


class Index:
    """What is known of the records below a folder, by path relative to it and the state of the file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / ".runs" / "records.index"
        self._known: dict[str, tuple[State, dict[str, Any]]] = {}
        self._seen: dict[str, tuple[State, dict[str, Any]]] = {}
        self._new = 0
        self._shared: dict[bytes, Any] = {}  # canonical text -> the one value in memory
        with suppress(OSError, ValueError, KeyError, TypeError, IndexError):  # then all of it is read again
            self._known = _read(self._path)

    def content(self, name: str, state: State) -> dict[str, Any] | None:
        """The content of the record in this file, if it is as it was."""
        known = self._known.get(name)
        if known is None or known[0] != state:
            return None
        self._seen[name] = known
        return known[1]

    def add(self, name: str, state: State, content: Mapping[str, Any]) -> dict[str, Any]:
        """Know what was read; -> the same content, whose values are those of earlier ones where they are equal."""
        one = {k: v if k == "evaluations" else self._shared.setdefault(canonical(v), v) for k, v in content.items()}
        if max(state[1], state[2]) < time.time_ns() - SETTLED:
            self._seen[name] = state, one
            self._new += 1
        return one

    def publish(self) -> None:
        """Keep what was read, if that is worth a file; where nothing can be written, it is read again next time."""
        if self._new < WORTH:
            return
        body = _written(self._seen, {id(value): text for text, value in self._shared.items()})
        with suppress(StorageError):
            publish_file(self._path, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


def state_of(found: os.stat_result) -> State:
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _written(seen: Mapping[str, tuple[State, dict[str, Any]]], texts: Mapping[int, bytes]) -> bytes:
    """Shared values by number; of the evaluations the numbers apart from what they are numbers of.

    ``texts``: id -> canonical text, of values that live as long as ``seen``.
    """
    numbers: dict[bytes, int] = {}

    def number(value: object) -> int:
        return numbers.setdefault(texts.get(id(value)) or canonical(value), len(numbers))

    rows = []
    for name, (state, content) in seen.items():
        evaluations = content["evaluations"]
        flat: list[object] | None = None
        if all(set(e) == _EVALUATION for e in evaluations):
            form = [[e["domain"], e["split"], e["step"], e["num_images"], list(e["metrics"])] for e in evaluations]
            flat = [value for e in evaluations for value in e["metrics"].values()]
        fields = {k: number(v) for k, v in content.items() if flat is None or k != "evaluations"}
        rows.append(canonical([name, state, fields, number(form) if flat is not None else None, flat]))
    return b"[" + b",".join(numbers) + b"]\n[" + b",".join(rows) + b"]\n"


def _read(path: Path) -> dict[str, tuple[State, dict[str, Any]]]:
    """Raises ValueError if the file is not what was written."""
    digest, _, body = path.read_bytes().partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise ValueError(f"{path} was altered")
    values, _, rows = body.partition(b"\n")
    del body
    shared = json.loads(values)
    found = {}
    for name, state, fields, form, flat in json.loads(rows):
        content = {key: shared[number] for key, number in fields.items()}
        if form is not None:
            evaluations, first = [], 0
            for d, s, step, n, names in shared[form]:
                end = first + len(names)
                metrics = dict(zip(names, flat[first:end], strict=True))
                evaluations.append({"domain": d, "split": s, "step": step, "num_images": n, "metrics": metrics})
                first = end
            content["evaluations"] = evaluations
        found[name] = (state[0], state[1], state[2], state[3]), content
    return found
