"""Where a sweep's runs execute. An engine takes tasks and gives back how each ended; it knows nothing of the sweep.

    local   processes on this machine, or this process alone; needs nothing else
    ray     a Ray cluster, running or started here
    slurm   job arrays, through submitit

A task is plain data, made whole by the machine that performs it, so an engine is one file here. Results are what tasks
publish; that a task was performed twice, or its answer lost, changes nothing.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from clipdg.core import signals
from clipdg.core.errors import (
    ClipdgError,
    ConfigError,
    DivergedError,
    NetworkError,
    OutOfMemoryError,
    StorageError,
    UnsafeError,
)
from clipdg.core.plugins import nearest
from clipdg.runs import config, status

if TYPE_CHECKING:
    from clipdg.runs.session import Session

NAMES = ("local", "ray", "slurm")
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


def choose(
    name: str, jobs: int, session: Session | None = None, cpus: float | None = None, gpus: float | None = None
) -> Engine:
    """The engine of a name, for ``jobs`` tasks at a time; ``session``: what this process has opened.

    ``cpus`` and ``gpus``: what Ray reserves for each task.

    Raises ConfigError if there is none, or if what it needs is not installed.
    """
    if name in NAMES and name != "ray" and (cpus, gpus) != (None, None):
        raise ConfigError(f"--cpus and --gpus are what Ray reserves for a run; --engine {name} has no such thing")
    if name == "local":
        from clipdg.runs.engines.local import Local

        return Local(jobs, session)
    if name == "ray":
        from clipdg.runs.engines.ray import Ray

        return Ray(jobs, 1.0 if cpus is None else cpus, 1.0 if gpus is None else gpus)
    if name == "slurm":
        from clipdg.runs.engines.slurm import Slurm

        return Slurm(jobs)
    raise ConfigError(f"no engine '{name}'.{nearest(name, NAMES)} There are: {', '.join(NAMES)}.")


def perform(task: Task, session: Session) -> Ended:
    """Do what a task says, in this process; whatever goes wrong is told and not raised, being stopped aside."""
    from clipdg.runs.run import encode, run

    signals.check()
    started = time.perf_counter()
    resolved = config.Resolved(task.values, task.seeded)
    try:
        if task.run_id is None:
            encode(resolved, session)
        else:
            with status.lease(Path(task.out), task.run_id) as ours:
                if not ours:
                    return Ended("elsewhere")
                run(resolved, Path(task.out), session)
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
