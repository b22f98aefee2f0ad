"""Name -> plug-in: a file in backbones/, benchmarks/, methods/ or objectives/, or a dotted path of the user's own.

A plug-in is a module. backbones: ``load(model, weights) -> Backbone``, with settings of its own a ``Config`` and
``load(model, weights, config)``. benchmarks: ``Config`` and ``build(config, root) -> Benchmark``. methods: see
below. objectives: ``Config`` and
``build(config, domains, label_smoothing, seed) -> nn.Module``, called with (model, inputs, labels, domains); ``NEEDS``
is "images", or "domains" for batches with images of each, or "features" if moreover it acts on what the classifier
reads. ``LEAST``, if it is there: how many images of each domain it needs in a batch. The module may have ``updated()``,
called at each update of the weights, and ``restarts_optimizer``, asked before one.

A method is ``Config`` and ``build(config, backbone, benchmark) -> nn.Module``, features (N, D) to logits (N, C), with

    NEEDS_TEXT      whether the backbone must be a CLIP
    TRAINS          "nothing"; "method", by gradient descent; "solver", by ``module.solve(features, labels)``, with
                    ``validation`` as a third if ``module.needs_validation``; "everything", the backbone too
    fit(config)     core.Fit, how it goes down; None if this configuration is solved. Not there if nothing is fitted.
    LEARNS_CONTEXT  its parameters can stand before other class names, see contexts.py
    REPRESENTS      its parameters change what objectives on features act on, with the backbone as it is
    merged(backbone, before)  of one that puts modules into the backbone it trains: ``before`` with what these learnt
    said(config)    settings that name files, as what these say: they count in a run's identity and stand in its record

The module may have ``refitted`` (on the validation images too, which are then not evaluated), ``story`` (what a record
tells of the fit, JSON), ``regularized(loss)`` (the loss that a step goes down, of its objective's), ``learnt()`` (the
tensors that a run leaves beside its record, in the place of its parameters) and, of one that trains everything,
``trains(name)`` (whether the backbone's parameter of that name, on which image features depend, is trained). Where its
classifier reads something else than the features it is given, ``represent(features)`` is that and
``classify(represented)`` the logits: a fit takes these two in the place of the call, for objectives on features.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib
import pkgutil
from functools import cache
from pathlib import Path
from types import ModuleType

from clipdg.core.errors import ConfigError

PARTS = {
    "backbones": ("load",),
    "benchmarks": ("Config", "build"),
    "methods": ("Config", "build", "NEEDS_TEXT", "TRAINS"),
    "objectives": ("Config", "build", "NEEDS"),
}
KINDS = tuple(PARTS)


@cache
def names(kind: str) -> tuple[str, ...]:
    """The built-in plug-ins of a kind, sorted."""
    package = importlib.import_module(f"clipdg.{kind}")
    return tuple(sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")))


def plugin(kind: str, name: str) -> ModuleType:
    """The module of plug-in ``name``. Raises ConfigError with the nearest name if there is none."""
    assert kind in KINDS
    if name in names(kind):
        return importlib.import_module(f"clipdg.{kind}.{name}")
    if "." in name and all(part.isidentifier() for part in name.split(".")):
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"no module '{name}' for {kind}: {error}; install it, or put its folder on PYTHONPATH"
            ) from error
        except SyntaxError as error:
            raise ConfigError(f"{name} is no Python: {error.filename}, line {error.lineno}: {error.msg}") from error
        _check(module, kind, name)
        return module
    raise ConfigError(
        f"no '{name}' in clipdg/{kind}/.{nearest(name, names(kind))} There are: {', '.join(names(kind))}."
    )


def _check(module: ModuleType, kind: str, name: str) -> None:
    missing = [part for part in PARTS[kind] if not hasattr(module, part)]
    if missing:
        raise ConfigError(
            f"{name} is no plug-in for {kind}: it has no {', '.join(missing)}; those in clipdg/{kind}/ show what is "
            "needed"
        )
    settings = getattr(module, "Config", None)
    if settings is not None and not (isinstance(settings, type) and dataclasses.is_dataclass(settings)):
        raise ConfigError(f"{name} is no plug-in for {kind}: its Config is no dataclass")


def summary(kind: str, name: str) -> str:
    """The first sentence of a plug-in's docstring, read without importing it."""
    package = importlib.import_module(f"clipdg.{kind}")
    folder = Path(package.__path__[0])
    source = folder / f"{name}.py"
    text = (source if source.exists() else folder / name / "__init__.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]


def nearest(word: str, words: tuple[str, ...] | list[str]) -> str:
    """`` Did you mean 'coop'?`` or nothing."""
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""
