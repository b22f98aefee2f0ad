"""What the page shows beside its tables: each run by itself, how a row was made, the sheet of images."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipdg.records.evaluations import natural, reported, seed_name
from clipdg.records.folder import files_beside
from clipdg.records.identity import NOT_IDENTITY, flatten
from clipdg.records.record import Record
from clipdg.report.numbers import METRICS, format_mean
from clipdg.report.published.beside import Beside
from clipdg.report.rerun import command
from clipdg.report.tables import Setting, Single, Study, Table

PNG = b"\x89PNG\r\n\x1a\n"


def domain_view(t: Table) -> Table:
    return t.only([*(c.key for c in t.domains), "shifted"])


def singles_view(t: Table, runs: Sequence[Single]) -> list[tuple[str, str, list[str]]]:
    """(label, seed, "82.3 [80.1, 84.4]" per domain column) for every run, over shifts."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for s in runs:
        low, high = (format_mean(x, None, METRICS["top1"]) for x in (s.low, s.high))
        text = f"{format_mean(s.top1, None, METRICS['top1'])} [{low}, {high}]"
        found.setdefault((s.label, s.seed), {})[f"{s.shift}/{s.domain}"] = text
    return [(label, seed, [cells.get(c.key, "") for c in t.domains]) for (label, seed), cells in found.items()]


def beside_lines(beside: Sequence[Beside]) -> list[list[object]]:
    """Fractions; the causes of a difference, the commonest first."""
    head: list[object] = ["method", "dataset", "own", "seeds", "num_images", "published", "difference", "tolerance",
                          "verdict", "source", "published_method", "status", "causes"]  # fmt: skip
    lines = [
        [b.label, b.dataset, round(b.own, 8), b.num_seeds, b.num_images, b.published, round(b.difference, 8),
         b.tolerance, b.verdict, b.source, b.method, b.status, "; ".join(b.causes)]
        for b in beside
    ]  # fmt: skip
    return [head, *lines]


def contact_sheet(study: Study, folders: Sequence[Path]) -> tuple[tuple[bytes, str] | None, str | None]:
    """The sheet that a run left beside its record, of the lowest seed that has one, and that seed."""
    there = {name: read for name, read in files_beside(folders).items() if name.startswith("contact-")}
    for record in sorted(study.records, key=lambda r: (natural(seed_name(r)), r.run_id)) if there else ():
        name = f"contact-{record.data.fingerprint[:12]}.png"
        if name in there:
            content = there[name]()
            if not content.startswith(PNG) or len(content) < 24:
                return None, f"{name} is no PNG; delete it and run again"
            return (content, seed_name(record)), None
    return None, None


def sheet_view(study: Study, sheet: tuple[bytes, str] | None) -> dict[str, Any] | None:
    if sheet is None:
        return None
    content, seed = sheet
    width, height = struct.unpack(">II", content[16:24])
    data = study.records[0].data
    several = len({r.data.fingerprint for r in study.records}) > 1
    return {
        "url": "data:image/png;base64," + base64.b64encode(content).decode(),
        "width": width,
        "height": height,
        "domains": list(data.num_images),
        "caption": f"One row of images per domain, columns are classes{f', seed {seed}' if several else ''}.",
    }


def story(row: Setting) -> dict[str, Any]:
    """How a row's numbers were made."""
    first = row.records[0]
    flat = flatten(first.config)
    hidden = (*first.seeded, *NOT_IDENTITY, "shift")
    provenance = list(dict.fromkeys(_json(p) for r in row.records if (p := r.weights.provenance)))
    templates = list(dict.fromkeys(x for r in row.records for x in r.data.templates or ()))
    return {
        "label": row.label,
        "seeds": row.seeds,
        "settings": [(k, _json(v) if not isinstance(v, str) else v) for k, v in flat.items() if k not in hidden],
        "templates": templates,
        "provenance": provenance,
        "command": command(row.records[0], 100),
        "runs": [_run(r) for r in row.records],
    }


def _run(record: Record) -> dict[str, Any]:
    tested = {d: e for d in record.shift.domains if (e := reported(record, d))}
    steps = sorted({e.step for e in tested.values() if e.step is not None})
    return {
        "run_id": record.run_id,
        "seed": seed_name(record),
        "shift": record.shift.name,
        "num_fit": record.data.num_fit,
        "step": "/".join(map(str, steps)),
        "backbone": record.weights.backbone,
        "weights": record.weights.tag,
        "fingerprint": record.weights.fingerprint,
        "data": record.data.fingerprint,
        "tested": ", ".join(f"{d}/{e.split} {e.num_images:,}" for d, e in tested.items()),
    }


def versions(records: Sequence[Record]) -> list[tuple[str, str]]:
    """(package, its versions) over all records."""
    found: dict[str, set[str]] = {}
    for record in records:
        for package, version in record.versions.items():
            found.setdefault(package, set()).add(str(version))
    return [(p, ", ".join(sorted(v, key=natural))) for p, v in sorted(found.items())]


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def without(text: str, folders: Sequence[Path]) -> str:
    """A message without the folders' own place, so that a report says the same wherever it is made."""
    for folder in folders:
        text = text.replace(f"{folder}/", "")
    return text
