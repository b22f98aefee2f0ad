"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path

from clipdg.core.errors import StorageError


def canonical(value: object) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, UTF-8. Raises ValueError on NaN and infinities."""
    return _CANONICAL.encode(value).encode()


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: object) -> str:
    """SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical(value)).hexdigest()


def hash_bytes(content: bytes) -> str:
    """SHA-256 of a file's content."""
    return hashlib.sha256(content).hexdigest()


def publish(path: Path, content: bytes | Iterable[bytes], *, replace: bool = True) -> bool:
    """Write ``content``, whole or in pieces, under ``path`` whole or not at all; True if it is ours that stands there.

    A temporary file in the same folder is written and synced, then renamed (``replace``) or linked, in which case the
    first writer wins; then the folder is synced. Raises StorageError if the place cannot be written, or naming what is
    needed and what is free if the disk is full.
    """
    pieces = [content] if isinstance(content, bytes) else content
    num_bytes = 0
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    try:
        _make_folder(path.parent)
        with open(temporary, "xb") as file:
            for piece in pieces:
                num_bytes += len(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(temporary, path)
        else:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
        _sync_folder(path.parent)
        return True
    except OSError as error:
        raise StorageError(f"cannot write {path}: {_why(error, path, num_bytes)}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    """With its parents, each synced into the one above it."""
    missing = [p for p in (folder, *folder.parents) if not p.is_dir()]
    for new in reversed(missing):
        new.mkdir(exist_ok=True)
        _sync_folder(new.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _why(error: OSError, path: Path, needed: int) -> str:
    reason = error.strerror or str(error)
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return reason
    there = next(p for p in path.absolute().parents if p.is_dir())
    return f"{reason}; {needed:,} bytes are needed and {shutil.disk_usage(there).free:,} are free"
