"""Every method that goes over features fits and tests alike in one process and in two."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clipdg.core import plugins

SCRIPT = Path(__file__).parents[1] / "helpers" / "two_processes.py"
FEW: dict[str, Any] = {"num_context": 2, "epochs": 2, "warmup_epochs": 0, "lr": 0.5}
# name, settings, images to fit on: 24 are six batches of four in two processes and three of eight in one; 23 do not
# come out even, which a solver must not notice.
CASES: list[tuple[str, dict[str, Any], int]] = [
    ("zero_shot", {}, 0),
    ("linear_probe", {}, 23),
    ("linear_probe", {"sweep": True, "refit": True}, 23),
    ("linear_probe", {"solver": "sgd", "epochs": 2}, 24),
    ("tip_adapter", {}, 23),
    ("tip_adapter", {"fine_tune": True, "search": False, "epochs": 2}, 23),
    ("clip_adapter", {"epochs": 2, "warmup_epochs": 0, "lr": 0.5}, 24),
    ("coop", FEW, 24),
    ("coop", FEW | {"class_specific": True}, 24),
    ("cocoop", FEW | {"context_init": None}, 24),
    ("kgcoop", FEW | {"context_init": None}, 24),
    ("prograd", FEW | {"context_init": None}, 24),
]


def test_every_method_over_features_is_among_the_cases() -> None:
    fits = {n for n in plugins.names("methods") if plugins.method(n).trains in ("method", "solver")}
    assert fits | {"zero_shot"} == {name for name, _, _ in CASES}


def run(out: Path, devices: int) -> list[dict[str, Any]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(devices), "NODE_RANK": "0"}
    command = [sys.executable, str(SCRIPT), json.dumps(CASES), str(out), str(devices)]
    started = [
        subprocess.Popen(
            command, env={**os.environ, **(shared | {"LOCAL_RANK": str(r)} if devices > 1 else {})},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for r in range(devices)
    ]  # fmt: skip
    said = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0] * devices, "\n".join(said)
    return json.loads(out.read_text())  # type: ignore[no-any-return]


@pytest.mark.slow
def test_two_processes_find_what_one_does(tmp_path: Path) -> None:
    one, two = run(tmp_path / "one.json", 1), run(tmp_path / "two.json", 2)
    for case, ours, theirs in zip(CASES, two, one, strict=True):
        assert ours["indices"] == list(range(23)), case
        for key in ("labels", "predicted", "results"):
            assert ours[key] == pytest.approx(theirs[key], abs=1e-5), (case, key)
        assert ours["confidence"] == pytest.approx(theirs["confidence"], abs=1e-4), case
        for name, values in theirs["parameters"].items():
            assert ours["parameters"][name] == pytest.approx(values, abs=1e-4, rel=1e-3), (case, name)
