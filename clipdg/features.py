"""The feature store: each image is encoded once per (weights, preprocessing, decode policy, precision).

A stored array is found by one name only, a hash of everything that can change it, and its bytes are checked when it is
opened. First form: one file a domain, written when all of it is encoded.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from clipdg import cache, data, images, records
from clipdg.core import Backbone, Domain
from clipdg.errors import DivergedError
from clipdg.trainer import Progress

SCHEMA = 2
BATCH_SIZE = 64  # fixed, with the last batch padded: features depend on the batch's shape in their last digits


def key(backbone: Backbone, domain: Domain) -> str:
    """The name of a domain's features: SHA-256 over all that can change them."""
    device = next(backbone.parameters()).device.type  # type: ignore[attr-defined]  # every backbone is an nn.Module
    story = {
        "schema": SCHEMA,
        "weights": backbone.weights.fingerprint,
        "preprocessing": asdict(backbone.preprocessing),
        "decode": images.POLICY,
        "rows": list(domain.rows.digests()),
        "precision": getattr(backbone, "precision", "fp32"),  # of placement.Placed
        "compiled": getattr(backbone, "compiled", False),
        "batch": BATCH_SIZE,
        "device": device,
        "torch": torch.__version__,
    }
    return records.digest(story)


class FeatureStore:
    """Features on disk under ``folder``; ``num_encoded`` counts the images that really went through an encoder."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache.folder("features")
        self.num_encoded = 0

    def encode(self, backbone: Backbone, domain: Domain, progress: Progress | None = None) -> Tensor:
        """Features (N, D) in fp32 on the CPU, aligned with the domain's rows; not of unit length.

        Raises DataError naming an image that cannot be read, DivergedError if a feature is not finite.
        """
        path = self.folder / f"{key(backbone, domain)}.safetensors"
        stored = _read(path)
        if stored is not None:
            return stored
        features = self._encode(backbone, domain, progress)
        content = save({"features": features})
        records.publish(path, hashlib.sha256(content).digest() + content)
        return features

    def _encode(self, backbone: Backbone, domain: Domain, progress: Progress | None) -> Tensor:
        assert isinstance(backbone, nn.Module)
        device = next(backbone.parameters()).device
        num_images = len(domain.rows)
        dataset = data.ImageDataset(domain.rows, range(num_images), backbone.preprocessing, 0, name=domain.name)
        features = torch.empty(num_images, backbone.embed_dim)
        backbone.eval()
        done = 0
        with torch.inference_mode():
            for batch in data.loader(dataset, BATCH_SIZE):
                count = len(batch.labels)
                inputs = images.normalize(batch.inputs.to(device), backbone.preprocessing)
                if count < BATCH_SIZE:
                    inputs = torch.cat([inputs, inputs[:1].expand(BATCH_SIZE - count, -1, -1, -1)])
                features[done : done + count] = backbone.encode_image(inputs)[:count].float().cpu()
                done += count
                if progress:
                    progress(f"encode {domain.name}", done, num_images)
        if not torch.isfinite(features).all():
            row = int((~torch.isfinite(features)).any(dim=1).nonzero()[0])
            raise DivergedError(f"the feature of {domain.name} image {row} ({domain.rows.ids[row]}) is not finite")
        self.num_encoded += num_images
        return features


def _read(path: Path) -> Tensor | None:
    """The features in a file; None if there is none or its bytes are not those that were written."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        return None  # rot or a cut file: encoded again and replaced, never used
    try:
        return load(content[32:])["features"]
    except SafetensorError:
        return None
