"""Records below a folder, in files and in archives: found in a fixed order, read strictly, packed to be handed on.

What a run writes lies in files: ``RUN_ID.json``, its predictions, a contact sheet. ``pack`` puts these of a whole
folder into one archive, ``records.tar.xz``, and every reader finds in it what it finds in the folder.
"""

from __future__ import annotations

import io
import lzma
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

from clipdg.core.errors import RecordError
from clipdg.records.index import Index, state_of
from clipdg.records.record import MAX_BYTES, Record, content_of, parse_record, read_record
from clipdg.storage.publish import publish

ARCHIVE = "records.tar.xz"
_RECORD = re.compile(r"[0-9a-f]{16}\.json")


class Place(Protocol):
    """Where records lie, with what was published beside them."""

    def records(self) -> Iterator[Record | RecordError]:
        """Every record in a fixed order, or what is wrong with a file that is named like one."""

    def files(self) -> Mapping[str, Callable[[], bytes]]:
        """What reads each file, by its name without folders; RecordError if it cannot be read."""


@dataclass(frozen=True)
class Folder:
    """Records in files below a folder. What was read once is found again by an index (records/index.py)."""

    path: Path

    def records(self) -> Iterator[Record | RecordError]:
        index = Index(self.path)
        named = (n for n in _names_below(self.path) if _RECORD.fullmatch(os.path.basename(n)))
        for name in sorted(named, key=lambda name: name.split(os.sep)):
            path = os.path.join(self.path, name)
            try:
                state = state_of(os.stat(path))
                content = index.content(name, state)
                if content is None:
                    content = index.add(name, state, read_record(Path(path)).content)
                yield Record(content)
            except OSError as error:
                yield RecordError(f"{path} cannot be read: {error.strerror or error}")
            except RecordError as error:
                yield error
        index.publish()

    def files(self) -> Mapping[str, Callable[[], bytes]]:
        found: dict[str, Callable[[], bytes]] = {}
        for name in sorted(_names_below(self.path), key=lambda name: name.split(os.sep)):
            found.setdefault(os.path.basename(name), _reader(self.path / name))
        return found


@dataclass(frozen=True)
class Archive:
    """Records in an archive that ``pack`` wrote, or that was made of the same files."""

    path: Path

    def records(self) -> Iterator[Record | RecordError]:
        try:
            members = self._members
        except RecordError as error:
            yield error
            return
        for name in sorted(members):
            if _RECORD.fullmatch(os.path.basename(name)):
                try:
                    yield parse_record(members[name], f"{self.path}/{name}", Path(name).stem)
                except RecordError as error:
                    yield error

    def files(self) -> Mapping[str, Callable[[], bytes]]:
        try:
            return {os.path.basename(n): partial(bytes, content) for n, content in sorted(self._members.items())}
        except RecordError:  # which ``records`` tells
            return {}

    @cached_property
    def _members(self) -> Mapping[str, bytes]:
        """The content of every file. Raises RecordError for what is no archive, or larger than any records are."""
        found: dict[str, bytes] = {}
        try:
            with tarfile.open(self.path, "r:xz") as archive:
                for member in archive:
                    if sum(map(len, found.values())) + member.size > MAX_BYTES:
                        raise RecordError(f"{self.path} holds more than {MAX_BYTES:,} bytes, more than records have")
                    if member.isreg() and (file := archive.extractfile(member)) is not None:
                        found[member.name] = file.read()
        except (OSError, tarfile.TarError, lzma.LZMAError, EOFError) as error:
            raise RecordError(f"{self.path} is no archive of records, or was cut: {error}") from error
        return found


def places(folder: Path) -> list[Place]:
    """Where records below a folder lie: its files, then each archive. Raises RecordError if it does not exist.

    An archive may be named itself.
    """
    if folder.is_file() and folder.name.endswith(".tar.xz"):
        return [Archive(folder)]
    if not folder.is_dir():
        raise RecordError(f"no folder {folder}; records are looked for in the folder given to --out")
    archives = sorted(name for name in _names_below(folder) if os.path.basename(name) == ARCHIVE)
    return [Folder(folder), *(Archive(folder / name) for name in archives)]


def read_records(folders: Iterable[Path]) -> tuple[list[Record], list[RecordError]]:
    """Every record below ``folders`` in a fixed order, and what is wrong with the files that are none.

    A run found in several places counts once. Raises RecordError if a folder does not exist.
    """
    records: dict[str, Record] = {}
    errors: list[RecordError] = []
    for folder in folders:
        for place in places(folder):
            for found in place.records():
                if isinstance(found, RecordError):
                    errors.append(found)
                else:
                    records.setdefault(found.run_id, found)
    return list(records.values()), errors


def files_beside(folders: Iterable[Path]) -> dict[str, Callable[[], bytes]]:
    """What reads each file that lies beside records below ``folders``, by name; the first of a name counts."""
    found: dict[str, Callable[[], bytes]] = {}
    for folder in folders:
        for place in places(folder):
            for name, read in place.files().items():
                found.setdefault(name, read)
    return found


def pack(folder: Path, file: Path) -> int:
    """Write the records below ``folder``, their predictions and contact sheets into one archive; -> how many records.

    The same files make the same bytes. Raises RecordError if there is no record, or a file that cannot be read as one.
    """
    records, errors = read_records([folder])
    if errors:
        raise errors[0]
    if not records:
        raise RecordError(f"no record in {folder}; there is nothing to pack")
    beside = files_beside([folder])
    wanted = {f"{r.run_id}.json" for r in records}
    wanted |= {Path(r.predictions.file).name for r in records if r.predictions is not None}
    wanted |= {f"contact-{r.data.fingerprint[:12]}.png" for r in records}
    publish(file, _packed({name: beside[name] for name in sorted(wanted) if name in beside}))
    return len(records)


def _packed(files: Mapping[str, Callable[[], bytes]]) -> bytes:
    """One archive, in which files of a kind stand together: predictions of the same images repeat each other."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz", format=tarfile.USTAR_FORMAT, preset=9) as archive:
        for name in sorted(files, key=lambda name: (os.path.splitext(name)[1], name)):
            content = files[name]()
            info = tarfile.TarInfo(name)  # owned by nobody, of no time: the same files make the same bytes
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _reader(path: Path) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            return content_of(path)
        except (OSError, ValueError) as error:
            raise RecordError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error

    return read


def _names_below(folder: Path) -> list[str]:
    """Paths, relative to ``folder``, of all files below it, and of folders that are named like a record."""
    found = []
    for place, folders, files in os.walk(folder):
        inside = os.path.relpath(place, folder)
        names = [*files, *(name for name in folders if _RECORD.fullmatch(name))]
        found += [name if inside == "." else os.path.join(inside, name) for name in names]
    return found
