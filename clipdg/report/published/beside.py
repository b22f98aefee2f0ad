"""Own numbers beside published ones: the same exact weights, resolution, method and data set, or none.

A difference is judged by a tolerance that says how far two careful evaluations of the same weights lie apart, and by
the 95 % Wilson interval of the own number where it was measured on fewer images than the published one:

    zero-shot, open_clip and CLIP_benchmark     0.2 points, what these two differ by on the same weights
    zero-shot, the CLIP paper                   1.0 point, what open_clip's evaluation of it differs by
    supervised, timm and the ImageNet testbed   0.1 points
    learned prompts, probes, trained towers     1.0 point: seeds, picks and schedules differ
    a user's run, a quotation                   1.0 point
    unverified or disputed                      shown, not judged

Where the two differ, the causes are listed in the order in which they are met in practice, each with what this run had.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from clipdg.records.evaluations import reported
from clipdg.records.record import Record
from clipdg.records.statistics import wilson_interval
from clipdg.report.published import numbers as numbers_
from clipdg.report.tables import Setting, Study

if TYPE_CHECKING:
    import pandas as pd

IMAGENET = {
    "imagenet": "imagenet",
    "v2": "imagenet-v2",
    "sketch": "imagenet-sketch",
    "a": "imagenet-a",
    "r": "imagenet-r",
    "objectnet": "objectnet",
}
CLEAN = {"a-classes": "imagenet-a-clean", "r-classes": "imagenet-r-clean", "objectnet-classes": "objectnet-clean"}
NUM_IMAGES = {
    "imagenet": 50_000, "imagenet-v2": 10_000, "imagenet-sketch": 50_889, "imagenet-a": 7_500, "imagenet-r": 30_000,
    "objectnet": 18_574,
}  # fmt: skip
UNJUDGED = ("unverified", "disputed")


@dataclass(frozen=True)
class Beside:
    """One own number and one published one; fractions. ``verdict``: agrees, differs, or not judged."""

    label: str
    dataset: str
    own: float
    num_seeds: int
    num_images: int
    published: float
    source: str
    method: str
    status: str
    tolerance: float
    verdict: str
    causes: tuple[str, ...]

    @property
    def difference(self) -> float:
        return self.own - self.published


def beside_published(study: Study) -> list[Beside]:
    """Every own number of the study that has a published counterpart, by row, data set and source."""
    found: list[Beside] = []
    for row in study.rows:
        for dataset, own, num_images in numbers(row):
            for other in _counterparts(row.records[0], dataset):
                found.append(_judged(row, dataset, own, num_images, other))
    return found


def method_of(record: Record) -> tuple[str, ...]:
    """What published tables call the record's method; several where a paper does not say the number of vectors."""
    config, name = record.config, record.method
    if name == "zero_shot":
        templates = record.data.templates or ()
        many: dict[tuple[str, ...], str] = {
            ("a photo of a {}.",): "zero_shot_1",
            ("{}",): "zero_shot_name",
            ("{}.",): "zero_shot_name",
        }
        called = many.get(tuple(templates), f"zero_shot_{len(templates)}")
        raw = config["method"].get("ensemble") == "raw" and len(templates) > 1
        return (f"{called}_raw_mean" if raw else called,)
    if name == "own_head":
        return ("supervised",)
    if name == "coop":
        return (f"coop_m{config['method'].get('num_context')}", "coop")
    return (name,)


def numbers(row: Setting) -> list[tuple[str, float, int]]:
    """(data set, mean over seeds, images) of a row; nothing of a data set that misses a seed."""
    values: dict[str, dict[str, tuple[float, int]]] = {}
    for record in row.records:
        benchmark = str(record.data.benchmark)
        seed = str(record.config["seed"])
        for domain in (*record.shift.sources, *record.shift.targets):
            e = reported(record, domain)
            if e is not None and e.top1 is not None:
                dataset = IMAGENET.get(domain) if benchmark == "imagenet" else f"{benchmark}/{domain}"
                if dataset is not None and (benchmark == "imagenet" or domain in record.shift.targets):
                    values.setdefault(dataset, {})[seed] = (e.top1, e.num_images)
        for e in record.evaluations:
            if benchmark == "imagenet" and e.split in CLEAN and e.top1 is not None:
                values.setdefault(CLEAN[e.split], {})[seed] = (e.top1, e.num_images)
    complete = {d: list(v.values()) for d, v in values.items() if len(v) == len(row.seeds)}
    found = [(d, sum(x for x, _ in v) / len(v), min(n for _, n in v)) for d, v in complete.items()]
    return [*found, *_averages(row, found)]


def _averages(row: Setting, found: list[tuple[str, float, int]]) -> list[tuple[str, float, int]]:
    """The mean over a leave-one-out benchmark's domains, as papers give it; nothing if a domain is missing."""
    by_benchmark: dict[str, list[tuple[float, int]]] = {}
    for dataset, own, num in found:
        if "/" in dataset:
            by_benchmark.setdefault(dataset.partition("/")[0], []).append((own, num))
    domains = len(row.records[0].data.num_images)
    return [
        (benchmark, sum(x for x, _ in parts) / len(parts), sum(n for _, n in parts))
        for benchmark, parts in by_benchmark.items()
        if len(parts) == domains
    ]


@lru_cache(1000)
def _of_model(dataset: str, model: str) -> pd.DataFrame:
    """Published top-1 accuracies of one model on one data set: of thousands of rows there are few models."""
    table = numbers_.table()
    return table[(table["dataset"] == dataset) & (table["model"] == model) & (table["metric"] == "top1")]


def _counterparts(record: Record, dataset: str) -> list[dict[str, Any]]:
    weights = record.weights
    table = _of_model(dataset, str(weights.backbone))
    if table.empty:
        return []
    tag = "" if str(weights.backbone).startswith("timm:") else str(weights.tag)
    size = (weights.preprocessing or {}).get("size")
    same = (
        (table["weights"] == tag)
        & table["method"].isin(method_of(record))
        & (table["resolution"].isna() | (table["resolution"] == (size if size is not None else -1)))
    )
    return [{str(k): v for k, v in row.items()} for row in table[same].to_dict("records")]


def _judged(row: Setting, dataset: str, own: float, num_images: int, other: Mapping[str, Any]) -> Beside:
    tolerance = tolerance_of(str(other["source"]), str(other["method"]), str(other["status"]))
    difference = own - float(other["value"])
    low, high = wilson_interval(own, num_images)
    fewer = num_images < NUM_IMAGES.get(dataset, 0)
    if other["status"] in UNJUDGED:
        verdict = "not judged"
    elif abs(difference) <= tolerance + 5e-6 or (fewer and low <= float(other["value"]) <= high):
        verdict = "agrees"
    else:
        verdict = "differs"
    causes = _causes(row.records[0], dataset, num_images) if verdict == "differs" else ()
    return Beside(
        row.label, dataset, own, len(row.seeds), num_images, float(other["value"]), str(other["source"]),
        str(other["method"]), str(other["status"]), tolerance, verdict, causes,
    )  # fmt: skip


def tolerance_of(source: str, method: str, status: str) -> float:
    """A fraction; see the top of this file."""
    if status != "verified" or source == "clip_paper":
        return 0.01
    if method.startswith("zero_shot"):
        return 0.002
    return 0.001 if method == "supervised" else 0.01


def _causes(record: Record, dataset: str, num_images: int) -> tuple[str, ...]:
    """What to look at, the commonest first, with what this run had."""
    weights, data = record.weights, record.data
    spec = weights.preprocessing or {}
    templates = data.templates
    found = []
    if templates is not None:
        first = f"“{templates[0]}”" + (f" and {len(templates) - 1} more" if len(templates) > 1 else "")
        found.append(f"template set: this run had {len(templates)} ({first})")
        found.append(f"activation: {weights.backbone} with the weights {weights.tag}")
    if spec:
        found.append(
            f"resolution and interpolation: {spec['size']} pixels, {spec['resize']}, {spec['interpolation']}, "
            f"crop {spec['crop_fraction']}"
        )
    if dataset in ("imagenet-a", "imagenet-r", "objectnet"):
        found.append("class subset: scored among the classes of the set")
    expected = NUM_IMAGES.get(dataset)
    whole = f" of {expected:,}" if expected and expected != num_images else ""
    found.append(f"split: {num_images:,}{whole} images")
    return tuple(found)
