"""What ``datasets`` wrote: parquet files, or the folder of ``save_to_disk``; memory-mapped, no image decoded.

Parquet is unpacked once into an Arrow file under the cache, named by the parquet files' sizes and times of change, for
parquet cannot be read image by image. The image column is found by its type and never by its name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from clipdg.core.errors import DataError
from clipdg.data.rows.file_facts import Memory, cannot_be_read, is_settled, state
from clipdg.data.rows.table import no_column
from clipdg.storage import cache_folder
from clipdg.storage.publish import digest

_BATCH = 100  # images that are in memory at a time while they are hashed


class ArrowTable:
    """A ``datasets.Dataset``; ``files``: those that its content depends on."""

    def __init__(
        self, data: Any, where: str, files: Sequence[Path], provenance: Mapping[str, object] | None = None
    ) -> None:
        self.where, self.files = where, tuple(files)
        self.provenance: Mapping[str, object] = provenance or {}
        assert data._indices is None  # rows of the table are rows of the data set
        self._data = data
        self._image = image_column(data.features, where)
        self._cells = data.data.column(self._image)
        self._ends = np.cumsum([len(chunk) for chunk in self._cells.chunks])
        own = tuple(name for name in data.column_names if name != self._image)
        self.columns = own if "path" in own or self._paths is None else (*own, "path")

    def __len__(self) -> int:
        return len(self._data)

    def column(self, name: str) -> np.ndarray | list[str]:
        if name not in self.columns:
            raise no_column(self.where, name, self.columns)
        if name == "path" and name not in self._data.column_names:
            assert self._paths is not None
            return self._paths
        return values(self._data.data.column(name), name, self.where)

    def names(self, name: str) -> tuple[str, ...] | None:
        self.column(name)
        return class_names(self._data.features.get(name))

    def at(self, index: int) -> str:
        return f"{self.where}, row {index}"

    def read(self, index: int) -> bytes:
        chunk = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[chunk]) - len(self._cells.chunks[chunk])
        return stored_bytes(self._cells.chunks[chunk][index - start], self.at(index))

    def digests(self, indices: np.ndarray | None = None) -> tuple[str, ...]:
        return self._digests if indices is None else tuple(self._digests[i] for i in indices.tolist())

    @cached_property
    def _digests(self) -> tuple[str, ...]:
        try:
            now = state(*self.files)
        except OSError as error:
            raise cannot_be_read(error.filename, error) from error
        memory = Memory("digests", "\n".join(str(f.resolve()) for f in self.files))
        known = memory.recall("rows", now)
        if known is None:
            known = [hashlib.sha256(self.read(i)).hexdigest() for i in range(len(self))]
            memory.keep({"rows": (now, known)})
        return tuple(known)

    @cached_property
    def _paths(self) -> list[str] | None:
        return paths(self._cells)


def open_saved(folder: Path, split: str | None, *, joined: bool = False) -> ArrowTable:
    """A data set that ``save_to_disk`` wrote, or one split of it, or all of them ``joined``."""
    import datasets

    try:
        found = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder} cannot be opened as a saved data set: {first_line(error)}") from error
    where = str(folder)
    if isinstance(found, datasets.DatasetDict) and joined and split is None:
        try:
            found = datasets.concatenate_datasets(list(found.values()))
        except ValueError as error:  # other columns, or the same labels under other names
            raise DataError(f"{where}: its splits cannot be joined: {first_line(error)}") from error
    elif isinstance(found, datasets.DatasetDict):
        split = one_split(found, split, where)
        found, where = found[split], f"{where}, split {split}"
    return ArrowTable(found, where, [Path(file["filename"]) for file in found.cache_files])


def open_parquet(files: Sequence[Path], where: str, provenance: Mapping[str, object] | None = None) -> ArrowTable:
    """Parquet files of one split, in the order given."""
    import datasets

    try:
        now = state(*files)
    except OSError as error:
        raise cannot_be_read(error.filename, error) from error
    known = [[str(file.resolve()) for file in files], now if is_settled(now) else hashes(files)]
    kept = cache_folder.folder("arrow") / digest(known)[:16]
    try:
        with quiet():
            data = datasets.load_dataset(
                "parquet", data_files={"train": [str(f) for f in files]}, split="train", cache_dir=str(kept)
            )
    except Exception as error:  # datasets wraps whatever pyarrow raised, and pyarrow's errors are of many kinds
        raise DataError(f"{where} cannot be read as parquet: {first_line(error.__cause__ or error)}") from error
    return ArrowTable(data, where, files, provenance)


def hashes(files: Sequence[Path]) -> list[str]:
    found = []
    for file in files:
        with open(file, "rb") as content:
            found.append(hashlib.file_digest(content, "sha256").hexdigest())
    return found


def one_split(splits: Mapping[str, object], wanted: str | None, where: str) -> str:
    """``wanted``, or the only split that there is. Raises DataError naming those that there are."""
    if wanted is None and len(splits) == 1:
        return next(iter(splits))
    if wanted is None:
        raise DataError(f"{where} has the splits {', '.join(splits)}; name the one that is meant")
    if wanted not in splits:
        raise DataError(f"{where} has no split '{wanted}'; it has {', '.join(splits)}")
    return wanted


def image_column(features: Mapping[str, Any], where: str) -> str:
    """The column whose type is an image: datasets' own, its stored form {bytes, path}, else plain bytes."""
    import datasets

    def has(test: Any) -> list[str]:
        return [name for name, kind in features.items() if test(kind)]

    found = has(lambda kind: isinstance(kind, datasets.Image))
    found = found or has(lambda kind: isinstance(kind, dict) and set(kind) == {"bytes", "path"})
    found = found or has(lambda kind: getattr(kind, "dtype", None) in ("binary", "large_binary"))
    if len(found) != 1:
        what = f"{len(found)} columns of images ({', '.join(found)})" if found else "no column of images"
        raise DataError(f"{where} has {what}; its columns are {', '.join(features)}")
    return found[0]


def class_names(feature: Any) -> tuple[str, ...] | None:
    import datasets

    return tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def values(column: Any, name: str, where: str) -> np.ndarray | list[str]:
    """A column of Arrow as numbers or texts."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()
        raise DataError(f"{where}, row {row}: '{name}' has no value ({column.null_count} such rows)")
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        numbers: np.ndarray = column.to_numpy()
        return numbers
    found: list[str] = column.to_pylist()
    if found and not isinstance(found[0], str):
        raise DataError(f"{where}: column '{name}' holds {kind}, neither numbers nor texts")
    return found


def stored_bytes(cell: Any, where: str) -> bytes:
    """The bytes in one cell of an image column."""
    value = cell.as_py()
    content = value.get("bytes") if isinstance(value, dict) else value
    if content is None:
        path = value.get("path") if isinstance(value, dict) else None
        raise DataError(f"{where} has no image" + (f", only its path {path}; save the data set anew" if path else ""))
    return bytes(content)


def paths(cells: Any) -> list[str] | None:
    """The path that each image of a column was made from; None if any is missing."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_struct(cells.type) or cells.type.get_field_index("path") < 0:
        return None
    found = pc.struct_field(cells, "path")
    return None if not len(found) or found.null_count else [path.replace("\\", "/") for path in found.to_pylist()]


def first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def quiet() -> Iterator[None]:
    """Without datasets' progress bars; only the command line prints."""
    import datasets

    shown = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not shown:
            datasets.enable_progress_bars()
