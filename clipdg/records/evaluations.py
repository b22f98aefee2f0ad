"""TODO clipdg.records.evaluations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from clipdg.core.errors import RecordError
from clipdg.records.record import Record

if TYPE_CHECKING:
    pass


# ---------------------------------------------------------------------------------------------------------------------
# One record


def seed_values(record: Record) -> tuple[tuple[str, Any], ...]:
    """The settings that follow the seed, with their values: what two records of a row differ in."""
    flat = record.settings
    return tuple((key, flat.get(key)) for key in sorted(record.content["seeded"]))


def seed_name(record: Record) -> str:
    """``"0"``; ``"0/1"`` where the settings that follow the seed are different numbers; ``"none"`` without a seed."""
    if record.content["seeded"] == ["seed"] and isinstance(seed := record.settings.get("seed"), int):
        return str(seed)
    values = dict.fromkeys(str(v) for k, v in sorted(seed_values(record), key=_seed_first) if isinstance(v, int))
    return "/".join(values) or "none"


def role(record: Record, domain: str) -> Literal["source", "target", "other"]:
    shift = record.content["shift"]
    return "source" if domain in shift["sources"] else "target" if domain in shift["targets"] else "other"


def reported_split(record: Record, domain: str) -> str | None:
    """The split that counts: "test" if there, else "out" of a source and "all" of a target; None if none is there."""
    there = {e["split"] for e in record.content["evaluations"] if e["domain"] == domain}
    if "test" in there:
        return "test"
    wanted = "out" if role(record, domain) == "source" else "all"
    return wanted if wanted in there else None


def reported(record: Record, domain: str) -> Mapping[str, Any] | None:
    """The evaluation that counts: the last step on the reported split; None if there is none."""
    split = reported_split(record, domain)
    found = [e for e in record.evaluations if e["domain"] == domain and e["split"] == split]
    if len(found) < 2:
        return found[0] if found else None
    last = max(found, key=step_of)
    if sum(step_of(e) == step_of(last) for e in found) > 1:
        raise RecordError(
            f"run {record.run_id} evaluates {domain}/{split} twice at step {last['step']}; "
            "delete its file and run it again"
        )
    return last


def class_subsets(record: Record, domain: str) -> list[Mapping[str, Any]]:
    """A domain's evaluations on fewer of its classes ("a-classes"), which stand beside the reported one; last step."""
    own = (*record.content["data"]["num_images"].get(domain, ()), "all")
    found = [e for e in record.evaluations if e["domain"] == domain and e["split"] not in own]
    last = max(map(step_of, found), default=-1)
    return [e for e in found if step_of(e) == last]


def method_name(record: Record) -> str:
    return part_name(record.content["config"], "method")


def benchmark_name(record: Record) -> str:
    return str(record.content["data"]["benchmark"])


def _seed_first(pair: tuple[str, Any]) -> tuple[bool, str]:
    return (pair[0] != "seed", pair[0])


def step_of(evaluation: Mapping[str, Any]) -> int:
    return -1 if evaluation["step"] is None else int(evaluation["step"])


def part_name(config: Mapping[str, Any], key: str) -> str:
    value = config.get(key)
    return str(value["name"] if isinstance(value, Mapping) else value)


@lru_cache(10_000)  # of thousands of runs there are few seeds
def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which ``"4 shots"`` comes before ``"16 shots"``."""
    return tuple((0, int(p), "") if p.isdigit() else (1, 0, p.lower()) for p in re.split(r"([0-9]+)", text) if p)
