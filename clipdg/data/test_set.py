"""What a test loader holds, and how it is evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from clipdg.core.benchmark import Subset


@dataclass(frozen=True)
class TestSet:
    """What one test loader holds: images of ``domain``, each in one of ``splits``.

    ``subset``: the classes the domain has, where they are fewer than the benchmark's; other logits are masked.
    ``whole``: also evaluate all splits together, as the split "all". ``class_subsets``: also evaluate the images of the split
    "test", or all if there is none, that are of these classes, among these classes, under these names.
    """

    __test__ = False  # not a test case, whatever pytest reads in its name

    domain: str
    splits: tuple[str, ...]
    subset: Subset | None = None
    whole: bool = False
    class_subsets: Mapping[str, Subset] = field(default_factory=dict)

    @property
    def evaluations(self) -> tuple[str, ...]:
        return (*self.splits, *(("all",) if self.whole else ()), *self.class_subsets)
