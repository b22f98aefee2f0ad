import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clipdg.runs import status
from clipdg.runs.status import Status

RUN = "0123456789abcdef"


def test_how_a_run_ended_is_read_as_it_was_written_and_keeps_its_last_lines(tmp_path: Path) -> None:
    ended = Status(RUN, "failed", "CoOp, seed 1", "a bug", tuple(f"line {i}" for i in range(200)), 3)
    ended.publish(tmp_path)
    found = status.status(tmp_path, RUN)
    assert found is not None
    assert found.lines == ended.lines[-50:]
    assert (found.status, found.name, found.message, found.attempts) == ("failed", "CoOp, seed 1", "a bug", 3)
    status.clear(tmp_path, RUN)
    assert status.status(tmp_path, RUN) is None


def test_a_run_has_one_process_at_work_on_it(tmp_path: Path) -> None:
    with status.lease(tmp_path, RUN) as first, status.lease(tmp_path, RUN) as second:
        assert (first, second) == (True, False)
        assert status.leased(tmp_path, RUN)
    assert not status.leased(tmp_path, RUN)
    with status.lease(tmp_path, RUN) as again:
        assert again


def test_the_lease_of_a_process_that_was_killed_is_void(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from clipdg.runs import status as states\n"
        "held = states.lease(Path(sys.argv[1]), sys.argv[2])\n"
        "held.__enter__(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path), RUN], check=False)
    assert (tmp_path / ".runs" / f"{RUN}.lease").exists()
    assert not status.leased(tmp_path, RUN)
    with status.lease(tmp_path, RUN) as ours:
        assert ours


@pytest.mark.parametrize(
    ("changes", "void"),
    [
        ({}, False),
        ({"boot": "another"}, True),  # the machine was started again
        ({"started": "1"}, True),  # the process number was used again
        ({"host": "elsewhere"}, False),  # its heart beats
        ("not a lease", True),
    ],
)
def test_a_lease_is_void_when_its_process_cannot_be_at_work(
    tmp_path: Path, changes: dict[str, str] | str, void: bool
) -> None:
    lease = {"host": socket.gethostname(), **status._me()}
    path = tmp_path / ".runs" / f"{RUN}.lease"
    path.parent.mkdir()
    path.write_text(json.dumps(lease | changes) if isinstance(changes, dict) else changes)
    assert status.leased(tmp_path, RUN) is not void


def test_a_lease_of_another_machine_is_void_when_its_heart_stops(tmp_path: Path) -> None:
    path = tmp_path / ".runs" / f"{RUN}.lease"
    path.parent.mkdir()
    path.write_text(json.dumps({"host": "elsewhere", **status._me()}))
    long_ago = time.time() - status.EXPIRES - 1
    os.utime(path, (long_ago, long_ago))
    assert not status.leased(tmp_path, RUN)
