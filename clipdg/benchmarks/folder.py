"""folder: any images of your own in DomainBed's layout, ``root/domain/class/image.jpg``.

    root/                           every sub-folder is a domain (or those named by ``domains``)
        photo/                      every sub-folder is a class, called by the folder's name
            dog/   1.jpg  more/2.png
            guitar/  ...
        sketch/   ...               the same classes, by name

Which files count, so that a count can be checked: those whose ending, in any case, is one of ``images.ENDINGS``, at any
depth below the class. Ignored: names that begin with a dot, and files with other endings (README.txt, Thumbs.db).
Refused, and named: a file with such an ending whose first bytes are no image's, and an image of a kind that is not
read here (.heic, .ppm), since leaving images out unasked would change the data set.

Class ids are in torchvision's ``ImageFolder`` order, a case-sensitive sort of the folders' names, the same in every
domain; so are the rows: by class, then by sub-folder, then by file name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clipdg import catalog, images
from clipdg.core import Benchmark, Domain, Shift, leave_one_out
from clipdg.errors import ConfigError, DataError
from clipdg.rows import FolderRows

LAYOUT = "DIR/domain/class/image.jpg"
NOT_READ = (".avif", ".heic", ".heif", ".jp2", ".jxl", ".pbm", ".pgm", ".pnm", ".ppm", ".psd", ".svg", ".tga")
_HEAD = 32  # bytes that tell an image's format
_CHUNK = 256  # files a thread takes at a time


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
    folders = _classes(base, domains)
    classes = _class_names(folders, config.class_names)
    _known(config.nouns, domains, "benchmark.nouns", "domain")
    shifts = _shifts(domains, config.sources)
    opened = {}
    for name in domains:
        rows = _rows(base / name, folders)
        opened[name] = Domain(name, rows, noun=config.nouns.get(name, _spaced(name)))
    return Benchmark("folder", classes, opened, shifts, tuple(config.templates))


def _domains(root: Path, wanted: Any) -> tuple[str, ...]:
    found = _folders(root)
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
    classes = {name: _folders(root / name) for name in domains}
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


def _folders(path: Path) -> tuple[str, ...]:
    try:
        with os.scandir(path) as entries:
            names = sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    for name in names:
        _check_name(path, name)
    return tuple(names)


def _check_name(path: Path, name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"a name in {path} is not UTF-8: {os.fsencode(name)!r}; rename it, for ids are written as text"
        ) from None


def _rows(root: Path, folders: Sequence[str]) -> FolderRows:
    files: list[str] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        found = sorted(_files(root / folder, folder, ()))
        if not found:
            raise DataError(
                f"class '{folder}' of domain '{root.name}' is empty: no image in {root / folder}; "
                f"read are {', '.join(images.ENDINGS)}"
            )
        files += [f"{sub}/{name}" for sub, name in found]
        labels += [label] * len(found)
    _check_heads(root, files)
    return FolderRows(root, files, np.array(labels, dtype=np.int64))


def _files(path: Path, sub: str, above: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(sub-folder, file name) of the images in and below ``path``; sorted, they are in ImageFolder's order."""
    real = os.path.realpath(path)
    if real in above:
        raise DataError(f"{path} is a link back to {real}, which it lies in; remove it")
    below = []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith("."):
                    continue
                ending = os.path.splitext(name)[1].lower()
                if entry.is_dir():
                    below.append(name)
                elif ending in images.ENDINGS:
                    _check_name(path, name)
                    yield sub, name
                elif ending in NOT_READ:
                    raise DataError(
                        f"{path / name} is an image of a kind that is not read here; convert it to PNG or remove it"
                    )
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    for name in below:
        _check_name(path, name)
        yield from _files(path / name, f"{sub}/{name}", (*above, real))


def _check_heads(root: Path, files: Sequence[str]) -> None:
    """Raises DataError naming the first file that is no image, and how many there are."""
    prefix = f"{root}{os.sep}"

    def check(chunk: Sequence[str]) -> list[tuple[str, str]]:
        bad = []
        for file in chunk:
            try:
                handle = os.open(prefix + file, os.O_RDONLY)
                try:
                    refusal = images.not_an_image(os.read(handle, _HEAD))
                finally:
                    os.close(handle)
            except OSError as error:
                refusal = f"cannot be read: {error.strerror or error}"
            if refusal is not None:
                bad.append((file, refusal))
        return bad

    with ThreadPoolExecutor() as pool:
        chunks = [files[i : i + _CHUNK] for i in range(0, len(files), _CHUNK)]
        bad = [one for found in pool.map(check, chunks) for one in found]
    if bad:
        file, refusal = bad[0]
        more = f" (and {len(bad) - 1} more such files in domain '{root.name}')" if len(bad) > 1 else ""
        raise DataError(f"{prefix}{file} {refusal}{more}")
