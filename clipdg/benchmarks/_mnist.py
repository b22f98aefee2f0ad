"""Read MNIST's 70,000 digits from wherever they lie: the training images, then the test images.

LeCun, Cortes & Burges, The MNIST database of handwritten digits, 1998. They may be the four idx files, packed with gzip
or not, in the folder itself or in ``raw`` or ``MNIST/raw``, where torchvision puts them. They may also be any table
with an image and a label, such as the hub's parquet.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipdg.benchmarks._digits import Digits
from clipdg.core.download_source import Hub, Source
from clipdg.core.errors import DataError
from clipdg.data import decode
from clipdg.data.rows import Table, open_table
from clipdg.storage import cache_folder
from clipdg.storage.publish import digest, publish

SIZE = 28
EXPECTED = {"train": 60_000, "test": 10_000}
_HUB = Hub("ylecun/mnist", "77f3279092a1c1579b2250db8eafed0ad422088c", config="mnist")
_HUBS = {split: replace(_HUB, split=split, data_files=(f"mnist/{split}-00000-of-00001.parquet",)) for split in EXPECTED}
SOURCE = Source(
    "MNIST",
    hubs=tuple(_HUBS.values()),
    terms="MNIST is under CC BY-SA 3.0; its copy on the hub says MIT.",
    steps="A local copy: benchmark.root=DIR with train-images-idx3-ubyte, train-labels-idx1-ubyte, "
    "t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, or with the hub's parquet files.",
)
CITATION = "LeCun, Cortes & Burges, The MNIST database of handwritten digits, 1998"
LICENCE = "CC BY-SA 3.0"
_SEAL = 32  # bytes of a SHA-256
_IDX = {"train": "train", "test": "t10k"}


def read(root: str | Path | None) -> tuple[Digits, dict[str, object], tuple[str, ...]]:
    """Read the digits. Returns them, where they come from, and where their numbers differ from the expected ones."""
    parts = {}
    origin: object = "local"
    folder = None if root is None else _idx_folder(Path(root).expanduser())
    for split, hub in _HUBS.items():
        if folder is not None:
            parts[split] = _from_idx(folder, _IDX[split])
        else:
            local = replace(hub, config=None, data_files=(f"**/{split}*.parquet",))
            table = open_table(root, hub if root is None else local)
            parts[split] = _from_table(table)
            origin = {key: table.provenance[key] for key in ("repository", "revision") if table.provenance} or "local"
    remarks = tuple(
        f"MNIST's {split} part has {len(part.labels):,} images, expected are {EXPECTED[split]:,}."
        for split, part in parts.items()
        if len(part.labels) != EXPECTED[split]
    )
    digits = Digits(
        np.concatenate([part.images for part in parts.values()]),
        np.concatenate([part.labels for part in parts.values()]),
    )
    return digits, {"rows": origin}, remarks


def _idx_folder(root: Path) -> Path | None:
    """The folder with the idx files; None if there is none."""
    for folder in (root, root / "raw", root / "MNIST" / "raw"):
        if any((folder / f"train-images-idx3-ubyte{ending}").is_file() for ending in ("", ".gz")):
            return folder
    return None


def _from_idx(folder: Path, part: str) -> Digits:
    pixels = _idx(folder, f"{part}-images-idx3-ubyte", 3)
    labels = _idx(folder, f"{part}-labels-idx1-ubyte", 1)
    if len(pixels) != len(labels) or pixels.shape[1:] != (SIZE, SIZE):
        raise DataError(
            f"{folder}: {part} has {len(pixels)} images of {pixels.shape[1]}x{pixels.shape[2]} pixels and "
            f"{len(labels)} labels; expected are as many labels as images of {SIZE}x{SIZE}"
        )
    return Digits(pixels, _checked(labels.astype(np.int64), f"{folder}, {part}"))


def _idx(folder: Path, name: str, axes: int) -> NDArray[np.uint8]:
    """Read a file in idx format: two zeros, 8 for unsigned bytes, the number of axes, their lengths, the bytes."""
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), folder / name)
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    start = 4 + 4 * axes
    if len(content) < start or content[:4] != bytes([0, 0, 8, axes]):
        raise DataError(f"{path} is not an idx file of bytes with {axes} axes")
    shape = np.frombuffer(content, ">u4", axes, 4).astype(int)
    if len(content) - start != shape.prod():
        raise DataError(f"{path} is cut: {len(content) - start:,} bytes where its header promises {shape.prod():,}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _from_table(table: Table) -> Digits:
    names = table.names("label")
    labels = np.array([int(v) for v in table.column("label")], dtype=np.int64)
    if names is not None:
        if not all(name.isdigit() for name in names) or not ((labels >= 0) & (labels < len(names))).all():
            raise DataError(f"{table.where}: labels are not digits; the names are {', '.join(names[:10])}")
        labels = np.array([int(name) for name in names], dtype=np.int64)[labels]
    return Digits(_pixels(table), _checked(labels, table.where))


def _pixels(table: Table) -> NDArray[np.uint8]:
    """Decode all images once. The cache keeps them under a digest of their bytes, behind a SHA-256 of their own."""
    story = digest([decode.POLICY, list(table.digests())])
    path = cache_folder.folder("mnist", f"{story[:16]}.bin")
    shape = (len(table), SIZE, SIZE)
    try:
        kept = path.read_bytes()
    except OSError:
        kept = b""
    if len(kept) == _SEAL + len(table) * SIZE**2 and hashlib.sha256(kept[_SEAL:]).digest() == kept[:_SEAL]:
        return np.frombuffer(kept, np.uint8, offset=_SEAL).reshape(shape)
    pixels = np.empty(shape, np.uint8)
    for row in range(len(table)):
        image = decode.decode(table.read(row), table.at(row))
        if image.size != (SIZE, SIZE):
            raise DataError(f"{table.at(row)} has {image.width}x{image.height} pixels, not MNIST's {SIZE}x{SIZE}")
        pixels[row] = np.asarray(image)[..., 0]
    content = pixels.tobytes()
    publish(path, hashlib.sha256(content).digest() + content)
    return pixels


def _checked(labels: NDArray[np.int64], where: str) -> NDArray[np.int64]:
    """``labels`` itself. Raises DataError if one of them is no digit."""
    bad = np.flatnonzero((labels < 0) | (labels > 9))
    if len(bad):
        raise DataError(f"{where}: row {bad[0]} has label {labels[bad[0]]}, which is no digit")
    return labels
