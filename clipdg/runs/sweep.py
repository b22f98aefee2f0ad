"""Many runs from one file (sweep_file.py): encode what they share once, then perform what has no record.

A run is done if a valid record of it stands in the folder, and by nothing else; so a sweep that was killed, or that got
more seeds and methods, runs what is new. What fails is told, tried again where that can help, and stops no other run.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipdg.core import plugins
from clipdg.core.errors import ClipdgError, RecordError, StorageError
from clipdg.records.folder import read_records
from clipdg.records.identity import NOT_IDENTITY, flatten
from clipdg.records.identity import called as called_name
from clipdg.records.record import Record
from clipdg.runs import config, status
from clipdg.runs.engines.local import Local
from clipdg.runs.task import Ended, Engine, Task, ending
from clipdg.storage.publish import digest

if TYPE_CHECKING:
    from clipdg.core.progress import Progress
    from clipdg.runs.session import Session

ATTEMPTS = 3
POLL = 0.5  # seconds between two looks at runs that another process is at work on
BYTES_A_RUN = 50_000  # of a record and its predictions, where there are none yet to measure


@dataclass(frozen=True)
class Failure:
    """A run that has no record, by name, and how its last attempt ended."""

    name: str
    ended: Ended


@dataclass
class Outcome:
    """How a sweep ended, in records."""

    done: int = 0
    failed: list[Failure] = field(default_factory=list)


@dataclass(frozen=True)
class Survey:
    """What is to do: ``done`` records stand there, ``tasks`` have none, ``failed`` cannot even be opened."""

    done: tuple[Record, ...]
    tasks: tuple[Task, ...]
    failed: tuple[Failure, ...]
    corrupt: tuple[RecordError, ...]

    @property
    def total(self) -> int:
        return len(self.done) + len(self.tasks) + len(self.failed)


@dataclass(frozen=True)
class Step:
    """Told whenever something begins or ends: ``done`` and ``failed`` of ``total``; ``seconds`` left, if known."""

    name: str
    begins: bool
    done: int
    failed: int
    total: int
    left: float | None


def survey(planned: Sequence[config.RunSettings], out: Path, session: Session) -> Survey:
    """Find the runs of each configuration and which of them are done; opens benchmarks and backbones, runs nothing."""
    from clipdg.runs.plan import identify

    found, corrupt = read_records([out]) if out.is_dir() else ([], [])
    known = {r.run_id: r for r in found}
    done: dict[str, Record] = {}
    tasks: dict[str, Task] = {}
    failed = []
    broken: dict[str, Ended] = {}  # what cannot be opened is tried once
    for settings in planned:
        parts = digest([settings.plain["benchmark"], settings.plain["backbone"]])
        if parts in broken:
            failed.append(Failure(name(settings.plain), broken[parts]))
            continue
        try:
            identities = identify(settings, session)
        except ClipdgError as error:
            failed.append(Failure(name(settings.plain), ending(error)))
            try:
                session.benchmark(settings.benchmark)
                session.backbone(settings.backbone)
            except ClipdgError:
                broken[parts] = ending(error)
            continue
        for identity in identities:
            record = identity.among(known)
            if record is not None:
                done[identity.run_id] = record
            elif identity.run_id not in tasks:
                values = {**settings.plain, "shift": identity.shift}
                several = len(identities) > 1
                called = name(values) + (f", {identity.shift}" if several else "")
                tasks[identity.run_id] = Task(called, values, settings.seeded, str(out), identity.run_id)
    return Survey(tuple(done.values()), tuple(tasks.values()), tuple(failed), tuple(corrupt))


def name(values: Mapping[str, Any]) -> str:
    """How messages call a run: ``CoOp, draw 3, seed 1``."""
    draw = f", draw {values['hparams_seed']}" if values.get("hparams_seed") is not None else ""
    return f"{called_name(values)}{draw}, seed {values['seed']}"


def execute(
    planned: Sequence[config.RunSettings],
    out: Path,
    progress: Progress | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Outcome:
    """Run what has no record in ``out``, in this process.

    Raises StorageError if the records cannot be written there: no other run would have a chance.
    """
    from clipdg.runs.session import Session

    session = Session(progress=progress)
    return complete(survey(planned, out, session), out, Local(session=session), on_step)


def complete(surveyed: Survey, out: Path, engine: Engine, on_step: Callable[[Step], None] | None = None) -> Outcome:
    """Run what a survey found to do, and close the engine. Raises as ``execute``."""
    try:
        _check_space(surveyed, out)
        return _Execution(surveyed, out, on_step, engine).run()
    finally:
        engine.close()


class _Execution:
    def __init__(self, surveyed: Survey, out: Path, on_step: Callable[[Step], None] | None, engine: Engine) -> None:
        self.out, self.on_step, self.engine = out, on_step, engine
        self.outcome = Outcome(len(surveyed.done), list(surveyed.failed))
        self.total = surveyed.total
        self.tasks = list(surveyed.tasks)
        self.attempts: dict[str | None, int] = defaultdict(int)
        self.started = time.monotonic()
        self.reused = len(surveyed.done)

    def run(self) -> Outcome:
        waiting = self._encode(self.tasks)
        while waiting:
            again, elsewhere = [], []
            for task, ended in self._performed(waiting):
                if ended.state == "elsewhere":
                    elsewhere.append(task)
                elif ended.state == "done":
                    self._done(task)
                elif ended.again and self.attempts[task.run_id] + 1 < ATTEMPTS:
                    self.attempts[task.run_id] += 1
                    again.append(task)
                else:
                    self._failed(task, ended)
            waiting = again + list(self._released(elsewhere))
        return self.outcome

    def _encode(self, tasks: Sequence[Task]) -> list[Task]:
        """One pass over the images for all runs that share their features; the runs that remain possible."""
        groups: dict[str, list[Task]] = defaultdict(list)
        for task in tasks:
            if _goes_over_features(task):
                groups[digest([task.values["benchmark"], task.values["backbone"]])].append(task)
        passes = {key: replace(group[0], name=_features_of(group[0]), run_id=None) for key, group in groups.items()}
        group_of = {id(one): groups[key] for key, one in passes.items()}
        broken = set()
        for one, ended in self._performed(list(passes.values())):
            if ended.state != "done":
                for task in group_of[id(one)]:
                    self._failed(task, ended)
                    broken.add(task.run_id)
        return [task for task in tasks if task.run_id not in broken]

    def _performed(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Ended]]:
        if not tasks:
            return
        for task, ended in self.engine.perform(tasks, self._begins):
            if ended.state == "storage":
                raise StorageError(ended.message)
            yield task, ended

    def _released(self, tasks: Sequence[Task]) -> Iterator[Task]:
        """Those of which another process has let go, once it has let go of all."""
        for task in tasks:
            assert task.run_id is not None
            while status.leased(self.out, task.run_id):
                time.sleep(POLL)
            yield task

    def _begins(self, task: Task) -> None:
        self._tell(task.name, begins=True)

    def _done(self, task: Task) -> None:
        assert task.run_id is not None
        status.clear(self.out, task.run_id)
        self.outcome.done += 1
        self._tell(task.name, begins=False)

    def _failed(self, task: Task, ended: Ended) -> None:
        assert task.run_id is not None
        state = ended.state
        assert state != "done" and state != "elsewhere" and state != "storage"  # noqa: PT018  # mypy narrows by these
        attempts = self.attempts[task.run_id] + 1
        status.Status(task.run_id, state, task.name, ended.message, ended.lines, attempts).publish(self.out)
        self.outcome.failed.append(Failure(task.name, ended))
        self._tell(task.name, begins=False)

    def _tell(self, called: str, *, begins: bool) -> None:
        if self.on_step is None:
            return
        done, failed = self.outcome.done, len(self.outcome.failed)
        new = done - self.reused + failed
        left = (time.monotonic() - self.started) / new * (self.total - done - failed) if new > 0 else None
        self.on_step(Step(called, begins, done, failed, self.total, left))


def _goes_over_features(task: Task) -> bool:
    return not plugins.method(task.values["method"]["name"]).trains_backbone


def _features_of(task: Task) -> str:
    return f"features of {task.values['benchmark']['name']} by {task.values['backbone']['name']}"


def _check_space(surveyed: Survey, out: Path) -> None:
    """Raises StorageError if what is to do will not fit on the disk."""
    import shutil

    sizes = [len(r.bytes()) for r in surveyed.done[:20]]
    each = 2 * sum(sizes) // len(sizes) if sizes else BYTES_A_RUN
    there = next(p for p in (out.absolute(), *out.absolute().parents) if p.is_dir())
    needed, free = each * len(surveyed.tasks), shutil.disk_usage(there).free
    if needed > free:
        raise StorageError(
            f"{len(surveyed.tasks):,} runs need about {needed:,} bytes in {out} and {free:,} are free on its disk"
        )


@dataclass(frozen=True)
class Cost:
    """Seconds of one process for runs that are to do, from records; ``unknown`` of them are like none that is done."""

    seconds: float
    known: int
    unknown: int


def cost(surveyed: Survey) -> Cost:
    """What is to do, by the time that done runs of the same benchmark, backbone and method took.

    Of several, those whose other settings agree most with the run's count.
    """
    kinds: dict[tuple[str, ...], list[tuple[set[str], float]]] = defaultdict(list)
    for record in surveyed.done:
        values = record.config
        if record.timing.seconds is not None:
            kinds[_kind(values)].append((_settings(values), record.timing.seconds))
    seconds, known = 0.0, 0
    for task in surveyed.tasks:
        alike = kinds.get(_kind(task.values))
        if not alike:
            continue
        settings = _settings(task.values)
        agreeing = [len(settings & other) for other, _ in alike]
        best = [s for n, (_, s) in zip(agreeing, alike, strict=True) if n == max(agreeing)]
        seconds += sum(best) / len(best)
        known += 1
    return Cost(seconds, known, len(surveyed.tasks) - known)


def _kind(values: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(values[part]["name"]) for part in ("benchmark", "backbone", "method"))


def _settings(values: Mapping[str, Any]) -> set[str]:
    return {f"{k}={v}" for k, v in flatten(values).items() if k not in ("seed", *NOT_IDENTITY)}
