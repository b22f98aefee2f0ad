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
    protocol     {fit, validation, reported, refitted, test_time}: which splits; not in records of before
    metrics      only with metrics of a user's own: how each is called and written
    digest       SHA-256 of the canonical JSON of all the rest
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from clipdg.core import plugins
from clipdg.core.errors import RecordError
from clipdg.records.identity import called, flatten, identity_of_flat, part_name
from clipdg.storage.publish import digest, hash_bytes, publish

SCHEMA = 1
MAX_BYTES = 2**30
FIELDS = ("schema", "run_id", "status", "config", "seeded", "shift", "evaluations", "weights", "data", "versions",
          "timing", "predictions")  # fmt: skip


@dataclass(frozen=True)
class ShiftUsed:
    """The shift of a run: which domains it was fitted on, and which it was to be tested on."""

    name: str  # of the benchmark's shifts
    sources: tuple[str, ...]  # domains that are fitted and validated on
    targets: tuple[str, ...]  # domains that nothing is fitted or chosen on

    @property
    def domains(self) -> tuple[str, ...]:
        """The sources, then the targets."""
        return (*self.sources, *self.targets)

    def side(self, role: Literal["source", "target"]) -> tuple[str, ...]:
        """The domains of one role."""
        return self.sources if role == "source" else self.targets


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The metrics of one set of images at one step of a run."""

    domain: str
    split: str  # in, out, train, val, test, all, or the name of a class subset
    step: int | None  # updates of the fit, 0 where nothing is fitted; None in records of others
    num_images: int  # evaluated
    metrics: Mapping[str, float | None]  # fractions in [0, 1], nll in nats; None where there is no number

    @property
    def top1(self) -> float | None:
        """Accuracy, the metric that every record has."""
        return self.metrics.get("top1")


@dataclass(frozen=True, slots=True)
class OnLine:
    """The metrics of one set of images at one place on a line of weights (WiSE-FT)."""

    alpha: float  # the fitted weights' share
    domain: str
    split: str
    num_images: int
    metrics: Mapping[str, float | None]


@dataclass(frozen=True)
class WeightsUsed:
    """The backbone of a run."""

    backbone: str  # the spec, "open_clip:ViT-B-32-quickgelu"
    tag: str  # "openai", a repository, a file name without its folder, or "random:SEED"
    fingerprint: str  # SHA-256 of the tensors' bytes, the architecture and the preprocessing
    random: bool = False  # nothing was trained
    provenance: Mapping[str, Any] = field(default_factory=dict)  # how a file of weights says that it was made
    preprocessing: Mapping[str, Any] | None = None  # core/model.py, Preprocessing


@dataclass(frozen=True)
class DataUsed:
    """The images of a run."""

    benchmark: str  # its name
    fingerprint: str  # SHA-256 of the classes and, by domain, of which images have which labels
    classes: tuple[str, ...] | int  # their names in order, or only how many
    num_fit: int | None  # images that the classifier was fitted on in the end; None if it is not known
    num_images: Mapping[str, Mapping[str, int]]  # by domain and split
    fitted_on: Any = None  # by source, the ids of the images that were drawn or listed; None of whole splits
    templates: tuple[str, ...] | None = None  # of the prompts; None of a method without prompts
    notes: tuple[str, ...] = ()  # what every table made from it must disclose
    citation: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)  # repository, commit, …
    skipped: tuple[str, ...] = ()  # "domain/id" of images that a list left out
    eval_only: tuple[str, ...] = ()  # domains on which nothing may be fitted or chosen, by their licence
    imported: str | None = None  # whose record it was, of an imported one


@dataclass(frozen=True)
class Timing:
    """What a run took; never part of an identity."""

    seconds: float | None = None  # of the whole run, without start-up
    fit_seconds: float | None = None  # None if nothing was fitted
    trainable_parameters: int | None = None  # learnt numbers
    converged: bool | None = None  # whether a solver came to its end
    images_per_second: float | None = None  # that were fitted on, by gradient descent
    peak_memory_mib: float | None = None  # of the device, or of the process on a CPU
    device: str | None = None
    threads: int | None = None
    processes: int | None = None  # that shared the fit; None for one


@dataclass(frozen=True)
class StoredFile:
    """A file beside the record."""

    file: str  # its name
    digest: str  # SHA-256 of its bytes


@dataclass(frozen=True)
class ProtocolUsed:
    """Which splits were fitted on, chosen on and reported (data/protocol.py); None in records of before."""

    fit: Mapping[str, str | None]  # by source
    validation: Mapping[str, str | None]  # by source, of a method that chooses its settings
    reported: Mapping[str, str]  # by domain, the split that tables show
    refitted: bool = False  # the validation images were fitted on in the end
    test_time: Mapping[str, int] | None = None  # seed and batch_size of the streams, of a method that adapts


@dataclass(frozen=True)
class Record:
    """One run's outcome. ``content`` is the JSON object that is written, without its digest; all else reads it."""

    content: Mapping[str, Any]

    @property
    def run_id(self) -> str:
        """SHA-256 (16 hex digits) of everything that can change the numbers."""
        return str(self.content["run_id"])

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings of the run, nested as they are given, without paths."""
        found: Mapping[str, Any] = self.content["config"]
        return found

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """The settings of the run, flat."""
        return flatten(self.config)

    @property
    def label(self) -> str | None:
        """How the run's author called it."""
        return str(self.config["label"]) if self.config.get("label") else None

    @property
    def name(self) -> str:
        """The run's name among others; see ``called``."""
        return called(self.config)

    @property
    def method(self) -> str:
        """The name of the method."""
        return part_name(self.config, "method")

    @cached_property
    def seeded(self) -> tuple[str, ...]:
        """The settings that follow the seed ("seed", "benchmark.seed"): a mean is over these and nothing else."""
        return tuple(self.content["seeded"])

    @cached_property
    def shift(self) -> ShiftUsed:
        shift = self.content["shift"]
        return ShiftUsed(shift["name"], tuple(shift["sources"]), tuple(shift["targets"]))

    @cached_property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """Everything that was evaluated, in the order of steps and domains."""
        return tuple(
            Evaluation(e["domain"], e["split"], e["step"], e["num_images"] or 0, e["metrics"])
            for e in self.content["evaluations"]
        )

    @cached_property
    def curve(self) -> tuple[OnLine, ...]:
        """The evaluations along a line of weights, of a method that has one."""
        return tuple(
            OnLine(e["alpha"], e["domain"], e["split"], e["num_images"], e["metrics"])
            for e in self.content.get("curve", ())
        )

    @cached_property
    def weights(self) -> WeightsUsed:
        return _typed(WeightsUsed, self.content["weights"])

    @cached_property
    def data(self) -> DataUsed:
        return _typed(DataUsed, self.content["data"])

    @property
    def versions(self) -> Mapping[str, str]:
        """Package -> version."""
        found: Mapping[str, str] = self.content["versions"]
        return found

    @cached_property
    def timing(self) -> Timing:
        return _typed(Timing, self.content["timing"])

    @property
    def fit(self) -> Mapping[str, Any]:
        """What the method told of its fit: {c, converged, gradient, iterations, sweep, …}."""
        found: Mapping[str, Any] = self.content.get("fit", {})
        return found

    @property
    def predictions(self) -> StoredFile | None:
        """The Parquet file of per-sample predictions, one row per evaluated image."""
        return _stored(self.content["predictions"])

    @property
    def learnt(self) -> StoredFile | None:
        """What was learnt on a frozen backbone."""
        return _stored(self.content.get("learnt"))

    @property
    def kept(self) -> Mapping[str, StoredFile] | None:
        """The trained tower ("backbone") and its classifier ("head"), with keep_weights."""
        found = self.content.get("kept")
        return None if found is None else {name: StoredFile(f["file"], f["digest"]) for name, f in found.items()}

    @cached_property
    def protocol(self) -> ProtocolUsed | None:
        found = self.content.get("protocol")
        return None if found is None else _typed(ProtocolUsed, found)

    @property
    def metrics(self) -> Mapping[str, Mapping[str, Any]]:
        """How metrics of a user's own are called and written, by name; see ``report.numbers.Metric.of``."""
        found: Mapping[str, Mapping[str, Any]] = self.content.get("metrics", {})
        return found

    @cached_property
    def group(self) -> str:
        """The same for two records exactly if they differ in the seed and what follows it, and in nothing else."""
        return digest([self.row, self.content["shift"]])[:16]

    @cached_property
    def row(self) -> str:
        """``group`` without the shift: leave-one-out makes one row of several shifts."""
        kept = {
            k: v
            for k, v in identity_of_flat(self.settings).items()
            if k not in self.seeded and k != "shift" and not k.startswith("shift.")
        }
        which = self.weights.fingerprint
        if "backbone.weights" in self.seeded:
            which = "random" if self.weights.random else self.weights.provenance.get("recipe", which)
        data = None if "benchmark.seed" in self.seeded else self.data.fingerprint
        return digest([kept, None, which, data])[:16]

    def bytes(self) -> bytes:
        """The file's content, with its digest."""
        sealed = {**self.content, "digest": digest(dict(self.content))}
        return json.dumps(sealed, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"

    def publish(self, folder: Path) -> bool:
        """Write ``folder/<run_id>.json``; False if a record of that run stood there already (it is kept)."""
        return publish(folder / f"{self.run_id}.json", self.bytes(), replace=False)


T = TypeVar("T")


def _typed(kind: type[T], content: Mapping[str, Any]) -> T:
    """A dataclass from its part of the JSON object; keys of other versions are left aside, lists become tuples."""
    names = {f.name for f in fields(kind)}  # type: ignore[arg-type]  # each kind here is a dataclass
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in content.items() if k in names})


def _stored(content: Mapping[str, Any] | None) -> StoredFile | None:
    return None if content is None else StoredFile(content["file"], content["digest"])


def read_record(path: Path) -> Record:
    """The record in a file. Raises RecordError if it is cut, altered, of another schema or of another run."""
    try:
        found = content_of(path)
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} is not a record: {getattr(error, 'strerror', None) or error}") from error
    return parse_record(found, str(path), path.stem)


def parse_record(found: bytes, path: str, run_id: str) -> Record:
    """The record in the bytes of the file ``path``, which is named after ``run_id``. Raises as ``read_record``."""
    try:
        content = json.loads(found, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise RecordError(f"{path} is not a record: it is nested too deeply") from error
    except ValueError as error:
        raise RecordError(f"{path} is not a record: {error}") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise RecordError(f"{path} is not a record of schema {SCHEMA}")
    sealed = content.pop("digest", None)
    missing = [f for f in FIELDS if f not in content]
    if missing:
        raise RecordError(f"{path} lacks {', '.join(missing)}")
    if sealed != digest(content):
        raise RecordError(f"{path} was altered after it was written: its digest does not match")
    if content["run_id"] != run_id:
        raise RecordError(f"{path} holds run {content['run_id']}: a record's file carries its run id")
    if content["status"] != "done":
        raise RecordError(f"{path} has status {content['status']}")
    try:
        bounds = _bounds() | {n: (m["low"], m["high"]) for n, m in content.get("metrics", {}).items()}
        for e in (*content["evaluations"], *content.get("curve", ())):
            for name, value in e["metrics"].items():
                low, high = bounds.get(name, (0.0, 1.0))
                if value is None or (math.isfinite(value) and low <= value and (high is None or value <= high)):
                    continue
                what = "a fraction" if (low, high) == (0, 1) else f"between {low:g} and {high}" if high else "a number"
                raise RecordError(f"{path}: {name} on {e['domain']} is {value}, not {what}")
    except (TypeError, KeyError, AttributeError) as error:
        raise RecordError(f"{path} is not a record: its evaluations are not those of one") from error
    record = Record(content)
    for part in ("shift", "weights", "data", "timing", "protocol"):
        try:
            getattr(record, part)
        except (TypeError, KeyError, AttributeError) as error:
            raise RecordError(f"{path} is not a record: its {part} is not that of one") from error
    return record


@cache
def _bounds() -> dict[str, tuple[float, float | None]]:
    """Between what each built-in metric lies."""
    known = {name: plugins.metric(name) for name in plugins.names("metrics")}
    return {name: (metric.low, metric.high) for name, metric in known.items()}


def predictions(record: Record, folder: Path) -> bytes | None:
    """The Parquet file of per-sample predictions beside a record in ``folder``; None if the run kept none.

    Raises RecordError if it is missing or not the one that the record was published with.
    """
    if record.predictions is None:
        return None
    path = folder / Path(record.predictions.file).name
    try:
        content = content_of(path)
    except (OSError, ValueError) as error:
        raise RecordError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    check_predictions(record, content, str(path))
    return content


def check_predictions(record: Record, content: bytes, path: str) -> None:
    """Raises RecordError if ``content`` is not what the run of a record wrote as its predictions."""
    if record.predictions is None or hash_bytes(content) != record.predictions.digest:
        raise RecordError(f"{path} is not what run {record.run_id} wrote: its digest does not match")


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
