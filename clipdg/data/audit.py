"""Everything that can be wrong with a benchmark's data, found in one pass over all of its images.

``check`` finds labels out of range, images that cannot be read (cut, too large, of an unknown kind: what ``images``
refuses), the same bytes twice (in two classes, in two domains, in two published splits), and domains without a class.
A manifest is a CSV file of every image's domain, id, class and digest; ``changes`` names what is no longer as in it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clipdg.core.benchmark import Benchmark, Domain
from clipdg.core.errors import ConfigError, DataError
from clipdg.core.progress import Progress
from clipdg.data.rows import TableRows, select

COLUMNS = ("domain", "id", "class", "digest")
_CHUNK = 64  # images a thread takes at a time


class Problem(NamedTuple):
    """``kind`` is a heading, ``image`` "domain/id" and ``text`` continues a sentence that begins with it."""

    kind: str
    image: str
    text: str


class Line(NamedTuple):
    """One image in a manifest."""

    domain: str
    id: str
    class_name: str
    digest: str


@dataclass(frozen=True)
class Extent:
    """What a domain consists of; sides in pixels, 0 where no image can be read."""

    images: int
    classes: int
    smallest: int
    largest: int


@dataclass
class Found:
    """``lines``: the manifest, of the images that can be read."""

    problems: list[Problem] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    domains: dict[str, Extent] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)


class _Place(NamedTuple):
    domain: str
    row: int
    label: int


def check(benchmark: Benchmark, progress: Progress | None = None) -> Found:
    """Every image is read and decoded once; memory does not grow with their size."""
    found = Found()
    seen: dict[str, list[_Place]] = {}
    for domain in benchmark.domains.values():
        found.problems += _labels(domain, len(benchmark.classes))
        found.problems += _ids(domain)
        sides, unreadable = _decode(domain, progress)
        found.problems += [Problem("cannot be read", f"{domain.name}/{i}", text) for i, text in unreadable.items()]
        good = [row for row, i in enumerate(domain.rows.ids) if i not in unreadable]
        digests = select(domain.rows, np.array(good, dtype=np.int64)).digests()
        found.problems += _splits(domain, dict(zip(good, digests, strict=True)))
        for row, digest in zip(good, digests, strict=True):
            label = int(domain.rows.labels[row])
            seen.setdefault(digest, []).append(_Place(domain.name, row, label))
            name = benchmark.classes[label] if 0 <= label < len(benchmark.classes) else str(label)
            found.lines.append(Line(domain.name, domain.rows.ids[row], name, digest))
        found.domains[domain.name] = Extent(
            len(domain.rows), len(np.unique(domain.rows.labels)), min(sides, default=0), max(sides, default=0)
        )
        missing = set(domain.subset.labels if domain.subset else range(len(benchmark.classes))) - set(
            domain.rows.labels.tolist()
        )
        if domain.pool is not None:
            found.remarks.append(f"{domain.name}: the pool that training images are drawn from was not read.")
        if missing:
            names = [benchmark.classes[label] for label in sorted(missing)]
            found.remarks.append(f"{domain.name} has no image of {_some(names)}.")
    _duplicates(benchmark, seen, found)
    return found


def _labels(domain: Domain, num_classes: int) -> Iterator[Problem]:
    allowed = np.zeros(num_classes, dtype=bool)
    allowed[list(domain.subset.labels) if domain.subset is not None else slice(None)] = True
    labels = domain.rows.labels
    inside = (labels >= 0) & (labels < num_classes)
    good = inside & allowed[np.where(inside, labels, 0)]
    for row in np.flatnonzero(~good).tolist():
        why = f"outside 0 to {num_classes - 1}" if not inside[row] else "which is not among the domain's classes"
        yield Problem("labels out of range", f"{domain.name}/{domain.rows.ids[row]}", f"has label {labels[row]}, {why}")


def _ids(domain: Domain) -> Iterator[Problem]:
    seen: set[str] = set()
    for name in domain.rows.ids:
        if name in seen:
            yield Problem("ids that are not unique", f"{domain.name}/{name}", "is the id of two images")
        seen.add(name)


def _decode(domain: Domain, progress: Progress | None) -> tuple[list[int], dict[str, str]]:
    """The sides in pixels of what can be read, and id -> reason for the rest."""
    rows = domain.rows
    sides: set[int] = set()
    unreadable: dict[str, str] = {}

    def of(chunk: range) -> tuple[set[int], dict[str, str]]:
        good, bad = set[int](), dict[str, str]()
        for row in chunk:
            try:
                good.update(rows.image(row).size)
            except DataError as error:
                at = f"image {row} ({rows.table.at(int(rows.indices[row]))}) " if isinstance(rows, TableRows) else ""
                bad[rows.ids[row]] = str(error).removeprefix(at)
        return good, bad

    chunks = [range(i, min(i + _CHUNK, len(rows))) for i in range(0, len(rows), _CHUNK)]
    with ThreadPoolExecutor() as pool:
        for chunk, (good, bad) in zip(chunks, pool.map(of, chunks), strict=True):
            sides |= good
            unreadable |= bad
            if progress:
                progress(f"check {domain.name}", chunk.stop, len(rows))
    return sorted(sides), unreadable


def _splits(domain: Domain, digests: Mapping[int, str]) -> Iterator[Problem]:
    """Images of one published split whose bytes are in another as well."""
    owner: dict[str, tuple[str, int]] = {}
    for split, rows in (domain.splits or {}).items():
        for row in rows.tolist():
            if row not in digests:
                continue
            other, first = owner.setdefault(digests[row], (split, row))
            if other != split:
                yield Problem(
                    "in two splits",
                    f"{domain.name}/{domain.rows.ids[row]}",
                    f"in {split} is {'itself' if row == first else domain.rows.ids[first]} in {other}",
                )


def _duplicates(benchmark: Benchmark, seen: Mapping[str, Sequence[_Place]], found: Found) -> None:
    twice = 0

    def called(place: _Place) -> str:
        return f"{place.domain}/{benchmark.domains[place.domain].rows.ids[place.row]}"

    def class_of(place: _Place) -> str:
        inside = 0 <= place.label < len(benchmark.classes)
        return f"'{benchmark.classes[place.label]}'" if inside else f"class {place.label}"

    for first, *others in (places for places in seen.values() if len(places) > 1):
        for other in others:
            if other.label != first.label:
                text = f"({class_of(other)}) has the bytes of {called(first)} ({class_of(first)})"
                found.problems.append(Problem("same image, other class", called(other), text))
            elif other.domain != first.domain:
                text = f"has the bytes of {called(first)}"
                found.problems.append(Problem("same image in two domains", called(other), text))
            else:
                twice += 1
    if twice:
        noun = "image has" if twice == 1 else "images have"
        found.remarks.append(
            f"{twice:,} {noun} the bytes of another of the same domain and class; they are left out of validation "
            "where their double is trained on."
        )


def manifest(lines: Sequence[Line]) -> bytes:
    """CSV, one image a line, in the benchmark's order."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(lines)
    return text.getvalue().encode()


def read_manifest(file: Path) -> list[Line]:
    """Raises ConfigError if the file cannot be read, DataError if it is no manifest."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from error
    rows = list(csv.reader(io.StringIO(text)))
    if not rows or tuple(rows[0]) != COLUMNS or any(len(row) != len(COLUMNS) for row in rows):
        raise DataError(f"{file} is no manifest: its lines are not {','.join(COLUMNS)}")
    return [Line(*row) for row in rows[1:]]


def changes(old: Sequence[Line], new: Sequence[Line]) -> list[Problem]:
    """What is gone, new, changed in its bytes or its class, or renamed, since the manifest was written."""
    before = {(line.domain, line.id): line for line in old}
    after = {(line.domain, line.id): line for line in new}
    came = {(a.domain, a.digest): a for key, a in after.items() if key not in before}
    renamed: set[tuple[str, str]] = set()
    problems = []
    for key, line in before.items():
        image, now = "/".join(key), after.get(key)
        moved = came.get((line.domain, line.digest))
        if now is None and moved is not None:
            renamed.add((moved.domain, moved.id))
            problems.append(Problem("changed since the manifest", image, f"is now called {moved.id}"))
        elif now is None:
            problems.append(Problem("changed since the manifest", image, "is gone"))
        elif now.digest != line.digest:
            problems.append(Problem("changed since the manifest", image, "has other bytes"))
        if now is not None and now.class_name != line.class_name:
            text = f"was '{line.class_name}' and is '{now.class_name}'"
            problems.append(Problem("changed since the manifest", image, text))
    for key in after:
        if key not in before and key not in renamed:
            problems.append(Problem("changed since the manifest", "/".join(key), "is new"))
    return problems


def _some(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f", … ({len(names)} classes)" if len(names) > most else "")
