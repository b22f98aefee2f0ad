"""Beside the records, below ``DIR/.runs``: who is at work on a run, and how those ended that have no record.

    <run_id>.status   how the last attempt ended: failed, diverged, oom, killed, refused
    <run_id>.lease    a process is at work on it
    <run_id>.ckpt     a fit that was interrupted (checkpoints.py)

Nothing here is a result: only a record makes a run done, reports read no file of these, and the folder can be deleted
at any time. A lease saves work and is never needed for a result to be right, since the first record of a run stays.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from clipdg.storage.publish import canonical
from clipdg.storage.publish import publish as publish_file

State = Literal["failed", "diverged", "oom", "killed", "refused"]
HEARTBEAT = 10.0  # seconds between two signs of life
EXPIRES = 120.0  # seconds without one after which a lease of another machine is void
NUM_LINES = 50


@dataclass(frozen=True)
class Status:
    """How a run without a record ended. ``name`` says which run it was, ``lines`` are the last it wrote."""

    run_id: str
    status: State
    name: str
    message: str
    lines: tuple[str, ...] = ()
    attempts: int = 1

    def publish(self, out: Path) -> None:
        content = asdict(self) | {"lines": list(self.lines[-NUM_LINES:])}
        publish_file(_file(out, self.run_id, "status"), canonical(content))


def status(out: Path, run_id: str) -> Status | None:
    """How the run's last attempt in ``out`` ended; None if nothing is known."""
    try:
        content = json.loads(_file(out, run_id, "status").read_bytes())
        return Status(**content | {"lines": tuple(content["lines"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def clear(out: Path, run_id: str) -> None:
    """Forget how the run ended: it is done."""
    _file(out, run_id, "status").unlink(missing_ok=True)


def checkpoint(out: Path, run_id: str) -> Path:
    """Where the run keeps a fit that was interrupted."""
    return _file(out, run_id, "ckpt")


@contextmanager
def lease(out: Path, run_id: str) -> Iterator[bool]:
    """Announce work on a run; False if a live process has announced it before."""
    path = _file(out, run_id, "lease")
    mine = canonical(_me() | {"host": socket.gethostname()})
    taken = publish_file(path, mine, replace=False)
    if not taken and not _alive(path):
        path.unlink(missing_ok=True)  # two who find it void at once may both go on: work done twice, nothing wrong
        taken = publish_file(path, mine, replace=False)
    if not taken:
        yield False
        return
    ended = threading.Event()
    threading.Thread(target=_beat, args=(path, ended), daemon=True).start()
    try:
        yield True
    finally:
        ended.set()
        path.unlink(missing_ok=True)


def leased(out: Path, run_id: str) -> bool:
    """Whether a live process is at work on a run."""
    path = _file(out, run_id, "lease")
    return path.exists() and _alive(path)


def _file(out: Path, run_id: str, kind: str) -> Path:
    return out / ".runs" / f"{run_id}.{kind}"


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT):
        try:
            os.utime(path)
        except OSError:  # deleted, or the disk is gone: a lease is only a courtesy
            return


def _alive(path: Path) -> bool:
    """Whether the process that wrote a lease is at work; one on another machine is while its heart beats."""
    try:
        written = json.loads(path.read_bytes())
        beat = path.stat().st_mtime
        if written["host"] == socket.gethostname():
            same_boot = written["boot"] == _boot_id()
            return bool(same_boot and written["started"] == _started(int(written["pid"])))
    except (OSError, ValueError, TypeError, KeyError):
        return False
    return time.time() - beat < EXPIRES


def _me() -> dict[str, object]:
    return {"pid": os.getpid(), "started": _started(os.getpid()), "boot": _boot_id()}


@cache
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux
        return ""


def _started(pid: int) -> str | None:
    """When a process began, in the kernel's ticks; None if it ended. A number used again is not the same process."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return None
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return ""
    return None if after_name[0] == "Z" else after_name[19]
