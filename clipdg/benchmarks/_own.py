"""Helpers of the benchmarks for a user's own data: settings that name things, and the shifts they ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clipdg.core import plugins
from clipdg.core.benchmark import Shift, leave_one_out
from clipdg.core.errors import ConfigError


def shifts(domains: Sequence[str], sources: Any) -> tuple[Shift, ...]:
    """The shift from ``sources``, a domain or a list of them, to all others; None leaves each domain out once."""
    if sources is None:
        return leave_one_out(domains)
    chosen = listed(sources, "benchmark.sources")
    known(chosen, domains, "benchmark.sources", "domain")
    ordered = tuple(d for d in domains if d in chosen)
    targets = tuple(d for d in domains if d not in chosen)
    if not targets:
        raise ConfigError(f"benchmark.sources names every domain ({', '.join(domains)}), which leaves none to test on")
    return (Shift(f"from {'+'.join(ordered)}", ordered, targets),)


def listed(value: Any, key: str) -> tuple[str, ...]:
    """The names that a setting gives: one, or a list. Raises ConfigError if it is neither."""
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names or not all(isinstance(n, str) for n in names):
        raise ConfigError(f"{key} is {value!r}; give a name or a list of names, such as {key}=photo or {key}=[a,b]")
    if len(set(names)) < len(names):
        raise ConfigError(f"{key} names a domain twice: {', '.join(names)}")
    return tuple(names)


def known(names: Sequence[str] | Mapping[str, str], there: Sequence[str], key: str, noun: str) -> None:
    """Raises ConfigError if one of ``names`` is not ``there``."""
    for name in names:
        if name not in there:
            shown = ", ".join(there[:20]) + (", …" if len(there) > 20 else "")
            raise ConfigError(f"{key}: no {noun} '{name}'.{plugins.nearest(name, list(there))} There are: {shown}.")


def spaced(name: str) -> str:
    """Write a folder's name as a prompt says it."""
    return " ".join(name.replace("_", " ").replace("-", " ").split())


def distinct(names: Mapping[str, str], noun: str, key: str) -> None:
    """Raises ConfigError if two of ``names`` (value in the data -> name in prompts) are the same, or one is empty."""
    seen: dict[str, str] = {}
    for value, name in names.items():
        if not name.strip():
            raise ConfigError(f"{noun} '{value}' has no name; give it one with {key}")
        same = name.casefold()  # CLIP's tokenizer turns capital letters into small ones
        if same in seen:
            plural = "classes" if noun == "class" else f"{noun}s"
            raise ConfigError(
                f"{plural} '{seen[same]}' and '{value}' would both be called '{name}'; tell them apart with {key}"
            )
        seen[same] = value
