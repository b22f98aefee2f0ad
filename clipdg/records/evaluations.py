"""Which of a record's evaluations counts, and how its seed is called.

The split that counts is said by the record (data/protocol.py decided it), and by the rule of core/splits.py for records
of before.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Literal

from clipdg.core import splits
from clipdg.core.errors import RecordError
from clipdg.records.record import Evaluation, Record


def seed_values(record: Record) -> tuple[tuple[str, Any], ...]:
    """The settings that follow the seed, with their values: what two records of a row differ in."""
    return tuple((key, record.settings.get(key)) for key in sorted(record.seeded))


def seed_name(record: Record) -> str:
    """``"0"``; ``"0/1"`` where the settings that follow the seed are different numbers; ``"none"`` without a seed."""
    if record.seeded == ("seed",) and isinstance(seed := record.settings.get("seed"), int):
        return str(seed)
    values = dict.fromkeys(str(v) for k, v in sorted(seed_values(record), key=_seed_first) if isinstance(v, int))
    return "/".join(values) or "none"


def role(record: Record, domain: str) -> Literal["source", "target", "other"]:
    """What the domain is in the record's shift."""
    if domain in record.shift.sources:
        return "source"
    return "target" if domain in record.shift.targets else "other"


def reported_split(record: Record, domain: str) -> str | None:
    """The split that counts of a domain; None if it was not evaluated."""
    there = {e.split for e in record.evaluations if e.domain == domain}
    if record.protocol is not None and domain in record.protocol.reported:
        said = record.protocol.reported[domain]
        return said if said in there else None
    return splits.reported_split(role(record, domain) == "source", there)


def reported(record: Record, domain: str) -> Evaluation | None:
    """The evaluation that counts: the last step on the reported split; None if there is none."""
    split = reported_split(record, domain)
    found = [e for e in record.evaluations if e.domain == domain and e.split == split]
    if len(found) < 2:
        return found[0] if found else None
    last = max(found, key=step_of)
    if sum(step_of(e) == step_of(last) for e in found) > 1:
        raise RecordError(
            f"run {record.run_id} evaluates {domain}/{split} twice at step {last.step}; "
            "delete its file and run it again"
        )
    return last


def class_subsets(record: Record, domain: str) -> list[Evaluation]:
    """A domain's evaluations on fewer of its classes ("a-classes"), which stand beside the reported one; last step."""
    own = (*record.data.num_images.get(domain, ()), splits.ALL)
    found = [e for e in record.evaluations if e.domain == domain and e.split not in own]
    last = max(map(step_of, found), default=-1)
    return [e for e in found if step_of(e) == last]


def step_of(evaluation: Evaluation) -> int:
    """The step of an evaluation; -1 where the record does not say it."""
    return -1 if evaluation.step is None else int(evaluation.step)


def _seed_first(pair: tuple[str, Any]) -> tuple[bool, str]:
    return (pair[0] != "seed", pair[0])


@lru_cache(10_000)  # of thousands of runs there are few seeds
def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which ``"4 shots"`` comes before ``"16 shots"``."""
    return tuple((0, int(p), "") if p.isdigit() else (1, 0, p.lower()) for p in re.split(r"([0-9]+)", text) if p)
