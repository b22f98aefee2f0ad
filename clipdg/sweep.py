"""Many runs from one file: ``base`` settings, and ``runs`` that change some of them, each for several seeds.

    base: {benchmark: pacs, backbone: tiny}
    seeds: [0, 1, 2]
    runs:
      - {label: Zero-shot, method: zero_shot, seeds: [0]}
      - {label: "CoOp, 16 shots", method: coop, shots: 16}

First form: in this process, one after the other. What is done is found by its record and not run again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from clipdg import config
from clipdg.errors import ClipdgError, ConfigError

if TYPE_CHECKING:
    from clipdg.trainer import Progress

KEYS = ("base", "seeds", "runs")


@dataclass
class Outcome:
    """How a sweep ended: configurations done, and what those that failed said."""

    done: int = 0
    failed: list[tuple[config.Resolved, ClipdgError]] = field(default_factory=list)


def plan(file: Path, overrides: Sequence[str] = ()) -> list[config.Resolved]:
    """Every configuration of a sweep file, checked, in its order; ``overrides`` apply to each.

    Raises ConfigError naming what cannot be meant.
    """
    content = config.read_yaml(file)
    unknown = [k for k in content if k not in KEYS]
    if unknown:
        raise ConfigError(f"{file} has '{unknown[0]}'; a sweep file has {', '.join(KEYS)}")
    runs = content.get("runs", [{}])
    if not isinstance(runs, list) or not runs or not all(isinstance(r, dict) for r in runs):
        raise ConfigError(f"{file}: runs is a list of settings, one for each row of the table")
    planned = []
    for number, settings in enumerate(runs):
        settings = copy.deepcopy(settings)
        seeds = settings.pop("seeds", content.get("seeds", [0]))
        if not isinstance(seeds, list) or not seeds:
            raise ConfigError(f"{file}: seeds of run {number + 1} is {seeds!r}; give a list such as [0, 1, 2]")
        for seed in seeds:
            base = copy.deepcopy(content.get("base", {}))
            planned.append(config.load(values=config.merged(base, settings, {"seed": seed}), overrides=overrides))
    return planned


def execute(
    planned: Sequence[config.Resolved],
    out: Path,
    progress: Progress | None = None,
    on_start: Callable[[int, int, config.Resolved], None] | None = None,
) -> Outcome:
    """Run what has no record in ``out``; a run that fails is collected and the others go on."""
    from clipdg.runner import Session, run

    session = Session(progress=progress)
    outcome = Outcome()
    for number, resolved in enumerate(planned):
        if on_start:
            on_start(number, len(planned), resolved)
        try:
            run(resolved, out, session)
        except ClipdgError as error:
            outcome.failed.append((resolved, error))
        else:
            outcome.done += 1
    return outcome
