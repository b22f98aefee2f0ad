"""Name -> plug-in: a file in backbones/, benchmarks/, methods/ or objectives/, or a dotted path of the user's own.

A plug-in is a module. backbones: ``load(model, weights) -> Backbone``, with settings of its own a ``Config`` and
``load(model, weights, config)``. benchmarks: ``Config`` and ``build(config, root) -> Benchmark``. methods: ``Config``
and ``build(config, backbone, benchmark) -> nn.Module``. objectives: ``Config`` and
``build(config, domains, label_smoothing, seed) -> nn.Module``, called with (model, inputs, labels, domains); ``NEEDS``
is "images", or "domains" for batches with images of each, or "features" if moreover it acts on what the classifier
reads.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import pkgutil
from functools import cache
from pathlib import Path
from types import ModuleType

from clipdg.errors import ConfigError

KINDS = ("backbones", "benchmarks", "methods", "objectives")


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
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise ConfigError(f"no module '{name}' for {kind}: {error}") from error
    raise ConfigError(
        f"no '{name}' in clipdg/{kind}/.{nearest(name, names(kind))} There are: {', '.join(names(kind))}."
    )


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
