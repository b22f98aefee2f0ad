"""Records: what a run found, published whole or not at all; ``publish`` is the only code here that writes results.

A record is one JSON file ``DIR/<run_id>.json``:

    schema       1
    run_id       SHA-256 (16 hex digits) of everything that can change the numbers
    status       "done"
    config       the resolved settings, without paths
    seeded       the settings that follow the seed ("seed", "benchmark.seed"): a mean is over these and nothing else
    shift        {name, sources, targets}
    evaluations  [{domain, split, step, num_images, metrics}]; metrics are fractions in [0, 1] (nll in nats), null
                 where there is none
    weights      {backbone, tag, fingerprint, random, provenance}
    data         {benchmark, fingerprint, classes, num_fit, num_images: {domain: {split: n}}, fitted_on, templates,
                 notes, citation, provenance, skipped, eval_only}
    versions     {package: version}
    timing       {seconds, ...}: never part of an identity
    fit          only where a method found settings by itself: {c, converged, gradient, iterations, sweep, ...}
    curve        only where weights lie on a line between two: [{alpha, domain, split, num_images, metrics}]; the
                 evaluations are those at the configured alpha
    predictions  {file, digest} of the per-sample predictions beside it, or null
    learnt       only of what was learnt on a frozen backbone: {file, digest}
    kept         only of a trained one, with keep_weights: {backbone: {file, digest}, head: {file, digest}}
    digest       SHA-256 of the canonical JSON of all the rest
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from clipdg.errors import RecordError, StorageError

SCHEMA = 1
MAX_BYTES = 2**30
_NAME = re.compile(r"[0-9a-f]{16}\.json")
# Settings that cannot change a number. The weights and the data count by their fingerprints, not by where they lie.
NOT_IDENTITY = ("label", "hparams_seed", "workers", "devices", "strategy", "keep_weights", "benchmark.root",
                "benchmark.skip", "benchmark.streaming", "benchmark.places", "backbone.weights",
                "method.memory_mib")  # fmt: skip
# Settings that came after records were made, with the value that those records had: at it, they are left out, so that a
# run keeps its identity and its row.
CAME_LATER: Mapping[str, object] = {
    "objective.name": "erm",
    "benchmark.leave_one_out": False,
    "method.position": "end",
    "benchmark.half": "all",
    "backbone.pixels": "exact",
    "backbone.features": "projected",
    "method.descriptions": None,
    "method.dropout": 0.0,
    "method.resize": "own",
    "method.val_transform": "clean",
    "fit.steps": None,
    "fit.per_domain": False,
    "fit.checkpoint_every": None,
    "fit.precision": "fp32",
    "fit.accumulate": 1,
    "fit.clip_norm": None,
    "fit.average": "none",
    "fit.average_from": 0,
    "fit.ema_decay": 0.999,
    "fit.views": 0,
}
CAME_LATER_IN: Mapping[str, Mapping[str, object]] = {  # the same of one method, where others had such a setting before
    "linear_probe": {"method.sweep": False, "method.refit": True, "method.start": "zeros", "method.solver": "lbfgs",
                     "method.epochs": 10, "method.lr": 0.1, "method.batch_size": 256, "method.weight_decay": 0.0},
}  # fmt: skip
FIELDS = ("schema", "run_id", "status", "config", "seeded", "shift", "evaluations", "weights", "data", "versions",
          "timing", "predictions")  # fmt: skip


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


def called(config: Mapping[str, Any]) -> str:
    """A run's name among others: its label, else its method and what it minimises, if that is not ERM's loss."""
    if config.get("label"):
        return str(config["label"])
    method, objective = config["method"]["name"], (config.get("objective") or {"name": "erm"})["name"]
    if objective == "erm":
        return str(method)
    return str(objective) if method == "erm" else f"{method} + {objective}"


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


@dataclass(frozen=True)
class Record:
    """One run's outcome; ``content`` is the JSON object described at the top of this file, without its digest."""

    content: Mapping[str, Any]

    @property
    def run_id(self) -> str:
        return str(self.content["run_id"])

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        return list(self.content["evaluations"])

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """The configuration, flat."""
        return flatten(self.content["config"])

    @cached_property
    def group(self) -> str:
        """The same for two records exactly if they differ in the seed and what follows it, and in nothing else."""
        return digest([self.row, self.content["shift"]])[:16]

    @cached_property
    def row(self) -> str:
        """``group`` without the shift: leave-one-out makes one row of several shifts."""
        seeded = self.content["seeded"]
        kept = {
            k: v
            for k, v in _identity(self.settings).items()
            if k not in seeded and k != "shift" and not k.startswith("shift.")
        }
        weights = self.content["weights"]
        which = weights["fingerprint"]
        if "backbone.weights" in seeded:
            which = "random" if weights["random"] else weights["provenance"].get("recipe", which)
        data = None if "benchmark.seed" in seeded else self.content["data"]["fingerprint"]
        return digest([kept, None, which, data])[:16]

    def bytes(self) -> bytes:
        sealed = {**self.content, "digest": digest(dict(self.content))}
        return json.dumps(sealed, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"

    def publish(self, folder: Path) -> bool:
        """Write ``folder/<run_id>.json``; False if a record of that run stood there already (it is kept)."""
        return publish(folder / f"{self.run_id}.json", self.bytes(), replace=False)


def read(path: Path) -> Record:
    """The record in a file. Raises RecordError if it is cut, altered, of another schema or of another run."""
    try:
        content = json.loads(_content(path), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise RecordError(f"{path} is not a record: it is nested too deeply") from error
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} is not a record: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise RecordError(f"{path} is not a record of schema {SCHEMA}")
    sealed = content.pop("digest", None)
    missing = [f for f in FIELDS if f not in content]
    if missing:
        raise RecordError(f"{path} lacks {', '.join(missing)}")
    if sealed != digest(content):
        raise RecordError(f"{path} was altered after it was written: its digest does not match")
    if content["run_id"] != path.stem:
        raise RecordError(f"{path} holds run {content['run_id']}: a record's file carries its run id")
    if content["status"] != "done":
        raise RecordError(f"{path} has status {content['status']}")
    try:
        for e in (*content["evaluations"], *content.get("curve", ())):
            for name, value in e["metrics"].items():
                if value is not None and (not math.isfinite(value) or (name != "nll" and not 0 <= value <= 1)):
                    raise RecordError(f"{path}: {name} on {e['domain']} is {value}, not a fraction")
    except (TypeError, KeyError, AttributeError) as error:
        raise RecordError(f"{path} is not a record: its evaluations are not those of one") from error
    return Record(content)


def predictions(record: Record, folder: Path) -> bytes | None:
    """The Parquet file of per-sample predictions beside a record in ``folder``; None if the run kept none.

    Raises RecordError if it is missing or not the one that the record was published with.
    """
    stored = record.content["predictions"]
    if stored is None:
        return None
    path = folder / Path(stored["file"]).name
    try:
        content = _content(path)
    except (OSError, ValueError) as error:
        raise RecordError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if hash_bytes(content) != stored["digest"]:
        raise RecordError(f"{path} is not what run {record.run_id} wrote: its digest does not match")
    return content


def _content(path: Path) -> bytes:
    """The bytes of a regular file. Raises OSError, and ValueError for what could block or fill the memory."""
    # O_NONBLOCK: to open a FIFO would wait for a writer.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("not a regular file")
        if found.st_size > MAX_BYTES:
            raise ValueError(f"{found.st_size:,} bytes are more than any record has")
        return file.read()


def read_all(folders: Iterable[Path]) -> tuple[list[Record], list[RecordError]]:
    """Every record below ``folders`` in a fixed order, and what is wrong with the files that are none.

    A run found in several places counts once. Raises RecordError if a folder does not exist.
    """
    from clipdg.record_index import Index, state_of

    records: dict[str, Record] = {}
    errors = []
    for folder in folders:
        if not folder.is_dir():
            raise RecordError(f"no folder {folder}; records are looked for in the folder given to --out")
        index = Index(folder)
        for name in sorted(_files(folder), key=lambda name: name.split(os.sep)):
            path = os.path.join(folder, name)
            try:
                state = state_of(os.stat(path))
                content = index.content(name, state)
                record = read(Path(path)) if content is None else Record(content)
            except OSError as error:
                errors.append(RecordError(f"{path} cannot be read: {error.strerror or error}"))
            except RecordError as error:
                errors.append(error)
            else:
                if content is None:
                    record = Record(index.add(name, state, record.content))
                records.setdefault(record.run_id, record)
        index.publish()
    return list(records.values()), errors


def _files(folder: Path) -> list[str]:
    """Paths, relative to ``folder``, of what is named like a record."""
    found = []
    for place, folders, files in os.walk(folder):
        names = [*files, *folders]  # a folder of such a name is told
        inside = os.path.relpath(place, folder)
        found += [name if inside == "." else os.path.join(inside, name) for name in names if _NAME.fullmatch(name)]
    return found


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` -> ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        # The common kinds first: to ask whether an int is a Mapping takes as long as all the rest.
        if value is None or isinstance(value, str | int | float):
            flat[f"{prefix}{key}"] = value
        elif isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Flat settings that can change a number."""
    return _identity(flatten(config))


def _identity(flat: Mapping[str, Any]) -> dict[str, Any]:
    later = {**CAME_LATER, **CAME_LATER_IN.get(str(flat.get("method.name")), {})}
    return {k: v for k, v in flat.items() if k not in NOT_IDENTITY and (k not in later or v != later[k])}


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
