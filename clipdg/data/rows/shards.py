"""webdataset shards: .tar files in which ``key.jpg``, ``key.cls`` and ``key.json`` are one sample. Nothing is unpacked.

A shard is gone through once; where its members lie is remembered by its size and times of change, and an image is then
read by a seek. Refused: links and devices, sparse members, members over the sizes below, two images with one key, a
label without an image, a shard that is cut. Ignored, as in a folder: names that begin with a dot, ``__MACOSX``, files
beside the images that are neither (README.txt, Thumbs.db).

Columns: "__key__"; "path", the image's name in the shard; "cls", numbers if all are; "json.FIELD" for every field of
the samples' JSON; "txt".
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clipdg.core.errors import DataError
from clipdg.data.decode import ENDINGS
from clipdg.data.rows.file_facts import Memory, State, cannot_be_read, state
from clipdg.data.rows.folder import in_threads
from clipdg.data.rows.table import no_column

MAX_IMAGE = 2**28  # bytes; the largest image of ImageNet-1k has 15 MB
MAX_SIDECAR = 2**20
_SIDECARS = ("cls", "json", "txt")
_BLOCK = 512  # bytes; a tar file ends in blocks of zeros


class _Sample(NamedTuple):
    key: str
    path: str
    offset: int
    size: int
    beside: dict[str, str]  # ending -> text


class ShardTable:
    """Samples of several shards, one shard after the other, in the order they were written."""

    def __init__(self, shards: Sequence[Path], where: str, provenance: Mapping[str, object] | None = None) -> None:
        self.shards, self.where = tuple(shards), where
        self.provenance: Mapping[str, object] = provenance or {}
        self._states = [_state(shard) for shard in self.shards]
        found = in_threads(self._index, range(len(self.shards)), chunk=1)
        self._samples = [sample for samples in found for sample in samples]
        self._shard = np.repeat(np.arange(len(self.shards)), [len(samples) for samples in found])
        if not self._samples:
            raise DataError(f"{where} has no image; read are {', '.join(ENDINGS)}")
        first = {"__key__", "path"}
        fields = {name for sample in self._samples for name in _fields(sample)}
        self.columns = ("__key__", "path", *sorted(fields - first))

    def __len__(self) -> int:
        return len(self._samples)

    def column(self, name: str) -> np.ndarray | list[str]:
        if name not in self.columns:
            raise no_column(self.where, name, self.columns)
        if name == "__key__":
            return [sample.key for sample in self._samples]
        if name == "path":
            return [sample.path for sample in self._samples]
        found = [_fields(sample).get(name) for sample in self._samples]
        for row, value in enumerate(found):
            if value is None or isinstance(value, list | dict):
                what = "has no" if value is None else "holds several values in its"
                raise DataError(f"{self.at(row)} {what} '{name}'")
        if all(isinstance(value, int | float) for value in found):
            return np.array(found)
        if name == "cls" and all(re.fullmatch(r"-?\d{1,18}", str(value)) for value in found):
            return np.array([int(str(value)) for value in found], dtype=np.int64)
        return [str(value) for value in found]

    def names(self, name: str) -> None:
        self.column(name)

    def at(self, index: int) -> str:
        return f"{self.shards[self._shard[index]]}: {self._samples[index].path}"

    def read(self, index: int) -> bytes:
        sample = self._samples[index]
        try:
            with open(self.shards[self._shard[index]], "rb") as file:
                file.seek(sample.offset)
                content = file.read(sample.size)
        except OSError as error:
            raise cannot_be_read(self.at(index), error) from error
        if len(content) < sample.size:
            raise DataError(f"{self.at(index)} is cut: the shard has changed since it was opened")
        return content

    def digests(self, indices: np.ndarray | None = None) -> tuple[str, ...]:
        if indices is None:
            return tuple(d for number in range(len(self.shards)) for d in self._digests_of(number))
        starts = np.searchsorted(self._shard, np.arange(len(self.shards)))
        shards = self._shard[indices]
        known = {number: self._digests_of(number) for number in np.unique(shards).tolist()}
        return tuple(
            known[number][row - starts[number]] for number, row in zip(shards.tolist(), indices.tolist(), strict=True)
        )

    def _digests_of(self, number: int) -> list[str]:
        memory, now = Memory("digests", self.shards[number]), self._states[number]
        known: list[str] | None = memory.recall("rows", now)
        if known is None:
            rows = np.flatnonzero(self._shard == number).tolist()
            known = in_threads(lambda row: hashlib.sha256(self.read(row)).hexdigest(), rows)
            memory.keep({"rows": (now, known)})
        return known

    def _index(self, number: int) -> list[_Sample]:
        memory, now = Memory("shards", self.shards[number]), self._states[number]
        known = memory.recall("samples", now)
        if known is not None:
            return [_Sample(*sample) for sample in known]
        found = _samples(self.shards[number])
        memory.keep({"samples": (now, [list(sample) for sample in found])})
        return found


def open_shards(files: Sequence[Path], where: str, provenance: Mapping[str, object] | None = None) -> ShardTable:
    """The shards of one split; "2.tar" comes before "10.tar"."""
    return ShardTable(sorted(files, key=_by_number), where, provenance)


def _by_number(file: Path) -> list[tuple[bool, int, str]]:
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", str(file))]


def _state(shard: Path) -> State:
    try:
        return state(shard)
    except OSError as error:
        raise cannot_be_read(shard, error) from error


@dataclass
class _Group:
    """The members with one key."""

    image: tarfile.TarInfo | None = None
    beside: dict[str, str] = field(default_factory=dict)


def _samples(shard: Path) -> list[_Sample]:
    groups: dict[str, _Group] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                _add(archive, member, groups, shard)
            _check_end(archive)
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{shard} is not a whole, uncompressed .tar file: {error}") from error
    found = []
    for key, group in groups.items():
        if group.image is not None:
            image = group.image
            found.append(_Sample(key, _plain(image.name), image.offset_data, image.size, group.beside))
        elif "cls" in group.beside:
            raise DataError(f"{shard}: {key}.cls is a label without an image beside it ({', '.join(ENDINGS)})")
    return found


def _add(archive: tarfile.TarFile, member: tarfile.TarInfo, groups: dict[str, _Group], shard: Path) -> None:
    name = _plain(member.name)
    if member.isdir() or any(part.startswith(".") or part == "__MACOSX" for part in name.split("/") if part != ".."):
        return
    where = f"{shard}: {member.name}"
    if not member.isreg() or member.issparse():
        raise DataError(f"{where} is a link, a device or a sparse file; only plain files are read")
    if name.startswith("/") or ".." in name.split("/"):
        raise DataError(f"{where} is no name inside an archive")
    folder, _, base = name.rpartition("/")
    stem, _, ending = base.partition(".")  # webdataset's rule: up to the first dot
    ending = ending.lower()
    is_image = os.path.splitext(base)[1].lower() in ENDINGS
    if not is_image and ending not in _SIDECARS:
        return
    group = groups.setdefault(f"{folder}/{stem}" if folder else stem, _Group())
    limit = MAX_IMAGE if is_image else MAX_SIDECAR
    if member.size > limit:
        raise DataError(f"{where} has {member.size:,} bytes, more than {limit:,}")
    if is_image:
        if group.image is not None:
            raise DataError(f"{where} and {group.image.name} have the same key")
        group.image = member
    else:
        content = archive.extractfile(member)
        assert content is not None
        try:
            group.beside[ending] = content.read().decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{where} is not text in UTF-8: {error}") from error


def _check_end(archive: tarfile.TarFile) -> None:
    """A shard that was cut between two samples looks like a smaller one, but for the zeros at its end."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(_BLOCK) != b"\0" * _BLOCK:
        raise tarfile.ReadError(f"its end mark is missing at {archive.offset:,}")


def _plain(name: str) -> str:
    """Without the "./" that tar puts in front."""
    while name.startswith("./"):
        name = name[2:]
    return name


def _fields(sample: _Sample) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for ending, text in sample.beside.items():
        if ending == "json":
            try:
                content = json.loads(text)
            except ValueError as error:
                raise DataError(f"{sample.key}.json is not JSON: {error}") from error
            if isinstance(content, dict):
                found |= {f"json.{key}": value for key, value in content.items()}
        else:
            found[ending] = text.strip()
    return found
