"""Tiny data sets in the layouts that real ones have, so that every reader is tested end to end without a download.

``samples`` draws pictures; each writer lays the same bytes out in another way, and returns the folder that a user would
name. Files are written in the order of ``samples``, which ``shuffled`` permutes; ``litter`` adds what archives and
file managers leave behind. Shown from the repository's root, one folder a layout:

    python tests/helpers/layouts.py DIR
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ENDINGS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
# Alphabetical order, ImageNet's order and the order of the numbers as texts are all different here.
WNIDS = {"n01440764": 0, "n01443537": 1, "n01484850": 2, "n01614925": 22, "n02119789": 277}
LITTER = ("Thumbs.db", ".DS_Store", "README.txt", "__MACOSX/photo/dog/._1.jpg", "__MACOSX/._x.png")


@dataclass(frozen=True)
class Sample:
    """A stored picture; ``label`` is its class folder (a name or a wnid), ``name`` its file's."""

    domain: str
    label: str
    name: str
    content: bytes

    @property
    def path(self) -> str:
        return f"{self.domain}/{self.label}/{self.name}"


def picture(seed: int, kind: str = "JPEG", size: tuple[int, int] = (24, 18)) -> bytes:
    """Noise of its own for every seed, so that no two pictures have the same bytes or pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def samples(
    domains: Iterable[str] = ("photo", "sketch"),
    labels: Iterable[str] = ("dog", "elephant", "guitar"),
    each: int = 3,
    kind: str = "JPEG",
) -> list[Sample]:
    """``each`` pictures of every class in every domain, in DomainBed's order: by domain, class and file name."""
    found: list[Sample] = []
    for domain in domains:
        for label in labels:
            for number in range(each):
                name = f"pic_{number + 1:03d}.{ENDINGS[kind]}"  # the same name in every folder, as in PACS
                found.append(Sample(domain, label, name, picture(len(found), kind)))
    return found


def shuffled(given: Sequence[Sample], seed: int = 0) -> list[Sample]:
    return [given[i] for i in np.random.default_rng(seed).permutation(len(given))]


def classes(given: Iterable[Sample]) -> list[str]:
    return sorted({s.label for s in given})


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def litter(root: Path) -> Path:
    """What is in no data set and in many of its copies, beside the pictures and in every folder of them."""
    for folder in [root, *sorted(p for p in root.rglob("*") if p.is_dir())]:
        for name in LITTER[:3]:
            put(folder / name, b"\0\0\0\1Bud1 no image")
    for name in LITTER[3:]:
        put(root / name, b"\0\5\x16\7 no image")
    return root


# Folders


def domain_folders(root: Path, given: Sequence[Sample]) -> Path:
    """DomainBed: domain/class/file."""
    for s in given:
        put(root / s.path, s.content)
    return root


def class_folders(root: Path, given: Sequence[Sample]) -> Path:
    """ImageNet's validation set as torchvision wants it, ImageNet-A, -R, -Sketch: wnid/file."""
    for s in given:
        put(root / s.label / s.name, s.content)
    return root


def numbered_folders(root: Path, given: Sequence[Sample], numbers: Mapping[str, int]) -> Path:
    """ImageNet-V2: number/file, the number being ImageNet's, so that 10 sorts before 2."""
    for s in given:
        put(root / str(numbers[s.label]) / s.name.replace(".jpg", ".jpeg"), s.content)
    return root


def dassl(root: Path, given: Sequence[Sample]) -> Path:
    """Dassl's PACS: images/domain/class/file, and splits/DOMAIN_{train,crossval,test}_kfold.txt with labels from 1.

    Of every three images of a class one is for validation; the test list has them all, as in the original.
    """
    order = classes(given)
    lists: dict[str, list[str]] = {}
    counts: dict[tuple[str, str], int] = {}
    for s in given:
        put(root / "images" / s.path, s.content)
        line = f"{s.path} {order.index(s.label) + 1}"
        number = counts[s.domain, s.label] = counts.get((s.domain, s.label), 0) + 1
        lists.setdefault(f"{s.domain}_{'crossval' if number % 3 == 0 else 'train'}_kfold.txt", []).append(line)
        lists.setdefault(f"{s.domain}_test_kfold.txt", []).append(line)
    for name, lines in lists.items():
        put(root / "splits" / name, "\n".join(lines) + "\n")
    return root


def coop(root: Path, given: Sequence[Sample]) -> Path:
    """CoOp's split files: images/class/file, and split_zhou_NAME.json of [path, label, class name]."""
    order = classes(given)
    parts: dict[str, list[Any]] = {"train": [], "val": [], "test": []}
    for number, s in enumerate(given):
        put(root / "images" / s.label / f"{s.domain}_{s.name}", s.content)
        row = [f"{s.label}/{s.domain}_{s.name}", order.index(s.label), s.label.replace("_", " ")]
        parts[("train", "val", "test")[number % 3]].append(row)
    put(root / "split_zhou_Tiny.json", json.dumps(parts))
    return root


def wilds(root: Path, given: Sequence[Sample], columns: Sequence[str] = ("path", "label", "domain")) -> Path:
    """A metadata CSV beside the images, WILDS' way."""
    import csv

    order = classes(given)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    for number, s in enumerate(given):
        file = f"patches/{s.domain}_{s.label}_{s.name}"
        put(root / file, s.content)
        writer.writerow(
            {"path": file, "label": s.label, "y": order.index(s.label), "domain": s.domain,
             "split": ("train", "val", "test")[number % 3]}
        )  # fmt: skip
    put(root / "metadata.csv", text.getvalue())
    return root


# Hugging Face


def _dataset(given: Sequence[Sample], columns: Sequence[str], names: Sequence[str], domains: Sequence[str]) -> Any:
    import datasets

    kinds = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=list(names)),
        "domain": datasets.Value("string"),
        "domain_id": datasets.ClassLabel(names=list(domains)),
        "wnid": datasets.Value("string"),
        "class_name": datasets.Value("string"),
        "image_path": datasets.Value("string"),
    }
    cells = {
        "image": [{"bytes": s.content, "path": s.name} for s in given],
        "label": [list(names).index(s.label) for s in given],
        "domain": [s.domain for s in given],
        "domain_id": [list(domains).index(s.domain) for s in given],
        "wnid": [s.label for s in given],
        "class_name": [f"the {s.label}" for s in given],
        "image_path": [s.path for s in given],
    }
    # wltjr1007/DomainNet calls its numbered column "domain"
    called = {c: "domain" if c == "domain_id" else c for c in columns}
    features = datasets.Features({called[c]: kinds[c] for c in columns})
    return datasets.Dataset.from_dict({called[c]: cells[c] for c in columns}, features=features)


# The columns of flwrlabs/pacs, wltjr1007/DomainNet, axiong/imagenet-r and barkermrl/imagenet-a
PACS = ("image", "domain", "label")
DOMAIN_NET = ("image", "label", "domain_id", "image_path")
IMAGENET_R = ("image", "wnid", "class_name")
IMAGENET_A = ("image", "label")


def hub_parquet(
    root: Path,
    given: Sequence[Sample],
    columns: Sequence[str] = PACS,
    names: Sequence[str] | None = None,
    domains: Sequence[str] | None = None,
    split: str = "train",
    shards: int = 2,
) -> Path:
    """A repository of parquet: data/SPLIT-00000-of-00002.parquet; ``names`` and ``domains``: the order of the ids."""
    names = names or classes(given)
    domains = domains or sorted({s.domain for s in given})
    for shard in range(shards):
        part = given[shard * len(given) // shards : (shard + 1) * len(given) // shards]
        buffer = io.BytesIO()
        _dataset(part, columns, names, domains).to_parquet(buffer)
        put(root / "data" / f"{split}-{shard:05d}-of-{shards:05d}.parquet", buffer.getvalue())
    return root


def saved(
    root: Path,
    given: Sequence[Sample],
    columns: Sequence[str] = PACS,
    names: Sequence[str] | None = None,
    domains: Sequence[str] | None = None,
) -> Path:
    """A folder of ``save_to_disk``."""
    domains = domains or sorted({s.domain for s in given})
    _dataset(given, columns, names or classes(given), domains).save_to_disk(str(root), num_shards=2)
    return root


# webdataset


def tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def wds(
    root: Path, given: Sequence[Sample], names: Sequence[str] | None = None, split: str = "test", per_shard: int = 4
) -> Path:
    """clip-benchmark/wds_*: SPLIT/NUMBER.tar of s0000000.jpg and s0000000.cls, and three texts about the classes.

    The samples' json says what the real shards leave out, their domain.
    """
    names = names or classes(given)
    shards = [given[i : i + per_shard] for i in range(0, len(given), per_shard)]
    for shard, part in enumerate(shards):
        members: list[tuple[str, bytes]] = []
        for number, s in enumerate(part, start=shard * per_shard):
            members.append((f"s{number:07d}.cls", str(names.index(s.label)).encode()))
            members.append((f"s{number:07d}.{s.name.rpartition('.')[2]}", s.content))
            members.append((f"s{number:07d}.json", json.dumps({"domain": s.domain, "label": s.label}).encode()))
        tar(root / split / f"{shard}.tar", members)
    put(root / split / "nshards.txt", f"{len(shards)}\n")
    put(root / "classnames.txt", "\n".join(names) + "\n")
    put(root / "zeroshot_classification_templates.txt", "a photo of a {c}.\n")
    return root


def v2_tar(path: Path, given: Sequence[Sample], numbers: Mapping[str, int]) -> Path:
    """vaishaal/ImageNetV2, unzipped: one .tar, imagenetv2-…-format-val/NUMBER/HASH.jpeg, and no other label."""
    top = "imagenetv2-matched-frequency-format-val"
    members = [(f"{top}/{numbers[s.label]}/{s.name.replace('.jpg', '.jpeg')}", s.content) for s in given]
    return tar(path, [(f"{top}/.DS_Store", b"Bud1"), (f"{top}/README.txt", b"no image"), *members])


def main(root: Path) -> None:
    pictures = samples()
    by_wnid = samples(["imagenet"], WNIDS)
    litter(domain_folders(root / "domainbed", pictures))
    dassl(root / "dassl", pictures)
    coop(root / "coop", pictures)
    wilds(root / "wilds", pictures, ("path", "y", "domain", "split"))
    class_folders(root / "imagenet", by_wnid)
    numbered_folders(root / "imagenet-v2", by_wnid, WNIDS)
    v2_tar(root / "imagenet-v2.tar", by_wnid, WNIDS)
    hub_parquet(root / "hub-pacs", pictures)
    hub_parquet(root / "hub-domain-net", pictures, DOMAIN_NET)
    hub_parquet(root / "hub-imagenet-r", by_wnid, IMAGENET_R, split="test")
    saved(root / "saved", pictures)
    wds(root / "wds", samples(["imagenet"], WNIDS, kind="WEBP"), list(WNIDS))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
