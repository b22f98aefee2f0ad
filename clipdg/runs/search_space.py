"""Seeded draws as DomainBed makes them: a hash of what is drawn for, and a stream of its own for each name.

DomainBed, lib/misc.py (seed_hash) and hparams_registry.py. Adding a setting to a search changes no other draw, since
no two names share a stream. RandomState, whose streams numpy has frozen, so that a draw stays what it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from clipdg.core.errors import ConfigError
from clipdg.core.plugins import nearest

if TYPE_CHECKING:
    from numpy.random import RandomState
from clipdg.core.seeding import seed_hash

Value = float | int | str | bool | None

# What YAML may say: {log10_uniform: [-5, -3.5]} is DomainBed's ``10 ** r.uniform(-5, -3.5)``.
INTERVALS: Mapping[str, Callable[[RandomState, float, float], float | int]] = {
    "uniform": lambda r, low, high: float(r.uniform(low, high)),
    "log10_uniform": lambda r, low, high: float(10 ** r.uniform(low, high)),
    "int_pow2": lambda r, low, high: int(2 ** r.uniform(low, high)),
    "int_uniform": lambda r, low, high: int(r.randint(int(low), int(high) + 1)),  # both ends are drawn
}
DISTRIBUTIONS = (*INTERVALS, "choice")


def draw(distribution: Mapping[str, Sequence[Value]], seed: int, name: str) -> Value:
    """The value of the setting ``name`` under ``seed``, from its own stream ``RandomState(seed_hash(seed, name))``.

    ``distribution`` is one that ``check`` accepts.
    """
    from numpy.random import RandomState

    stream = RandomState(seed_hash(seed, name))
    [(kind, values)] = distribution.items()
    if kind == "choice":
        return values[int(stream.choice(len(values)))]  # of the index, so that 0.1 and "sgd" keep their types
    low, high = (float(v) for v in values)  # type: ignore[arg-type]  # checked to be numbers
    return INTERVALS[kind](stream, low, high)


def check(key: str, distribution: object) -> None:
    """Raises ConfigError saying why ``distribution`` is none."""
    if not isinstance(distribution, Mapping) or len(distribution) != 1:
        raise ConfigError(f"{key} is {distribution!r}; give one distribution, such as {{log10_uniform: [-5, -3.5]}}")
    [(kind, values)] = distribution.items()
    if kind not in DISTRIBUTIONS:
        raise ConfigError(
            f"{key} has no distribution '{kind}'.{nearest(str(kind), DISTRIBUTIONS)} "
            f"There are: {', '.join(DISTRIBUTIONS)}."
        )
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{key}: {kind} is {values!r}; give a list")
    if kind == "choice":
        return
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)]
    if len(values) != 2 or len(numbers) != 2 or numbers[0] > numbers[1]:
        raise ConfigError(f"{key}: {kind} is {values!r}; give [lowest, highest]")
    if kind == "int_uniform" and any(v != int(v) for v in numbers):
        raise ConfigError(f"{key}: int_uniform is {values!r}; give whole numbers")
