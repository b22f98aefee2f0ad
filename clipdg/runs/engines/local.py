"""Processes on this machine; with one job, this process.

A worker loads libraries, weights and features once and takes one task after the other. One that dies takes only its
task with it. Ctrl-C and TERM reach the workers through this process, and each saves its state.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING

from clipdg.core import signals
from clipdg.core.plugins import Engine
from clipdg.runs import status
from clipdg.runs.task import Ended, EngineOptions, Task, perform

if TYPE_CHECKING:
    from clipdg.runs.session import Session

GRACE = 30.0  # seconds that a worker has to save its state


@dataclass
class Local:
    """``jobs`` processes, each with its share of the cores; ``session``: what this process has opened already."""

    jobs: int = 1
    session: Session | None = None
    _workers: list[_Worker] = field(default_factory=list)
    _logs: tempfile.TemporaryDirectory[str] | None = None  # of the workers, if there are any

    def perform(
        self, tasks: Sequence[Task], on_start: Callable[[Task], None] | None = None
    ) -> Generator[tuple[Task, Ended], None, None]:
        if self.jobs == 1:
            yield from self._here(tasks, on_start)
        else:
            yield from self._in_workers(tasks, on_start)

    def close(self) -> None:
        """Idle workers end when nobody speaks to them any more; one at work is told, and has time to save its state."""
        for worker in self._workers:
            worker.tell_to_end()
        for worker in self._workers:
            worker.end()
        self._workers.clear()
        if self._logs is not None:
            self._logs.cleanup()
            self._logs = None

    def _here(
        self, tasks: Sequence[Task], on_start: Callable[[Task], None] | None
    ) -> Generator[tuple[Task, Ended], None, None]:
        from clipdg.runs.session import Session

        self.session = self.session or Session()
        for task in tasks:
            if on_start:
                on_start(task)
            yield task, perform(task, self.session)

    def _in_workers(
        self, tasks: Sequence[Task], on_start: Callable[[Task], None] | None
    ) -> Generator[tuple[Task, Ended], None, None]:
        waiting = list(reversed(tasks))
        self._logs = self._logs or tempfile.TemporaryDirectory()
        while len(self._workers) < min(self.jobs, len(tasks)):
            self._workers.append(_Worker(Path(self._logs.name) / f"{len(self._workers)}.log", self.jobs))
        while waiting or any(w.task for w in self._workers):
            for worker in self._workers:
                if waiting and worker.task is None:
                    task = waiting.pop()
                    worker.give(task)
                    if on_start:
                        on_start(task)
            ready = wait([w.connection for w in self._workers if w.task])
            for worker in self._workers:
                if worker.connection in ready and worker.task is not None:
                    yield worker.task, worker.take()


@dataclass
class _Worker:
    log: Path
    jobs: int
    task: Task | None = None
    connection: Connection = field(init=False)
    process: SpawnProcess = field(init=False)

    def __post_init__(self) -> None:
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        # No daemon, which could have no processes of its own (devices=2); it ends with the pipe to this one.
        self.process = context.Process(target=_work, args=(theirs, self.log, self.jobs))
        self.process.start()
        theirs.close()

    def give(self, task: Task) -> None:
        """To a new process if the last one died."""
        if not self.process.is_alive():
            self.connection.close()
            self._start()
        self.task = task
        self.connection.send(task)

    def take(self) -> Ended:
        """How the task ended, be it with the process."""
        try:
            ended: Ended = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            ended = Ended("killed", self._epitaph(), self._last_lines(), again=True)
        self.task = None
        return ended

    def tell_to_end(self) -> None:
        if self.task is not None and self.process.is_alive():
            self.process.terminate()
        self.connection.close()

    def end(self) -> None:
        self.process.join(GRACE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def _epitaph(self) -> str:
        code = self.process.exitcode or 0
        if code >= 0:
            return f"its process ended with exit code {code}"
        name = signal.Signals(-code).name
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # Linux counts KiB
        short = f", as the kernel does when memory is short (a worker's peak: {peak:.1f} GiB)"
        return f"its process was ended by {name}" + (short if name == "SIGKILL" else "")

    def _last_lines(self) -> tuple[str, ...]:
        try:
            return tuple(self.log.read_text(errors="replace").splitlines()[-status.NUM_LINES :])
        except OSError:
            return ()


def _work(connection: Connection, log: Path, jobs: int) -> None:
    """A worker's life."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = sys.stderr = open(2, "w", buffering=1, closefd=False, errors="replace")  # noqa: SIM115  # for good
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the first process speaks for all
    try:
        with signals.stoppable():
            import torch

            from clipdg.runs.session import Session

            torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
            session = Session()
            while True:
                task = connection.recv()
                os.ftruncate(descriptor, 0)
                connection.send(perform(task, session))
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the sweep is over, or its process was killed
        return
    except signals.Stopped:
        sys.exit(signals.EXIT_CODE)


def make(options: EngineOptions) -> Local:
    """Processes of this machine, or this process for one job."""
    return Local(options.jobs, options.session)


ENGINE = Engine(make=make)
