"""folder: images of your own, ``root/domain/class/image.jpg``.

The layout is DomainBed's:

    root/                           every sub-folder is a domain (or those named by ``domains``)
        photo/                      every sub-folder is a class, called by the folder's name
            dog/   1.jpg  more/2.png
            guitar/  ...
        sketch/   ...               the same classes, by name

Files with the endings of images count, at any depth below the class (data/rows/folder.py).

Class ids follow torchvision's ``ImageFolder``: a case-sensitive sort of the folders' names, the same in every domain.
So do the rows: they are sorted by class, then by sub-folder, then by file name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clipdg.benchmarks._own import distinct, known, listed, shifts, spaced
from clipdg.core.benchmark import Benchmark, Domain
from clipdg.core.errors import ConfigError, DataError
from clipdg.core.plugins import BenchmarkSource
from clipdg.data import decode
from clipdg.data.rows import FolderTable, TableRows
from clipdg.data.rows.folder import folders, open_folder, strays

LAYOUT = "DIR/domain/class/image.jpg"


@dataclass(frozen=True)
class Config:
    """Which domains there are, which of them are trained on, and how classes and domains are called in prompts.

    ``sources``: a domain or a list of them to train on, all others being targets; None leaves each domain out once.
    ``domains``: the sub-folders of root that are domains; None means all of them. ``class_names``: folder -> name in
    prompts; any other folder has its ``_`` and ``-`` turned into spaces. ``nouns``: domain -> what a domain-aware
    prompt calls an image of it ("art_painting" -> "painting"); any other domain goes by its name.
    """

    sources: Any = None
    domains: Any = None
    class_names: dict[str, str] = field(default_factory=dict)
    nouns: dict[str, str] = field(default_factory=dict)
    templates: list[str] = field(default_factory=lambda: ["a photo of a {}."])


def build(config: Config, root: str | Path | None = None) -> Benchmark:
    """Open the benchmark in ``root``. The first bytes of every file are read, and no image is decoded."""
    if root is None:
        raise ConfigError(f"benchmark=folder needs a folder: benchmark.root=DIR, with images at {LAYOUT}")
    base = Path(root).expanduser()
    if not base.is_dir():
        raise ConfigError(f"no folder {base}; benchmark.root is a folder with images at {LAYOUT}")
    domains = _domains(base, config.domains)
    class_folders = _classes(base, domains)
    classes = _class_names(class_folders, config.class_names)
    known(config.nouns, domains, "benchmark.nouns", "domain")
    all_shifts = shifts(domains, config.sources)
    table = open_folder(base, [f"{domain}/{folder}" for domain in domains for folder in class_folders])
    opened = {
        name: Domain(name, _rows(table, name, class_folders), noun=config.nouns.get(name, spaced(name)))
        for name in domains
    }
    return Benchmark("folder", classes, opened, all_shifts, tuple(config.templates), notes=_left_out(base, domains))


def _domains(root: Path, wanted: Any) -> tuple[str, ...]:
    """The folders that are domains. Raises DataError if there are fewer than two."""
    found = folders(root)
    if wanted is not None:
        chosen = listed(wanted, "benchmark.domains")
        known(chosen, found, "benchmark.domains", "folder")
        found = tuple(sorted(chosen))
    if not found:
        raise DataError(f"{root} has no domain: it has no sub-folders; images are expected at {LAYOUT}")
    if len(found) == 1:
        raise DataError(
            f"{root} has one domain, '{found[0]}'; generalization is measured between at least two, at {LAYOUT}"
        )
    return found


def _classes(root: Path, domains: Sequence[str]) -> tuple[str, ...]:
    """The class folders, which all domains must share. Raises DataError if they differ."""
    first, *others = domains
    classes = {name: folders(root / name) for name in domains}
    for name in domains:
        if not classes[name]:
            raise DataError(
                f"domain '{name}' has no class: {root / name} has no sub-folders; images are expected at {LAYOUT}, "
                "and benchmark.domains says which folders are domains"
            )
    for name in others:
        differing = sorted(set(classes[first]) ^ set(classes[name]))
        if differing:
            has, lacks = (first, name) if differing[0] in classes[first] else (name, first)
            raise DataError(
                f"the domains' classes differ: '{has}' has a class '{differing[0]}' and '{lacks}' has none "
                f"(in {root}; {len(differing)} such class{'' if len(differing) == 1 else 'es'} between the two)"
            )
    if len(classes[first]) == 1:
        raise DataError(f"{root} has one class, '{classes[first][0]}'; a classifier needs at least two")
    return classes[first]


def _left_out(root: Path, domains: Sequence[str]) -> tuple[str, ...]:
    """Say which images lie in no class's folder and are left out."""
    found = strays(root) + [f"{domain}/{name}" for domain in domains for name in strays(root / domain)]
    if not found:
        return ()
    verbs = ("image lies", "is") if len(found) == 1 else ("images lie", "are")
    more = ", …" if len(found) > 3 else ""
    shown = f"{', '.join(found[:3])}{more}"
    return (f"{len(found):,} {verbs[0]} in no class's folder and {verbs[1]} left out: {shown}.",)


def _class_names(folders: Sequence[str], given: Mapping[str, str]) -> tuple[str, ...]:
    known(given, folders, "benchmark.class_names", "class")
    names = {folder: given.get(folder, spaced(folder)) for folder in folders}
    distinct(names, "class folder", "benchmark.class_names")
    return tuple(names.values())


def _rows(table: FolderTable, domain: str, folders: Sequence[str]) -> TableRows:
    """The domain's rows, sorted by class, then by sub-folder, then by file name."""
    labels: list[int] = []
    indices: list[int] = []
    ids: list[str] = []
    start = f"{domain}/"
    by_class: dict[str, list[tuple[int, str]]] = {folder: [] for folder in folders}
    for index, path in enumerate(table.files):
        if path.startswith(start):
            folder, inside, _ = path[len(start) :].partition("/")
            if inside and folder in by_class:
                by_class[folder].append((index, path[len(start) :]))
    for label, folder in enumerate(folders):
        found = by_class[folder]
        if not found:
            raise DataError(
                f"class '{folder}' of domain '{domain}' is empty: no image in {table.root / domain / folder}; "
                f"read are {', '.join(decode.ENDINGS)}"
            )
        indices += [index for index, _ in found]
        ids += [path for _, path in found]
        labels += [label] * len(found)
    return TableRows(table, indices, np.array(labels, dtype=np.int64), ids)


BENCHMARK = BenchmarkSource(config=Config, build=build)
