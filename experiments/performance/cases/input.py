"""Images a second with the input and without it: whether reading and resizing keep up with the encoder."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from harness import Case, Setting, Side, Step

from cases._towers import backbone
from cases.images import photos, scratch
from clipdg.data import datasets, loaders, preprocessing
from clipdg.data.rows import select
from clipdg.runs import feature_store

COUNT = {"cpu": 128, "cuda": 8192}  # a GPU's second; the same 128 files again and again


class Seen(NamedTuple):
    num_images: int
    seconds: float


def way(reads: bool, encodes: bool) -> Callable[[Setting], Step]:
    """Files to batches on the device as the store reads them, by as many processes as help, or one batch again."""

    def prepare(setting: Setting) -> Step:
        clip, size = backbone(setting), feature_store.BATCH_SIZE[setting.device]
        count = 64 if setting.small else COUNT[setting.device]
        rows = photos(setting, scratch())().rows
        rows = select(rows, np.arange(count) % len(rows))
        dataset = datasets.ImageDataset(rows, range(count), clip.preprocessing, 0)
        ready = dataset.take(range(size)).inputs.to(setting.device)

        def step() -> Seen:
            started, done = time.perf_counter(), 0
            loader = loaders.loader(dataset, size, workers=None)
            batches = (batch.inputs for batch in loader) if reads else iter([ready] * (count // size))
            with torch.inference_mode():
                for pixels in batches:
                    done += len(pixels)
                    on_device = pixels.to(setting.device, non_blocking=True)
                    if encodes:
                        clip.encode_image(preprocessing.normalize(on_device, clip.preprocessing))
            if setting.device != "cpu":
                torch.cuda.synchronize()
            return Seen(done, time.perf_counter() - started)

        return step

    return prepare


def speeds(outcomes: Sequence[Seen]) -> dict[str, float]:
    """Images a second of wall time, in the last turn; the slower of input and encoder is what limits."""
    alone, read, both = (seen.num_images / seen.seconds for seen in outcomes)
    return {
        "images/s of the encoder alone": alone,
        "images/s of the input alone": read,
        "images/s of both": both,
        "the input limits (1 yes, 0 no)": float(read < alone),
    }


CASES = (
    Case(
        "input",
        "images a second: the encoder alone, the input alone, both together as the store has them",
        (
            Side("encoder alone", way(False, True), memory=False),
            Side("input alone", way(True, False), memory=False),
            Side("both", way(True, True), memory=False),
        ),
        speeds,
    ),
)
