"""A Ray cluster: the one that ``RAY_ADDRESS`` names or that runs here, else one that is started here for the sweep.

Every node must see the results folder, the data and the cache under the same paths. Ray itself starts a task again when
its node or process is lost; a run that was at work on another node in that moment is done twice at most, and the first
record stays. Tasks are plain ones, not Ray Tune's: what is done stands in records and nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from clipdg.core.errors import ConfigError
from clipdg.core.plugins import Engine
from clipdg.runs.task import Ended, EngineOptions, Task, ending

if TYPE_CHECKING:
    from clipdg.runs.session import Session

LOST = 2  # times that Ray starts a task again whose node or process was lost
_session: list[Session] = []  # of a worker process: libraries, weights and features are loaded once


def wanted(cpus: float, gpus: float, nodes: Sequence[Mapping[str, float]]) -> tuple[float, float]:
    """What a task reserves: one GPU or a part of one only where a node has any.

    Raises ConfigError if no node has as much, on which Ray would wait for ever.
    """
    most = {kind: max((node.get(kind, 0.0) for node in nodes), default=0.0) for kind in ("CPU", "GPU")}
    if not most["GPU"] and gpus <= 1:
        gpus = 0.0
    for name, asked, there in (("cpus", cpus, most["CPU"]), ("gpus", gpus, most["GPU"])):
        if asked > there:
            raise ConfigError(f"--{name} is {asked:g}, and no node of the Ray cluster has more than {there:g}")
    return cpus, gpus


@dataclass
class Ray:
    """At most ``jobs`` tasks at a time, each with ``cpus`` cores and, where nodes have any, ``gpus`` of a GPU."""

    jobs: int = 1
    cpus: float = 1.0
    gpus: float = 1.0
    _started: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        try:
            import ray  # noqa: F401
        except ImportError as error:
            raise ConfigError("--engine ray needs Ray: pip install 'clipdg[ray]'") from error

    def perform(
        self, tasks: Sequence[Task], on_start: Callable[[Task], None] | None = None
    ) -> Generator[tuple[Task, Ended], None, None]:
        import ray
        from ray.exceptions import RayError, RayTaskError

        self._connect()
        cpus, gpus = wanted(self.cpus, self.gpus, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        remote = ray.remote(
            num_cpus=cpus,
            num_gpus=gpus,
            max_retries=LOST,
            max_calls=0,
        )(_perform)
        waiting = list(reversed(tasks))
        at_work: dict[Any, Task] = {}
        try:
            while waiting or at_work:
                while waiting and len(at_work) < self.jobs:
                    task = waiting.pop()
                    at_work[remote.remote(task)] = task
                    if on_start:
                        on_start(task)
                [ready], _ = ray.wait(list(at_work), num_returns=1)
                task = at_work.pop(ready)
                try:
                    yield task, ray.get(ready)
                except RayTaskError as error:  # what perform does not catch: the code of the workers is another
                    yield task, ending(error)
                except RayError as error:
                    yield task, Ended("killed", f"{type(error).__name__}: {str(error).splitlines()[0]}", again=True)
        finally:
            for reference in at_work:
                ray.cancel(reference, force=False)  # KeyboardInterrupt there, so that the state is saved

    def _connect(self) -> None:
        import ray

        if ray.is_initialized():
            return
        # Ray would pack the folder that it is started in and send it to every worker.
        options: dict[str, Any] = {"log_to_driver": False, "include_dashboard": False, "logging_level": "ERROR"}
        try:
            ray.init(address="auto", **{k: v for k, v in options.items() if k != "include_dashboard"})
        except ConnectionError:
            if "RAY_ADDRESS" in os.environ:
                raise ConfigError(f"no Ray cluster answers at RAY_ADDRESS={os.environ['RAY_ADDRESS']}") from None
            ray.init(address="local", num_cpus=max(self.jobs, 1), **options)
        self._started = True

    def close(self) -> None:
        import ray

        if self._started:
            ray.shutdown()
            self._started = False


def _perform(task: Task) -> Ended:
    from clipdg.runs.session import Session
    from clipdg.runs.task import perform

    if not _session:
        _session.append(Session())
    try:
        return perform(task, _session[0])
    except KeyboardInterrupt:
        return Ended("elsewhere")


def make(options: EngineOptions) -> Ray:
    """Raises ConfigError if Ray is not installed."""
    cpus, gpus = options.cpus, options.gpus
    return Ray(options.jobs, 1.0 if cpus is None else cpus, 1.0 if gpus is None else gpus)


ENGINE = Engine(make=make, takes_resources=True)
