"""What bf16 weights do to predictions, on the benchmark and with the backbone that come with clipdg."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from harness import Case, Setting, Side, Step

import clipdg
from cases.images import scratch
from cases.zero_shot import no_bf16
from clipdg.runs import feature_store
from clipdg.text import prompts


class Found(NamedTuple):
    features: torch.Tensor  # (N, D)
    predicted: torch.Tensor  # (N,)
    labels: torch.Tensor  # (N,)


def zero_shot(precision: str) -> Callable[[Setting], Step]:
    """tiny with the weights that come with it, on all domains of miniatures, image and text tower in ``precision``."""

    def prepare(setting: Setting) -> Step:
        place = scratch()
        bench = clipdg.load_benchmark("miniatures")
        domains = [dataclasses.replace(domain) for domain in bench.domains.values()]
        backbone = clipdg.load_backbone("tiny", precision=precision)

        def step() -> Found:
            shutil.rmtree(place / "cache", ignore_errors=True)
            os.environ["CLIPDG_CACHE"] = str(place / "cache")
            store = feature_store.FeatureStore()
            found = torch.cat([store.encode(backbone, domain) for domain in domains])
            directions = prompts.class_directions(backbone, bench.classes, bench.templates).cpu()  # type: ignore[arg-type]
            labels = torch.cat([torch.from_numpy(domain.rows.labels) for domain in domains])
            return Found(found, (found @ directions.T).argmax(dim=1), labels)

        return step

    return prepare


def differences(outcomes: Sequence[Found]) -> dict[str, float]:
    exact, half = outcomes
    right = [float((found.predicted == found.labels).double().mean()) for found in outcomes]
    cosines = torch.cosine_similarity(exact.features.double(), half.features.double())
    return {
        "images": float(len(exact.labels)),
        "predictions that change": float((exact.predicted != half.predicted).sum()),
        "accuracy in fp32": right[0],
        "difference of the accuracy": abs(right[1] - right[0]),
        "1 - lowest cosine": float(1 - cosines.min()),
        "1 - mean cosine": float(1 - cosines.mean()),
    }


CASES = (
    Case(
        "predictions-bf16",
        "zero-shot with tiny on every image of miniatures: what changes where the weights are bf16",
        (Side("fp32", zero_shot("fp32"), memory=False), Side("bf16", zero_shot("bf16"), memory=False)),
        differences,
        {"difference of the accuracy": 0.005, "1 - lowest cosine": 1e-3},
        available=no_bf16,
    ),
)
