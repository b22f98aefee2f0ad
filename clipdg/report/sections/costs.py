"""What each method cost: seconds, images a second, memory and learnt parameters, from the records' timing."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from clipdg.core.plugins import Section
from clipdg.records.record import Record
from clipdg.report.section import Panel, Sheet, Shown, Studied
from clipdg.report.tables import Study

HEADS = ("method", "runs", "fit, s", "whole run, s", "fitted, images/s", "tested, images/s", "peak memory, MiB",
         "learnt parameters", "device")  # fmt: skip


def panel(study: Study) -> Panel | None:
    """None if no record says how long it took."""
    rows = []
    for row in study.rows:
        timings = [r.timing for r in row.records]
        devices = dict.fromkeys(_device(r) for r in row.records)
        rows.append(
            (
                Shown(row.label, row.label),
                Shown(str(len(row.records)), len(row.records)),
                _middle([t.fit_seconds for t in timings], 1),
                _middle([t.seconds for t in timings], 1),
                _middle([_fitted(r) for r in row.records], 0),
                _middle([_rate(r) for r in row.records], 0),
                _middle([t.peak_memory_mib for t in timings], 0),
                _middle([t.trainable_parameters for t in timings], 0),
                Shown("; ".join(devices), "; ".join(devices)),
            )
        )
    if not any(x.value is not None for row in rows for x in row[2:4]):
        return None
    empty = {i for i in range(2, 8) if all(row[i].value is None for row in rows)}
    kept = [i for i in range(len(HEADS)) if i not in empty]
    sheet = Sheet(
        tuple(HEADS[i] for i in kept),
        tuple(tuple(row[i] for i in kept) for row in rows),
        tuple(place for place, i in enumerate(kept) if 0 < i < 8),
    )
    caption = (
        "Median over a row's runs, [lowest, highest] where they differ. Whole run: without start-up; images that were "
        "already encoded count as nothing. Fitted: images that a fit by gradient descent saw over the seconds that it "
        "took, without evaluations on its way. Tested: evaluated images over the seconds that evaluation took; both "
        "are from stored features unless the backbone is trained. Peak memory: of the device, or of the process on a "
        "CPU, the largest where several shared the fit. Seconds of different devices, or of a machine with other work, "
        "cannot be compared."
    )
    return Panel("costs", "What it cost", caption, sheet)


def _middle(values: Sequence[float | None], decimals: int) -> Shown:
    there = [float(v) for v in values if v is not None]
    if not there:
        return Shown("", None)
    middle, low, high = (f"{x:,.{decimals}f}" for x in (median(there), min(there), max(there)))
    return Shown(middle if low == high else f"{middle} [{low}, {high}]", round(median(there), 6))


def _fitted(record: Record) -> float | None:
    """Images a second of a fit by gradient descent; none of what is solved for, which is after no update."""
    rate: float | None = record.timing.images_per_second
    return rate if any(e.step for e in record.evaluations) else None


def _rate(record: Record) -> float | None:
    """Images a second in evaluation; an image counts once, however many splits it is in, for each alpha of a curve."""
    timing = record.timing
    if timing.seconds is None:
        return None
    seconds = timing.seconds - (timing.fit_seconds or 0.0)
    tested = {(e.domain, e.split): e.num_images for e in record.evaluations}
    splits = record.data.num_images
    images = sum(n for (domain, split), n in tested.items() if split in splits.get(domain, ()))
    times = len({e.alpha for e in record.curve}) or 1
    return times * images / seconds if seconds > 0 and images else None


def _device(record: Record) -> str:
    timing = record.timing
    threads = timing.threads
    name = timing.device or "not said"
    name = name if threads is None else f"{name}, {threads} thread{'' if threads == 1 else 's'}"
    return name if timing.processes is None else f"{name}; fitted by {timing.processes} processes"


def make(studied: Studied) -> list[Panel]:
    found = panel(studied.study)
    return [] if found is None else [found]


SECTION = Section(order=80, make=make)
