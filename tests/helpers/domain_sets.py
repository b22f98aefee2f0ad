"""Tiny copies of the DomainBed data sets in each layout in which people have them; every image differs from all others.

A sample is (domain, class, file name); ``picture`` gives its bytes, so that a test knows the pixels of every id.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from clipdg.benchmarks._domains import DomainSet

FOLDERS = {  # what DomainBed's download.py calls the domains
    "art_painting": "art_painting", "caltech101": "Caltech101", "labelme": "LabelMe", "sun09": "SUN09",
    "voc2007": "VOC2007", "art": "Art", "clipart": "Clipart", "product": "Product", "real_world": "Real World",
}  # fmt: skip


class Sample(NamedTuple):
    domain: str
    folder: str
    file: str


def samples(data: DomainSet, per_class: int = 3) -> list[Sample]:
    """``per_class`` images of every class and domain, in ImageFolder's order."""
    return [
        Sample(member.name, folder, f"pic_{i:03}.png")
        for member in data.members
        for folder in data.classes
        for i in range(per_class)
    ]


def colour(sample: Sample) -> tuple[int, int, int]:
    code = zlib.crc32("/".join(sample).encode())
    return code & 255, code >> 8 & 255, code >> 16 & 255


def picture(sample: Sample) -> bytes:
    pixels = np.zeros((6, 8, 3), np.uint8)
    pixels[:] = colour(sample)
    pixels[0, 0] = np.frombuffer(zlib.crc32(b"x" + "/".join(sample).encode()).to_bytes(4, "big")[:3], np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def put(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def tree(root: Path, chosen: Sequence[Sample], litter: bool = True) -> Path:
    """DomainBed's layout: domain/class/file, beside what systems leave lying about."""
    for sample in chosen:
        put(root / FOLDERS.get(sample.domain, sample.domain) / sample.folder / sample.file, picture(sample))
    if litter:
        first = root / FOLDERS.get(chosen[0].domain, chosen[0].domain)
        put(first / chosen[0].folder / "Thumbs.db", b"no image")
        put(first / ".DS_Store", b"no image")
        put(root / "__MACOSX" / first.name / chosen[0].folder / "._pic_000.png", b"no image")
        put(root / "README.txt", "no image")
    return root


def kfold(root: Path, data: DomainSet, chosen: Sequence[Sample]) -> Path:
    """Dassl's PACS: images/domain/class/file and splits/domain_part_kfold.txt, classes numbered from 1.

    The first image of a class is for cross-validation, the others for training.
    """
    assert data.dassl is not None
    tree(root / "images", chosen, litter=False)
    folders = list(data.classes)
    for member in data.members:
        parts: dict[str, list[str]] = {"train": [], "crossval": [], "test": []}
        seen: set[str] = set()
        for sample in (s for s in chosen if s.domain == member.name):
            line = f"{sample.domain}/{sample.folder}/{sample.file} {folders.index(sample.folder) + data.dassl.first}"
            parts["train" if sample.folder in seen else "crossval"].append(line)
            parts["test"].append(line)
            seen.add(sample.folder)
        for part, lines in parts.items():
            put(root / "splits" / f"{member.name}_{part}_kfold.txt", "\n".join(lines) + "\n")
    return root


def split_folders(root: Path, chosen: Sequence[Sample], parts: Sequence[str], names: dict[str, str]) -> Path:
    """Dassl's VLCS and OfficeHomeDG: DOMAIN/part/class/file, images dealt to the parts in turn."""
    for place, sample in enumerate(chosen):
        part = parts[place % len(parts)]
        put(root / names.get(sample.domain, sample.domain) / part / sample.folder / sample.file, picture(sample))
    return root


def parquet(
    root: Path, chosen: Sequence[Sample], classes: Sequence[str], domains: Sequence[str] | None, *, named: bool = True,
    file: str = "train-00000-of-00001.parquet",
) -> Path:  # fmt: skip
    """A parquet file as the hub has it, with a ClassLabel in the order of ``classes``.

    ``domains``: the order of the domains' ClassLabel; None for texts. ``named``: whether images keep their file names.
    """
    import datasets

    features = datasets.Features(
        {
            "image": datasets.Image(),
            "domain": datasets.Value("string") if domains is None else datasets.ClassLabel(names=list(domains)),
            "label": datasets.ClassLabel(names=list(classes)),
        }
    )
    table = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": picture(s), "path": s.file if named else None} for s in chosen],
            "domain": [s.domain if domains is None else list(domains).index(s.domain) for s in chosen],
            "label": [list(classes).index(s.folder) for s in chosen],
        },
        features=features,
    )
    root.mkdir(parents=True, exist_ok=True)
    table.to_parquet(str(root / file))
    return root


def saved(root: Path, chosen: Sequence[Sample], classes: Sequence[str]) -> Path:
    """What ``save_to_disk`` writes."""
    import datasets

    parquet(root / "parquet", chosen, classes, None)
    found = datasets.Dataset.from_parquet(
        str(root / "parquet" / "train-00000-of-00001.parquet"), cache_dir=str(root / "cache")
    )
    found.save_to_disk(str(root / "saved"))
    return root / "saved"


def shards(root: Path, chosen: Sequence[Sample]) -> Path:
    """Two webdataset shards whose keys are paths: "domain/class/file"."""
    root.mkdir(parents=True, exist_ok=True)
    half = len(chosen) // 2
    for number, part in enumerate((chosen[:half], chosen[half:])):
        with tarfile.open(root / f"{number}.tar", "w") as tar:
            for sample in part:
                content = picture(sample)
                member = tarfile.TarInfo("/".join(sample))
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return root


def mnist(num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(num, 28, 28) uint8 with a margin, as MNIST has, and (num,) digits."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((num, 28, 28), np.uint8)
    pixels[:, 6:22, 6:22] = rng.integers(0, 256, (num, 16, 16))
    return pixels, rng.integers(0, 10, num).astype(np.uint8)


def idx(root: Path, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], packed: bool) -> Path:
    """MNIST's own four files."""
    for part, (pixels, labels) in (("train", train), ("t10k", test)):
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            content = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
            name = f"{part}-{kind}-ubyte"
            put(root / (f"{name}.gz" if packed else name), gzip.compress(content) if packed else content)
    return root


def mnist_parquet(root: Path, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> Path:
    """The hub's two parquet files."""
    import datasets

    for part, (pixels, labels) in (("train", train), ("test", test)):
        buffers = []
        for image in pixels:
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            buffers.append({"bytes": buffer.getvalue(), "path": None})
        features = datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(d) for d in range(10)])}
        )
        table = datasets.Dataset.from_dict({"image": buffers, "label": labels.tolist()}, features=features)
        (root / "mnist").mkdir(parents=True, exist_ok=True)
        table.to_parquet(str(root / "mnist" / f"{part}-00000-of-00001.parquet"))
    return root
