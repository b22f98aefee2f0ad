"""A fit by two processes of a CPU is that of one: the same record, but for rounding, written once."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from clipdg.core.errors import ConfigError, DivergedError
from clipdg.runs import config
from clipdg.runs.run import run
from clipdg.runs.session import Session
from clipdg.training import worker_processes

pytestmark = pytest.mark.usefixtures("plugins_of_a_user")
ERM = {"name": "erm", "augment": "none", "epochs": 2, "lr": 1e-3, "batch_size": 8}
COOP = {"name": "coop", "epochs": 2, "batch_size": 8}


def settings(method: dict[str, Any], **others: Any) -> config.RunSettings:
    base = {"benchmark": "plugins_of.a_user", "backbone": {"name": "tiny", "weights": "random:0"}, "shift": "dark"}
    return config.load(values=base | {"method": method, **others})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "others"),
    [(COOP, {}), (ERM, {"backbone": {"name": "tiny:vit", "weights": "random:0"}, "holdout": 0.3})],
    ids=["features", "images"],
)
def test_two_processes_find_what_one_finds(method: dict[str, Any], others: dict[str, Any], tmp_path: Path) -> None:
    [alone] = run(settings(method, **others), tmp_path / "alone")
    resolved = settings(method, **others, devices=2)
    told: list[tuple[str, int, int]] = []
    [shared] = run(resolved, tmp_path / "shared", Session(progress=lambda *said: told.append(said)))
    assert shared.run_id == alone.run_id
    assert [f.name for f in (tmp_path / "shared").glob("*.json")] == [f"{alone.run_id}.json"]
    assert not list((tmp_path / "shared").rglob("*.ckpt"))
    assert [(e.domain, e.split, e.step, e.num_images) for e in shared.evaluations] == [
        (e.domain, e.split, e.step, e.num_images) for e in alone.evaluations
    ]
    for one, other in zip(alone.evaluations, shared.evaluations, strict=True):
        assert other.metrics["nll"] == pytest.approx(one.metrics["nll"], rel=1e-3)
    assert "devices" not in json.dumps(dict(shared.content))
    num_updates = shared.evaluations[0].step
    assert (f"fit {method['name']}", num_updates, num_updates) in told
    timing = shared.content["timing"]
    assert timing["processes"] == 2
    assert timing["images_per_second"] > 0
    assert timing["peak_memory_mib"] > 50


def _ends(_: object, how: str) -> dict[str, Any]:
    if os.environ["LOCAL_RANK"] == "0":
        time.sleep(600.0)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise DivergedError("the loss is nan at step 3")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "error", "said"), [("diverged", DivergedError, "nan at step 3"), ("killed", RuntimeError, "exit code -9")]
)
def test_what_ends_one_process_ends_all_and_is_told(how: str, error: type[Exception], said: str) -> None:
    started = time.monotonic()
    with pytest.raises(error, match=said):
        worker_processes.together(2, _ends, how)
    assert time.monotonic() - started < 300
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("others", "sentence"),
    [
        ({"method": COOP | {"batch_size": 9}, "devices": 2}, "2 devices cannot share batches of 9"),
        ({"method": COOP, "strategy": "fsdp", "devices": 2}, "fsdp is for GPUs"),
        ({"method": ERM, "objective": "irm", "devices": 2}, "irm is computed over whole batches"),
    ],
)
def test_what_several_processes_would_do_otherwise_is_refused(
    others: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ConfigError, match=sentence):
        run(settings(**others), None, Session())


def test_what_is_solved_for_is_solved_by_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: Any, **__: Any) -> None:
        raise AssertionError("processes were started")

    monkeypatch.setattr("clipdg.training.worker_processes.together", started)
    [record] = run(settings({"name": "linear_probe"}, devices=2))
    assert record.content["timing"]["converged"]
