"""What scripts import from ``clipdg``: the usual things, one call each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipdg.core import plugins
from clipdg.core.benchmark import Benchmark, known_as
from clipdg.core.errors import ConfigError
from clipdg.core.model import Backbone, ClipBackbone
from clipdg.core.versions import version
from clipdg.runs import config
from clipdg.runs.run import run as _run
from clipdg.runs.session import Session, open_backbone
from clipdg.storage.publish import publish
from clipdg.text.prompts import class_directions
from clipdg.weights import learned_method

if TYPE_CHECKING:
    from clipdg.data.datamodule import DataModule
    from clipdg.records.record import Record
    from clipdg.training.classifier import Classifier

__all__ = [
    "class_directions",
    "coop",
    "datamodule",
    "linear_probe",
    "load_backbone",
    "load_benchmark",
    "load_context",
    "run",
    "save_context",
    "zero_shot",
]


def load_backbone(spec: str = "tiny", weights: str | None = None, **options: Any) -> Backbone:
    """An image encoder, for a CLIP with its text encoder, and its preprocessing; frozen, in evaluation mode.

    ``weights``: a pretrained tag, a hub repository, a local file or ``random:SEED``; None for the family's own default.
    ``options`` are the settings that a run has under ``backbone``.
    """
    given = {"backbone": {"name": spec, "weights": weights, **options}}
    return open_backbone(config.load(values=given).values["backbone"])


def load_benchmark(name: str = "miniatures", root: str | None = None, **options: Any) -> Benchmark:
    """A benchmark's classes, domains, shifts and templates; ``options`` are the settings of its ``Config``."""
    settings = config.load(values={"benchmark": {"name": name, "root": root, **options}}).values["benchmark"]
    return Session().benchmark(settings)


def datamodule(
    name: str,
    target: str | None = None,
    backbone: Backbone | None = None,
    *,
    root: str | None = None,
    shots: int | None = None,
    picks: str | Path | None = None,
    seed: int = 0,
    batch_size: int = 32,
    workers: int = 0,
    **options: Any,
) -> DataModule:
    """Train, validation and test loaders of the shift that has ``target``; with None, of the benchmark's only shift."""
    from clipdg.data.datamodule import DataModule
    from clipdg.data.few_shot_list import read as read_picks

    benchmark = load_benchmark(name, root, **options)
    target = known_as(benchmark, target) if target is not None else None
    shifts = [s for s in benchmark.shifts if target is None or target in s.targets]
    if len(shifts) != 1:
        targets = sorted({t for s in benchmark.shifts for t in s.targets})
        raise ConfigError(f"{name} has {len(shifts)} shifts with target {target}; targets are {', '.join(targets)}")
    return DataModule(
        benchmark,
        shifts[0],
        backbone or load_backbone(),
        shots=shots,
        picks=read_picks(Path(picks).expanduser()) if picks else None,
        seed=seed,
        batch_size=batch_size,
        workers=workers,
    )


def zero_shot(
    backbone: Backbone, classes: Sequence[str], templates: Sequence[str] | str = ("a photo of a {}.",), **settings: Any
) -> Classifier:
    """Zero-shot CLIP as a LightningModule: ``model(images)`` -> logits (N, C); test it with a Trainer.

    ``templates``: some, or a set's name ("imagenet_80"), or a file.
    """
    given = templates if isinstance(templates, str) else list(templates)
    return _classifier("zero_shot", backbone, classes, {"templates": given, **settings})


def linear_probe(backbone: Backbone, classes: Sequence[str], c: float = 0.316, **settings: Any) -> Classifier:
    """A linear probe as a LightningModule: ``trainer.fit`` makes one pass over the data and solves."""
    return _classifier("linear_probe", backbone, classes, {"c": c, **settings})


def coop(backbone: Backbone, classes: Sequence[str], num_context: int = 16, **settings: Any) -> Classifier:
    """CoOp as a LightningModule; ``model.method.context`` is the learnt parameter.

    The learning-rate schedule is laid out for ``epochs``; give the Trainer the same ``max_epochs``.
    """
    return _classifier("coop", backbone, classes, {"num_context": num_context, **settings})


def save_context(model: Classifier, path: str | Path) -> Path:
    """The learnt context of a fitted ``coop`` model, with all that it takes to use it again; see contexts.py.

    Raises ConfigError for a model that was not made by ``coop``.
    """
    if model.settings is None or not getattr(
        plugins.plugin("methods", model.settings["name"]), "LEARNS_CONTEXT", False
    ):
        raise ConfigError("save_context takes a model that clipdg.coop made; this one has no context to save")
    made = {"steps": model.num_steps, "versions": {name: version(name) for name in ("clipdg", "torch", "lightning")}}
    content = learned_method.content(model.method, model.settings, model.classes, model.backbone, made)
    publish(Path(path), content)
    return Path(path)


def load_context(path: str | Path, backbone: Backbone, classes: Sequence[str]) -> Classifier:
    """A learnt context before any class names, as a LightningModule to test or to predict with.

    Raises ConfigError for another backbone, or for other classes if each class has a context of its own.
    """
    return _classifier("context", backbone, classes, {"file": str(path)})


def run(settings: Mapping[str, Any] | str | Path, *overrides: str, out: str | Path | None = None) -> list[Record]:
    """The records of one configuration: a mapping or a YAML file, then ``key=value``; written to ``out`` if given."""
    file = None if isinstance(settings, Mapping) else Path(settings)
    values = settings if isinstance(settings, Mapping) else None
    return _run(config.load(file, overrides, values), Path(out) if out else None)


def _classifier(name: str, backbone: Backbone, classes: Sequence[str], settings: Mapping[str, Any]) -> Classifier:
    from clipdg.training.classifier import Classifier

    module = plugins.plugin("methods", name)
    if module.NEEDS_TEXT and not isinstance(backbone, ClipBackbone):
        raise ConfigError(f"{name} needs a text encoder and {backbone.name} has none; use a CLIP backbone")
    if len(classes) < 2:
        raise ConfigError(f"a classifier needs at least two classes; there are {len(classes)}")
    values = config.load(values={"method": {"name": name, **settings}}).values["method"]
    typed = config.plugin_config("method", values)
    method = module.build(typed, backbone, Benchmark("custom", tuple(classes)))
    fit = module.fit(typed) if hasattr(module, "fit") else None
    model = Classifier(backbone, method, len(classes), fit, trains_backbone=module.TRAINS == "everything")
    model.settings, model.classes = values, tuple(classes)
    return model
