"""One run, top to bottom: plan, fit on the sources, evaluate every domain, record.

A run goes over stored features when its method leaves the backbone as it is; otherwise over images. Nothing of a target
is read before the fit is over, unless ``fit.checkpoint_every`` asks for evaluations on its way, of which the fit learns
nothing.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import nn

from clipdg.core import plugins
from clipdg.core.errors import ConfigError, OutOfMemoryError, RecordError
from clipdg.data import contact_sheet
from clipdg.records.record import Record, Timing, read_record
from clipdg.runs import fitting
from clipdg.runs.config import RunSettings
from clipdg.runs.evaluating import along_line, evaluate
from clipdg.runs.feature_store import device_of_runs
from clipdg.runs.plan import Plan, plans
from clipdg.runs.record_content import Finished, publish
from clipdg.runs.session import Session
from clipdg.storage import publish as storage
from clipdg.training.checkpoints import Checkpoints
from clipdg.training.classifier import Classifier
from clipdg.training.peak_memory import Memory


def run(settings: RunSettings, out: Path | None = None, session: Session | None = None) -> list[Record]:
    """The records of one configuration, one for each shift; a record that stands in ``out`` is read, not made again.

    Raises ClipdgError for a mistake of the user's; nothing is left half-written.
    """
    session = session or Session()
    found = []
    for plan in plans(settings, session):
        record = stored(plan, out) if out else None
        if record is not None and plan.keeps_weights and record.kept is None:
            raise ConfigError(
                f"{out}/{record.run_id}.json stands without its weights, which only the run that trains them keeps; "
                "move it away, or give another --out"
            )
        if record is None:
            with _told_of_memory():
                record = _make(plan, session, out)
        found.append(record)
    return found


def encode(settings: RunSettings, session: Session) -> None:
    """Bring the features of all domains into the store, if the configuration goes over features."""
    if plugins.method(settings.method.name).trains_backbone:
        return
    backbone = session.backbone(settings.backbone)
    for domain in session.benchmark(settings.benchmark).domains.values():
        session.store.encode(backbone, domain, session.progress, workers=settings.workers)


def stored(plan: Plan, out: Path) -> Record | None:
    """The record of this run in ``out``; one that cannot be trusted is put aside under another name.

    A record that was written before ids told what follows the seed has the id of a run in which nothing does.
    """
    found: dict[str, Record] = {}
    for run_id in (plan.run_id, plan.identity.earlier):
        path = out / f"{run_id}.json"
        if not os.path.lexists(path):
            continue
        try:
            found[run_id] = read_record(path)
        except RecordError:
            with suppress(FileNotFoundError):  # another process was faster
                path.rename(path.with_suffix(".json.corrupt"))
    return plan.identity.among(found)


def _make(plan: Plan, session: Session, out: Path | None) -> Record:
    started, memory = time.perf_counter(), Memory()
    _ = plan.protocol  # what cannot be fitted is told before the slow part
    classifier = fitting.classifier_of(plan, session)
    fitted = fitting.fit(plan, session, classifier, out) if plan.learns else fitting.Fitted()
    after_fit = time.perf_counter()
    classifier.to(device_of_runs())  # a fit leaves it on the CPU
    curve = along_line(plan, session, classifier)
    evaluate(plan, session, classifier)
    timing = Timing(
        seconds=round(time.perf_counter() - started + fitted.seconds_before, 3),
        fit_seconds=round(after_fit - started + fitted.seconds_before, 3) if plan.learns else None,
        trainable_parameters=_num_trained(classifier),
        converged=plan.method.converged(classifier.method) if plan.method.converged is not None else None,
        images_per_second=fitted.images_per_second,
        peak_memory_mib=max((p for p in (memory.peak_mib, *fitted.shares_mib) if p is not None), default=None),
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        threads=torch.get_num_threads(),
        processes=plan.devices if plan.devices > 1 else None,
    )
    record = publish(Finished(plan, classifier, fitted.on_the_way, curve, timing), out)
    if out:
        sheet = out / f"contact-{plan.data_fingerprint[:12]}.png"
        if plan.benchmark.shows_images and not sheet.exists():
            storage.publish(sheet, contact_sheet.sheet(plan.benchmark))
        fresh = record.publish(out)
        Checkpoints().remove_checkpoint(fitting.state_file(plan, out))
        if not fresh and (first := stored(plan, out)) is not None:
            return first  # another process was faster
    return record


def _num_trained(classifier: Classifier) -> int:
    """Learnt numbers: all of the method's, and the backbone's that get a gradient if it is trained."""
    backbone = classifier.backbone
    assert isinstance(backbone, nn.Module)
    trained = [p for p in backbone.parameters() if p.requires_grad] if classifier.trains_backbone else []
    return sum(p.numel() for p in (*classifier.method.parameters(), *trained))


@contextmanager
def _told_of_memory() -> Iterator[None]:
    """Out of memory, on any device, as a ClipdgError that says what to change."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # Of a CPU, torch has no exception of its own.
        known = isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
        if not known:
            raise
        raise OutOfMemoryError(
            "out of memory; lower method.batch_size if the method has one, or set backbone.precision=bf16 "
            f"({str(error).splitlines()[0]:.200})"
        ) from error
