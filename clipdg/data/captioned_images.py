"""Image-text pairs for pre-training: from a folder, a Hugging Face data set or webdataset shards.

What is missing or is no image is named with its file; a caption is never made up.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipdg.core.download_source import Hub
from clipdg.core.errors import DataError
from clipdg.core.model import Preprocessing
from clipdg.data.decode import ENDINGS, decode
from clipdg.data.preprocessing import to_uint8
from clipdg.data.rows import Table, open_table
from clipdg.data.rows.shards import open_shards
from clipdg.storage.publish import canonical

IN_MEMORY = 512 * 2**20  # bytes of decoded images; more are decoded anew in each epoch


class ImageTextPairs:
    """Images with a caption each, as uint8 (3, S, S); few are decoded once and kept, many whenever they are asked for.

    ``digest`` is over the stored bytes of all images and the captions.
    """

    def __init__(
        self, captions: Sequence[str], read: Callable[[int], Tensor], digest: str, pixels: Tensor | None = None
    ) -> None:
        self.captions, self.digest = list(captions), digest
        self._read, self._pixels = read, pixels

    def __len__(self) -> int:
        return len(self.captions)

    def images(self, indices: Tensor) -> Tensor:
        """(N,) -> (N, 3, S, S) uint8, channels_last in memory. Raises DataError naming an image that is none."""
        if self._pixels is not None:
            return self._pixels[indices]
        with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:  # Pillow releases the GIL
            return torch.stack(list(pool.map(self._read, indices.tolist()))).contiguous(
                memory_format=torch.channels_last
            )


@dataclass(frozen=True)
class Source:
    """Where pairs come from: either pixels that are drawn already, or stored image files and how to read one."""

    captions: Sequence[str]
    names: Sequence[str] = ()
    read: Callable[[int], bytes] | None = None
    pixels: np.ndarray[Any, np.dtype[np.uint8]] | None = None  # (N, S, S, 3)

    def pairs(self, spec: Preprocessing) -> ImageTextPairs:
        """The pairs at a backbone's size. Every file's kind is checked here; in memory, every image is decoded."""
        sha = hashlib.sha256(canonical(list(self.captions)))
        if self.pixels is not None:
            assert self.pixels.shape[1:] == (spec.size, spec.size, 3)
            sha.update(np.ascontiguousarray(self.pixels).data)
            pixels = torch.from_numpy(self.pixels).permute(0, 3, 1, 2)  # a view: channels_last
            return ImageTextPairs(self.captions, lambda i: pixels[i], sha.hexdigest(), pixels)
        file, names = self.read, self.names
        assert file is not None

        def image(index: int) -> Tensor:
            return to_uint8(decode(file(index), names[index]), spec)

        num = len(self.captions)
        few = num * 3 * spec.size**2 <= IN_MEMORY
        kept = torch.empty((num, 3, spec.size, spec.size) if few else (0,), dtype=torch.uint8)
        if few:
            kept = kept.contiguous(memory_format=torch.channels_last)
        for i in range(num):
            content = file(i)
            sha.update(hashlib.sha256(content).digest())
            if few:
                kept[i] = to_uint8(decode(content, names[i]), spec)
            elif not content:
                raise DataError(f"{names[i]} is empty: 0 bytes")
        return ImageTextPairs(self.captions, image, sha.hexdigest(), kept if few else None)


def from_folder(root: str) -> Source:
    """``x.jpg`` beside ``x.txt``, or a metadata.csv or metadata.jsonl of file_name and text (or caption)."""
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DataError(f"no folder {root}")
    metadata = [folder / name for name in ("metadata.csv", "metadata.jsonl") if (folder / name).is_file()]
    if len(metadata) > 1:
        raise DataError(f"{root} has both metadata.csv and metadata.jsonl; remove the one that is not meant")
    listed = _from_metadata(folder, metadata[0]) if metadata else _from_neighbours(folder)
    paths = [folder / name for name, _ in listed]
    return Source(
        [_caption(text, str(folder / name)) for name, text in listed],
        [str(p) for p in paths],
        lambda i: _bytes(paths[i]),
    )


def _from_neighbours(folder: Path) -> list[tuple[str, str]]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    images = [p for p in files if p.suffix.lower() in ENDINGS]
    stems = {p.with_suffix("") for p in images}
    for p in files:
        if p.suffix == ".txt" and p.with_suffix("") not in stems:
            raise DataError(f"{p} is a caption without an image beside it ({', '.join(ENDINGS)})")
    listed = []
    for p in images:
        caption = p.with_suffix(".txt")
        if not caption.is_file():
            raise DataError(
                f"{p} has no caption: there is no {caption.name} beside it, nor a metadata file in {folder}"
            )
        listed.append((p.relative_to(folder).as_posix(), _text(_bytes(caption), str(caption))))
    return listed


def _from_metadata(folder: Path, path: Path) -> list[tuple[str, str]]:
    text = _text(_bytes(path), str(path)).removeprefix("\ufeff")
    try:
        if path.suffix == ".csv":
            rows: list[Any] = list(csv.DictReader(text.splitlines(keepends=True)))
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (csv.Error, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    listed = []
    for number, row in enumerate(rows, start=2 if path.suffix == ".csv" else 1):
        name = row.get("file_name") if isinstance(row, dict) else None
        if not isinstance(name, str) or not name:
            raise DataError(f"{path}, row {number}: no file_name")
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise DataError(f"{path}, row {number}: {name} lies outside the folder")
        if not (folder / name).is_file():
            raise DataError(f"{path}, row {number}: there is no {folder / name}")
        listed.append((name, row["text"] if "text" in row else row.get("caption")))
    return listed


def from_datasets(root: str) -> Source:
    """A saved Hugging Face dataset, parquet, or one on the hub, with a column called text or caption; of splits, train.

    Images are found by their type, see ``rows.arrow``.
    """
    place = Path(root).expanduser()
    table = open_table(place if place.exists() else None, Hub(root, split="train"))
    texts = [name for name in ("text", "caption") if name in table.columns]
    if not texts:
        raise DataError(
            f"{root} has no captions: needed is a column called text or caption, and it has "
            f"{', '.join(table.columns) or 'images only'}"
        )
    return _from_table(table, texts[0])


def from_webdataset(root: str) -> Source:
    """One .tar or a folder of them; ``key.jpg`` and ``key.txt`` are a pair. Images are read in place, not unpacked."""
    place = Path(root).expanduser()
    files = [place] if place.is_file() else sorted(place.glob("*.tar"))
    if not files:
        raise DataError(f"{root} is neither a .tar file nor a folder that has some")
    table = open_shards(files, root)
    if "txt" not in table.columns:
        raise DataError(f"{root} has no captions: no image has a .txt beside it")
    return _from_table(table, "txt")


def _from_table(table: Table, captions: str) -> Source:
    names = [table.at(i) for i in range(len(table))]
    texts = [str(text) for text in table.column(captions)]
    return Source([_caption(text, name) for text, name in zip(texts, names, strict=True)], names, table.read)


def _caption(text: object, name: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{name} has no caption")
    return text.strip()


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not text in UTF-8: {error}") from error
