"""The contract of a benchmark: ``check_benchmark("my_package.my_benchmark", root="DIR")``.

It reads the images that the benchmark has, and downloads what the benchmark itself would download.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from unittest import mock

import numpy as np
import PIL.Image

from clipdg.core import plugins
from clipdg.core.benchmark import Benchmark
from clipdg.data import decode
from clipdg.data.rows import fingerprint
from clipdg.runs import config
from clipdg.runs.session import open_benchmark
from clipdg.testing.problem import Check, NotPossible, Problem, look, place, problems_in

NUM_DECODED = 4  # images of each domain


@dataclass
class Subject:
    """A benchmark with some settings."""

    name: str
    definition: plugins.BenchmarkSource[Any]
    root: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> Benchmark:
        """Open it anew."""
        given = {"name": self.name, "root": self.root, **self.settings}
        return open_benchmark(config.load(values={"benchmark": given}).benchmark)

    @property
    def where(self) -> str:
        return place(self.definition.build)

    @cached_property
    def opened(self) -> tuple[Benchmark, list[str]] | Exception:
        """The benchmark, and which images were decoded while it was built; or what that raised."""
        try:
            with _counted_decoding() as decoded:
                return self.build(), decoded
        except Exception as error:
            return error

    @property
    def benchmark(self) -> Benchmark:
        if isinstance(self.opened, Exception):  # the first check tells it
            raise NotPossible
        return self.opened[0]

    @cached_property
    def again(self) -> Benchmark:
        """The same, built a second time."""
        return self.build()


def check_benchmark(name: str, root: str | None = None, settings: Mapping[str, Any] | None = None) -> list[Problem]:
    """What a benchmark does not hold of its contract; nothing if all is well. ``root``: where its images lie."""
    return problems_in(checks(name, root, settings))


def checks(name: str, root: str | None = None, settings: Mapping[str, Any] | None = None) -> list[Check]:
    """Everything that is looked at, with its problems."""
    every = [
        building_decodes_no_image,
        classes_are_unique,
        labels_are_classes,
        ids_are_unique_and_stay,
        shifts_name_domains,
        images_decode,
        each_image_has_a_digest,
        fingerprint_stays,
    ]
    return look(every, Subject(name, plugins.benchmark(name), root, settings or {}), name)


@contextmanager
def _counted_decoding() -> Iterator[list[str]]:
    """Notes each image that is decoded in the block."""
    decoded: list[str] = []
    read, opened = decode.decode, PIL.Image.open

    def noted(data: bytes, where: str, *rest: Any, **options: Any) -> Any:
        decoded.append(where)
        return read(data, where, *rest, **options)

    def noted_open(file: Any, *rest: Any, **options: Any) -> Any:
        decoded.append(str(file))
        return opened(file, *rest, **options)

    with mock.patch.object(decode, "decode", noted), mock.patch.object(PIL.Image, "open", noted_open):
        yield decoded


def building_decodes_no_image(subject: Subject) -> Iterator[Problem]:
    """it is built without decoding an image."""
    if isinstance(subject.opened, Exception):
        raise subject.opened
    _, decoded = subject.opened
    if decoded:
        yield Problem(
            f"{len(decoded)} images are decoded while it is built, such as {decoded[0]}",
            subject.where,
            "give rows whose image(index) decodes when it is asked for",
        )


def classes_are_unique(subject: Subject) -> Iterator[Problem]:
    """its classes are unique, and there are two or more."""
    classes = subject.benchmark.classes
    twice = sorted({name for name in classes if classes.count(name) > 1})
    if twice and not subject.benchmark.wnids:
        yield Problem(f"two classes are called '{twice[0]}'", subject.where, "give each class a name of its own")
    if len(classes) < 2:
        yield Problem(f"it has {len(classes)} classes", subject.where, "give it two or more")
    if (wnids := subject.benchmark.wnids) and len(set(wnids)) != len(classes):
        yield Problem(f"{len(classes)} classes have {len(set(wnids))} wnids", subject.where, "give one for each class")


def labels_are_classes(subject: Subject) -> Iterator[Problem]:
    """its labels are numbers of its classes, one for each image."""
    count = len(subject.benchmark.classes)
    for name, domain in subject.benchmark.domains.items():
        labels = domain.rows.labels
        if labels.dtype != np.int64 or labels.shape != (len(domain.rows),):
            yield Problem(
                f"labels of {name} are {labels.dtype} of the shape {labels.shape} for {len(domain.rows)} images",
                subject.where,
                "give int64, one number for each image",
            )
        elif len(labels) and not (labels.min() >= 0 and labels.max() < count):
            yield Problem(
                f"labels of {name} go from {labels.min()} to {labels.max()} and there are {count} classes",
                subject.where,
                f"give numbers from 0 to {count - 1}",
            )
        elif domain.subset is not None and not set(labels.tolist()) <= set(domain.subset.labels):
            yield Problem(f"a label of {name} is none of its subset", subject.where, "give the subset all its classes")
        if domain.name != name:
            yield Problem(f"the domain '{name}' calls itself '{domain.name}'", subject.where, "call it the same")
        for split, rows in (domain.splits or {}).items():
            if len(np.unique(rows)) != len(rows) or (len(rows) and not 0 <= rows.min() <= rows.max() < len(labels)):
                yield Problem(f"split {split} of {name} has a row twice or one that there is not", subject.where,
                              "give row numbers, each once")  # fmt: skip


def ids_are_unique_and_stay(subject: Subject) -> Iterator[Problem]:
    """its ids are unique, and the same when it is built again."""
    again = subject.again
    for name, domain in subject.benchmark.domains.items():
        ids = list(domain.rows.ids)
        if len(set(ids)) != len(ids) or len(ids) != len(domain.rows):
            yield Problem(
                f"{len(domain.rows)} images of {name} have {len(set(ids))} ids", subject.where, "give each its own"
            )
        if name not in again.domains or list(again.domains[name].rows.ids) != ids:
            yield Problem(
                f"ids of {name} are others when it is built again",
                subject.where,
                "sort what it lists, and draw from a seed",
            )


def shifts_name_domains(subject: Subject) -> Iterator[Problem]:
    """its shifts name domains that there are."""
    there = subject.benchmark.domains
    if not subject.benchmark.shifts:
        yield Problem("it has no shift", subject.where, "give Benchmark shifts, such as leave_one_out(list(domains))")
    for shift in subject.benchmark.shifts:
        for name in (*shift.sources, *shift.targets):
            if name not in there:
                hint = plugins.nearest(name, list(there))
                yield Problem(f"shift {shift.name} names '{name}'.{hint}", subject.where, "name one of its domains")


def images_decode(subject: Subject) -> Iterator[Problem]:
    """its images decode to RGB."""
    for name, domain in subject.benchmark.domains.items():
        for index in np.linspace(0, len(domain.rows) - 1, min(NUM_DECODED, len(domain.rows))).astype(int).tolist():
            image = domain.rows.image(index)
            if image.mode != "RGB":
                yield Problem(
                    f"image {index} of {name} is {image.mode}", place(type(domain.rows)), "give RGB, by decode.decode"
                )
                break


def each_image_has_a_digest(subject: Subject) -> Iterator[Problem]:
    """it has as many digests as images."""
    for name, domain in subject.benchmark.domains.items():
        if (num := len(domain.rows.digests())) != len(domain.rows):
            yield Problem(
                f"{len(domain.rows)} images of {name} have {num} digests",
                place(type(domain.rows)),
                "give the SHA-256 of each image's stored bytes, in order",
            )


def fingerprint_stays(subject: Subject) -> Iterator[Problem]:
    """its fingerprint is the same when it is built again."""
    again = subject.again
    for name, domain in subject.benchmark.domains.items():
        classes = subject.benchmark.classes
        if name in again.domains and fingerprint(domain, classes) != fingerprint(again.domains[name], again.classes):
            yield Problem(
                f"the fingerprint of {name} is another when it is built again",
                subject.where,
                "give the same images with the same labels in the same order, from a seed if they are drawn",
            )
