"""TODO clipdg.records.folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from clipdg.core.errors import RecordError
from clipdg.records.record import Record, read_record

_NAME = re.compile(r"[0-9a-f]{16}\.json")


def read_records(folders: Iterable[Path]) -> tuple[list[Record], list[RecordError]]:
    """Every record below ``folders`` in a fixed order, and what is wrong with the files that are none.

    A run found in several places counts once. Raises RecordError if a folder does not exist.
    """
    from clipdg.records.index import Index, state_of

    records: dict[str, Record] = {}
    errors = []
    for folder in folders:
        if not folder.is_dir():
            raise RecordError(f"no folder {folder}; records are looked for in the folder given to --out")
        index = Index(folder)
        for name in sorted(_files(folder), key=lambda name: name.split(os.sep)):
            path = os.path.join(folder, name)
            try:
                state = state_of(os.stat(path))
                content = index.content(name, state)
                record = read_record(Path(path)) if content is None else Record(content)
            except OSError as error:
                errors.append(RecordError(f"{path} cannot be read: {error.strerror or error}"))
            except RecordError as error:
                errors.append(error)
            else:
                if content is None:
                    record = Record(index.add(name, state, record.content))
                records.setdefault(record.run_id, record)
        index.publish()
    return list(records.values()), errors


def _files(folder: Path) -> list[str]:
    """Paths, relative to ``folder``, of what is named like a record."""
    found = []
    for place, folders, files in os.walk(folder):
        names = [*files, *folders]  # a folder of such a name is told
        inside = os.path.relpath(place, folder)
        found += [name if inside == "." else os.path.join(inside, name) for name in names if _NAME.fullmatch(name)]
    return found
