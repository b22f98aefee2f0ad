"""Slurm, through submitit: a job array of at most ``jobs`` elements, each of which performs its share of the tasks.

An element that is preempted or runs out of time saves the state of its run and is queued again with what is left of its
share. Where there is no ``srun``, submitit starts the same jobs as processes of this machine. Partition, account and
the like are Slurm's own SBATCH_PARTITION, SBATCH_ACCOUNT, …, which sbatch reads from the environment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipdg.core.errors import ConfigError
from clipdg.core.plugins import Engine
from clipdg.runs import status
from clipdg.runs.task import Ended, EngineOptions, Task, perform

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

POLL = 1.0  # seconds between two looks at the jobs


class Share:
    """What one element performs; submitit calls it, and ``checkpoint`` when the element has to give way."""

    def __init__(self, tasks: Sequence[Task], ended: Sequence[Ended] = ()) -> None:
        self.tasks, self.ended = list(tasks), list(ended)

    def __call__(self) -> list[Ended]:
        from clipdg.runs.session import Session

        session = Session()
        while len(self.ended) < len(self.tasks):
            self.ended.append(perform(self.tasks[len(self.ended)], session))
        return self.ended

    def checkpoint(self) -> DelayedSubmission:
        """The same share, what has ended aside. The exit that follows unwinds the run, which saves its state."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(Share(self.tasks, self.ended))


@dataclass
class Slurm:
    """``cluster``: "slurm", or "local" for processes of this machine; None for what there is."""

    jobs: int = 1
    cluster: str | None = None
    minutes: int = 24 * 60  # of an element, after which it is queued again with what is left
    _jobs: list[Any] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        try:
            import submitit  # noqa: F401
        except ImportError as error:
            raise ConfigError("--engine slurm needs submitit: pip install 'clipdg[slurm]'") from error

    def perform(
        self, tasks: Sequence[Task], on_start: Callable[[Task], None] | None = None
    ) -> Generator[tuple[Task, Ended], None, None]:
        import submitit

        shares = [list(tasks[i :: self.jobs]) for i in range(min(self.jobs, len(tasks)))]
        executor = submitit.AutoExecutor(folder=Path(tasks[0].out) / ".runs" / "slurm", cluster=self.cluster)
        executor.update_parameters(name="clipdg", timeout_min=self.minutes, slurm_array_parallelism=self.jobs)
        with executor.batch():
            self._jobs = [executor.submit(Share(share)) for share in shares]
        if on_start:
            for task in tasks:
                on_start(task)
        waiting = list(zip(self._jobs, shares, strict=True))
        while waiting:
            time.sleep(POLL)
            for job, share in list(waiting):
                if job.done():
                    waiting.remove((job, share))
                    yield from zip(share, _endings(job, len(share)), strict=True)

    def close(self) -> None:
        for job in self._jobs:
            if not job.done():
                job.cancel()
        self._jobs = []


def _endings(job: Any, count: int) -> list[Ended]:
    """Of an element's tasks. Of one that died nothing is known; what it has done will say so when it is tried again."""
    error = job.exception()
    if error is None:
        return list(job.result())
    lines = (job.stderr() or "").splitlines()[-status.NUM_LINES :]
    return [Ended("killed", f"job {job.job_id} ended: {str(error).splitlines()[0]}", tuple(lines), again=True)] * count


def make(options: EngineOptions) -> Slurm:
    """Raises ConfigError if submitit is not installed."""
    return Slurm(options.jobs)


ENGINE = Engine(make=make)
