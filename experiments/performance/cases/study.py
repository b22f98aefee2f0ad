"""A whole study: many runs over the same frozen encoder, against a single pass of that encoder over the same images."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from harness import Case, Setting, Side, Step

from cases._photos import folder
from cases._towers import backbone
from cases.images import scratch
from clipdg.benchmarks import folder as benchmark
from clipdg.runs import config, feature_store, run
from clipdg.runs.session import Session

DOMAINS = ("art", "cartoon", "photo", "sketch")
CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
TEMPLATES = (["a photo of a {}."], ["a {}."], ["a photo of a {}.", "a drawing of a {}.", "a sketch of a {}."])
SEEDS = (0, 1, 2)


def photos(setting: Setting, place: Path, per_class: int) -> Path:
    """Four domains of seven classes: 28 photographs times ``per_class``, or 56."""
    return folder(place / "photos", DOMAINS, CLASSES, 2 if setting.small else per_class)


def one_pass(per_class: int) -> Callable[[Setting], Step]:
    """The encoder over tensors that are ready, each image once; the images are made one batch at a time."""
    return lambda setting: _one_pass(setting, per_class)


def _one_pass(setting: Setting, per_class: int) -> Step:
    clip = backbone(setting)
    domains = benchmark.build(benchmark.Config(), str(photos(setting, scratch(), per_class))).domains.values()
    size = feature_store.BATCH_SIZE[setting.device]
    count = sum(len(domain.rows) for domain in domains)
    ready = torch.stack([clip.preprocess(next(iter(domains)).rows.image(i % 14)) for i in range(size)]).to(
        setting.device
    )

    def step() -> int:
        with torch.inference_mode():
            for start in range(0, count, size):  # time does not depend on which images these are
                clip.encode_image(ready[: count - start])
        return count

    return step


def study(methods: Sequence[Mapping[str, Any]], per_class: int) -> Callable[[Setting], Step]:
    """Every method, seed and held-out domain as runs, from the files; -> images that were encoded."""

    def prepare(setting: Setting) -> Step:
        place = scratch()
        root = photos(setting, place, per_class)
        clip = backbone(setting)

        def step() -> int:
            shutil.rmtree(place / "cache", ignore_errors=True)
            os.environ["CLIPDG_CACHE"] = str(place / "cache")
            session = Session(store=feature_store.FeatureStore())
            for method in methods:
                for seed in SEEDS:
                    values = {"benchmark": {"name": "folder", "root": str(root)}, "method": dict(method), "seed": seed}
                    values["backbone"] = {"name": clip.name, "weights": f"random:{setting.seed}"}
                    run.run(config.load(values=values), session=session)
            return session.store.num_encoded

        return step

    return prepare


def encodings(outcomes: Sequence[int]) -> dict[str, float]:
    return {"encodings an image": outcomes[-1] / outcomes[0]}


ZERO_SHOT = [{"name": "zero_shot", "templates": templates} for templates in TEMPLATES]
PROBE = [{"name": "linear_probe", "sweep": True}]


def case(name: str, per_class: int, at_least: float | None) -> Case:
    return Case(
        name,
        "zero-shot with three sets of templates and a linear probe with its sweep, 3 seeds, every held-out domain, "
        f"{28 * per_class:,} images, against one pass of the encoder",
        (
            Side("one pass of the encoder", one_pass(per_class), turns=1, memory=False),
            Side("the study", study([*ZERO_SHOT, *PROBE], per_class), turns=1, memory=False),
        ),
        encodings,
        {"encodings an image": 1.0},
        at_least=at_least,
    )


CASES = (
    case("study", 72, 1 / 1.2),
    case("study-504", 18, None),  # of so few images, what does not grow with them is a larger part
)
