"""The records of a study as one data frame."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from clipdg.core.errors import RecordError
from clipdg.records.folder import read_records
from clipdg.report.numbers import METRICS

if TYPE_CHECKING:
    import pandas as pd
from clipdg.records.evaluations import reported, role, seed_name
from clipdg.report.tables import studies


def load_records(folders: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """Every evaluation below the folders, one a row, sorted by run.

    Columns: run_id, row (the label used in reports), group (the same for records that differ in the seed only),
    benchmark, shift, role (source, target, other), domain, split, step, reported (is it the one reports use), seed,
    backbone, weights, method, shots, num_images, then a column per metric: fractions in [0, 1], nll in nats.

    Raises RecordError if there is no record or if a file is none (`clipdg report` reports the rest).
    """
    import pandas as pd

    paths = [folders] if isinstance(folders, str | Path) else folders
    records, errors = read_records([Path(p) for p in paths])
    if errors:
        raise RecordError("; ".join(map(str, errors)))
    if not records:
        raise RecordError(f"no record below {', '.join(map(str, paths))}")
    labels = {r.run_id: row.label for study in studies(records) for row in study.rows for r in row.records}
    table = []
    for record in sorted(records, key=lambda r: r.run_id):
        config = record.settings
        best = {id(e) for e in (reported(record, d) for d in dict.fromkeys(e.domain for e in record.evaluations))}
        for e in record.evaluations:
            table.append(
                {
                    "run_id": record.run_id,
                    "row": labels[record.run_id],
                    "group": record.group,
                    "benchmark": record.data.benchmark,
                    "shift": record.shift.name,
                    "role": role(record, e.domain),
                    "domain": e.domain,
                    "split": e.split,
                    "step": e.step,
                    "reported": id(e) in best,
                    "seed": seed_name(record),
                    "backbone": record.weights.backbone,
                    "weights": record.weights.tag,
                    "method": record.method,
                    "shots": config.get("shots", config.get("method.shots")),
                    "num_images": e.num_images,
                    **{m: e.metrics.get(m) for m in METRICS},
                    **{m: v for m, v in e.metrics.items() if m not in METRICS},
                }
            )
    frame = pd.DataFrame(table)
    metrics = list(frame.columns[list(frame.columns).index("num_images") + 1 :])
    return frame.astype({**dict.fromkeys(metrics, "float64"), "shots": "Int64"})
