"""What engines promise: every task comes back, with how it ended; one that dies takes no other with it."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipdg.core import signals
from clipdg.core.errors import ConfigError, StorageError
from clipdg.records.folder import read_records
from clipdg.records.record import predictions
from clipdg.runs import config, status, sweep
from clipdg.runs.engines.local import Local
from clipdg.runs.session import Session
from clipdg.runs.task import Engine, EngineOptions, choose

MINE = "plugins_of.a_user"


def settings(**method: Any) -> config.RunSettings:
    base = {"benchmark": MINE, "backbone": {"name": "tiny", "weights": "random:0"}, "shift": "dark"}
    return config.load(values=base | {"method": {"name": MINE, **method}, "label": method.get("how", "well")})


pytestmark = pytest.mark.usefixtures("plugins_of_a_user")


def complete(planned: list[config.RunSettings], out: Path, engine: Engine | None = None) -> sweep.Outcome:
    session = Session()
    return sweep.complete(sweep.survey(planned, out, session), out, engine or Local(1, session))


def endings(outcome: sweep.Outcome) -> dict[str, tuple[str, str]]:
    return {f.name.partition(",")[0]: (f.ended.state, f.ended.message) for f in outcome.failed}


def test_each_way_to_fail_has_its_state_and_the_other_runs_go_on(tmp_path: Path) -> None:
    planned = [settings(how=how) for how in ("bug", "oom", "diverged", "refused", "well")]
    outcome = complete(planned, tmp_path / "out")
    found = endings(outcome)
    assert outcome.done == 1
    assert found["bug"] == ("failed", "RuntimeError: a bug of the method")
    assert found["oom"][0] == "oom"
    assert "out of memory" in found["oom"][1]
    assert found["diverged"] == ("diverged", "the loss is nan at step 3")
    assert found["refused"] == ("refused", "weights.pt could run code")
    kept = {json.loads(f.read_bytes())["name"]: f.stem for f in (tmp_path / "out" / ".runs").glob("*.status")}
    assert len(kept) == 4
    bug = status.status(tmp_path / "out", kept["bug, seed 0"])
    assert bug is not None
    assert (bug.status, bug.attempts) == ("failed", 3)  # what no setting explains is tried again
    assert any("in _fail" in line for line in bug.lines)
    assert read_records([tmp_path / "out"])[1] == []  # reports see records only


def test_what_failed_once_is_done_by_another_attempt(tmp_path: Path) -> None:
    outcome = complete([settings(how="bug", once=str(tmp_path / "once"))], tmp_path / "out")
    assert (outcome.done, outcome.failed) == (1, [])
    assert list((tmp_path / "out" / ".runs").glob("*")) == []


@pytest.mark.slow
def test_a_worker_that_dies_takes_only_its_task_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "ATTEMPTS", 1)
    others = [settings(scale=s) for s in (1.0, 2.0, 3.0)]
    outcome = complete([settings(how="killed"), *others], tmp_path / "workers", Local(2))
    [failure] = outcome.failed
    assert outcome.done == 3
    assert failure.ended.state == "killed"
    assert "ended by SIGKILL" in failure.ended.message
    assert failure.ended.lines == ("the last words",)
    complete(others, tmp_path / "here")
    assert comparable(tmp_path / "workers") == comparable(tmp_path / "here")


def comparable(out: Path) -> dict[str, tuple[object, object]]:
    """What must be the same for the same runs: evaluations and predictions, by run."""
    found, errors = read_records([out])
    assert errors == []
    return {r.run_id: (r.evaluations, predictions(r, out)) for r in found}


def test_a_finished_sweep_with_more_runs_performs_only_what_is_new(tmp_path: Path) -> None:
    class Counting(Local):
        performed: list[str]

        def perform(self, tasks: Any, on_start: Any = None) -> Any:
            self.performed += [t.run_id for t in tasks if t.run_id]
            return super().perform(tasks, on_start)

    engine = Counting()
    engine.performed = []
    assert complete([settings(scale=1.0)], tmp_path, engine).done == 1
    assert complete([settings(scale=1.0), settings(scale=2.0)], tmp_path, engine).done == 2
    assert len(engine.performed) == len(set(engine.performed)) == 2


def test_runs_that_share_features_share_one_pass_done_first(tmp_path: Path) -> None:
    session = Session()
    order = []

    class Watching(Local):
        def perform(self, tasks: Any, on_start: Any = None) -> Any:
            order.append(([t.run_id is None for t in tasks], session.store.num_encoded))
            return super().perform(tasks, on_start)

    surveyed = sweep.survey([settings(scale=s) for s in (1.0, 2.0)], tmp_path, session)
    sweep.complete(surveyed, tmp_path, Watching(1, session))
    assert order == [([True], 0), ([False, False], 72)]
    assert session.store.num_encoded == 72


def test_a_full_disk_ends_the_sweep_naming_what_is_needed_and_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session()
    surveyed = sweep.survey([settings(scale=s) for s in (1.0, 2.0)], tmp_path, session)
    free = type("Usage", (), {"free": 99_999})
    monkeypatch.setattr("shutil.disk_usage", lambda _: free)
    with pytest.raises(StorageError, match=r"2 runs need about 100,000 bytes in .* 99,999 are free"):
        sweep.complete(surveyed, tmp_path, Local(1, session))


def test_the_cost_of_what_is_to_do_comes_from_like_runs(tmp_path: Path) -> None:
    complete([settings(scale=1.0)], tmp_path)
    [record] = read_records([tmp_path])[0]
    other = config.load(values=settings().plain | {"method": {"name": "linear_probe"}})
    planned = [settings(scale=s) for s in (1.0, 2.0, 3.0)] + [other]
    found = sweep.cost(sweep.survey(planned, tmp_path, Session()))
    assert found == sweep.Cost(pytest.approx(2 * record.content["timing"]["seconds"]), known=2, unknown=1)


def test_an_engine_that_was_only_looked_at_leaves_nothing_to_clean_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of ``sweep --dry-run``: a folder for the logs of workers would be collected with a warning."""

    def folder(*_: object) -> None:
        raise AssertionError("a folder was made before there was a worker")

    monkeypatch.setattr("tempfile.mkdtemp", folder)
    choose("local", EngineOptions(2))


def test_what_ray_reserves_is_refused_elsewhere_and_reaches_it() -> None:
    with pytest.raises(ConfigError, match="--engine local has no such thing"):
        choose("local", EngineOptions(gpus=0.5))
    pytest.importorskip("ray", reason="the extra clipdg[ray] is not installed")
    from clipdg.runs.engines.ray import Ray

    assert choose("ray", EngineOptions(4, cpus=2.0, gpus=0.5)) == Ray(4, 2.0, 0.5)


def test_an_unknown_engine_is_named() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'slurm'"):
        choose("slrum", EngineOptions())


@pytest.mark.slow
def test_submitit_performs_a_sweep_and_what_was_preempted_is_queued_again(
    tmp_path: Path, plugins_of_a_user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit", reason="the extra clipdg[slurm] is not installed")
    from clipdg.runs.engines.slurm import Slurm

    monkeypatch.setenv("PYTHONPATH", f"{plugins_of_a_user}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    others = [settings(scale=s) for s in (1.0, 2.0, 3.0)]
    slow = settings(how="slow", once=str(tmp_path / "once"), scale=4.0)
    engine = Slurm(2, cluster="local")
    preempted: list[str] = []

    def preempt_slow(step: sweep.Step) -> None:
        if step.begins and step.name.startswith("slow") and not preempted:
            [job] = [j for j in engine._jobs if any(t.name.startswith("slow") for t in j.submission().function.tasks)]
            wait_for((tmp_path / "once").exists)
            job._interrupt()  # as Slurm does when another job needs the machine
            preempted.append(job.job_id)

    surveyed = sweep.survey([slow, *others], tmp_path / "out", Session())
    outcome = sweep.complete(surveyed, tmp_path / "out", engine, preempt_slow)
    assert preempted
    assert (outcome.done, outcome.failed) == (4, [])
    complete([slow, *others], tmp_path / "here")
    assert comparable(tmp_path / "out") == comparable(tmp_path / "here")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ray_finishes_a_sweep_although_one_of_two_nodes_is_killed(
    tmp_path: Path, plugins_of_a_user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="the extra clipdg[ray] is not installed")
    from ray.cluster_utils import Cluster

    from clipdg.runs.engines.ray import Ray

    monkeypatch.setenv("PYTHONPATH", f"{plugins_of_a_user}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    planned = [settings(scale=float(s)) for s in range(1, 13)]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        second = cluster.add_node(num_cpus=1)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        killed = []

        def kill_second(step: sweep.Step) -> None:
            if step.done == 2 and not step.begins and not killed:
                cluster.remove_node(second, allow_graceful=False)
                killed.append(step.done)

        surveyed = sweep.survey(planned, tmp_path / "out", Session())
        outcome = sweep.complete(surveyed, tmp_path / "out", Ray(2), kill_second)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert killed
    assert (outcome.done, outcome.failed) == (12, [])
    complete(planned, tmp_path / "here")
    assert comparable(tmp_path / "out") == comparable(tmp_path / "here")


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=["TERM", "USR1"])
def test_a_sweep_that_is_told_to_end_ends_with_75_and_lets_go_of_its_run(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = tmp_path / "once"

    def stop() -> None:
        wait_for(once.exists)
        os.kill(os.getpid(), number)

    stopping = threading.Thread(target=stop)
    stopping.start()
    with pytest.raises(signals.Stopped, match=f"SIG{number.name.removeprefix('SIG')}"), signals.stoppable():
        complete([settings(how="slow", once=str(once))], tmp_path / "out")
    stopping.join()
    assert list((tmp_path / "out").rglob("*.lease")) == []
    assert list((tmp_path / "out").glob("*.json")) == []
    assert signals.EXIT_CODE == 75
    assert complete([settings(how="slow", once=str(once))], tmp_path / "out").done == 1


def test_a_run_costs_less_than_50_ms_beside_its_own_time(tmp_path: Path) -> None:
    planned = [settings(scale=float(s)) for s in range(1, 21)]
    session = Session()
    surveyed = sweep.survey(planned, tmp_path, session)
    own = 0.0

    class Timed(Local):
        def perform(self, tasks: Any, on_start: Any = None) -> Any:
            nonlocal own
            for task, ended in super().perform(tasks, on_start):
                own += ended.seconds
                yield task, ended

    started = time.perf_counter()
    assert sweep.complete(surveyed, tmp_path, Timed(1, session)).done == 20
    assert (time.perf_counter() - started - own) / 20 < 0.05


def test_ray_refuses_what_no_node_has() -> None:
    from clipdg.runs.engines.ray import wanted

    two = [{"CPU": 2.0}, {"CPU": 8.0, "GPU": 2.0}]
    assert wanted(1, 1, two) == (1, 1)
    assert wanted(1, 1, [{"CPU": 2.0}]) == (1, 0)  # a GPU is the default, and none is needed
    with pytest.raises(ConfigError, match=r"--gpus is 4, and no node .* more than 2"):
        wanted(1, 4, two)
    with pytest.raises(ConfigError, match="--cpus is 10"):
        wanted(10, 0, two)  # two nodes together have as many, and no task runs on two
