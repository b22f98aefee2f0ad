"""The contract of an engine: ``check_engine("my_package.my_engine")``.

It performs four small tasks, one of which fails. What an engine's processes leave goes to a temporary folder and cache.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

from clipdg.core import plugins
from clipdg.runs import config
from clipdg.runs.session import Session
from clipdg.runs.sweep import survey
from clipdg.runs.task import Ended, EngineOptions, Task
from clipdg.testing.fitted import BENCHMARK, TARGET
from clipdg.testing.problem import Check, NotPossible, Problem, look, place, problems_in

FAILS = "a folder that is not there"
JOBS = 2


@dataclass(frozen=True)
class Found:
    """What an engine gave back."""

    tasks: tuple[Task, ...]
    started: tuple[str, ...]
    ended: tuple[tuple[str, Any], ...]  # an Ended, if the engine does what it should
    records: frozenset[str]  # ids of the runs that have one
    closed: Exception | None  # what a second close raised


@dataclass
class Subject:
    """An engine, and what it made of the tasks."""

    name: str
    definition: plugins.Engine

    @cached_property
    def _ended(self) -> Found | Exception:
        try:
            with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, CLIPDG_CACHE=f"{folder}/cache"):
                return _performed(self.definition, Path(folder) / "out")
        except Exception as error:
            return error

    def found(self, *, first: bool = False) -> Found:
        """Raises what the engine raised for the ``first`` who asks, and NotPossible."""
        if isinstance(self._ended, Found):
            return self._ended
        if first:
            raise self._ended
        raise NotPossible


def check_engine(name: str) -> list[Problem]:
    """What an engine does not hold of its contract; nothing if all is well."""
    return problems_in(checks(name))


def checks(name: str) -> list[Check]:
    """Everything that is looked at, with its problems."""
    every = [performs_tasks, each_task_comes_back_once, a_failing_task_takes_no_other, closes_twice]
    return look(every, Subject(name, plugins.engine(name)), name)


def _tasks(out: Path) -> list[Task]:
    """Three runs that go well; between them one that cannot."""
    values = {"benchmark": BENCHMARK, "backbone": {"name": "tiny", "weights": "random:0"}, "shift": TARGET}
    planned = [config.load(values={**values, "seed": seed}) for seed in (0, 1, 2)]
    tasks = list(survey(planned, out, Session()).tasks)
    broken = config.load(values={**values, "benchmark": {"name": "folder", "root": str(out / "nowhere")}})
    tasks.insert(1, Task(FAILS, dict(broken.plain), broken.seeded, str(out), "0" * 16))
    return tasks


def _performed(definition: plugins.Engine, out: Path) -> Found:
    tasks, started = _tasks(out), []
    out.mkdir(parents=True)
    engine = definition.make(EngineOptions(JOBS))
    closed: Exception | None = None
    try:
        ended = [(task.name, how) for task, how in engine.perform(tasks, lambda task: started.append(task.name))]
    finally:
        engine.close()
        try:
            engine.close()
        except Exception as error:
            closed = error
    records = frozenset(path.stem for path in out.glob("*.json"))
    return Found(tuple(tasks), tuple(started), tuple(ended), records, closed)


def performs_tasks(subject: Subject) -> Iterator[Problem]:
    """it performs tasks."""
    subject.found(first=True)
    yield from ()


def each_task_comes_back_once(subject: Subject) -> Iterator[Problem]:
    """each task begins, and comes back once with how it ended."""
    found, where = subject.found(), place(subject.definition.make)
    back = Counter(name for name, _ in found.ended)
    for task in found.tasks:
        if back[task.name] != 1:
            yield Problem(
                f"the task '{task.name}' came back {back[task.name]} times",
                where,
                "yield each task once, however it ended",
            )
        if found.started.count(task.name) < 1:
            yield Problem(f"'{task.name}' began untold", where, "call on_start(task), if given, when a task begins")
    for name, ended in found.ended:
        if not isinstance(ended, Ended):
            yield Problem(f"'{name}' came back with {ended!r:.60}", where, "yield (task, Ended), such as perform gives")


def a_failing_task_takes_no_other(subject: Subject) -> Iterator[Problem]:
    """a task that fails says so, and takes no other with it."""
    found, where = subject.found(), place(subject.definition.make)
    for name, ended in found.ended:
        if not isinstance(ended, Ended):
            continue
        if name == FAILS and (ended.state == "done" or not ended.message):
            yield Problem(f"a task that cannot be done ended as {ended}", where, "yield what perform gives")
        if name != FAILS and ended.state != "done":
            yield Problem(f"the task '{name}' ended as {ended.state}: {ended.message}", where, "perform it apart")
    lacking = [t.name for t in found.tasks if t.name != FAILS and t.run_id not in found.records]
    if lacking:
        yield Problem(f"'{lacking[0]}' has left no record", where, "perform each task by clipdg.runs.task.perform")


def closes_twice(subject: Subject) -> Iterator[Problem]:
    """it can be closed twice."""
    if (error := subject.found().closed) is not None:
        yield Problem(
            f"the second close raises {type(error).__name__}: {error}",
            place(subject.definition.make),
            "let close do nothing where nothing is at work",
        )
