"""``clipdg sweep --jobs 2`` that is told to end: 75 or 130, what was finished is kept, the same command goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SWEEP = """
base:
  benchmark: plugins_of.a_user
  backbone: {{name: tiny, weights: "random:0"}}
  shift: dark
runs:
  - {{label: one, method: {{name: plugins_of.a_user, scale: 1.0}}}}
  - {{label: slow, method: {{name: plugins_of.a_user, how: slow, once: {once}}}}}
  - {{label: two, method: {{name: plugins_of.a_user, scale: 2.0}}}}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGTERM, 75, "stopped by SIGTERM"),
        (signal.SIGUSR1, 75, "stopped by SIGUSR1"),
        (signal.SIGINT, 130, "interrupted"),
    ],
    ids=["TERM", "USR1", "INT"],
)
def test_a_sweep_in_workers_that_is_told_to_end_keeps_what_is_finished_and_goes_on(
    number: signal.Signals, code: int, said: str, tmp_path: Path, plugins_of_a_user: Path
) -> None:
    once, out, file = tmp_path / "once", tmp_path / "out", tmp_path / "sweep.yaml"
    file.write_text(SWEEP.format(once=once))
    command = [sys.executable, "-m", "clipdg", "sweep", str(file), "--jobs", "2", "--out", str(out)]
    paths = os.pathsep.join([str(plugins_of_a_user), *sys.path])
    environment = os.environ | {"PYTHONPATH": paths}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, env=environment, text=True, stderr=subprocess.PIPE, start_new_session=True)

    first = start()
    deadline = time.monotonic() + 200
    while not (once.exists() and len(list(out.glob("*.json"))) == 2):
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    if number == signal.SIGINT:
        os.killpg(first.pid, number)  # as a terminal does: the whole group
    else:
        first.send_signal(number)
    _, err = first.communicate(timeout=100)
    assert first.returncode == code, err
    last = err.splitlines()[-1]
    assert last == f"clipdg: {said}; what was finished is kept, run the same command again to go on"
    kept = {f.name: f.read_bytes() for f in out.glob("*.json")}
    assert len(kept) == 2
    assert list(out.rglob("*.lease")) == []
    again = start()
    _, err = again.communicate(timeout=250)
    assert again.returncode == 0, err
    assert "3 runs: 2 done before, 1 to do" in err
    assert len(list(out.glob("*.json"))) == 3
    assert all((out / name).read_bytes() == content for name, content in kept.items())
