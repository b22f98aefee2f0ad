"""Encoding images through the feature store: against a bare loop of the encoder over tensors that are ready."""

from __future__ import annotations

import atexit
import dataclasses
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from harness import Case, Setting, Side, Step
from PIL import Image

import clipdg
from cases._photos import folder, photo
from cases._towers import backbone
from cases.zero_shot import no_bf16
from clipdg.benchmarks import folder as benchmark
from clipdg.core.benchmark import Domain
from clipdg.data import decode, preprocessing
from clipdg.runs import feature_store

COUNT = 128


def scratch() -> Path:
    """A folder that goes with this process."""
    place = Path(tempfile.mkdtemp(prefix="clipdg-performance-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place


def photos(setting: Setting, place: Path) -> Callable[[], Domain]:
    """Opens a folder of photographs; each time it is read anew."""
    count = 32 if setting.small else COUNT
    root = folder(place / "photos", ["photo", "other"], ["cat", "dog"], count // 2)
    return lambda: benchmark.build(benchmark.Config(), str(root)).domains["photo"]


def bare(precision: str) -> Callable[[Setting], Step]:
    """The encoder alone: what any way of encoding these images must cost."""

    def prepare(setting: Setting) -> Step:
        clip = backbone(setting, precision)
        domain = photos(setting, scratch())()
        size = feature_store.BATCH_SIZE[setting.device]
        ready = torch.stack([clip.preprocess(domain.rows.image(i)) for i in range(len(domain.rows))])
        ready = ready.to(setting.device)

        def step() -> torch.Tensor:
            with torch.inference_mode():
                return torch.cat([clip.encode_image(batch) for batch in torch.split(ready, size)]).cpu()

        return step

    return prepare


def stored(precision: str) -> Callable[[Setting], Step]:
    """Everything: files are listed, read, hashed, decoded, resized, encoded; features written, synced, read again."""

    def prepare(setting: Setting) -> Step:
        clip = backbone(setting, precision)
        place = scratch()
        open_domain = photos(setting, place)

        def step() -> torch.Tensor:
            cache = place / "cache"
            shutil.rmtree(cache, ignore_errors=True)
            os.environ["CLIPDG_CACHE"] = str(cache)
            domain, store = open_domain(), feature_store.FeatureStore()
            found = store.encode(clip, domain)
            assert store.num_encoded == len(domain.rows)
            return found.clone()

        return step

    return prepare


def agreement(outcomes: Sequence[torch.Tensor]) -> dict[str, float]:
    first, last = outcomes[0].float(), outcomes[-1].float()
    return {
        "largest difference, of the largest feature": float((first - last).abs().max() / first.abs().max()),
        "1 - lowest cosine": float(1 - torch.cosine_similarity(first.double(), last.double()).min()),
    }


def resized(how: str) -> Callable[[Setting], Step]:
    """Bytes to a batch that is ready for the encoder: CLIP's own transform, or ours with the normalisation at its end.

    ``bicubic`` is ours to the last bit, ``bicubic_fast`` the other.
    """

    def prepare(setting: Setting) -> Step:
        from torchvision import transforms as T

        spec = clipdg.load_backbone("open_clip:ViT-S-32-alt", "random:0").preprocessing
        spec = dataclasses.replace(spec, size=224)
        count = 16 if setting.small else COUNT
        files = [photo(seed, *((375, 500) if seed % 3 == 2 else (500, 375))) for seed in range(count)]
        bicubic = T.InterpolationMode.BICUBIC
        steps = [T.Resize(224, bicubic), T.CenterCrop(224), T.ToTensor(), T.Normalize(spec.mean, spec.std)]
        clips = T.Compose(steps)  # openai/CLIP, clip/clip.py, _transform, after the conversion to RGB

        def theirs() -> torch.Tensor:
            return torch.stack([clips(Image.open(io.BytesIO(content)).convert("RGB")) for content in files])

        ours = preprocessing.fast(spec) if how == "bicubic_fast" else spec

        def mine() -> torch.Tensor:
            batch = torch.stack(
                [preprocessing.to_uint8(decode.decode(content, "a photograph"), ours) for content in files]
            )
            return preprocessing.normalize(batch, ours)

        return theirs if how == "torchvision" else mine

    return prepare


def levels(outcomes: Sequence[torch.Tensor]) -> dict[str, float]:
    """Of 255, in OpenAI's normalisation."""
    std = torch.tensor((0.26862954, 0.26130258, 0.27577711)).view(3, 1, 1)
    apart = [((outcomes[0] - other).abs() * std * 255) for other in outcomes[1:]]
    return {
        "largest difference of exact pixels": float(apart[0].max()),
        "largest difference, levels": float(apart[1].max()),
        "mean difference, levels": float(apart[1].mean()),
    }


CASES = (
    Case(
        "preprocess",
        f"{COUNT} JPEG photographs to a normalised batch, against PIL with torchvision v1's transforms",
        (
            Side("PIL + torchvision v1", resized("torchvision")),
            Side("ours, exact pixels", resized("bicubic")),
            Side("ours, fast pixels", resized("bicubic_fast")),
        ),
        levels,
        {"largest difference of exact pixels": 0.0, "largest difference, levels": 1.001},
        at_least=1.4,
    ),
    Case(
        "images",
        f"{COUNT} JPEG photographs to stored features, all costs included, against the encoder over ready tensors",
        (Side("bare loop", bare("fp32")), Side("store", stored("fp32"))),
        agreement,
        {"largest difference, of the largest feature": 1e-5},
        at_least=1 / 1.1,
    ),
    Case(
        "images-bf16",
        "the same with bf16 weights on both sides",
        (Side("bare loop, bf16", bare("bf16")), Side("store, bf16", stored("bf16"))),
        agreement,
        {"1 - lowest cosine": 1e-5},
        at_least=1 / 1.1,
        available=no_bf16,
    ),
    Case(
        "images-fp32-bf16",
        "what bf16 weights gain, and how far its features are from those of fp32",
        (Side("store", stored("fp32")), Side("store, bf16", stored("bf16"))),
        agreement,
        {"1 - lowest cosine": 1e-3},
        at_least=1.8,
        available=no_bf16,
    ),
)
