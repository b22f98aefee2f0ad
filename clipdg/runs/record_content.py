"""What a finished run writes: its record, the predictions beside it, and what it learnt."""

from __future__ import annotations

import copy
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clipdg.core.model import Backbone
from clipdg.core.versions import version
from clipdg.data.inputs import squashed
from clipdg.evaluation.evaluator import Results
from clipdg.evaluation.scores import Predictions
from clipdg.records.record import SCHEMA, Record, Timing
from clipdg.runs.plan import VERSIONS, Plan
from clipdg.storage import publish as storage
from clipdg.training.classifier import Classifier
from clipdg.weights import finetuned_tower, learned_method


@dataclass(frozen=True)
class Finished:
    """A run that has ended: ``on_the_way`` are results by step, ``curve`` by alpha of a method that interpolates."""

    plan: Plan
    classifier: Classifier
    on_the_way: Mapping[int, Results]
    curve: Mapping[float, Results] | None
    timing: Timing


def publish(run: Finished, out: Path | None) -> Record:
    """The record of a finished run, not yet published; what stands beside it is published below ``out``."""
    plan, run_id = run.plan, run.plan.run_id
    stored = publish_once(out, run_id, ".parquet", predictions_of(run)) if out else None
    content = content_of(run, stored)
    if out and plan.method.trains in ("method", "solver"):
        learnt = learned_method.content(
            run.classifier.method,
            {**plan.settings.plain["method"], **plan.said},
            plan.benchmark.classes,
            plan.backbone,
            _made(plan),
        )
        content["learnt"] = publish_once(out, run_id, ".safetensors", learnt)
    if out and plan.keeps_weights:
        tower, head = kept_of(run)
        content["kept"] = {
            "backbone": publish_once(out, run_id, ".backbone.safetensors", tower),
            "head": publish_once(out, run_id, ".head.safetensors", head),
        }
    return Record(content)


def content_of(run: Finished, predictions: dict[str, str] | None) -> dict[str, Any]:
    """The record of a run as JSON, without what is published beside it later."""
    plan, classifier, protocol = run.plan, run.classifier, run.plan.protocol
    weights = plan.backbone.weights
    extra: dict[str, Any] = {}
    if plan.method.story is not None and (story := plan.method.story(classifier.method)):
        extra["fit"] = dict(story)
    if run.curve is not None and plan.method.interpolates is not None:
        whole = dict(run.curve) | {plan.method.interpolates(plan.settings.method.own): classifier.results}
        extra["curve"] = _listed(plan, "alpha", dict(sorted(whole.items())))
    own = {name.rpartition(".")[2]: name for name in plan.settings.metrics}
    if own and classifier.metrics is not None:
        extra["metrics"] = {name: _described(classifier.metrics[name]) for name in own}
    test_time = {"seed": plan.seed, "batch_size": plan.batching.stream_batch}
    fitted = protocol.fitted
    ids = {name: [plan.benchmark.domains[name].rows.ids[i] for i in rows] for name, rows in fitted.items()}
    return {
        "schema": SCHEMA,
        "run_id": plan.run_id,
        "status": "done",
        "config": _config(plan),
        "seeded": list(plan.settings.seeded),
        "shift": {
            "name": plan.shift.name,
            "sources": list(plan.shift.sources),
            "targets": list(plan.shift.targets),
        },
        "protocol": protocol.told() | ({"test_time": test_time} if plan.method.adapts else {}),
        "evaluations": _listed(plan, "step", {**run.on_the_way, classifier.num_steps: classifier.results}),
        "weights": {
            "backbone": weights.backbone,
            "tag": weights.tag,
            "fingerprint": weights.fingerprint,
            "random": weights.random,
            "provenance": dict(weights.provenance),
            "preprocessing": {
                k: list(v) if isinstance(v, tuple) else v for k, v in asdict(plan.backbone.preprocessing).items()
            },
        },
        "data": {
            "benchmark": plan.benchmark.name,
            "fingerprint": plan.data_fingerprint,
            "classes": list(plan.benchmark.classes),
            "num_fit": sum(len(r) for r in fitted.values()),
            "num_images": {d: {s: len(r) for s, r in parts.items()} for d, parts in protocol.splits.items()},
            "fitted_on": ids if plan.learns and (plan.settings.shots or plan.picks) else None,
            "templates": list(plan.texts.templates) if plan.texts else None,
            "notes": list(plan.benchmark.notes),
            "citation": plan.benchmark.citation,
            "provenance": dict(plan.benchmark.provenance),
            "skipped": list(plan.benchmark.skipped),
            "eval_only": [name for name in protocol.splits if plan.benchmark.domains[name].eval_only],
        },
        "versions": {"clipdg": version("clipdg"), "python": platform.python_version()}
        | {name: version(name) for name in VERSIONS},
        "timing": {k: v for k, v in asdict(run.timing).items() if k != "processes" or v is not None},
        "predictions": predictions,
    } | extra


def _config(plan: Plan) -> dict[str, Any]:
    """The settings as a record has them: without paths and without what cannot change a number."""
    values = copy.deepcopy(dict(plan.settings.plain)) | {"shift": plan.shift.name}
    values["method"] |= plan.said
    for name in ("root", "skip", "places"):
        values["benchmark"].pop(name, None)
    values["backbone"] |= {"name": plan.backbone.name, "weights": plan.backbone.weights.tag}  # without their folders
    for name in ("workers", "devices", "strategy", "keep_weights"):
        values.pop(name)
    values["picks"] = plan.picks.digest[:16] if plan.picks else None
    for name in ("hparams_seed", "picks", "metrics"):
        if not values[name] and values[name] != 0:
            values.pop(name)
    return values


def _described(metric: Any) -> dict[str, Any]:
    """How a metric of one's own is called and written, so that a report can be made without its file."""
    fields = ("title", "unit", "better", "scale", "decimals", "low", "high")
    return {name: getattr(metric, name) for name in fields}


def _listed(plan: Plan, key: str, results: Mapping[Any, Results]) -> list[dict[str, Any]]:
    """Results as they stand in a record, each with its step or alpha under ``key``."""
    return [
        {"domain": domain, "split": split, key: at, "num_images": num, "metrics": metrics}
        for at, by_domain in results.items()
        for (domain, split), metrics in by_domain.items()
        if (num := plan.protocol.num_images(domain, split))
    ]


def kept_of(run: Finished) -> tuple[bytes, bytes]:
    """The trained tower and its classifier as files, see weights/finetuned_tower.py."""
    plan = run.plan
    tower: Backbone = run.classifier.backbone
    if plan.method.merged is not None:
        tower = plan.method.merged(tower, copy.deepcopy(plan.backbone))
    spec = plan.backbone.preprocessing
    spec = squashed(spec) if plan.batching.squash else spec
    head, name = run.classifier.method, plan.settings.method.name
    return finetuned_tower.contents(tower, spec, head, name, plan.benchmark.classes, _made(plan))


def _made(plan: Plan) -> dict[str, Any]:
    """Where what a run learnt comes from, for the header of its file."""
    return {
        "run_id": plan.run_id,
        "benchmark": plan.benchmark.name,
        "data": plan.data_fingerprint,
        "shift": plan.shift.name,
        "sources": list(plan.shift.sources),
        "shots": plan.settings.shots,
        "seed": plan.seed,
        "versions": {name: version(name) for name in ("clipdg", "torch", "lightning")},
    }


def predictions_of(run: Finished) -> bytes:
    """One row per evaluated image, as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = [_predictions(run.plan, name, found) for name, found in run.classifier.predictions.items()]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.concat_tables(tables, promote_options="default").unify_dictionaries(), sink, compression="zstd")
    return bytes(sink.getvalue())


def _predictions(plan: Plan, domain: str, found: Predictions) -> Any:
    """The predictions of one domain, as a table of pyarrow."""
    import pyarrow as pa

    split_of = {int(row): split for split, rows in plan.protocol.splits[domain].items() for row in rows}
    ids, rows = plan.benchmark.domains[domain].rows.ids, found.indices.tolist()
    return pa.table(
        {
            "domain": pa.array([domain] * len(rows)).dictionary_encode(),
            "split": pa.array([split_of[r] for r in rows]).dictionary_encode(),
            "id": pa.array([ids[r] for r in rows]),
            "label": pa.array(found.labels.numpy(), pa.int16()),
            "prediction": pa.array(found.predicted.numpy(), pa.int16()),
            "confidence": pa.array(found.confidence.numpy(), pa.float32()),
        }
    )


def publish_once(out: Path, run_id: str, ending: str, content: bytes) -> dict[str, str]:
    """Publish a file that no other process replaces; its name under ``out`` and its digest, for a record."""
    path, digest = out / f"{run_id}{ending}", storage.hash_bytes(content)
    if not storage.publish(path, content, replace=False) and path.read_bytes() != content:
        # Another version's, or what an interrupted copy left.
        path = out / f"{run_id}-{digest[:8]}{ending}"
        storage.publish(path, content)
    return {"file": path.name, "digest": digest}
