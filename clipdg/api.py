"""What scripts import from ``clipdg``: the usual things, one call each.

Every method of the registry is a function here: ``clipdg.tip_adapter(backbone, data)``. A Trainer that fits what it
gives on ``clipdg.datamodule(…)`` ends in the weights and the predictions of ``clipdg run`` with the same settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipdg.core import plugins
from clipdg.core.benchmark import Benchmark, known_as
from clipdg.core.errors import ConfigError
from clipdg.core.model import Backbone
from clipdg.core.versions import version
from clipdg.runs import compatibility, config
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
    "method",
    "run",
    "save_context",
    "zero_shot",
]


def load_backbone(spec: str = "tiny", weights: str | None = None, **options: Any) -> Backbone:
    """An image encoder, for a CLIP with its text encoder, and its preprocessing; frozen, in evaluation mode.

    ``weights``: a pretrained tag, a hub repository, a local file or ``random:SEED``; None for the family's own default.
    ``options`` are the settings that a run has under ``backbone``.
    """
    return open_backbone(config.load(values={"backbone": {"name": spec, "weights": weights, **options}}).backbone)


def load_benchmark(name: str = "miniatures", root: str | None = None, **options: Any) -> Benchmark:
    """A benchmark's classes, domains, shifts and templates; ``options`` are the settings of its ``Config``."""
    settings = config.load(values={"benchmark": {"name": name, "root": root, **options}})
    return Session().benchmark(settings.benchmark)


def datamodule(
    name: str | Benchmark,
    target: str | None = None,
    backbone: Backbone | None = None,
    *,
    root: str | None = None,
    shots: int | None = None,
    picks: str | Path | None = None,
    holdout: float = 0.2,
    seed: int = 0,
    batch_size: int | None = None,
    workers: int | None = 0,
    stored: bool = False,
    **options: Any,
) -> DataModule:
    """Train, validation and test loaders of the shift that has ``target``; with None, of the benchmark's only shift.

    ``shots``, ``picks``, ``holdout`` and ``seed`` are those of a run. ``batch_size``: for a module of your own; a
    method of clipdg has its own. ``stored``: features of ``backbone``, encoded once and kept, not images.
    """
    from clipdg.data.datamodule import DataModule
    from clipdg.data.few_shot_list import read as read_picks
    from clipdg.data.inputs import Inputs
    from clipdg.runs.stored_features import StoredFeatures

    benchmark = name if isinstance(name, Benchmark) else load_benchmark(name, root, **options)
    target = known_as(benchmark, target) if target is not None else None
    shifts = [s for s in benchmark.shifts if target is None or target in s.targets]
    if len(shifts) != 1:
        targets = sorted({t for s in benchmark.shifts for t in s.targets})
        raise ConfigError(
            f"{benchmark.name} has {len(shifts)} shifts with target {target}; targets are {', '.join(targets)}"
        )
    opened = backbone or load_backbone()

    def features(drawn_from: Benchmark, drawn: bool) -> Inputs:
        return StoredFeatures(drawn_from, opened, Session().store, drawn, workers=workers)

    return DataModule.of(
        benchmark,
        shifts[0],
        opened,
        shots=shots,
        picks=read_picks(Path(picks).expanduser()) if picks else None,
        holdout=holdout,
        seed=seed,
        batch_size=batch_size,
        workers=workers,
        stored=features if stored else None,
    )


def method(
    name: str,
    backbone: Backbone,
    classes: Sequence[str] | Benchmark | DataModule,
    *,
    objective: str | Mapping[str, Any] = "erm",
    fit: Mapping[str, Any] | None = None,
    metrics: Sequence[str] = (),
    seed: int = 0,
    **settings: Any,
) -> Classifier:
    """Any method as a LightningModule: fit it with a Trainer, test it, or call ``model(images)`` for logits (N, C).

    ``classes``: names, or a benchmark or data module, whose prompts, nouns and WordNet ids then are the method's too.
    ``settings`` are those of a run's ``method``; ``objective``, ``fit``, ``metrics`` and ``seed`` are a run's too.
    A backbone that the method trains is copied; the trained one is ``model.backbone``. Give the Trainer
    ``**model.trainer_options``, so that it makes the passes that the learning rate's schedule is laid out for.

    Raises ConfigError for settings that there are not or that do not go together.
    """
    from clipdg.data.datamodule import DataModule
    from clipdg.evaluation.tally import chosen_metrics
    from clipdg.training import build

    benchmark, sources = _described(classes)
    given: dict[str, Any] = {"method": {"name": name, **settings}, "objective": objective, "metrics": list(metrics)}
    typed = config.load(values={**given, "seed": seed, **({"fit": dict(fit)} if fit else {})})
    definition = plugins.method(name)
    compatibility.check(typed, definition, backbone)
    how = compatibility.fit_of(typed, definition)
    goal = None
    if how is not None and typed.objective.name != "erm":
        if not isinstance(classes, DataModule):
            raise ConfigError(f"objective {typed.objective.name} compares domains; give the data module, not names")
        goal = build.minimised(typed.objective.name, typed.objective.own, benchmark, sources, how, seed)
    model = build.classifier(
        definition,
        typed.method.own,
        backbone,
        benchmark,
        how,
        objective=goal,
        metrics=chosen_metrics(typed.metrics),
        seed=seed,
    )
    model.settings = dict(typed.plain["method"])
    return model


def _described(classes: Sequence[str] | Benchmark | DataModule) -> tuple[Benchmark, tuple[str, ...]]:
    """The benchmark that class names stand for, or that is given, and the sources of a data module."""
    from clipdg.data.datamodule import DataModule

    if isinstance(classes, DataModule):
        return classes.benchmark, classes.shift.sources
    benchmark = classes if isinstance(classes, Benchmark) else Benchmark("custom", tuple(classes))
    if len(benchmark.classes) < 2:
        raise ConfigError(f"a classifier needs at least two classes; there are {len(benchmark.classes)}")
    return benchmark, ()


def zero_shot(
    backbone: Backbone,
    classes: Sequence[str] | Benchmark | DataModule,
    templates: Sequence[str] | str | None = None,
    **settings: Any,
) -> Classifier:
    """Zero-shot CLIP as a LightningModule: ``model(images)`` -> logits (N, C); test it with a Trainer.

    ``templates``: some, or a set's name ("imagenet_80"), or a file; None for the benchmark's own, which for
    bare class names is "a photo of a {}." See ``method`` for the rest.
    """
    given = templates if isinstance(templates, str) or templates is None else list(templates)
    return method("zero_shot", backbone, classes, templates=given, **settings)


def linear_probe(
    backbone: Backbone, classes: Sequence[str] | Benchmark | DataModule, c: float = 0.316, **settings: Any
) -> Classifier:
    """A linear probe as a LightningModule: ``trainer.fit`` makes one pass over the data and solves. See ``method``."""
    return method("linear_probe", backbone, classes, c=c, **settings)


def coop(
    backbone: Backbone, classes: Sequence[str] | Benchmark | DataModule, num_context: int = 16, **settings: Any
) -> Classifier:
    """CoOp as a LightningModule; ``model.method.context`` is the learnt parameter. See ``method``."""
    return method("coop", backbone, classes, num_context=num_context, **settings)


def maker(name: str) -> Callable[..., Classifier]:
    """``clipdg.tip_adapter`` and the like: ``method`` with its first argument given."""

    def make(backbone: Backbone, classes: Sequence[str] | Benchmark | DataModule, **settings: Any) -> Classifier:
        return method(name, backbone, classes, **settings)

    make.__name__, make.__doc__ = name, f"{plugins.summary('methods', name)}\n\nSee ``clipdg.method``."
    return make


def save_context(model: Classifier, path: str | Path) -> Path:
    """Keep the learnt context of a fitted ``coop`` model, with all that it takes to use it again.

    Raises ConfigError for a model that has learnt no context. See weights/learned_method.py.
    """
    if model.settings is None or not model.definition.learns_context:
        raise ConfigError("save_context takes a model that clipdg.coop made; this one has no context to save")
    made = {"steps": model.num_steps, "versions": {name: version(name) for name in ("clipdg", "torch", "lightning")}}
    content = learned_method.content(model.method, model.settings, model.classes, model.backbone, made)
    publish(Path(path), content)
    return Path(path)


def load_context(path: str | Path, backbone: Backbone, classes: Sequence[str] | Benchmark | DataModule) -> Classifier:
    """A learnt context before any class names, as a LightningModule to test or to predict with.

    Raises ConfigError for another backbone, or for other classes if each class has a context of its own.
    """
    return method("context", backbone, classes, file=str(path))


def run(settings: Mapping[str, Any] | str | Path, *overrides: str, out: str | Path | None = None) -> list[Record]:
    """The records of one configuration: a mapping or a YAML file, then ``key=value``; written to ``out`` if given."""
    file = None if isinstance(settings, Mapping) else Path(settings)
    values = settings if isinstance(settings, Mapping) else None
    return _run(config.load(file, overrides, values), Path(out) if out else None)
