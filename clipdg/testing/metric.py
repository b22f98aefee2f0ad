"""The contract of a metric: ``check_metric("my_package.my_metric")``.

Legend: N images, C classes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipdg.core import plugins
from clipdg.evaluation.scores import Scores
from clipdg.evaluation.tally import Tally, chosen_metrics
from clipdg.testing.problem import Check, Problem, look, place, problems_in

NUM_IMAGES, NUM_CLASSES = 60, 7
TOLERANCE = 1e-9  # sums are in float64


@dataclass(frozen=True)
class Subject:
    """A metric, and what it finds of some predictions."""

    name: str
    definition: plugins.Metric

    def of(self, logits: Tensor, labels: Tensor, batches: Sequence[Tensor]) -> float | None:
        """Its value if the images come in these batches of rows."""
        tally = Tally(logits.shape[1], {"it": self.definition})
        for batch in batches:
            tally.update(Scores.of(logits[batch].double()), labels[batch])
        return tally.compute()["it"]

    def whole(self, logits: Tensor, labels: Tensor) -> float | None:
        """Its value if all images come at once."""
        return self.of(logits, labels, [torch.arange(len(labels))])


def check_metric(name: str) -> list[Problem]:
    """What a metric does not hold of its contract; nothing if all is well."""
    return problems_in(checks(name))


def checks(name: str) -> list[Check]:
    """Everything that is looked at, with its problems."""
    every = [batches_do_not_matter, none_for_no_image, stays_within_its_bounds, stands_beside_the_others]
    return look(every, Subject(name, plugins.metric(name)), name)


def _drawn(scale: float = 2.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (N, C) that are right more often than not, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(NUM_CLASSES - 1, (NUM_IMAGES,), generator=generator)  # the last class has no image
    logits = scale * torch.randn(NUM_IMAGES, NUM_CLASSES, generator=generator)
    logits[torch.arange(NUM_IMAGES), labels] += scale / 2
    return logits, labels


def _in_batches(size: int) -> list[Tensor]:
    return list(torch.split(torch.arange(NUM_IMAGES), size))


def batches_do_not_matter(subject: Subject) -> Iterator[Problem]:
    """any split into batches and any order of the images gives the same value."""
    logits, labels = _drawn()
    order = torch.randperm(NUM_IMAGES, generator=torch.Generator().manual_seed(1))
    first = subject.whole(logits, labels)
    ways = {
        "in batches of 7": _in_batches(7),
        "one by one": _in_batches(1),
        "in another order": [order],
        "with an empty batch": [order[:0], order[:30], order[:0], order[30:]],
    }
    for way, batches in ways.items():
        value = subject.of(logits, labels, batches)
        if first is None or value is None or not math.isclose(value, first, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            yield Problem(
                f"it is {first} of all images at once and {value} if they come {way}",
                place(subject.definition.sums[0]) if subject.definition.sums else "METRIC",
                "let sums give what can be added up over images, and divide in value",
            )


def none_for_no_image(subject: Subject) -> Iterator[Problem]:
    """it is None of no image."""
    if (value := subject.of(*_drawn(), [])) is not None:
        yield Problem(f"of no image it is {value}", place(subject.definition.value), "return None there")


def stays_within_its_bounds(subject: Subject) -> Iterator[Problem]:
    """it is a number that JSON can hold, within low and high."""
    logits, labels = _drawn()
    sure = torch.full((NUM_IMAGES, NUM_CLASSES), -100.0)
    sure[torch.arange(NUM_IMAGES), labels] = 100.0
    masked = logits.clone()
    masked[:, -1] = -math.inf  # of a domain with fewer classes
    cases = {
        "some right predictions": (logits, labels),
        "one image": (logits[:1], labels[:1]),
        "predictions that are all right": (sure, labels),
        "predictions that are all wrong": (sure, (labels + 1) % (NUM_CLASSES - 1)),
        "equal logits": (torch.zeros_like(logits), labels),
        "fewer classes than there are": (masked, labels),
        "two classes": (logits[:, :2], labels % 2),
    }
    low, high = subject.definition.low, subject.definition.high
    for case, (scores, truth) in cases.items():
        value = subject.whole(scores, truth)
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            yield Problem(
                f"of {case} it is {value!r:.60}, which JSON cannot hold",
                place(subject.definition.value),
                "return float(…), or None where there is no number",
            )
            continue
        if value is not None and (value < low - TOLERANCE or (high is not None and value > high + TOLERANCE)):
            yield Problem(
                f"of {case} it is {value}, which is not between low={low} and high={high}",
                place(subject.definition.value),
                "give Metric the low and high that it has; high=None where there is no end",
            )


def stands_beside_the_others(subject: Subject) -> Iterator[Problem]:
    """it is added up beside the built-in metrics."""
    own = () if subject.name in plugins.names("metrics") else (subject.name,)
    logits, labels = _drawn()
    tally = Tally(NUM_CLASSES, chosen_metrics(own))
    tally.update(Scores.of(logits.double()), labels)
    value, alone = tally.compute()[subject.name.rpartition(".")[2]], subject.whole(logits, labels)
    if value != alone:
        yield Problem(
            f"it is {value} beside the built-in metrics and {alone} alone",
            place(subject.definition.value),
            "read no total but those that its own sums give",
        )
