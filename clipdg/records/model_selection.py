"""Model selection on records: which draw of the hyper-parameters and which checkpoint a number is of.

DomainBed's three criteria, to the letter of its code (domainbed/model_selection.py at b93c22a; Gulrajani & Lopez-Paz,
In Search of Lost Domain Generalization, ICLR 2021). For one trial, one algorithm and one test domain:

    training   training-domain validation: the checkpoint with the highest mean accuracy on the held-out splits of the
               training domains, over all steps; then the draw with the highest such value
    loo        leave-one-domain-out cross-validation: a step's value is the mean, over each other domain v, of the
               accuracy on v of the run that held out both the test domain and v; a step counts only if all these runs
               have it and exactly one run held out the test domain alone
    oracle     test-domain validation: the last checkpoint, no early stopping; then the draw that is best on the test
               domain's own held-out split. It looks at the target and is an upper bound, not a result

The reported accuracy is that on the test domain's larger split ("in", 80 %). The earliest of equal steps wins; of equal
draws the one with the highest number, since DomainBed sorts upwards, keeping order, and turns the list round. A value
that is not finite never wins here; there it depends on the order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from clipdg.core.errors import RecordError
from clipdg.core.splits import FITTED, HELD_OUT, TEST
from clipdg.records.record import Record

Criterion = Literal["training", "loo", "oracle"]
LARGER = (*FITTED, TEST)  # a domain's larger split, by any name


@dataclass(frozen=True)
class Checkpoint:
    """What one step of one run found."""

    benchmark: str
    algorithm: str
    trial: int  # the seed of splits and draws
    draw: int  # hparams_seed; 0 is the defaults
    targets: tuple[str, ...]
    step: int
    accuracies: Mapping[tuple[str, str], float]  # (domain, split) -> top-1
    run_id: str = ""
    eval_only: tuple[str, ...] = ()  # domains on which nothing may be chosen, by their licence (ObjectNet)

    def accuracy(self, domain: str, splits: Sequence[str]) -> float | None:
        """On the first of ``splits`` that the domain has."""
        return next((a for s in splits if (a := self.accuracies.get((domain, s))) is not None), None)

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(domain for domain, _ in self.accuracies))


@dataclass(frozen=True)
class Choice:
    """What a criterion chose, by ``value``; ``test`` is the number to report."""

    value: float
    test: float
    draw: int
    step: int
    run_id: str = ""


def select(checkpoints: Iterable[Checkpoint], target: str, criterion: Criterion) -> Choice | None:
    """The choice among the checkpoints of one benchmark, algorithm and trial whose targets include ``target``.

    None if no draw has what the criterion needs.

    Raises RecordError if two runs are the same draw of the same targets, or if the criterion would choose on a domain
    whose licence forbids it.
    """
    by_draw: dict[int, list[Checkpoint]] = {}
    for checkpoint in checkpoints:
        if target in checkpoint.targets:
            by_draw.setdefault(checkpoint.draw, []).append(checkpoint)
    if forbidden := barred((c for draw in by_draw.values() for c in draw), target, criterion):
        raise RecordError(
            f"{forbidden[0]} is for evaluation only: its licence forbids to choose anything on it, as "
            f"{CRITERIA[criterion]} does"
        )
    best: Choice | None = None
    for draw in sorted(by_draw):
        _check_once(by_draw[draw])
        found = _CRITERIA[criterion](by_draw[draw], target)
        if found is not None and (best is None or found.value >= best.value):
            best = found
    return best


def barred(checkpoints: Iterable[Checkpoint], target: str, criterion: Criterion) -> list[str]:
    """The domains on which the criterion would choose, and which are for evaluation only; sorted."""
    found: set[str] = set()
    for c in checkpoints:
        if target not in c.targets:
            continue
        if criterion == "oracle":
            found |= {target} & set(c.eval_only)
        else:
            found |= set(c.eval_only) - (set(c.targets) if criterion == "training" else {target})
    return sorted(found)


def _training(checkpoints: Sequence[Checkpoint], target: str) -> Choice | None:
    found = []
    for checkpoint in _alone(checkpoints, target):
        values = [checkpoint.accuracy(d, HELD_OUT) for d in checkpoint.domains if d != target]
        found.append(_choice(checkpoint, target, values))
    return _first_highest(found)


def _leave_one_out(checkpoints: Sequence[Checkpoint], target: str) -> Choice | None:
    found = []
    for step in sorted({c.step for c in checkpoints}):
        at = [c for c in checkpoints if c.step == step]
        alone = _alone(at, target)
        if len(alone) != 1:
            continue
        pairs = {next(d for d in c.targets if d != target): c for c in at if len(c.targets) == 2}
        others = [d for d in alone[0].domains if d != target]
        values = [pairs[v].accuracy(v, LARGER) if v in pairs else None for v in others]
        found.append(_choice(alone[0], target, values))
    return _first_highest(found)


def _oracle(checkpoints: Sequence[Checkpoint], target: str) -> Choice | None:
    alone = _alone(checkpoints, target)
    if not alone:
        return None
    last = max(alone, key=lambda c: c.step)
    return _choice(last, target, [last.accuracy(target, HELD_OUT)])


_CRITERIA: Mapping[Criterion, Callable[[Sequence[Checkpoint], str], Choice | None]] = {
    "training": _training,
    "loo": _leave_one_out,
    "oracle": _oracle,
}
CRITERIA: Mapping[Criterion, str] = {
    "training": "training-domain validation set",
    "loo": "leave-one-domain-out cross-validation",
    "oracle": "test-domain validation set (oracle)",
}


def _alone(checkpoints: Sequence[Checkpoint], target: str) -> list[Checkpoint]:
    """Of the runs that held out the test domain and no other, in the order of their steps."""
    return sorted((c for c in checkpoints if c.targets == (target,)), key=lambda c: c.step)


def _choice(checkpoint: Checkpoint, target: str, values: Sequence[float | None]) -> Choice | None:
    """None if a value is missing or not finite, or there is no test accuracy."""
    there = [v for v in values if v is not None and math.isfinite(v)]
    test = checkpoint.accuracy(target, LARGER)
    if not there or len(there) < len(values) or test is None:
        return None
    return Choice(fmean(there), test, checkpoint.draw, checkpoint.step, checkpoint.run_id)


def _first_highest(found: Iterable[Choice | None]) -> Choice | None:
    return max((c for c in found if c is not None), key=lambda c: c.value, default=None)


def _check_once(checkpoints: Sequence[Checkpoint]) -> None:
    seen: dict[tuple[tuple[str, ...], int], str] = {}
    for c in checkpoints:
        key = tuple(sorted(c.targets)), c.step
        if key in seen:
            raise RecordError(
                f"runs {seen[key]} and {c.run_id} are both {c.algorithm} on {c.benchmark}, trial {c.trial}, "
                f"draw {c.draw}, without {', '.join(c.targets)}; report them from different folders, or label them"
            )
        seen[key] = c.run_id


def checkpoints_of(record: Record) -> list[Checkpoint]:
    """A record's evaluations, step by step; top-1 accuracies alone."""
    by_step: dict[int, dict[tuple[str, str], float]] = {}
    for e in record.evaluations:
        if e.top1 is not None:
            by_step.setdefault(e.step or 0, {})[e.domain, e.split] = float(e.top1)
    return [
        Checkpoint(
            record.data.benchmark,
            algorithm_of(record),
            int(record.config["seed"]),
            int(record.config.get("hparams_seed") or 0),
            record.shift.targets,
            step,
            accuracies,
            record.run_id,
            record.data.eval_only,
        )
        for step, accuracies in sorted(by_step.items())
    ]


def algorithm_of(record: Record) -> str:
    """The label, else method and backbone: what draws and seeds of one algorithm share."""
    if record.label:
        return record.label
    return record.method if record.data.imported else f"{record.method}, {record.weights.backbone}"
