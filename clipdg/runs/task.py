"""What a sweep gives an engine to do, and how it is done: one run, or features to encode.

An engine (runs/engines/) takes tasks and gives back how each ended; it knows nothing of the sweep. A task is plain
data, made whole by the machine that performs it. Results are what tasks publish; that a task was performed twice, or
its answer lost, changes nothing.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from clipdg.core import plugins, signals
from clipdg.core.errors import (
    ClipdgError,
    ConfigError,
    DivergedError,
    NetworkError,
    OutOfMemoryError,
    StorageError,
    UnsafeError,
)
from clipdg.runs import status

if TYPE_CHECKING:
    from clipdg.runs.session import Session

# elsewhere: another process is at work on it; storage: nothing can be written, so that no other run has a chance.
Ending = Literal["done", "elsewhere", "storage"] | status.State


@dataclass(frozen=True)
class Task:
    """One record to make, or, without a ``run_id``, features to encode. ``name`` is what messages call it."""

    name: str
    values: dict[str, Any]
    seeded: tuple[str, ...]
    out: str
    run_id: str | None = None


@dataclass(frozen=True)
class Ended:
    """How a task ended: ``lines`` are the last it wrote. ``again``: the same may go well another time."""

    state: Ending
    message: str = ""
    lines: tuple[str, ...] = ()
    again: bool = False
    seconds: float = 0.0


class Engine(Protocol):
    """Where tasks are performed. What it has started lives until it is closed."""

    def perform(
        self, tasks: Sequence[Task], on_start: Callable[[Task], None] | None = None
    ) -> Generator[tuple[Task, Ended], None, None]:
        """Yields each task with how it ended, in any order."""

    def close(self) -> None:
        """Stop what is still at work, with time to save its state."""


@dataclass(frozen=True)
class EngineOptions:
    """What an engine is made from. ``jobs``: tasks at a time. ``session``: what this process has opened already.

    ``cpus`` and ``gpus``: what an engine that takes resources reserves for each task; None for its own default.
    """

    jobs: int = 1
    session: Session | None = None
    cpus: float | None = None
    gpus: float | None = None


def choose(name: str, options: EngineOptions) -> Engine:
    """The engine of a name, or of a dotted path. Raises ConfigError if there is none, or if it cannot work here."""
    definition = plugins.engine(name)
    if not definition.takes_resources and (options.cpus, options.gpus) != (None, None):
        raise ConfigError(f"--cpus and --gpus are what Ray reserves for a run; --engine {name} has no such thing")
    made: Engine = definition.make(options)
    return made


def perform(task: Task, session: Session) -> Ended:
    """Do what a task says, in this process; whatever goes wrong is told and not raised, being stopped aside."""
    from clipdg.runs import config
    from clipdg.runs.run import encode, run

    signals.check()
    started = time.perf_counter()
    settings = config.from_plain(task.values, task.seeded)
    try:
        if task.run_id is None:
            encode(settings, session)
        else:
            with status.lease(Path(task.out), task.run_id) as ours:
                if not ours:
                    return Ended("elsewhere")
                run(settings, Path(task.out), session)
    except Exception as error:
        return ending(error)
    return Ended("done", seconds=time.perf_counter() - started)


def ending(error: Exception) -> Ended:
    """What an exception means for the task that raised it."""
    if isinstance(error, ClipdgError):
        state: Ending = "failed"
        if isinstance(error, DivergedError):
            state = "diverged"
        elif isinstance(error, OutOfMemoryError):
            state = "oom"
        elif isinstance(error, UnsafeError):
            state = "refused"
        elif isinstance(error, StorageError):
            state = "storage"
        return Ended(state, str(error), again=isinstance(error, NetworkError))
    lines = "".join(traceback.format_exception(error)).splitlines()
    return Ended("failed", f"{type(error).__name__}: {error}", tuple(lines[-status.NUM_LINES :]), again=True)
