"""Which contract holds for a file: one for each typed value that the file ends with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from clipdg.core import plugins
from clipdg.core.errors import ConfigError
from clipdg.testing import backbone, benchmark, engine, method, metric, objective
from clipdg.testing.problem import Check, problems_in

CONTRACTS: Mapping[str, Callable[..., list[Check]]] = {
    "benchmarks": benchmark.checks,
    "backbones": backbone.checks,
    "methods": method.checks,
    "objectives": objective.checks,
    "metrics": metric.checks,
    "engines": engine.checks,
}


def kinds_of(name: str) -> list[str]:
    """The kinds of plug-in that a file is: a dotted path, an admitted file, or a built-in name.

    Raises ConfigError if it is none, with the reason.
    """
    built_in = [kind for kind in plugins.KINDS if name in plugins.names(kind)]
    if built_in:
        return built_in
    module = plugins.module_of(name, "plug-ins")
    found = [kind for kind, where in plugins.KINDS.items() if isinstance(vars(module).get(where.constant), where.type)]
    if not found:
        ends = ", ".join(f"{where.constant} = {where.type.__name__}(…)" for where in plugins.KINDS.values())
        raise ConfigError(f"{name} is no plug-in: a plug-in ends with one of {ends}")
    return found


def assert_contract(name: str, kind: str | None = None, **options: Any) -> None:
    """Raises AssertionError with every problem of a plug-in; of all kinds that its file is, or of one.

    ``options`` are those of the kind's check, such as ``root`` of a benchmark or ``settings``.
    """
    family = name.partition(":")[0]
    problems = [
        problem
        for each in ([kind] if kind else kinds_of(family))
        for problem in problems_in(CONTRACTS[each](name, **options))
    ]
    assert not problems, "\n".join(str(problem) for problem in problems)
