"""Many runs from one file (sweep_file.py): what is done is found by its record and not run again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from clipdg import config
from clipdg.errors import ClipdgError
from clipdg.sweep_file import plan as plan

if TYPE_CHECKING:
    from clipdg.trainer import Progress


@dataclass
class Outcome:
    """How a sweep ended: configurations done, and what those that failed said."""

    done: int = 0
    failed: list[tuple[config.Resolved, ClipdgError]] = field(default_factory=list)


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
