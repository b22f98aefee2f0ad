"""folder: any images of your own in DomainBed's layout, ``root/domain/class/image.jpg``.

    root/                           every sub-folder is a domain (or those named by ``domains``)
        photo/                      every sub-folder is a class, called by the folder's name
            dog/   1.jpg  more/2.png
            guitar/  ...
        sketch/   ...               the same classes, by name

Which files count is said in ``rows.folder``: image endings, at any depth below the class.

Class ids are in torchvision's ``ImageFolder`` order, a case-sensitive sort of the folders' names, the same in every
domain; so are the rows: by class, then by sub-folder, then by file name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clipdg import catalog, images
from clipdg.core import Benchmark, Domain, Shift, leave_one_out
from clipdg.errors import ConfigError, DataError
from clipdg.rows import FolderTable, TableRows
from clipdg.rows.folder import folders, open_folder

LAYOUT = "DIR/domain/class/image.jpg"


@dataclass(frozen=True)
class Config:
    """``sources``: a domain or a list of them to train on, all others being targets; None leaves each domain out once.
    ``domains``: which sub-folders of root are domains; None is all of them. ``class_names``: folder -> name in prompts;
    a folder that is not in it has its ``_`` and ``-`` turned into spaces. ``nouns``: domain -> what a domain-aware
    prompt calls an image of it ("art_painting" -> "painting"); the domain's name if it is not there.
    """

    sources: Any = None
    domains: Any = None
    class_names: dict[str, str] = field(default_factory=dict)
    nouns: dict[str, str] = field(default_factory=dict)
    templates: list[str] = field(default_factory=lambda: ["a photo of a {}."])


def build(config: Config, root: str | Path | None = None) -> Benchmark:
    """The benchmark in ``root``; every file's first bytes are looked at, none is decoded."""
    if root is None:
        raise ConfigError(f"benchmark=folder needs a folder: benchmark.root=DIR, with images at {LAYOUT}")
    base = Path(root).expanduser()
    if not base.is_dir():
        raise ConfigError(f"no folder {base}; benchmark.root is a folder with images at {LAYOUT}")
    domains = _domains(base, config.domains)
    class_folders = _classes(base, domains)
    classes = _class_names(class_folders, config.class_names)
    _known(config.nouns, domains, "benchmark.nouns", "domain")
    shifts = _shifts(domains, config.sources)
    table = open_folder(base, [f"{domain}/{folder}" for domain in domains for folder in class_folders])
    opened = {
        name: Domain(name, _rows(table, name, class_folders), noun=config.nouns.get(name, _spaced(name)))
        for name in domains
    }
    return Benchmark("folder", classes, opened, shifts, tuple(config.templates))


def _domains(root: Path, wanted: Any) -> tuple[str, ...]:
    found = folders(root)
    if wanted is not None:
        chosen = _listed(wanted, "benchmark.domains")
        _known(chosen, found, "benchmark.domains", "folder")
        found = tuple(sorted(chosen))
    if not found:
        raise DataError(f"{root} has no domain: it has no sub-folders; images are expected at {LAYOUT}")
    if len(found) == 1:
        raise DataError(
            f"{root} has one domain, '{found[0]}'; generalization is measured between at least two, at {LAYOUT}"
        )
    return found


def _classes(root: Path, domains: Sequence[str]) -> tuple[str, ...]:
    """The class folders that all domains share."""
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


def _class_names(folders: Sequence[str], given: Mapping[str, str]) -> tuple[str, ...]:
    _known(given, folders, "benchmark.class_names", "class")
    names = tuple(given.get(folder, _spaced(folder)) for folder in folders)
    seen: dict[str, str] = {}
    for folder, name in zip(folders, names, strict=True):
        if not name.strip():
            raise ConfigError(f"class folder '{folder}' has no name; give it one with benchmark.class_names")
        same = name.casefold()  # CLIP's tokenizer knows no capital letters
        if same in seen:
            raise ConfigError(
                f"class folders '{seen[same]}' and '{folder}' would both be called '{name}'; "
                "tell them apart with benchmark.class_names"
            )
        seen[same] = folder
    return names


def _shifts(domains: Sequence[str], sources: Any) -> tuple[Shift, ...]:
    if sources is None:
        return leave_one_out(domains)
    chosen = _listed(sources, "benchmark.sources")
    _known(chosen, domains, "benchmark.sources", "domain")
    ordered = tuple(d for d in domains if d in chosen)
    targets = tuple(d for d in domains if d not in chosen)
    if not targets:
        raise ConfigError(f"benchmark.sources names every domain ({', '.join(domains)}), which leaves none to test on")
    return (Shift(f"from {'+'.join(ordered)}", ordered, targets),)


def _listed(value: Any, key: str) -> tuple[str, ...]:
    """A name or a list of names."""
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names or not all(isinstance(n, str) for n in names):
        raise ConfigError(f"{key} is {value!r}; give a name or a list of names, such as {key}=photo or {key}=[a,b]")
    if len(set(names)) < len(names):
        raise ConfigError(f"{key} names a domain twice: {', '.join(names)}")
    return tuple(names)


def _known(names: Sequence[str] | Mapping[str, str], there: Sequence[str], key: str, noun: str) -> None:
    for name in names:
        if name not in there:
            shown = ", ".join(there[:20]) + (", …" if len(there) > 20 else "")
            raise ConfigError(f"{key}: no {noun} '{name}'.{catalog.nearest(name, list(there))} There are: {shown}.")


def _spaced(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").split())


def _rows(table: FolderTable, domain: str, folders: Sequence[str]) -> TableRows:
    """The domain's rows: by class, then by sub-folder, then by file name."""
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
                f"read are {', '.join(images.ENDINGS)}"
            )
        indices += [index for index, _ in found]
        ids += [path for _, path in found]
        labels += [label] * len(found)
    return TableRows(table, indices, np.array(labels, dtype=np.int64), ids)
