"""What a run leaves: its record, the predictions beside it, and what it learnt."""

from __future__ import annotations

import copy
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from clipdg.core.versions import version
from clipdg.records.record import SCHEMA
from clipdg.storage.publish import hash_bytes, publish
from clipdg.weights import finetuned_tower, learned_method

if TYPE_CHECKING:
    from clipdg.runs.run import Run
    from clipdg.training.classifier import Classifier
    from clipdg.training.mid_fit_evaluation import Results

VERSIONS = ("torch", "torchvision", "lightning", "torchmetrics", "timm", "transformers", "open_clip_torch", "numpy",
            "pillow", "scikit-learn")  # fmt: skip


def content_of(
    run: Run,
    classifier: Classifier,
    on_the_way: dict[int, Results],
    curve: dict[float, Results] | None,
    fit_rows: dict[str, np.ndarray],
    timing: dict[str, Any],
    predictions: dict[str, str] | None,
) -> dict[str, Any]:
    """The record of a run, without what is published beside it later; ``fit_rows``: row indices by source."""
    weights = run.backbone.weights
    values = copy.deepcopy(run.values) | {"shift": run.shift.name}
    values["method"] |= run.said()
    values["benchmark"].pop("root")
    values["benchmark"].pop("skip")
    values["benchmark"].pop("places", None)
    values["backbone"] |= {"name": run.backbone.name, "weights": weights.tag}  # without the folders they lie in
    for name in ("workers", "devices", "strategy", "keep_weights"):
        values.pop(name)
    values["picks"] = run.picks.digest[:16] if run.picks else None
    for name in ("hparams_seed", "picks"):
        if values[name] is None:
            values.pop(name)
    evaluations = _listed(run, "step", on_the_way | {classifier.num_steps: classifier.results})
    extra: dict[str, Any] = {"fit": classifier.method.story} if getattr(classifier.method, "story", None) else {}
    if curve is not None:
        whole = curve | {run.values["method"]["alpha"]: classifier.results}
        extra["curve"] = _listed(run, "alpha", dict(sorted(whole.items())))
    ids = {name: [run.benchmark.domains[name].rows.ids[i] for i in rows] for name, rows in fit_rows.items()}
    fits = run.method.TRAINS != "nothing"
    return {
        "schema": SCHEMA,
        "run_id": run.run_id,
        "status": "done",
        "config": values,
        "seeded": list(run.resolved.seeded),
        "shift": {
            "name": run.shift.name,
            "sources": list(run.shift.sources),
            "targets": list(run.shift.targets),
        },
        "evaluations": evaluations,
        "weights": {
            "backbone": weights.backbone,
            "tag": weights.tag,
            "fingerprint": weights.fingerprint,
            "random": weights.random,
            "provenance": dict(weights.provenance),
            "preprocessing": {
                k: list(v) if isinstance(v, tuple) else v for k, v in asdict(run.backbone.preprocessing).items()
            },
        },
        "data": {
            "benchmark": run.benchmark.name,
            "fingerprint": run.data_fingerprint,
            "classes": list(run.benchmark.classes),
            "num_fit": sum(len(r) for r in fit_rows.values()) if fits else 0,
            "num_images": {d: {s: len(r) for s, r in run.splits[d].items()} for d in run.tested},
            "fitted_on": ids if fits and (run.values["shots"] or run.picks) else None,
            "templates": list(run.texts.templates) if run.texts else None,
            "notes": list(run.benchmark.notes),
            "citation": run.benchmark.citation,
            "provenance": dict(run.benchmark.provenance),
            "skipped": list(run.benchmark.skipped),
            "eval_only": [name for name, domain in run.tested.items() if domain.eval_only],
        },
        "versions": {"clipdg": version("clipdg"), "python": platform.python_version()}
        | {name: version(name) for name in VERSIONS},
        "timing": timing,
        "predictions": predictions,
    } | extra


def _listed(run: Run, key: str, results: Mapping[Any, Results]) -> list[dict[str, Any]]:
    """Results as they stand in a record, each with what they are of under ``key``."""
    return [
        {"domain": domain, "split": split, key: of, "num_images": num, "metrics": metrics}
        for of, by_domain in results.items()
        for (domain, split), metrics in by_domain.items()
        if (num := _num_images(run, domain, split))
    ]


def learnt_of(run: Run, method: nn.Module) -> bytes:
    """The method's parameters as a file, see contexts.py."""
    settings = run.values["method"] | run.said()
    return learned_method.content(method, settings, run.benchmark.classes, run.backbone, _made(run))


def kept_of(run: Run, classifier: Classifier) -> tuple[bytes, bytes]:
    """The trained tower and its classifier as files, see kept.py."""
    tower = classifier.backbone
    if hasattr(run.method, "merged"):
        tower = run.method.merged(tower, copy.deepcopy(run.backbone))
    name = run.values["method"]["name"]
    return finetuned_tower.contents(tower, run.inputs.spec, classifier.method, name, run.benchmark.classes, _made(run))


def _made(run: Run) -> dict[str, Any]:
    """Where what a run leaves comes from."""
    return {
        "run_id": run.run_id,
        "benchmark": run.benchmark.name,
        "data": run.data_fingerprint,
        "shift": run.shift.name,
        "sources": list(run.shift.sources),
        "shots": run.values["shots"],
        "seed": run.seed,
        "versions": {name: version(name) for name in ("clipdg", "torch", "lightning")},
    }


def _num_images(run: Run, domain: str, split: str) -> int:
    splits = run.splits[domain]
    if split in splits:
        return len(splits[split])
    whole = np.concatenate(list(splits.values()))
    if split == "all":
        return len(whole)
    view = run.benchmark.domains[domain].views[split]
    labels = run.benchmark.domains[domain].rows.labels[splits.get("test", whole)]
    return int(np.isin(labels, view.ids).sum())


def predictions_of(run: Run, classifier: Classifier) -> bytes:
    """One row per evaluated image, as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for name, found in classifier.predictions.items():
        split_of = {int(row): split for split, rows in run.splits[name].items() for row in rows}
        ids = run.benchmark.domains[name].rows.ids
        rows = found.indices.tolist()
        tables.append(
            pa.table(
                {
                    "domain": pa.array([name] * len(rows)).dictionary_encode(),
                    "split": pa.array([split_of[r] for r in rows]).dictionary_encode(),
                    "id": pa.array([ids[r] for r in rows]),
                    "label": pa.array(found.labels.numpy(), pa.int16()),
                    "prediction": pa.array(found.predicted.numpy(), pa.int16()),
                    "confidence": pa.array(found.confidence.numpy(), pa.float32()),
                }
            )
        )
    sink = pa.BufferOutputStream()
    pq.write_table(pa.concat_tables(tables, promote_options="default").unify_dictionaries(), sink, compression="zstd")
    return bytes(sink.getvalue())


def publish_once(out: Path, run_id: str, ending: str, content: bytes) -> dict[str, str]:
    """The name under ``out`` and the digest of a file with this content, for a record: no other process replaces it."""
    path, digest = out / f"{run_id}{ending}", hash_bytes(content)
    if not publish(path, content, replace=False) and path.read_bytes() != content:
        # Another version's, or what an interrupted copy left.
        path = out / f"{run_id}-{digest[:8]}{ending}"
        publish(path, content)
    return {"file": path.name, "digest": digest}
