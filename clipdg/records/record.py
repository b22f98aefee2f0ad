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

import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from clipdg.core.errors import RecordError
from clipdg.records.identity import flatten, identity_of_flat
from clipdg.storage.publish import digest, hash_bytes, publish

SCHEMA = 1
MAX_BYTES = 2**30
FIELDS = ("schema", "run_id", "status", "config", "seeded", "shift", "evaluations", "weights", "data", "versions",
          "timing", "predictions")  # fmt: skip


@dataclass(frozen=True)
class Record:
    """One run's outcome; ``content`` is the JSON object described at the top of this file, without its digest."""

    content: Mapping[str, Any]

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> Record:
        return cls(content)

    @property
    def seeded(self) -> tuple[str, ...]:
        return tuple(self.content["seeded"])

    @property
    def kept(self) -> Any:
        return self.content.get("kept")

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
            for k, v in identity_of_flat(self.settings).items()
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


def read_record(path: Path) -> Record:
    """The record in a file. Raises RecordError if it is cut, altered, of another schema or of another run."""
    try:
        content = json.loads(content_of(path), parse_constant=_refuse_constant)
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
        content = content_of(path)
    except (OSError, ValueError) as error:
        raise RecordError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if hash_bytes(content) != stored["digest"]:
        raise RecordError(f"{path} is not what run {record.run_id} wrote: its digest does not match")
    return content


def content_of(path: Path) -> bytes:
    """The bytes of a regular file. Raises OSError, and ValueError for what could block or fill the memory."""
    # O_NONBLOCK: to open a FIFO would wait for a writer.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("not a regular file")
        if found.st_size > MAX_BYTES:
            raise ValueError(f"{found.st_size:,} bytes are more than any record has")
        return file.read()


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
