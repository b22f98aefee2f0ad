"""The classes of a study by name."""

from __future__ import annotations

from clipdg.records.record import Record
from clipdg.report.tables import Study


def class_names(study: Study) -> tuple[str, ...]:
    """Names by number; numbers as names where records do not say them."""
    said = _said(study.records[0])
    most = max((_num(r) for r in study.records), default=0)
    return tuple(said) if said else tuple(str(i) for i in range(most))


def _said(record: Record) -> list[str]:
    classes = record.data.classes
    return [] if isinstance(classes, int) else list(map(str, classes))


def _num(record: Record) -> int:
    classes = record.data.classes
    return classes if isinstance(classes, int) else len(classes)
