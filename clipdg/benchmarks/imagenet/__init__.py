"""imagenet: ImageNet-1k, with V2, Sketch, A, R, ObjectNet and C.

The source is ImageNet-1k. Its val is the test split and never validates anything. Images to fit and to validate on are
drawn from train, which is opened when a run fits something. There are two shifts. "natural" goes to V2
(matched-frequency), Sketch, A, R and ObjectNet. "corruptions" goes to ImageNet-C, with a domain for each corruption and
severity, ``c/gaussian_noise/3``.

``benchmark.root=DIR`` has a sub-folder for each set, under its archive's own name or in CoOp's layout (sets.py).
``benchmark.places=[v2=DIR2]`` names a set that lies elsewhere. Without either, the sets come from the Hugging Face hub.
Each place may hold folders of images, parquet files, webdataset shards or what save_to_disk wrote.
``benchmark.domains`` chooses among them; by default all natural ones that are there are taken. No set needs another.

    accuracy     is top-1 among the classes that a set has: 200 in A and R, 113 in ObjectNet. For each of these three
                 the record has the accuracy on val's images of the same classes, among these, which Taori et al. 2020
                 compare with: as the splits "a-classes", "r-classes" and "objectnet-classes" of domain imagenet
    ObjectNet    has 113 classes that are 125 of ImageNet's: a class's logit is its highest. 2 pixels are cut off each
                 side before resizing (its red border, with wise-ft's width). Its licence forbids to fit or to choose on
                 it
    ImageNet-C   is stored as 224 × 224 centre crops. Weights that enlarge images before they crop them get the crops
                 without this enlargement. mCE is in records/statistics.py
    prompts      are open_clip's class names, 998 distinct ones, in OpenAI's 80 templates; method.templates chooses
                 others (imagenet_7, imagenet_1)

Labels are joined by wnid or by name (labels.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from clipdg.benchmarks.imagenet.classes import classes, subset, templates
from clipdg.benchmarks.imagenet.labels import LEFT_OUT, labels_of
from clipdg.benchmarks.imagenet.sets import BY_DEFAULT_FROM_HUB, CORRUPTED, SETS, SEVERITIES, TRAIN, ImageSet
from clipdg.core.benchmark import Benchmark, Domain, Shift, Subset
from clipdg.core.download_source import Hub, Source
from clipdg.core.errors import ConfigError
from clipdg.core.plugins import BenchmarkSource, nearest
from clipdg.data.rows import Table, TableRows, open_table
from clipdg.records.statistics import ALEXNET_ERRORS

SOURCE = "imagenet"
NO_TRAIN = (
    " Its train, some 140 GB, is not fetched here: a run that fits something downloads it, or give benchmark.root=DIR."
)
SOURCES = (
    *(
        Source(
            about.title,
            (about.hub,) if about.hub else (),
            f"Licence: {about.licence}.{NO_TRAIN if name == SOURCE else ''}",
            f"or a folder below benchmark.root: {', '.join(about.folders)}",
            about.gated,
        )
        for name, about in SETS.items()
    ),
    Source(
        CORRUPTED.title,
        (),
        f"Licence: {CORRUPTED.licence}.",
        "unpack the archives of zenodo.org/records/2235448 to DIR/imagenet-c/CORRUPTION/SEVERITY/WNID and give "
        "benchmark.root=DIR",
    ),
)
SAME_NAMES = (
    "class names are open_clip's; two pairs of classes have one name each, 'missile' (n03773504, n04008634) and "
    "'sunglasses' (n04355933, n04356056), and no prompt tells them apart"
)


@dataclass(frozen=True)
class Config:
    """Which sets there are, and where those lie that are not below root.

    ``domains``: a name or a list of names. They are imagenet, v2, sketch, a, r, objectnet and c/CORRUPTION/SEVERITY;
    c/CORRUPTION, or c, means all of these that are there. None means all but c. ``places``: NAME=DIR for sets outside
    root; c's folder holds CORRUPTION/SEVERITY/WNID, and train's place is called train. ``objectnet_border``: the pixels
    that are cut off each side of an ObjectNet image.
    """

    domains: Any = None
    places: list[str] = field(default_factory=list)
    objectnet_border: int = field(default=2, metadata={"min": 0, "max": 100})  # wise-ft, imagenet-testbed


@dataclass(frozen=True)
class _Opened:
    """A set as it was opened, and what tables must say of it."""

    domain: Domain
    table: Table
    about: ImageSet
    notes: tuple[str, ...]


def build(config: Config, root: str | Path | None = None) -> Benchmark:
    """Open the sets that are chosen. No image is decoded.

    Raises:
        ConfigError: a set that there is not, or that is not where it is looked for.
        DataError: a class that its set does not have.
    """
    places = _places(config.places)
    base = None if root is None else Path(root).expanduser()
    if base is not None and not base.is_dir():
        raise ConfigError(f"no folder {base}; benchmark.root is a folder with a sub-folder for each set")
    where = _Where(base, places)
    chosen = _chosen(config.domains, where)
    opened = {name: _open(name, where, config.objectnet_border) for name in chosen}
    domains = {name: one.domain for name, one in opened.items()}
    if SOURCE in domains:
        class_subsets = {f"{name}-classes": own for name in domains if (own := subset(name)) is not None}
        domains[SOURCE] = _source(domains[SOURCE], class_subsets, where)
    abouts = list({one.about.title: one.about for one in opened.values()}.values())
    return Benchmark(
        "imagenet",
        tuple(one.name for one in classes()),
        domains,
        _shifts(domains),
        templates(),
        notes=_notes(opened),
        citation="; ".join(one.citation for one in abouts),
        licence="; ".join(f"{one.title}: {one.licence}" for one in abouts),
        provenance={name: dict(one.table.provenance) for name, one in opened.items() if one.table.provenance},
        wnids=tuple(one.wnid for one in classes()),
        shows_images=False,
    )


class _Where:
    """Finds sets: at the place that is given, below root, or on the hub if neither is given."""

    def __init__(self, root: Path | None, places: Mapping[str, Path]) -> None:
        self.root, self.places = root, places

    @property
    def is_hub(self) -> bool:
        return self.root is None and not self.places

    def of(self, name: str, about: ImageSet) -> Path | None:
        """The folder or file of a set: the first of the names it goes by that is there, or None."""
        if name in self.places:
            return self.places[name]
        if self.root is None:
            return None
        return next((self.root / folder for folder in about.folders if (self.root / folder).exists()), None)

    def table(self, name: str, about: ImageSet, split: str | None = None) -> Table:
        """Open a set. Raises ConfigError if it is not there, saying where it was looked for."""
        place = self.of(name, about)
        if place is not None:
            return open_table(place)
        whole = self._whole(name)
        if whole is not None:
            return open_table(whole, Hub("imagenet", split=split))
        if self.is_hub and about.hub is not None:
            return open_table(None, about.hub)
        if self.root is None:
            raise ConfigError(f"{about.title} has no place: give benchmark.places=[{name}=DIR] or benchmark.root=DIR")
        looked = ", ".join(about.folders)
        raise ConfigError(f"{about.title} is not in {self.root}: no {looked}; or give benchmark.places=[{name}=DIR]")

    def has(self, name: str, about: ImageSet) -> bool:
        return self.of(name, about) is not None or self._whole(name) is not None

    def _whole(self, name: str) -> Path | None:
        """root/imagenet, if it is a data set with both splits of ImageNet and no folder of images; else None."""
        if name not in (SOURCE, "train") or self.root is None:
            return None
        place = self.root / "imagenet"
        kept = place.is_dir() and (any(place.glob("*.json")) or any(place.glob("**/*.parquet")))
        return place if kept else None


def _chosen(wanted: Any, where: _Where) -> list[str]:
    """The names of the domains that are wanted, in the order of the tables: the sets, then the corruptions."""
    if wanted is None:
        there = BY_DEFAULT_FROM_HUB if where.is_hub else [n for n, about in SETS.items() if where.has(n, about)]
        if not there:
            looked = ", ".join(about.folders[0] for about in SETS.values())
            raise ConfigError(f"none of the ImageNet sets is in {where.root or 'benchmark.places'}: no {looked}")
        return list(there)
    names = (wanted,) if isinstance(wanted, str) else wanted
    if not isinstance(names, list | tuple) or not names or not all(isinstance(n, str) for n in names):
        raise ConfigError(f"benchmark.domains is {wanted!r}; give a name or a list of names, such as [imagenet,v2,c]")
    if len(set(names)) < len(names):
        raise ConfigError(f"benchmark.domains names a domain twice: {', '.join(names)}")
    found: set[str] = set()
    for name in names:
        if name.partition("/")[0] == "c":
            found |= set(_corrupted(name, where))
        elif name in SETS:
            found.add(name)
        else:
            known = [*SETS, "c"]
            raise ConfigError(
                f"benchmark.domains: no set '{name}'.{nearest(name, known)} There are: {', '.join(known)}, "
                "and of c each c/CORRUPTION/SEVERITY."
            )
    order = [*SETS, *(f"c/{kind}/{severity}" for kind in ALEXNET_ERRORS for severity in SEVERITIES)]
    return [name for name in order if name in found]


def _corrupted(name: str, where: _Where) -> list[str]:
    """The domains that a name of ImageNet-C means.

    They are ``c/gaussian_noise/3`` itself, and for ``c/gaussian_noise`` or ``c`` all of them that are there.
    """
    _, *parts = name.split("/")
    if len(parts) > 2 or (parts and parts[0] not in ALEXNET_ERRORS) or (len(parts) > 1 and parts[1] not in SEVERITIES):
        hint = nearest(parts[0], list(ALEXNET_ERRORS)) if parts[0] not in ALEXNET_ERRORS else ""
        raise ConfigError(
            f"benchmark.domains: no '{name}'.{hint} Severities are 1 to 5, corruptions {', '.join(ALEXNET_ERRORS)}."
        )
    if len(parts) == 2:
        return [name]
    kinds = parts or list(ALEXNET_ERRORS)
    place = _place_of_c(where)
    there = [f"c/{k}/{s}" for k in kinds for s in SEVERITIES if _cell(place, k, s) is not None]
    if not there:
        raise ConfigError(f"{place} holds nothing of {name}; it is looked for in CORRUPTION/SEVERITY/WNID")
    return there


def _place_of_c(where: _Where) -> Path:
    """The folder of ImageNet-C. Raises ConfigError if there is none."""
    place = where.of("c", CORRUPTED)
    if place is None:
        looked = f"no {', '.join(CORRUPTED.folders)} in {where.root}; " if where.root else ""
        raise ConfigError(
            f"{CORRUPTED.title} is read from folders: {looked}unpack zenodo.org/records/2235448 and give "
            "benchmark.root=DIR or benchmark.places=[c=DIR]"
        )
    return place


def _cell(place: Path, kind: str, severity: str) -> Path | None:
    """The folder of a corruption and severity; None if it is not there.

    The archives unpack to CORRUPTION/SEVERITY, and some people keep them as GROUP/CORRUPTION/SEVERITY.
    """
    if (place / kind / severity).exists():
        return place / kind / severity
    return next(iter(sorted(place.glob(f"*/{kind}/{severity}"))), None)


def _open(name: str, where: _Where, border: int) -> _Opened:
    corrupted = name.startswith("c/")
    about = CORRUPTED if corrupted else SETS[name]
    title = f"{about.title} ({name[2:]})" if corrupted else about.title
    if corrupted:
        _, kind, severity = name.split("/")
        place = _place_of_c(where)
        cell = _cell(place, kind, severity)
        if cell is None:
            raise ConfigError(f"{place} has no {kind}/{severity}")
        table = open_table(cell)
    else:
        table = where.table(name, about, "validation")
    rows, num_left_out = _rows(table, "c" if corrupted else name, title, border if name == "objectnet" else 0)
    notes = []
    if num_left_out:
        notes.append(f"{title}: {num_left_out:,} images of classes that ImageNet does not have are left out")
    if len(rows) != about.num_images:
        notes.append(f"{title} has {len(rows):,} images here, where {about.num_images:,} are expected")
    domain = Domain(
        name,
        rows,
        {"test": np.arange(len(rows))},
        subset(name),
        about.noun,
        cropped=corrupted,
        eval_only=name == "objectnet",
    )
    return _Opened(domain, table, about, tuple(notes))


def _rows(table: Table, name: str, title: str, border: int = 0, prefix: str = "") -> tuple[TableRows, int]:
    """The rows, sorted by wnid and then by file name, and how many were left out."""
    labels = labels_of(table, name, title)
    kept = np.flatnonzero(labels != LEFT_OUT)
    ids = _ids(table)
    order = sorted(kept.tolist(), key=lambda i: (labels[i], ids[i]))
    rows = TableRows(table, order, labels[order], [prefix + ids[i] for i in order], border=border)
    return rows, len(labels) - len(kept)


def _ids(table: Table) -> list[str]:
    """The rows' names: their paths if the table has them and they differ, else row numbers of one width."""
    if "path" in table.columns:
        paths = [str(path) for path in table.column("path")]
        if len(set(paths)) == len(paths):
            return paths
    return [f"{i:07}" for i in range(len(table))]


def _source(domain: Domain, class_subsets: Mapping[str, Subset], where: _Where) -> Domain:
    """ImageNet as a source: evaluated on other sets' classes as well, and with train, if it is there, as its pool."""

    @cache
    def pool() -> TableRows:
        rows, _ = _rows(where.table("train", TRAIN, "train"), SOURCE, TRAIN.title, prefix="train/")
        return rows

    assert isinstance(domain.rows, TableRows)
    rows = domain.rows
    named = TableRows(rows.table, rows.indices, rows.labels, [f"val/{name}" for name in rows.ids])
    has_train = where.is_hub or where.has("train", TRAIN)
    return Domain(
        SOURCE,
        named,
        domain.splits,
        noun=domain.noun,
        class_subsets=class_subsets,
        pool=pool if has_train else None,
    )


def _shifts(domains: Sequence[str] | Mapping[str, Domain]) -> tuple[Shift, ...]:
    sources = (SOURCE,) if SOURCE in domains else ()
    corrupted = tuple(name for name in domains if name.startswith("c/"))
    natural = tuple(name for name in domains if name != SOURCE and name not in corrupted)
    shifts = []
    if natural or not corrupted:
        shifts.append(Shift("natural", sources, natural))
    if corrupted:
        shifts.append(Shift("corruptions", sources, corrupted))
    return tuple(shifts)


def _notes(opened: Mapping[str, _Opened]) -> tuple[str, ...]:
    notes = [SAME_NAMES]
    if SOURCE in opened:
        notes.append("ImageNet's val is the test set; images to fit and to validate on are drawn from train")
    for name in ("a", "r"):
        if name in opened:
            notes.append(f"{SETS[name].title}: accuracy among its 200 classes")
    if "objectnet" in opened:
        notes.append(
            "ObjectNet: accuracy among 113 classes, each the highest of its ImageNet classes (125 in all); "
            "for evaluation only, by its licence"
        )
    if any(name.startswith("c/") for name in opened):
        notes.append("ImageNet-C: images are stored cropped and are not enlarged before the crop")
    return (*notes, *(note for one in opened.values() for note in one.notes))


def _places(given: Sequence[str]) -> dict[str, Path]:
    """Read the setting ``places``: name -> folder. Raises ConfigError for a set or a folder that there is not."""
    known = [*SETS, "train", "c"]
    found = {}
    for text in given:
        name, equals, place = text.partition("=")
        if not equals or not place:
            raise ConfigError(f"benchmark.places: '{text}' is not NAME=DIR, such as v2=DIR")
        if name not in known:
            raise ConfigError(
                f"benchmark.places: no set '{name}'.{nearest(name, known)} There are: {', '.join(known)}."
            )
        found[name] = Path(place).expanduser()
        if not found[name].exists():
            raise ConfigError(f"benchmark.places: {name} is not there: no {found[name]}")
    return found


BENCHMARK = BenchmarkSource(config=Config, build=build, sources=SOURCES)
