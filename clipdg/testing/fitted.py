"""A method on coloured_squares: built, fitted by a plain Trainer as in a script, and run as ``clipdg run`` does."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import lightning
import torch
from torch import Tensor, nn

from clipdg import api
from clipdg.core import plugins
from clipdg.core.benchmark import Benchmark, Shift
from clipdg.core.errors import ConfigError
from clipdg.core.model import Backbone
from clipdg.data import preprocessing
from clipdg.data.datamodule import DataModule
from clipdg.data.inputs import Images, Inputs
from clipdg.data.protocol import decide
from clipdg.runs import compatibility, config
from clipdg.runs.config import RunSettings
from clipdg.runs.feature_store import FeatureStore
from clipdg.runs.run import run
from clipdg.runs.session import Session
from clipdg.runs.stored_features import StoredFeatures
from clipdg.testing.problem import NotPossible
from clipdg.training import build, trainer
from clipdg.training.classifier import Classifier

BENCHMARK = "clipdg.testing.coloured_squares"
WITH_HEAD = "clipdg.testing.tiny_with_head"
TARGET = "dark"
STEPS = 3  # updates of a fit by gradient descent
NUM_IMAGES = 40  # that logits are compared on
T = TypeVar("T")

QUIET: Mapping[str, Any] = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def trainer_for(model: Classifier, *callbacks: lightning.Callback) -> lightning.Trainer:
    """The Trainer of a script, which says nothing."""
    return lightning.Trainer(**model.trainer_options, **QUIET, callbacks=list(callbacks))


def tiny(name: str = "tiny", weights: str | None = "random:0") -> Backbone:
    """A tiny backbone, which needs no download."""
    backbone = api.load_backbone(name, weights)
    assert isinstance(backbone, nn.Module)
    backbone.cpu()
    return backbone


def squares() -> Benchmark:
    """The benchmark that contracts are held on."""
    return api.load_benchmark(BENCHMARK)


def with_classes(benchmark: Benchmark, order: Sequence[int]) -> Benchmark:
    """The benchmark with some of its classes, in another order; its images are not looked at."""
    wnids = tuple(benchmark.wnids[i] for i in order)
    return replace(benchmark, classes=tuple(benchmark.classes[i] for i in order), wnids=wnids)


class Gradients(lightning.Callback):
    """Notes which parameters get a gradient, and whether it is finite."""

    def __init__(self) -> None:
        self.got: set[str] = set()
        self.broken: set[str] = set()

    def on_before_optimizer_step(self, trainer: Any, pl_module: nn.Module, optimizer: Any) -> None:
        for name, parameter in pl_module.named_parameters():
            if parameter.grad is None:
                continue
            self.got.add(name)
            if not torch.isfinite(parameter.grad).all():
                self.broken.add(name)


@dataclass
class Fitted:
    """A classifier before and after its fit, and what a script's ``trainer.test`` predicted."""

    model: Classifier
    before: Mapping[str, Tensor]
    gradients: Gradients
    predicted: Mapping[tuple[str, str], int]  # (domain, image) -> class


@dataclass
class Subject:
    """A method with some settings, and the tiny backbone that it is held on."""

    name: str
    definition: plugins.Method[Any, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    asked: str | None = None  # the backbone, if not the first that the method takes
    weights: str | None = "random:0"

    @cached_property
    def benchmark(self) -> Benchmark:
        return squares()

    @cached_property
    def typed(self) -> RunSettings:
        """The settings of the run, checked."""
        return config.load(values=self._values)

    @property
    def config(self) -> Any:
        return self.typed.method.own

    @property
    def learns(self) -> bool:
        return self.definition.trains != "nothing"

    @cached_property
    def by_gradient(self) -> bool:
        """Whether these settings are fitted by gradient descent."""
        own = self.definition.config(**self.settings)
        return self.definition.fit_of(own) is not None

    @property
    def _values(self) -> dict[str, Any]:
        values: dict[str, Any] = {
            "benchmark": BENCHMARK,
            "method": {"name": self.name, **self.settings},
            "shift": TARGET,
        }
        return values | ({"fit": {"steps": STEPS}} if self.by_gradient else {})

    @cached_property
    def backbone_name(self) -> str:
        """The first tiny backbone that the method can be built on."""
        if self.asked is not None:
            return self.asked
        if self.definition.needs_head:
            return WITH_HEAD
        last: ConfigError | None = None
        for name in ("tiny", "tiny:vit"):
            try:
                self.definition.build(self.config, tiny(name), self.benchmark)
            except ConfigError as error:
                last = last or error
            else:
                return name
        assert last is not None
        raise last

    @cached_property
    def backbone(self) -> Backbone:
        return tiny(self.backbone_name, self.weights)

    def built(self, benchmark: Benchmark | None = None, seed: int = 0, backbone: Backbone | None = None) -> Classifier:
        """The classifier in its state before fitting, in evaluation mode."""
        fit = compatibility.fit_of(self.typed, self.definition)
        own = copy.deepcopy(backbone or self.backbone)  # a method may put modules into it
        made = build.classifier(self.definition, self.config, own, benchmark or self.benchmark, fit, seed=seed)
        return made.eval()

    @cached_property
    def inputs(self) -> Tensor:
        """Images of all domains, normalised; or their features, where the method leaves the backbone as it is."""
        spec = self.backbone.preprocessing
        rows = [(d.rows, i) for d in self.benchmark.domains.values() for i in range(NUM_IMAGES // 3 + 1)]
        pixels = torch.stack([preprocessing.to_uint8(r.image(i), spec) for r, i in rows[:NUM_IMAGES]])
        images = preprocessing.normalize(pixels, spec)
        if self.definition.trains_backbone:
            return images
        with torch.no_grad():
            return self.backbone.encode_image(images)

    @torch.no_grad()
    def logits(self, classifier: Classifier, chosen: Tensor | None = None) -> Tensor:
        """(N, C) logits of the images at ``chosen``, or of all."""
        inputs = self.inputs if chosen is None else self.inputs[chosen]
        return classifier(inputs, torch.zeros(len(inputs), dtype=torch.int64))  # type: ignore[no-any-return]  # logits

    @cached_property
    def _fit_ended(self) -> Fitted | Exception:
        try:
            with tempfile.TemporaryDirectory() as folder:
                return _fit(self, Path(folder))
        except Exception as error:
            return error

    def fitted(self, *, first: bool = False) -> Fitted:
        """After a fit as a script does it. Raises what the fit raised for the ``first`` who asks, and NotPossible."""
        ended = self._fit_ended
        if isinstance(ended, Fitted):
            return ended
        if first:
            raise ended
        raise NotPossible

    def final(self) -> Classifier:
        """A copy of what is tested: the fitted classifier, or what was built if nothing is learnt."""
        return copy.deepcopy(self.fitted().model).eval()

    def streamed(self, names: Sequence[str], classifier: Classifier) -> dict[str, dict[int, float]]:
        """By domain the confidence in each row's prediction, if these domains are tested in this order."""
        chosen = replace(self.benchmark, domains={name: self.benchmark.domains[name] for name in names})
        protocol = decide(chosen, Shift("all", (), tuple(names)), seed=0, learns=False)
        data = DataModule(protocol, Images(chosen, self.backbone.preprocessing))
        with trainer.quiet():
            trainer_for(classifier).test(classifier, data, verbose=False)
        return {
            domain: dict(zip(found.indices.tolist(), found.confidence.tolist(), strict=True))
            for domain, found in classifier.predictions.items()
        }

    def run(self) -> dict[tuple[str, str], int]:
        """(domain, image) -> class, as ``clipdg run`` predicts."""
        import pyarrow.parquet as pq

        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            backbone = {"backbone": {"name": self.backbone_name, "weights": self.weights}}
            settings = config.load(values=self._values | backbone)
            [record] = run(settings, place / "out", Session(FeatureStore(place / "store", devices=1)))
            table = pq.read_table(place / "out" / f"{record.run_id}.parquet").to_pydict()
        return dict(zip(zip(table["domain"], table["id"], strict=True), table["prediction"], strict=True))


def _fit(subject: Subject, folder: Path) -> Fitted:
    [shift] = [s for s in subject.benchmark.shifts if s.name == TARGET]
    store = FeatureStore(folder, devices=1)

    def stored(benchmark: Benchmark, drawn: bool) -> Inputs:
        return StoredFeatures(benchmark, subject.backbone, store, drawn, workers=0)

    trains_backbone = subject.definition.trains_backbone
    data = DataModule.of(
        subject.benchmark, shift, subject.backbone, seed=0, workers=0, stored=None if trains_backbone else stored
    )
    fit = {"steps": STEPS} if subject.by_gradient else None
    model = api.method(subject.name, subject.backbone, data, fit=fit, **subject.settings)
    before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    gradients = Gradients()
    with trainer.quiet():
        script = trainer_for(model, gradients)
        if subject.learns:
            script.fit(model, data)
        script.test(model, data, verbose=False)
    predicted = {}
    for domain, found in model.predictions.items():
        ids = subject.benchmark.domains[domain].rows.ids
        for row, label in zip(found.indices.tolist(), found.predicted.tolist(), strict=True):
            predicted[domain, ids[row]] = label
    return Fitted(model, before, gradients, predicted)
