"""ImageNet's 1,000 classes by wnid, the subsets that its variants have, and the templates, from three files.

classes.csv     the 1,000 wnids in order, and which of them ImageNet-A and -R have: timm 1.0.31, data/_info
                (Apache-2.0); the names that prompts use: open_clip 3.3.0, IMAGENET_CLASSNAMES (MIT; OpenAI's list);
                the names that ILSVRC/imagenet-1k gives its labels: WordNet's lemmas, but ``crane2`` for the second of
                two cranes
templates.json  OpenAI's 80: open_clip 3.3.0, OPENAI_IMAGENET_TEMPLATES (MIT)
objectnet.csv   ObjectNet's 313 folders with their names, and the wnids of the 113 that ImageNet has: mlfoundations/
                wise-ft 58b7a4b, src/datasets/objectnet_metadata (MIT; ObjectNet itself CC-BY-4.0 with two clauses)
"""

from __future__ import annotations

import csv
import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

from clipdg.core.benchmark import Subset

HERE = Path(__file__).parent


class ImageNetClass(NamedTuple):
    wnid: str
    name: str  # its name in prompts; 998 of them are distinct
    hub_name: str  # its name in ILSVRC/imagenet-1k; all are distinct
    in_a: bool
    in_r: bool


class ObjectNetClass(NamedTuple):
    folder: str
    name: str
    wnids: tuple[str, ...]  # empty for the 200 classes that ImageNet does not have


@cache
def classes() -> tuple[ImageNetClass, ...]:
    """ImageNet's 1,000 classes, in order."""
    return tuple(ImageNetClass(w, name, hub, a == "1", r == "1") for w, name, hub, a, r in _rows("classes.csv"))


@cache
def objectnet_classes() -> tuple[ObjectNetClass, ...]:
    """ObjectNet's 313 classes, sorted by folder."""
    return tuple(ObjectNetClass(folder, name, tuple(w.split())) for folder, name, w in _rows("objectnet.csv"))


@cache
def index() -> dict[str, int]:
    """Map each wnid to its place among the 1,000."""
    return {one.wnid: i for i, one in enumerate(classes())}


@cache
def subset(name: str) -> Subset | None:
    """The classes of the set ``a``, ``r`` or ``objectnet``; None for a set that has all 1,000."""
    if name == "a":
        return Subset(tuple(i for i, one in enumerate(classes()) if one.in_a))
    if name == "r":
        return Subset(tuple(i for i, one in enumerate(classes()) if one.in_r))
    if name == "objectnet":
        groups = [tuple(sorted(index()[w] for w in one.wnids)) for one in objectnet_classes() if one.wnids]
        ids = tuple(sorted(i for group in groups for i in group))
        return Subset(ids, tuple(sorted(group for group in groups if len(group) > 1)))
    return None


@cache
def templates() -> tuple[str, ...]:
    """OpenAI's 80 templates."""
    return tuple(json.loads((HERE / "templates.json").read_text(encoding="utf-8")))


def _rows(file: str) -> list[list[str]]:
    with open(HERE / file, encoding="utf-8", newline="") as text:
        return list(csv.reader(text))[1:]
