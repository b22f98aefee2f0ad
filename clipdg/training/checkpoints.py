"""Checkpoints that a kill cannot take away: published whole, with a digest beside each, two generations deep.

Lightning's own are written in place when ``$TMPDIR`` is on another disk, so that a kill can leave an empty file where
the older one was (Lightning-AI/pytorch-lightning#19970). ``Checkpoints`` takes its place in any trainer:

    lightning.Trainer(plugins=[Checkpoints()])

    NAME          the newest        NAME.sha256            its digest
    NAME.before   the one before    NAME.before.sha256     its digest

A file whose digest stands in neither sidecar is not loaded: a flipped bit would load without an error.
"""

from __future__ import annotations

import io
import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import CheckpointIO

from clipdg.core.errors import StorageError
from clipdg.storage.publish import hash_bytes, publish


class Checkpoints(CheckpointIO):
    """Lightning's way to files, kept safe. Loads tensors and plain values only; nothing in a file can run code."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Raises StorageError if the disk is full or does not hold what was written; the older one stands then."""
        save(_serialized(checkpoint), Path(path))

    def load_checkpoint(self, path: str | os.PathLike[str], *_: Any, **__: Any) -> dict[str, Any]:
        """The newest generation that is whole, on the CPU; warns if that is the older one. Raises StorageError."""
        found = load(Path(path))
        if found is None:
            raise StorageError(f"no checkpoint {path} is whole")
        return found

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        for file in _files(Path(path)):
            file.unlink(missing_ok=True)


def save(content: bytes, path: Path) -> None:
    """Publish a generation. At each moment one whole generation stands, with its digest in one of the sidecars."""
    newest, newest_digest, before, before_digest = _files(path)
    if not newest.exists() and newest_digest.exists() and before.exists():  # a kill between the two renames below
        if _digest(before) == newest_digest.read_text(errors="replace").strip():
            os.replace(newest_digest, before_digest)
    elif newest.exists() and _digest(newest) in _digests(path):  # never let a broken one take a whole one's place
        os.replace(newest, before)
        if newest_digest.exists():
            os.replace(newest_digest, before_digest)
    digest = hash_bytes(content)
    publish(newest_digest, f"{digest}\n".encode())
    publish(newest, content)
    if _digest(newest) != digest:
        raise StorageError(f"{path} does not hold what was written to it; its disk may be failing")


def load(path: Path) -> dict[str, Any] | None:
    """The newest generation that is whole; None if there is none. Warns if one is there that is not whole."""
    newest, _, before, _ = _files(path)
    known = _digests(path)
    for file in (newest, before):
        if not file.exists():
            continue
        content = file.read_bytes()
        if hash_bytes(content) in known:
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)  # type: ignore[no-any-return]
        rest = "the one before it is used" if file == newest and before.exists() else "it is not used"
        warnings.warn(f"checkpoint {file} was cut or altered; {rest}", stacklevel=2)
    return None


def _files(path: Path) -> tuple[Path, Path, Path, Path]:
    before = path.with_name(f"{path.name}.before")
    return path, path.with_name(f"{path.name}.sha256"), before, before.with_name(f"{before.name}.sha256")


def _digest(file: Path) -> str:
    return hash_bytes(file.read_bytes())


def _digests(path: Path) -> set[str]:
    """Those in the sidecars; either may be that of either file, since a kill can fall between two renames."""
    return {f.read_text(errors="replace").strip() for f in _files(path)[1::2] if f.exists()}


def _serialized(checkpoint: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(checkpoint), buffer)
    return buffer.getvalue()


class FitState(Checkpoint):
    """The state of a fit at the end of an epoch, for one trainer that has this callback and ``files`` as a plug-in.

    It is held in memory at most every ``hold`` seconds and written every ``write`` seconds, and when the fit is ended
    by a signal or an error (``flush``). The next fit goes on from there, to the bit on a CPU: weights, optimizer,
    schedule, and the state of each generator, of which ``generators`` are those that torch does not know itself.

    ``seconds_before``: what the fits before this one took up to their last state, which is a cost of the run too.
    """

    def __init__(
        self, path: Path, generators: Mapping[str, torch.Generator], hold: float = 1.0, write: float = 60.0
    ) -> None:
        super().__init__()
        self.path, self.generators, self.hold = path, generators, hold
        self.files = _Held(write)
        self.seconds_before = 0.0
        self._held_at = self._began_at = time.monotonic()
        self._restored: dict[str, Any] | None = None

    def resumes_from(self) -> Path | None:
        """Where a fit that was interrupted is; None if there is none that is whole."""
        return self.path if load(self.path) is not None else None

    def flush(self) -> None:
        """Write what is held."""
        self.files.flush(self.path)

    def remove(self) -> None:
        """Delete what is kept: the fit is of no use any more."""
        self.files.held = None
        self.files.remove_checkpoint(self.path)

    def on_train_epoch_end(self, trainer: lightning.Trainer, _: lightning.LightningModule) -> None:
        over = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        if over and trainer.world_size > 1:  # what several learnt is brought together by the end of a fit alone
            return
        due = time.monotonic() - self._held_at >= self.hold
        if trainer.strategy.broadcast(due):  # the first process's clock decides: all have to save at once
            trainer.save_checkpoint(self.path)
            self._held_at = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {name: g.get_state() for name, g in self.generators.items()}
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        seconds = self.seconds_before + time.monotonic() - self._began_at
        return state | {"torch": torch.get_rng_state(), "cuda": cuda, "seconds": seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict  # put back when all is set up, which may draw
        self.seconds_before = state_dict.get("seconds", 0.0)

    def on_train_start(self, *_: Any) -> None:
        if self._restored is None:
            return
        for name, generator in self.generators.items():
            generator.set_state(self._restored[name])
        torch.set_rng_state(self._restored["torch"])
        if self._restored["cuda"]:
            torch.cuda.set_rng_state_all(self._restored["cuda"])
        self._restored = None


class _Held(Checkpoints):
    """Holds the last state and writes it when that was last done ``write`` seconds ago."""

    def __init__(self, write: float) -> None:
        self.write = write
        self.held: bytes | None = None
        self.written_at = time.monotonic()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        self.held = _serialized(checkpoint)
        if time.monotonic() - self.written_at >= self.write:
            self.flush(Path(path))

    def flush(self, path: Path) -> None:
        if self.held is not None:
            save(self.held, path)
            self.held, self.written_at = None, time.monotonic()
