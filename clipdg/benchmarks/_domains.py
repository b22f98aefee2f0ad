"""PACS and its kin: image sets of several domains with one class list, of which each domain is left out once.

A data set is described by a ``DomainSet``, and ``build`` opens it from wherever it lies:

    DomainBed's layout    domain/class/image.jpg
    Dassl's layout        its split files or split folders, with ``protocol=dassl``
    a table               parquet, load_from_disk, webdataset or the hub: columns domain and label, or a path as above

Domains and classes are found by name, never by position. The names that other sources use ("S", "Real World", "L100")
are aliases. Rows are in the order of torchvision's ``ImageFolder``, by class and file name, so that the seeded holdout
takes the same images as DomainBed's. A copy that has lost its file names is in its own order within a class, and a note
says so.

The order of domains and classes is DomainBed's, datasets.py at b93c22a: Gulrajani & Lopez-Paz, In Search of Lost Domain
Generalization, ICLR 2021, arXiv:2007.01434.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np

from clipdg.core import plugins
from clipdg.core.benchmark import Benchmark, Domain, leave_one_out
from clipdg.core.download_source import Hub, Source
from clipdg.core.errors import ConfigError, DataError
from clipdg.data.rows import Table, TableRows, open_table

Protocol = Literal["domainbed", "dassl"]
Found = TypeVar("Found")
DOMAINBED = "Gulrajani & Lopez-Paz, In Search of Lost Domain Generalization, ICLR 2021"
_SPLIT_FOLDERS = ("train", "crossval", "val", "test", "full")
_ANY_FILES = Hub("", data_files=("**/*.parquet", "**/*.tar"))  # of a local copy, which may lie in several splits
_SHOWN = 4  # names in a message


@dataclass(frozen=True)
class Member:
    """A domain: its name here, its names elsewhere, and its name in a prompt ("a {noun} of a dog").

    ``count`` is the number of its images. ``by_class`` are the numbers by class, in order, where they are known.
    """

    name: str
    aliases: tuple[str, ...]
    noun: str
    count: int
    by_class: tuple[int, ...] = ()


@dataclass(frozen=True)
class Dassl:
    """How Dassl splits a data set.

    ``parts`` maps a split's name here to Dassl's. ``file`` is the split file of {domain} and {part}, below the data
    set's folder; None where parts are folders, ``domain/part/class``. ``images`` is the folder that the paths in split
    files start from. ``first`` is the number of the first class. ``dropped`` are broken images, which Dassl leaves out.
    """

    parts: Mapping[str, str]
    file: str | None = None
    images: str = ""
    first: int = 0
    dropped: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class DomainSet:
    """All that is known of a data set.

    ``classes`` maps a folder to its name in prompts, in DomainBed's order. ``folders`` are the names that the data set
    may have below a folder of several data sets. ``editions`` maps what other editions are called to their numbers of
    images, one for each domain. ``duplicates`` are images, as "domain/class/file", that the protocol removes.
    """

    name: str
    folders: tuple[str, ...]
    members: tuple[Member, ...]
    classes: Mapping[str, str]
    source: Source
    citation: str
    licence: str
    dassl: Dassl | None = None
    templates: tuple[str, ...] = ("a photo of a {}.",)
    notes: tuple[str, ...] = ()
    editions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    duplicates: frozenset[str] = frozenset()


class _Image(NamedTuple):
    row: int  # of the table
    label: int
    name: str  # its path below the class's folder; empty where the copy has lost it
    part: str  # Dassl's split folder; empty in other layouts


def build(data: DomainSet, root: str | Path | None, protocol: Protocol = "domainbed") -> Benchmark:
    """Open the benchmark in ``root``, or its copy on the hub. No image is decoded.

    The benchmark's notes say where the numbers of images differ from the expected ones.

    Raises:
        ConfigError: no root where there is no copy on the hub, or a protocol that the place does not have.
        DataError: a domain or a class that is missing or unknown, or a split file that names what is not there.
    """
    if root is None and not data.source.hubs:
        raise ConfigError(f"{data.name} has no copy on the hub to rely on. {data.source.steps}")
    base = None if root is None else _below(Path(root).expanduser(), data.folders)
    table = open_table(base, _ANY_FILES if root is not None else data.source.hubs[0])
    found, named, numbered, remarks = _sort_out(data, table)
    remarks += _remove_duplicates(data, found)
    if protocol == "dassl":
        splits, more = _dassl_splits(data, base, found)
        remarks += more
    else:
        splits = {}
        _refuse_split_folders(data, table, found)
    differences = _counts(data, found, data.dassl.dropped if protocol == "dassl" and data.dassl else ())
    if numbered and differences:
        raise DataError(
            f"{data.name}: the class folders in {table.where} are numbered, and the numbers of images do not confirm "
            f"which class is which ({differences[0].rstrip('.')}); name the folders {', '.join(data.classes)}"
        )
    remarks += differences
    domains = {}
    for member in data.members:
        images = found[member.name]
        names = _ids(data, images)
        domains[member.name] = Domain(
            member.name,
            TableRows(
                table,
                np.array([i.row for i in images], dtype=np.int64),
                np.array([i.label for i in images], dtype=np.int64),
                names,
            ),
            splits=splits.get(member.name),
            noun=member.noun,
            aliases=member.aliases,
        )
    notes = data.notes
    if protocol == "dassl":
        assert data.dassl is not None
        notes += (f"Dassl's splits, not DomainBed's: not comparable to DomainBed's tables.{data.dassl.note}",)
    elif not named:
        notes += ("This copy has lost its file names: the seeded holdout is not exactly DomainBed's.",)
    return Benchmark(
        name=data.name,
        classes=tuple(data.classes.values()),
        domains=domains,
        shifts=leave_one_out(tuple(domains)),
        templates=data.templates,
        notes=notes + tuple(remarks),
        citation=data.citation,
        licence=data.licence,
        provenance={"rows": dict(table.provenance) or "local", "protocol": protocol},
    )


def _below(root: Path, folders: Sequence[str]) -> Path:
    """The data set's own folder in ``root``, or ``root`` itself if it has none."""
    return next((root / name for name in folders if (root / name).is_dir()), root)


@lru_cache(maxsize=4096)
def key(name: str) -> str:
    """Reduce a name to letters and digits, so that "Real World", "real_world" and "RealWorld" are the same."""
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def _domain_keys(data: DomainSet) -> dict[str, str]:
    """Map the key of each name of a domain to the name it has here."""
    return {key(alias): member.name for member in data.members for alias in (member.name, *member.aliases)}


def _sort_out(data: DomainSet, table: Table) -> tuple[dict[str, list[_Image]], bool, bool, list[str]]:
    """Sort the images into their domains, each in ImageFolder's order.

    Returns the images by domain, whether files have names, whether class folders are numbered, and remarks.
    """
    columns = table.columns
    numbered = False
    remarks: list[str] = []
    if "domain" in columns:
        found = _from_columns(data, table)
    elif "path" in columns:
        found, numbered, remarks = _from_paths(data, table)
    else:
        raise DataError(
            f"{data.name}: {table.where} has neither a column 'domain' nor paths; it has {', '.join(columns)}"
        )
    missing = [member.name for member in data.members if not found[member.name]]
    if missing:
        raise DataError(
            f"{data.name}: no image of domain {_listed(missing)} in {table.where}; {data.source.steps or _layout(data)}"
        )
    named = all(image.name for images in found.values() for image in images)
    for member in data.members:
        images = found[member.name]
        again = Counter((i.label, i.name, i.part) for i in images) if named else Counter()
        named = named and len(again) == len(images)
    for images in found.values():
        images.sort(key=lambda i: (i.label, *_place(i.name), i.row) if named else (i.label, "", "", i.row))
    if not named:
        found = {d: [_Image(i.row, i.label, "", i.part) for i in images] for d, images in found.items()}
    _check_classes(data, found, table.where)
    return found, named, numbered, remarks


def _place(name: str) -> tuple[str, str]:
    """The sub-folder and the file, by which ImageFolder sorts."""
    folder, _, file = name.rpartition("/")
    return folder, file


def _from_columns(data: DomainSet, table: Table) -> dict[str, list[_Image]]:
    """The images by domain, as the columns ``domain`` and ``label`` say."""
    domain_of = _named(table, "domain", _domain_keys(data), data, "domain")
    classes = {key(folder): label for label, folder in enumerate(data.classes)}
    label_of = _named(table, _label_column(data, table), classes, data, "class")
    path = next((c for c in ("image_path", "path") if c in table.columns), None)
    paths = [""] * len(table) if path is None else [str(p or "") for p in table.column(path)]
    found: dict[str, list[_Image]] = {member.name: [] for member in data.members}
    for row, (domain, label, name) in enumerate(zip(domain_of, label_of, paths, strict=True)):
        found[domain].append(_Image(row, label, name.rpartition("/")[2], ""))
    return found


def _label_column(data: DomainSet, table: Table) -> str:
    for column in ("label", "class", "class_name"):
        if column in table.columns:
            return column
    raise DataError(f"{data.name}: {table.where} has no column 'label'; it has {', '.join(table.columns)}")


def _named(table: Table, column: str, known: Mapping[str, Found], data: DomainSet, noun: str) -> list[Found]:
    """Look up each row in ``known``, by the name that the column holds or that its ClassLabel gives."""
    values = list(table.column(column))
    names = table.names(column)
    if names is not None:
        numbers = [int(v) for v in values]
        bad = next((row for row, n in enumerate(numbers) if not 0 <= n < len(names)), None)
        if bad is not None:
            raise DataError(f"{table.at(bad)} has {column} {numbers[bad]}, outside 0 to {len(names) - 1}")
        values = [names[n] for n in numbers]
    elif values and not isinstance(values[0], str):
        raise DataError(
            f"{data.name}: column '{column}' of {table.where} holds numbers and nothing says which {noun} they mean; "
            "give names, or a ClassLabel with names"
        )
    meanings = {value: known.get(key(value)) for value in set(values)}
    unknown = sorted(value for value, meaning in meanings.items() if meaning is None)
    if unknown:
        raise DataError(_unknown(data, noun, unknown, table.where))
    found = (meanings[value] for value in values)
    return [meaning for meaning in found if meaning is not None]


def _from_paths(data: DomainSet, table: Table) -> tuple[dict[str, list[_Image]], bool, list[str]]:
    """The images by domain, as the folders above them say; whether class folders are numbered; remarks."""
    domains = _domain_keys(data)
    classes = {key(folder): label for label, folder in enumerate(data.classes)}
    found: dict[str, list[_Image]] = {member.name: [] for member in data.members}
    outside: list[str] = []
    unknown: Counter[str] = Counter()
    seen: dict[tuple[str, int, str, str], str] = {}
    numbered = False
    for row, path in enumerate(table.column("path")):
        parts = str(path).split("/")
        at = next((n for n, part in enumerate(parts[:-1]) if key(part) in domains), None)
        if at is None:
            outside.append(str(path))
            continue
        domain = domains[key(parts[at])]
        rest = parts[at + 1 : -1]
        part = rest.pop(0) if len(rest) > 1 and rest[0] in _SPLIT_FOLDERS else ""
        label = classes.get(key(rest[0])) if rest else None
        if rest and label is None and data.dassl is not None and rest[0].isdigit() and int(rest[0]) < len(classes):
            label = int(rest[0])  # Dassl's VLCS numbers its classes; ``build`` checks the order by the counts
            numbered = True
        if label is None:
            unknown["/".join(parts[at : at + 2] if rest else parts[at:])] += 1
            continue
        image = _Image(row, label, "/".join([*rest[1:], parts[-1]]), part)
        first = seen.setdefault((domain, label, image.name, part), str(path))
        if first != path:
            raise DataError(
                f"{data.name}: {table.where} holds the data set more than once: {first} and {path} are the same image "
                f"of domain '{domain}'; give one copy as benchmark.root"
            )
        found[domain].append(image)
    if unknown:
        raise DataError(_unknown(data, "class", sorted(unknown), table.where))
    remarks = []
    if outside and any(found.values()):
        noun = "image lies" if len(outside) == 1 else "images lie"
        left = "is left out" if len(outside) == 1 else "are left out, such as"
        remarks.append(f"{len(outside):,} {noun} outside the domains' folders and {left}: {outside[0]}.")
    return found, numbered, remarks


def _unknown(data: DomainSet, noun: str, unknown: Sequence[str], where: str) -> str:
    names = list(data.classes) if noun == "class" else [member.name for member in data.members]
    hint = plugins.nearest(unknown[0].rpartition("/")[2], names)
    return (
        f"{data.name}: {_listed(unknown)} in {where} {'is no' if len(unknown) == 1 else 'are no'} {noun} of it.{hint} "
        f"There are: {_listed(names, 20)}."
    )


def _listed(names: Sequence[str], most: int = _SHOWN) -> str:
    """The first names of a list, and how many there are in all."""
    shown = ", ".join(f"{name}" for name in names[:most])
    return f"{shown}, … ({len(names)})" if len(names) > most else shown


def _layout(data: DomainSet) -> str:
    return f"images are expected at DIR/{data.members[0].name}/{next(iter(data.classes))}/image.jpg"


def _check_classes(data: DomainSet, found: Mapping[str, list[_Image]], where: str) -> None:
    """Raises DataError if a domain lacks a class."""
    folders = list(data.classes)
    for domain, images in found.items():
        missing = sorted(set(range(len(folders))) - {i.label for i in images})
        if missing:
            names = [folders[label] for label in missing]
            raise DataError(f"{data.name}: domain '{domain}' has no image of class {_listed(names)} in {where}")


def _ids(data: DomainSet, images: Sequence[_Image]) -> list[str]:
    """Name the images "dog/pic_001.jpg", or by their row where the copy has no file names."""
    folders = list(data.classes)
    return [
        "/".join(p for p in (i.part, folders[i.label], i.name) if p) if i.name else f"{folders[i.label]}/{i.row:06d}"
        for i in images
    ]


def _full(data: DomainSet, domain: str, image: _Image) -> str:
    """The image as "domain/class/file"."""
    return f"{domain}/{list(data.classes)[image.label]}/{image.name}"


def _remove_duplicates(data: DomainSet, found: dict[str, list[_Image]]) -> list[str]:
    """Remove the duplicates from ``found``, and say how many there were."""
    if not data.duplicates:
        return []
    removed = 0
    for domain, images in found.items():
        kept = [image for image in images if _full(data, domain, image) not in data.duplicates]
        removed += len(images) - len(kept)
        found[domain] = kept
    if removed:
        return [f"{removed:,} of the {len(data.duplicates):,} images on DomainBed's list of duplicates were removed."]
    return []


def _refuse_split_folders(data: DomainSet, table: Table, found: Mapping[str, list[_Image]]) -> None:
    if any(image.part for images in found.values() for image in images):
        raise ConfigError(
            f"{data.name}: {table.where} has Dassl's folders (train, …) between domain and class; "
            "set benchmark.protocol=dassl, or give DomainBed's copy"
        )


def _dassl_splits(
    data: DomainSet, base: Path | None, found: dict[str, list[_Image]]
) -> tuple[dict[str, dict[str, np.ndarray]], list[str]]:
    """Dassl's splits: row indices by domain and split, and remarks. Images of no split are removed from ``found``."""
    if data.dassl is None:
        raise ConfigError(f"Dassl has no {data.name}; its protocols are: domainbed")
    if base is None:
        raise ConfigError(f"benchmark.protocol=dassl needs Dassl's copy of {data.name}: benchmark.root=DIR")
    result: dict[str, dict[str, np.ndarray]] = {}
    left = 0
    for domain, images in found.items():
        images = [i for i in images if _full(data, domain, i) not in data.dassl.dropped]
        if data.dassl.file is None:
            split_of = {part: split for split, part in data.dassl.parts.items()}
            chosen = [split_of.get(i.part) for i in images]
        else:
            listed = _listed_images(data, base, domain)
            there = {_full(data, domain, i) for i in images}
            missing = sorted(set(listed) - there)
            if missing:
                raise DataError(
                    f"{data.name}: Dassl's split files name {len(missing):,} images that are not in {base}, "
                    f"such as {missing[0]}"
                )
            chosen = [listed.get(_full(data, domain, i)) for i in images]
        kept = [(image, split) for image, split in zip(images, chosen, strict=True) if split is not None]
        left += len(images) - len(kept)
        found[domain] = [image for image, _ in kept]
        splits = np.array([split for _, split in kept], dtype=object)
        result[domain] = {split: np.flatnonzero(splits == split) for split in data.dassl.parts}
        empty = [part for split, part in data.dassl.parts.items() if not len(result[domain][split])]
        if empty:
            raise ConfigError(
                f"{data.name}: domain '{domain}' has no images in Dassl's split '{empty[0]}' in {base}; "
                "benchmark.protocol=dassl needs Dassl's copy"
            )
    return result, [f"{left:,} images are in none of Dassl's splits and are left out."] if left else []


def _listed_images(data: DomainSet, base: Path, domain: str) -> dict[str, str]:
    """Read Dassl's files of a domain: "domain/class/file" -> split.

    Raises DataError if the number in a line is not that of the class in its path.
    """
    assert data.dassl is not None
    assert data.dassl.file is not None
    classes = {key(folder): label for label, folder in enumerate(data.classes)}
    found: dict[str, str] = {}
    for split, part in data.dassl.parts.items():
        file = base / data.dassl.file.format(domain=domain, part=part)
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"benchmark.protocol=dassl: cannot read {file}: {getattr(error, 'strerror', None) or error}"
            ) from error
        for line in filter(str.strip, lines):
            path, _, number = line.strip().rpartition(" ")
            if path in data.dassl.dropped:
                continue
            folder = path.split("/")[1] if path.count("/") >= 2 else ""
            label = classes.get(key(folder))
            if label is None or not number.isdigit() or int(number) - data.dassl.first != label:
                raise DataError(f"{file}: '{line.strip()}' does not give {folder or 'a class'} its number")
            if found.setdefault(path, split) != split:
                raise DataError(f"{path} is in two of Dassl's splits, '{found[path]}' and '{split}'")
    return found


def _counts(data: DomainSet, found: Mapping[str, list[_Image]], dropped: Sequence[str] = ()) -> list[str]:
    """Say where the numbers of images differ from the expected ones."""
    have = {member.name: np.bincount([i.label for i in found[member.name]], minlength=len(data.classes))
            for member in data.members}  # fmt: skip
    totals = tuple(int(numbers.sum()) for numbers in have.values())
    for what, counts in data.editions.items():
        if totals == counts:
            return [f"{sum(totals):,} images: {what}; the paper has {sum(m.count for m in data.members):,}."]
    remarks = []
    for member, total in zip(data.members, totals, strict=True):
        gone = [path.split("/")[1] for path in dropped if path.startswith(f"{member.name}/")]
        wanted = member.count - len(gone)
        by_class = [n - gone.count(folder) for n, folder in zip(member.by_class, data.classes, strict=False)]
        differing = [
            f"{folder} {number:,} for {expected:,}"
            for folder, number, expected in zip(data.classes, have[member.name].tolist(), by_class, strict=False)
            if number != expected
        ]
        if total != wanted or differing:
            detail = f" ({_listed(differing)})" if differing else ""
            remarks.append(f"{member.name} has {total:,} images, expected are {wanted:,}{detail}.")
    return remarks
