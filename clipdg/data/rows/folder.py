"""Image files below a folder, in whatever layout: their paths say the domain and the class.

Which files count, so that a count can be checked: those whose ending, in any case, is one of ``images.ENDINGS``, at any
depth. Ignored: names that begin with a dot, ``__MACOSX``, and files with other endings (README.txt, Thumbs.db).
Refused, and named: a file with such an ending whose first bytes are no image's, and an image of a kind that is not
read here (.heic, .ppm), since leaving images out unasked would change the data set.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np

from clipdg.core.errors import DataError
from clipdg.data import decode
from clipdg.data.rows.file_facts import Memory, State, cannot_be_read, state
from clipdg.data.rows.table import no_column

NOT_READ = (".avif", ".heic", ".heif", ".jp2", ".jxl", ".pbm", ".pgm", ".pnm", ".ppm", ".psd", ".svg", ".tga")
_HEAD = 32  # bytes that tell an image's format
_CHUNK = 256  # files a thread takes at a time

_looks: ContextVar[bool] = ContextVar("looks", default=True)

Item = TypeVar("Item")
Result = TypeVar("Result")


class FolderTable:
    """Image files below ``root``: N paths relative to it with ``/`` between their parts, the column "path".

    ``listed``: N texts by the name of a column, from the file ``where`` that lists them.
    """

    def __init__(
        self, root: Path, files: Sequence[str], listed: Mapping[str, Sequence[str]] | None = None, where: str = ""
    ) -> None:
        self.root, self.where = root, where or str(root)
        self.files = tuple(files)
        self._listed = dict(listed or {})
        self._memory = Memory("digests", root)
        self.columns = ("path", *(name for name in self._listed if name != "path"))
        self.provenance: Mapping[str, object] = {}

    def __len__(self) -> int:
        return len(self.files)

    def column(self, name: str) -> np.ndarray | list[str]:
        if name not in self.columns:
            raise no_column(self.where, name, self.columns)
        texts = list(self.files) if name == "path" else list(self._listed[name])
        if all(re.fullmatch(r"-?\d{1,18}", text) for text in texts):
            return np.array([int(text) for text in texts], dtype=np.int64)
        for row, text in enumerate(texts):
            if not text.strip():
                raise DataError(f"{self.where}, row {row}: '{name}' has no value")
        return texts

    def names(self, name: str) -> None:
        self.column(name)

    def at(self, index: int) -> str:
        return str(self.root / self.files[index])

    def read(self, index: int) -> bytes:
        try:
            return (self.root / self.files[index]).read_bytes()
        except OSError as error:
            raise cannot_be_read(self.at(index), error) from error

    def check_heads(self, indices: np.ndarray | None = None) -> None:
        """Raises DataError naming the first file that is no image, and how many there are."""
        chosen = range(len(self)) if indices is None else indices.tolist()
        found = in_threads(self._refusal, chosen)
        bad = [(index, reason) for index, reason in zip(chosen, found, strict=True) if reason is not None]
        if bad:
            index, reason = bad[0]
            more = f" (and {len(bad) - 1} more such files in {self.root})" if len(bad) > 1 else ""
            raise DataError(f"{self.at(index)} {reason}{more}")

    def _refusal(self, index: int) -> str | None:
        try:
            handle = os.open(f"{self.root}{os.sep}{self.files[index]}", os.O_RDONLY)
            try:
                return decode.not_an_image(os.read(handle, _HEAD))
            finally:
                os.close(handle)
        except OSError as error:
            return f"cannot be read: {error.strerror or error}"

    def digests(self, indices: np.ndarray | None = None) -> tuple[str, ...]:
        prefix, recall = f"{self.root}{os.sep}", self._memory.recall

        def of(index: int) -> tuple[State, str]:
            file = self.files[index]
            try:
                now = state(prefix + file)
            except OSError as error:
                raise cannot_be_read(self.at(index), error) from error
            known = recall(file, now)
            return now, known if isinstance(known, str) else hashlib.sha256(self.read(index)).hexdigest()

        chosen = range(len(self)) if indices is None else indices.tolist()
        found = in_threads(of, chosen)
        self._memory.keep({self.files[i]: one for i, one in zip(chosen, found, strict=True)})
        return tuple(digest for _, digest in found)


def open_folder(root: Path, below: Sequence[str] = ("",)) -> FolderTable:
    """The images below ``root``, or below some of its sub-folders, sorted by folder and then by file name.

    Every file's first bytes are looked at, none is decoded; within ``unlooked``, not even these.

    Raises:
        DataError: a file that is no image, a pipe, a name that is not UTF-8 or breaks a line, a link in a circle; no
            image at all.
    """
    files = [f"{sub}/{name}".lstrip("/") for top in below for sub, name in sorted(_files(root / top, top, ()))]
    if not files:
        raise DataError(f"no image in {root}; read are {', '.join(decode.ENDINGS)}")
    table = FolderTable(root, files)
    if looks():
        table.check_heads()
    return table


def looks() -> bool:
    """Whether folders are looked into when they are opened."""
    return _looks.get()


@contextmanager
def unlooked() -> Iterator[None]:
    """Folders opened in here are not looked into: a list of what to leave out is still to come, or a full check."""
    token = _looks.set(False)
    try:
        yield
    finally:
        _looks.reset(token)


def open_listed(file: Path, path_column: str = "path") -> FolderTable:
    """The images that a CSV lists, one row each: ``path_column`` is relative to the CSV's folder, the rest are columns.

    Raises:
        DataError: the CSV cannot be read, has no such column or an image twice; a path leads out of the folder; a file
            is not there or is no image.
    """
    try:
        with open(file, encoding="utf-8-sig", newline="") as content:
            reader = csv.DictReader(content, strict=True)
            rows = list(reader)
            names = list(reader.fieldnames or ())
    except OSError as error:
        raise cannot_be_read(file, error) from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as CSV in UTF-8: {error}") from error
    if path_column not in names:
        raise no_column(str(file), path_column, names)
    seen: dict[str, int] = {}
    for line, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise DataError(f"{file}, line {line} does not have the {len(names)} columns {', '.join(names)}")
        path = row[path_column]
        if not path or path.startswith("/") or ".." in path.split("/"):
            raise DataError(f"{file}, line {line}: '{path}' is no path inside {file.parent}")
        if path in seen:
            raise DataError(f"{file}, line {line}: {path} stands in line {seen[path]} already")
        seen[path] = line
    if not rows:
        raise DataError(f"{file} lists no image")
    table = FolderTable(file.parent, list(seen), {name: [row[name] for row in rows] for name in names}, str(file))
    if looks():
        table.check_heads()
    return table


def folders(path: Path) -> tuple[str, ...]:
    """The sub-folders that may hold images, sorted."""
    try:
        with os.scandir(path) as entries:
            names = sorted(e.name for e in entries if not _is_ignored(e.name) and e.is_dir())
    except OSError as error:
        raise cannot_be_read(path, error) from error
    for name in names:
        _check_name(path, name)
    return tuple(names)


def strays(path: Path) -> list[str]:
    """The names of the images that lie in a folder itself, sorted."""
    try:
        with os.scandir(path) as entries:
            return sorted(e.name for e in entries if not _is_ignored(e.name) and _is_image(e.name) and e.is_file())
    except OSError as error:
        raise cannot_be_read(path, error) from error


def in_threads(call: Callable[[Item], Result], items: Sequence[Item], chunk: int = _CHUNK) -> list[Result]:
    """``call`` of each, in order: what waits for a disk or hashes goes on in other threads, ``chunk`` at a time."""
    chunks = [items[i : i + chunk] for i in range(0, len(items), chunk)]
    with ThreadPoolExecutor() as pool:
        return list(chain.from_iterable(pool.map(lambda chunk: [call(item) for item in chunk], chunks)))


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in decode.ENDINGS


def _check_name(path: Path, name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"a name in {path} is not UTF-8: {os.fsencode(name)!r}; rename it, for ids are written as text"
        ) from None
    if not name.isprintable() and any(ord(character) < 32 for character in name):
        raise DataError(
            f"a name in {path} has a line break or another control character: {name!r}; rename it, for lists of ids "
            "have one a line"
        )


def _files(path: Path, sub: str, above: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(sub-folder, file name) of the images in and below ``path``; sorted, they are in ImageFolder's order."""
    real = os.path.realpath(path)
    if real in above:
        raise DataError(f"{path} is a link back to {real}, which it lies in; remove it")
    below = []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                name = entry.name
                if _is_ignored(name):
                    continue
                ending = os.path.splitext(name)[1].lower()
                if entry.is_dir():
                    below.append(name)
                elif ending in decode.ENDINGS:
                    _check_name(path, name)
                    if not entry.is_file() and os.path.exists(path / name):
                        raise DataError(f"{path / name} is a pipe or a device and no file; remove it")
                    yield sub, name
                elif ending in NOT_READ:
                    raise DataError(
                        f"{path / name} is an image of a kind that is not read here; convert it to PNG or remove it"
                    )
    except OSError as error:
        raise cannot_be_read(path, error) from error
    for name in below:
        _check_name(path, name)
        yield from _files(path / name, f"{sub}/{name}" if sub else name, (*above, real))
