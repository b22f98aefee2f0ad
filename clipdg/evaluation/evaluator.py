"""One way to evaluate, for a script's ``trainer.test``, for a run, and in the middle of a fit.

The images of a test set come as one stream of batches. An ``Evaluator`` takes each batch with its logits and adds up
the metrics of every split, of all splits together and of each class subset. A method that adapts at test time is told
when a domain's stream begins, and works on a copy that is as it was after the fit (``Streams``): what it saw of one
domain never reaches the next, so the order of the domains and the presence of others do not matter.

Legend: N images, C classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn

from clipdg.core import distributed, plugins
from clipdg.core.errors import ConfigError, DivergedError
from clipdg.data.datasets import Batch
from clipdg.data.test_set import TestSet
from clipdg.evaluation.scores import Predictions, Scores, restrict
from clipdg.evaluation.tally import Tally, tallies

Results: TypeAlias = dict[tuple[str, str], dict[str, float | None]]  # (domain, split) -> metrics


class Streams:
    """Gives the module that classifies a stream of images: ``method`` itself, or, if it adapts, a copy for each stream.

    What a copy learns from the images it sees goes with the copy.
    """

    def __init__(self, method: nn.Module, definition: plugins.Method[Any, Any]) -> None:
        self.method, self.definition = method, definition

    def begin(self, domain: str) -> nn.Module:
        """The module for a stream of ``domain`` that begins now."""
        if not self.definition.adapts:
            return self.method
        if distributed.count() > 1:
            raise ConfigError("a method that adapts at test time sees one stream of images; evaluate it in one process")
        fresh = copy.deepcopy(self.method)
        if self.definition.begin_domain is not None:
            self.definition.begin_domain(fresh, domain)
        return fresh


@dataclass
class _Stream:
    """What is known so far of one test set."""

    tallies: dict[str, Tally]
    num_dealt: int | None = None  # images that are dealt out among processes, of all of them
    predictions: list[Predictions] = field(default_factory=list)

    @property
    def num_seen(self) -> int:
        return sum(len(p.labels) for p in self.predictions)


@dataclass(frozen=True)
class Found:
    """What an evaluation found."""

    results: Results
    predictions: dict[str, Predictions]  # by domain


class Evaluator:
    """Adds up the metrics of each test set, batch by batch."""

    def __init__(
        self,
        test_sets: Sequence[TestSet],
        num_classes: int,
        metrics: Mapping[str, plugins.Metric] | None = None,
        device: torch.device | str = "cpu",
        loaders: Sequence[Any] = (),
    ) -> None:
        """``loaders``: one for each test set, which Lightning may have dealt out among processes."""
        self.test_sets = tuple(test_sets)
        dealt = [distributed.num_dealt(loader) for loader in loaders] or [None] * len(self.test_sets)
        self._streams = [
            _Stream({n: t.to(device) for n, t in tallies(s.evaluations, num_classes, metrics).items()}, num)
            for s, num in zip(self.test_sets, dealt, strict=True)
        ]

    def add(self, number: int, batch: Sequence[Any], logits_of: Callable[[Batch], Tensor]) -> None:
        """Take the next batch of test set ``number``; ``logits_of`` gives (N, C) logits of it.

        Raises DivergedError if a logit is not finite.
        """
        test_set, stream = self.test_sets[number], self._streams[number]
        batch = _own_part(as_batch(batch, stream.num_seen, dealt=stream.num_dealt is not None), stream)
        logits = logits_of(batch).double()
        if not torch.isfinite(logits).all():
            raise DivergedError(f"a logit on {test_set.domain} is not finite")
        labels, splits = batch.labels, batch.splits
        assert splits is not None
        own_logits, own_labels = restrict(logits, labels, test_set.subset)
        scores = Scores.of(own_logits)
        for place, split in enumerate(test_set.splits):
            chosen = splits == place
            stream.tallies[split].update(scores.chosen(chosen), own_labels[chosen])
        if test_set.whole:
            stream.tallies["all"].update(scores, own_labels)
        for name, subset in test_set.class_subsets.items():
            chosen = torch.isin(labels, labels.new_tensor(subset.ids))
            if "test" in test_set.splits:
                chosen &= splits == test_set.splits.index("test")
            their_logits, their_labels = restrict(logits[chosen], labels[chosen], subset)
            stream.tallies[name].update(Scores.of(their_logits), their_labels)
        columns = (batch.indices, own_labels, scores.predicted, scores.confidence)
        stream.predictions.append(Predictions(*(column.cpu() for column in columns)))

    def finish(self) -> Found:
        """The metrics and predictions of all test sets."""
        results: Results = {}
        by_domain: dict[str, list[Predictions]] = {}
        for test_set, stream in zip(self.test_sets, self._streams, strict=True):
            for name, tally in stream.tallies.items():
                results[test_set.domain, name] = tally.compute()
            if not stream.predictions:
                continue
            parts = [torch.cat(column) for column in zip(*stream.predictions, strict=True)]
            if stream.num_dealt is not None:
                parts = distributed.whole(parts, stream.num_dealt)
            by_domain.setdefault(test_set.domain, []).append(Predictions(*parts))
        joined = {
            domain: found[0] if len(found) == 1 else Predictions(*map(torch.cat, zip(*found, strict=True)))
            for domain, found in by_domain.items()
        }
        return Found(results, joined)


class Evaluated(Protocol):
    """What ``evaluate`` asks of a classifier."""

    num_classes: int
    metrics: Mapping[str, plugins.Metric] | None

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def begin_stream(self, domain: str) -> None:
        """A stream of images of ``domain`` begins now."""

    def logits_of(self, batch: Batch) -> Tensor:
        """(N, C) logits of a batch, in fp32."""


def evaluate(
    classifier: Evaluated,
    loaders: Iterable[Iterable[Any]],
    test_sets: Sequence[TestSet],
    watch: Callable[[int], None] | None = None,
) -> Found:
    """Evaluate in fp32 on the device where the classifier is, without gradients, one stream after the other.

    A classifier in training mode is put back into it, so that a fit goes on as if nothing had happened. ``watch`` is
    told the images done, a batch at a time.
    """
    evaluator = Evaluator(test_sets, classifier.num_classes, classifier.metrics, classifier.device)
    done = 0
    with torch.no_grad(), torch.autocast(classifier.device.type, enabled=False):
        for number, loader in enumerate(loaders):
            classifier.begin_stream(test_sets[number].domain)
            for batch in loader:
                moved = move_data_to_device(batch, classifier.device)
                evaluator.add(number, moved, classifier.logits_of)
                done += len(moved[1])
                if watch is not None:
                    watch(done)
    return evaluator.finish()


def as_batch(batch: Sequence[Any], start: int = 0, *, dealt: bool = False) -> Batch:
    """A loader's batch with all of its columns: a script's own may end after the labels.

    Missing rows are numbered from ``start`` on, as they were dealt among processes; missing splits are all 0.
    """
    inputs, labels = batch[0], batch[1]
    domains, indices, splits = (*batch[2:], None, None, None)[:3]
    if indices is None:
        indices = torch.arange(start, start + len(labels))
        if dealt:
            indices = distributed.rank() + distributed.count() * indices
    return Batch(inputs, labels, domains, indices, labels.new_zeros(len(labels)) if splits is None else splits)


def _own_part(batch: Batch, stream: _Stream) -> Batch:
    """The batch without the images that Lightning dealt to this process a second time."""
    if stream.num_dealt is None:
        return batch
    own = max(0, distributed.num_own(stream.num_dealt) - stream.num_seen)
    inputs, labels, domains, indices, splits = batch
    return Batch(
        inputs[:own],
        labels[:own],
        None if domains is None else domains[:own],
        indices[:own],
        None if splits is None else splits[:own],
    )
