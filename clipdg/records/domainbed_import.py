"""DomainBed's own results as records: ``DIR/*/results.jsonl``, one line a checkpoint, as its train.py writes them.

A job (dataset, algorithm, test environments, hparams seed, trial seed) becomes one record with its evaluations at every
step. What the lines do not say is null: how many images were tested, which weights. Such records are compared under
DomainBed's protocol (``clipdg report DIR --protocol domainbed``) and stand in no other table.

DomainBed itself stops at the first torn line and skips a folder it cannot read; here each is named.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipdg.core.errors import RecordError
from clipdg.records.record import SCHEMA, Record
from clipdg.storage.publish import digest

# Environments in DomainBed's order (domainbed/datasets.py), which its results know by number only.
ENVIRONMENTS: Mapping[str, tuple[str, ...]] = {
    "Debug28": ("0", "1", "2"),
    "Debug224": ("0", "1", "2"),
    "ColoredMNIST": ("+90%", "+80%", "-90%"),
    "RotatedMNIST": ("0", "15", "30", "45", "60", "75"),
    "VLCS": ("C", "L", "S", "V"),
    "PACS": ("A", "C", "P", "S"),
    "OfficeHome": ("A", "C", "P", "R"),
    "TerraIncognita": ("L100", "L38", "L43", "L46"),
    "DomainNet": ("clip", "info", "paint", "quick", "real", "sketch"),
}


def read_sweep(folder: Path) -> tuple[list[Record], list[RecordError]]:
    """The jobs below ``folder`` in the order of their folders' names, and what is wrong with lines that are none.

    Raises RecordError if there is no results.jsonl.
    """
    files = sorted(folder.glob("*/results.jsonl"))
    if not files:
        raise RecordError(f"no */results.jsonl in {folder}; give the folder that DomainBed's sweep had as output_dir")
    records, errors = [], []
    for file in files:
        lines, wrong = _read(file)
        errors += wrong
        by_job: dict[str, list[dict[str, Any]]] = {}
        for line in lines:
            by_job.setdefault(digest(_identity(line)), []).append(line)
        records += [_record(found) for found in by_job.values()]
    return records, errors


def _read(file: Path) -> tuple[list[dict[str, Any]], list[RecordError]]:
    found, errors = [], []
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return [], [RecordError(f"{file} cannot be read: {error}")]
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
            _identity(content)
            int(content["step"])
            accuracies = [v for k, v in content.items() if k.startswith("env") and k.endswith("_acc")]
            assert accuracies
            assert all(isinstance(v, int | float) and 0 <= v <= 1 for v in accuracies)
        except (ValueError, KeyError, TypeError, AssertionError, RecursionError):
            errors.append(RecordError(f"{file}, line {number} is cut or no result of DomainBed's"))
        else:
            found.append(content)
    return found, errors


def _identity(line: Mapping[str, Any]) -> dict[str, Any]:
    """What tells jobs apart: DomainBed's own grouping, and its hyper-parameters."""
    args = line["args"]
    names = ("dataset", "algorithm", "test_envs", "hparams_seed", "trial_seed")
    return {name: args[name] for name in names} | {"hparams": line["hparams"]}


def _record(lines: list[dict[str, Any]]) -> Record:
    first = lines[0]
    job = _identity(first)
    names = ENVIRONMENTS.get(job["dataset"], ())
    num = sum(1 for key in first if key.startswith("env") and key.endswith("_in_acc"))
    domains = [names[i] if num == len(names) else f"env{i}" for i in range(num)]
    steps: dict[int, dict[str, Any]] = {}
    for line in lines:  # a job that was run again appends to the same file; DomainBed reads both, of equal numbers
        steps.setdefault(int(line["step"]), line)
    evaluations = [
        {"domain": domain, "split": split, "step": step, "num_images": None,
         "metrics": {"top1": _number(line.get(f"env{i}_{split}_acc"))}}
        for step, line in sorted(steps.items())
        for i, domain in enumerate(domains)
        for split in ("in", "out")
    ]  # fmt: skip
    targets = [domains[i] for i in job["test_envs"]]
    return Record(
        {
            "schema": SCHEMA,
            "run_id": digest({"domainbed": job})[:16],
            "status": "done",
            "config": {
                "label": None,
                "benchmark": {"name": job["dataset"]},
                "backbone": {"name": "domainbed"},
                "method": {"name": job["algorithm"], **job["hparams"]},
                "seed": int(job["trial_seed"]),
                "hparams_seed": int(job["hparams_seed"]),
                "shift": ", ".join(targets),
            },
            "seeded": ["seed"],
            "shift": {
                "name": ", ".join(targets),
                "sources": [d for d in domains if d not in targets],
                "targets": targets,
            },
            "evaluations": evaluations,
            "weights": {"backbone": "domainbed", "tag": "", "fingerprint": "", "random": False, "provenance": {}},
            "data": {
                "benchmark": job["dataset"], "fingerprint": "", "classes": [], "num_fit": None,
                "num_images": {d: {} for d in domains}, "fitted_on": None, "templates": None,
                "notes": ["Imported from DomainBed's results.jsonl."], "citation": "", "imported": "domainbed",
            },
            "versions": {},
            "timing": {"seconds": None},
            "predictions": None,
        }
    )  # fmt: skip


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
