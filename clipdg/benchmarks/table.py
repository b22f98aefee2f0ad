"""table: images of your own, described by a few lines of YAML.

They lie in a folder, in parquet files, in shards or on the hub, or a metadata CSV lists them.

    # birds.yaml: clipdg run benchmark=birds.yaml method=zero_shot
    title: birds
    root: waterbirds/metadata.csv     # relative to this file; or repository: ORG/NAME with a revision
    path: img_filename                # the columns, by name
    label: y
    domain: place
    classes: {0: landbird, 1: waterbird}
    domains: {0: land, 1: water}
    split: split
    splits: {0: train, 1: val, 2: test}
    nouns: {land: photo on land, water: photo on water}
    templates: ["a photo of a {}."]
    expected: {land: 6220, water: 5568}

Where there are only paths and no columns, ``layout`` says what the parts of a path mean. "{domain}/{label}" is
DomainBed's layout, "images/{domain}/{label}" is Dassl's, and "*/{domain}/{label}" skips one folder. The file follows.

Labels are joined by what the data call them. If a column has names of its own (the hub's ClassLabel), these count.
Numbers without names get theirs from ``classes``: a list names them in order, a mapping one by one. The rows of a
domain are in DomainBed's order, by class and then by path, however the place lists them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clipdg.benchmarks._own import distinct, known, listed, shifts, spaced
from clipdg.core.benchmark import Benchmark, Domain
from clipdg.core.download_source import Hub
from clipdg.core.errors import ConfigError, DataError
from clipdg.core.plugins import BenchmarkSource, nearest
from clipdg.data.rows import Table, TableRows, open_table
from clipdg.data.rows.folder import open_listed

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Config:
    """Where the rows are, and what their columns mean.

    The rows are in ``root``, which every benchmark has, or in ``repository``, of which ``revision``, ``subset``,
    ``part``, ``files`` and ``streaming`` say more (core.download_source.Hub). ``path``, ``label``, ``domain`` and
    ``split`` are names of columns. ``classes``, ``domains``: a list of the values to take, or a mapping from value to
    name; None means all that there are. ``splits``: value -> train, val or test, where they are not called so.
    ``sources``: a domain or a list of them to train on; None leaves each out once. ``lacking``: whether a domain may
    lack a class. ``expected``: the numbers of images by domain, or by domain and class.
    """

    title: str = "table"
    repository: str | None = None
    revision: str | None = None
    subset: str | None = None  # the hub calls it a config
    part: str | None = None  # the hub calls it a split
    files: list[str] = field(default_factory=list)
    streaming: bool = False
    layout: str | None = None
    path: str = "path"
    label: str = "label"
    domain: str = "domain"
    split: str | None = None
    classes: Any = None
    domains: Any = None
    splits: Any = None
    sources: Any = None
    lacking: bool = False
    nouns: dict[str, str] = field(default_factory=dict)
    templates: list[str] = field(default_factory=lambda: ["a photo of a {}."])
    expected: Any = None
    notes: list[str] = field(default_factory=list)
    citation: str = ""
    licence: str = ""


def build(config: Config, root: str | Path | None = None) -> Benchmark:
    """Open the benchmark. Every column is read, and no image is decoded.

    Raises ConfigError for a setting that names what is not there, DataError for data that do not fit the settings.
    """
    table = _open(config, root)
    columns = _Columns(table, config)
    classes = _chosen(config.classes, columns.labels, columns.label_names, "benchmark.classes", table.where)
    names = {value: spaced(name) if name == value else name for value, name in classes.items()}
    distinct(names, "class", "benchmark.classes")
    domains = _chosen(config.domains, columns.domains, columns.domain_names, "benchmark.domains", table.where)
    _check_labels(columns, classes, domains)
    ordered = sorted(set(domains.values()))
    if len(ordered) < 2:
        raise DataError(
            f"{table.where} has one domain, '{ordered[0]}'; generalization is measured between at least two"
        )
    known(config.nouns, ordered, "benchmark.nouns", "domain")
    opened = {
        name: _domain(name, [value for value, other in domains.items() if other == name], columns, classes, config)
        for name in ordered
    }
    for name, domain in opened.items():
        _check_classes(name, domain, tuple(names.values()), config)
    return Benchmark(
        name=config.title,
        classes=tuple(names.values()),
        domains=opened,
        shifts=shifts(ordered, config.sources),
        templates=tuple(config.templates),
        notes=tuple(config.notes),
        citation=config.citation,
        licence=config.licence,
        provenance=table.provenance,
    )


def _open(config: Config, root: str | Path | None) -> Table:
    if root is None and config.repository is None:
        raise ConfigError(
            "benchmark=table needs a place: benchmark.root=DIR (a metadata CSV, a folder, parquet, shards) or "
            "benchmark.repository=ORG/NAME"
        )
    if root is not None and Path(root).suffix.lower() == ".csv":
        return open_listed(Path(root).expanduser(), config.path)
    hub = Hub(
        config.repository or Path(str(root)).name, config.revision, config.subset, config.part, tuple(config.files),
        config.streaming,
    )  # fmt: skip
    return open_table(root, hub)


class _Columns:
    """The label, domain, split and path of each row of a table, as texts."""

    def __init__(self, table: Table, config: Config) -> None:
        self.table = table
        self.label_names = self.domain_names = None
        self.splits: list[str] | None = None
        has_path = "path" in table.columns
        self.paths = [str(path) for path in table.column("path")] if has_path else None
        if config.layout is None:
            self.labels, self.label_names = _texts(table, config.label)
            self.domains, self.domain_names = _texts(table, config.domain)
            if config.split is not None:
                self.splits, _ = _texts(table, config.split)
            return
        if self.paths is None:
            raise DataError(f"{table.where} has no paths that benchmark.layout could describe")
        parts = _parts(config.layout, self.paths, table)
        self.labels, self.domains = parts["label"], parts["domain"]
        self.splits = parts.get("split")


def _texts(table: Table, name: str) -> tuple[list[str], tuple[str, ...] | None]:
    """A column's values as texts, and the names that it declares: () for bare numbers, None for texts."""
    values, names = table.column(name), table.names(name)
    if names is None:
        return [str(value) for value in values], () if isinstance(values, np.ndarray) else None
    for row, number in enumerate(values):
        if not 0 <= int(number) < len(names):
            raise DataError(f"{table.at(row)}: '{name}' is {number}, which is none of its {len(names)} names")
    return [names[int(number)] for number in values], names


def _parts(layout: str, paths: Sequence[str], table: Table) -> dict[str, list[str]]:
    """Read the values of ``{domain}``, ``{label}`` and ``{split}`` from each path."""
    pattern = ""
    for part in layout.strip("/").split("/"):
        name = re.fullmatch(r"\{(domain|label|split)\}", part)
        if name is None and re.search(r"[{}]", part):
            raise ConfigError(
                f"benchmark.layout is '{layout}'; a part is {{domain}}, {{label}}, {{split}}, * or a name"
            )
        pattern += f"(?P<{name[1]}>[^/]+)/" if name else "[^/]+/" if part == "*" else re.escape(part) + "/"
    compiled = re.compile(pattern)
    for needed in ("domain", "label"):
        if needed not in compiled.groupindex:
            raise ConfigError(
                f"benchmark.layout is '{layout}', without {{{needed}}}; DomainBed's is {{domain}}/{{label}}"
            )
    found: dict[str, list[str]] = {name: [] for name in compiled.groupindex}
    for row, path in enumerate(paths):
        match = compiled.match(path)
        if match is None:
            raise DataError(f"{table.at(row)}: '{path}' is not in the layout {layout}")
        for kind, value in match.groupdict().items():
            found[kind].append(value)
    return found


def _chosen(wanted: Any, values: Sequence[str], names: tuple[str, ...] | None, key: str, where: str) -> dict[str, str]:
    """The values to take, in order: value in the data -> name.

    ``names`` are those that the data declare: () for bare numbers, None for texts.
    """
    there = list(names) if names else sorted(set(values), key=_number_first)
    if wanted is None:
        if names == () and key == "benchmark.classes":
            raise ConfigError(
                f"the labels of {where} are the numbers {there[0]} to {there[-1]}; say their names: {key}=[…]"
            )
        return {value: value for value in there}
    if isinstance(wanted, Mapping):
        if not wanted or not all(isinstance(name, str | int) for name in wanted.values()):
            raise ConfigError(f"{key} is {wanted!r}; give a mapping from value to name")
        return {str(value): str(name) for value, name in wanted.items()}
    chosen = listed(wanted, key)
    if names == () and key == "benchmark.classes":
        return {str(number): name for number, name in enumerate(chosen)}
    known(chosen, there, key, "value")
    return {value: value for value in chosen}


def _number_first(value: str) -> tuple[int, str]:
    return (int(value), "") if re.fullmatch(r"\d{1,9}", value) else (10**9, value)


def _check_labels(columns: _Columns, classes: Mapping[str, str], domains: Mapping[str, str]) -> None:
    """Raises DataError if a row of one of the domains has a label that is none of the classes."""
    for row, (label, domain) in enumerate(zip(columns.labels, columns.domains, strict=True)):
        if label not in classes and domain in domains:
            hint = nearest(label, list(classes))
            raise DataError(
                f"{columns.table.at(row)} has the label '{label}', which is not in benchmark.classes.{hint} "
                f"There are: {', '.join(list(classes)[:20])}."
            )


def _domain(name: str, values: Sequence[str], columns: _Columns, classes: Mapping[str, str], config: Config) -> Domain:
    number = {value: i for i, value in enumerate(classes)}
    wanted = set(values)
    rows = [row for row, value in enumerate(columns.domains) if value in wanted]
    if not rows:
        there = ", ".join(sorted(set(columns.domains))[:20])
        raise ConfigError(f"benchmark.domains: {columns.table.where} has no domain '{values[0]}'; it has {there}")
    paths = columns.paths or [""] * len(columns.labels)
    order = sorted(rows, key=lambda row: (number[columns.labels[row]], *_by_folder(paths[row])))
    ids = _ids(order, columns)
    labels = np.array([number[columns.labels[row]] for row in order], dtype=np.int64)
    splits = None
    if columns.splits is not None:
        splits = _splits([columns.splits[row] for row in order], config, columns.table, order)
    return Domain(name, TableRows(columns.table, order, labels, ids), splits, noun=config.nouns.get(name, spaced(name)))


def _by_folder(path: str) -> tuple[str, str]:
    folder, _, file = path.rpartition("/")
    return folder, file


def _ids(rows: Sequence[int], columns: _Columns) -> list[str]:
    """Name the rows: by their paths from the class folder on, as the benchmark "folder" does, if these differ.

    Else they go by their whole paths, with the class in front if need be. Rows without paths, or of one class with the
    same path, are numbered as the place lists them.
    """
    labels = [columns.labels[row] for row in rows]
    if columns.paths is not None:
        paths = [columns.paths[row] for row in rows]
        below = [f"/{path}".partition(f"/{label}/") for path, label in zip(paths, labels, strict=True)]
        inside = [f"{label}/{rest}" for (_, folder, rest), label in zip(below, labels, strict=True) if folder]
        within = [f"{label}/{path}" for path, label in zip(paths, labels, strict=True)]
        for ids in (inside, paths, within):
            if len(set(ids)) == len(rows):
                return ids
    return [f"{label}/{row}" for row, label in zip(rows, labels, strict=True)]


def _splits(values: Sequence[str], config: Config, table: Table, rows: Sequence[int]) -> dict[str, np.ndarray]:
    names = {name: name for name in SPLITS}
    if config.splits is not None:
        if not isinstance(config.splits, Mapping) or not set(config.splits.values()) <= set(SPLITS):
            raise ConfigError(
                f"benchmark.splits is {config.splits!r}; give a mapping from value to {', '.join(SPLITS)}"
            )
        names = {str(value): str(name) for value, name in config.splits.items()}
    found: dict[str, list[int]] = {}
    for i, value in enumerate(values):
        if value not in names:
            raise DataError(
                f"{table.at(rows[i])} is in the split '{value}', which benchmark.splits does not name; it names "
                f"{', '.join(names)}"
            )
        found.setdefault(names[value], []).append(i)
    return {name: np.array(found[name], dtype=np.int64) for name in SPLITS if name in found}


def _check_classes(name: str, domain: Domain, classes: Sequence[str], config: Config) -> None:
    """Raises DataError if a domain lacks a class that it must have, or has not the expected numbers of images."""
    counts = Counter(domain.rows.labels.tolist())
    lacks = [c for i, c in enumerate(classes) if not counts[i]]
    if lacks and not config.lacking:
        raise DataError(
            f"domain '{name}' has no image of class '{lacks[0]}' (in all it lacks {len(lacks)} of {len(classes)}); "
            "benchmark.lacking=true allows it"
        )
    if config.expected is None:
        return
    if not isinstance(config.expected, Mapping) or name not in config.expected:
        raise ConfigError(f"benchmark.expected does not say how many images '{name}' has")
    expected = config.expected[name]
    if isinstance(expected, int):
        differing = [] if expected == len(domain.rows) else [f"{len(domain.rows):,} images and not {expected:,}"]
    else:
        known(expected, classes, f"benchmark.expected.{name}", "class")
        differing = [
            f"{counts[i]:,} of {c} and not {expected[c]:,}"
            for i, c in enumerate(classes)
            if c in expected and counts[i] != expected[c]
        ]
    if differing:
        raise DataError(f"domain '{name}' is not as expected: it has {', '.join(differing)}")


BENCHMARK = BenchmarkSource(config=Config, build=build)
