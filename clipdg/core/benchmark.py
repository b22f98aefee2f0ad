"""The nouns: backbone, domain, shift, benchmark, fit. Nothing here loads, draws or runs anything.

Legend: N images, C classes, D features, L tokens, W token width, S pixels a side.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


class Rows(Protocol):
    """Labelled images in a fixed order; labels are known without decoding an image."""

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64, index into the benchmark's classes."""

    @property
    def ids(self) -> Sequence[str]:
        """N names that stay the same wherever the data lie: "dog/n02103406_1001.jpg"."""

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """RGB, decoded under the policy of images.py. Raises DataError naming the sample."""

    def digests(self) -> Sequence[str]:
        """SHA-256 of each sample's stored bytes, in order."""


@dataclass(frozen=True)
class Subset:
    """Some of a benchmark's classes, among which alone an accuracy is measured (ImageNet-A: 200 of 1,000).

    ``groups``: ids that count as one class because the labels do not tell them apart (ObjectNet's chair is three of
    ImageNet's). A group's logit is its highest, and the group goes by its first id, in predictions and in labels.
    """

    ids: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        grouped = [i for group in self.groups for i in group]
        assert len(set(self.ids)) == len(self.ids)
        assert len(set(grouped)) == len(grouped)
        assert set(grouped) <= set(self.ids)

    @property
    def labels(self) -> tuple[int, ...]:
        """The ids that its images' labels may be: all but those that go by their group's first."""
        others = {i for group in self.groups for i in group[1:]}
        return tuple(i for i in self.ids if i not in others)


@dataclass(frozen=True)
class Domain:
    """One distribution of labelled images.

    ``splits``: the split its authors published ("train", "test" -> row indices); None where there is none and
    DomainBed's seeded holdout makes ``in`` and ``out``. ``subset``: its classes, where these are fewer than the
    benchmark's. ``noun``: how a domain-aware prompt calls an image of it ("sketch"). ``aliases``: what others call it
    ("S"); a target may be named by them. ``class_subsets``: evaluations of its tested images beside the one of all
    of them, each among some of the classes ("a-classes" -> those of ImageNet-A). ``pool``: opens training images
    apart from ``rows``, too many to read them all: of these a run reads the ones that it fits or validates on, and
    ``rows`` is the test split. ``cropped``: its images were stored as the evaluation transform leaves them
    (ImageNet-C), so none of their border is cut off again. ``eval_only``: its licence forbids to fit or to choose
    anything on it.
    """

    name: str
    rows: Rows
    splits: Mapping[str, np.ndarray] | None = None
    subset: Subset | None = None
    noun: str | None = None
    aliases: tuple[str, ...] = ()
    class_subsets: Mapping[str, Subset] = field(default_factory=dict)
    pool: Callable[[], Rows] | None = None
    cropped: bool = False
    eval_only: bool = False


@dataclass(frozen=True)
class Shift:
    """Train on ``sources``, test on ``targets`` (and on held-out images of the sources)."""

    name: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]


@dataclass(frozen=True)
class Benchmark:
    """Domains that share a class list, and the shifts that the literature measures between them."""

    name: str
    classes: tuple[str, ...]  # as prompts call them
    domains: Mapping[str, Domain] = field(default_factory=dict)
    shifts: tuple[Shift, ...] = ()
    templates: tuple[str, ...] = ("a photo of a {}.",)
    notes: tuple[str, ...] = ()  # what every table made from it must disclose
    citation: str = ""
    licence: str = ""
    provenance: Mapping[str, object] = field(default_factory=dict)  # repository, commit, … ; identity is by content
    skipped: tuple[str, ...] = ()  # "domain/id" of images that a list left out
    wnids: tuple[str, ...] = ()  # the classes in WordNet, where a classifier's own outputs are told apart by them
    shows_images: bool = True  # whether a folder of results, which may be published, may hold pictures of it


def known_as(benchmark: Benchmark, name: str) -> str:
    """The domain that others call ``name``; ``name`` itself if it is none's alias."""
    return next((d.name for d in benchmark.domains.values() if name in d.aliases), name)


def leave_one_out(domains: Sequence[str]) -> tuple[Shift, ...]:
    """DomainBed's shifts: each domain once as the target of all the others."""
    return tuple(Shift(target, tuple(d for d in domains if d != target), (target,)) for target in domains)


def pairs(benchmark: Benchmark) -> tuple[Shift, ...]:
    """Shifts "a+b" that leave out two domains, of a benchmark that leaves each out once; none of another.

    DomainBed's leave-one-domain-out cross-validation chooses by them: how well a draw does on b without a and b.
    """
    targets = [shift.targets[0] for shift in benchmark.shifts if len(shift.targets) == 1]
    if len(targets) < 3 or tuple(targets) != tuple(benchmark.domains):
        return ()
    return tuple(
        Shift(f"{a}+{b}", tuple(d for d in targets if d not in (a, b)), (a, b))
        for a, b in itertools.combinations(targets, 2)
    )
