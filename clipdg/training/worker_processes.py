"""Several processes that train one model: started for one fit, gone when it is over.

Each builds the same model by itself and reads its share of every batch (data.Shared); Lightning's strategies add up
their gradients. What was learnt comes back to the process that asked, which goes on alone: it evaluates and publishes,
so that no image is counted twice and no result is written by two.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import lightning
import torch

from clipdg.core import signals
from clipdg.core.errors import ClipdgError
from clipdg.core.progress import Progress

GRACE = 30.0  # seconds that a process has to save the state of its fit
LAST_WORDS = 5.0  # seconds that the others have to say more than that one of them is gone


def together(
    num: int, work: Callable[..., dict[str, Any]], *arguments: Any, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """What ``work(report, *arguments)`` gives in each of ``num`` processes, by rank: tensors and plain values.

    ``progress`` is told what the first one gives to its ``report``, which is None in the others.

    Raises the ClipdgError of a process that has one; else RuntimeError with its traceback or how it was ended. The
    others are then told to end, as they are when this process is, and have time to save their state.
    """
    context = multiprocessing.get_context("spawn")
    port = _free_port()
    ranks: list[tuple[SpawnProcess, Connection]] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for rank in range(num):
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(
                    target=_rank, args=(theirs, rank, num, port, folder, work, arguments), daemon=True
                )
                process.start()
                theirs.close()
                ranks.append((process, ours))
            _wait(ranks, progress)
            return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(num)]
        finally:
            for process, _ in ranks:
                process.terminate()
            for process, connection in ranks:
                process.join(GRACE)
                process.kill()
                process.join()
                connection.close()


def _wait(ranks: Sequence[tuple[SpawnProcess, Connection]], progress: Progress | None) -> None:
    """Until all are done. Raises as ``together``."""
    waiting = {connection: process for process, connection in ranks}
    errors: list[Exception] = []
    deadline: float | None = None
    while waiting:
        ready = wait(list(waiting), None if deadline is None else max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        for connection in ready:
            assert isinstance(connection, Connection)
            process = waiting.pop(connection)
            try:
                said = connection.recv()
            except EOFError:
                process.join()
                said = RuntimeError(f"a process of the fit ended with exit code {process.exitcode}")
            if isinstance(said, tuple):  # no end, but how far it is
                waiting[connection] = process
                if progress is not None:
                    progress(*said)
            elif said is not None:
                errors.append(said)
                deadline = deadline or time.monotonic() + LAST_WORDS
    if errors:
        raise next((e for e in errors if isinstance(e, ClipdgError)), errors[0])


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _rank(
    connection: Connection,
    rank: int,
    num: int,
    port: int,
    folder: str,
    work: Callable[..., dict[str, Any]],
    arguments: Sequence[Any],
) -> None:
    """A process's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the first process speaks for all
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // num))
    try:
        with signals.stoppable():
            report = None if rank else _reports(connection)
            torch.save(work(report, *arguments), Path(folder) / f"{rank}.pt")
        connection.send(None)
    except signals.Stopped:
        sys.exit(signals.EXIT_CODE)
    except ClipdgError as error:
        connection.send(error)
    except Exception:
        connection.send(RuntimeError(traceback.format_exc()))
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _reports(connection: Connection) -> Progress:
    """Says how far this process is, ten times a second at most, and when a stage is over."""
    sent = 0.0

    def report(stage: str, done: int, total: int) -> None:
        nonlocal sent
        if time.monotonic() - sent >= 0.1 or done == total:
            sent = time.monotonic()
            connection.send((stage, done, total))

    return report


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(signals.EXIT_CODE)


def options(num: int, strategy: str) -> dict[str, Any]:
    """For the trainer of each process."""
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment

    return {
        "devices": num,
        "strategy": strategy,
        "use_distributed_sampler": False,
        "sync_batchnorm": torch.cuda.is_available(),
        "plugins": [LightningEnvironment()],  # and not Slurm's, whose job this may be: these processes are ours
    }


class Learnt(lightning.Callback):
    """``state``: all that was learnt, whole in the first process, whatever part of it each held."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def on_train_end(self, trainer: lightning.Trainer, _: lightning.LightningModule) -> None:
        found = trainer.strategy.lightning_module_state_dict()
        self.state = {name: tensor.detach().cpu().clone() for name, tensor in found.items()}
