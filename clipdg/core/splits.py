"""The words for a domain's splits, and the one rule for which of them is reported.

fitted      "in" (DomainBed's holdout) or "train" (published): a source's classifier may be fitted on it
held out    "out" or "val": settings are chosen on it, and it stands for a source that has no test split
"test"      published; nothing is fitted or chosen on it
"all"       every image of a target without a published test split, the other splits together
"""

from __future__ import annotations

from collections.abc import Collection

FITTED = ("in", "train")
HELD_OUT = ("out", "val")
TEST, ALL = "test", "all"


def reported_split(is_source: bool, there: Collection[str]) -> str | None:
    """The split whose accuracy stands in tables: "test" if there, else a source's held-out split and all of a target.

    ``there``: the splits that were evaluated. None if the domain has no such split.
    """
    if TEST in there:
        return TEST
    if is_source:
        return next((split for split in HELD_OUT if split in there), None)
    return ALL if ALL in there else None
