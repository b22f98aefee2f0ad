"""What one test loader holds, and which evaluations are made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from clipdg.core.benchmark import Subset


@dataclass(frozen=True)
class TestSet:
    """The images of ``domain`` that are tested, each in one of ``splits``.

    ``subset``: the classes that the domain has, where they are fewer than the benchmark's; other logits are masked.
    ``whole``: all splits are evaluated together as well, as the split "all". ``class_subsets``: evaluations that are
    made as well, by name: of the images of these classes, among these classes. They take the images of the split
    "test", or all images if there is no such split.
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
