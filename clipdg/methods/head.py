"""A trained tower's classifier from a file; nothing is fitted.

``file`` is the classifier that a run of erm, lora or wise_ft with ``keep_weights=true`` left beside its record. The
backbone's weights must be the other file of the same run. This tests a fine-tuned model on another benchmark that has
the same classes, in any order, or some of them. For other classes, the tower of a CLIP can be used with zero_shot.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipdg.core.benchmark import Benchmark
from clipdg.core.errors import ConfigError
from clipdg.core.model import Backbone
from clipdg.core.plugins import Method
from clipdg.weights import finetuned_tower


@dataclass(frozen=True)
class Config:
    """``file``: RUN_ID.head.safetensors."""

    file: str | None = None


class StoredHead(nn.Module):
    """A linear classifier from a file; ``story`` says where it comes from.

    Legend: N images, C classes, D features.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, unit: bool, story: dict[str, Any]) -> None:
        """``weight``: (C, D). ``unit``: whether features are brought to unit length first."""
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.unit, self.story = unit, story

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, C)"""
        return F.linear(F.normalize(features, dim=1) if self.unit else features, self.weight, self.bias)


def build(config: Config, backbone: Backbone, benchmark: Benchmark) -> StoredHead:
    """Raises ConfigError if the backbone is not the classifier's own tower, and for a class that it does not know."""
    found = _read(config)
    own, theirs = found.backbone, backbone.weights
    if own["fingerprint"] != theirs.fingerprint:
        raise ConfigError(
            f"{found.path.name} stands on the tower that run {found.made['run_id']} trained "
            f"({own['fingerprint'][:12]}), and this is {theirs.backbone}, weights '{theirs.tag}' "
            f"({theirs.fingerprint[:12]}); give backbone={own['spec']} "
            f"backbone.weights={found.path.name.replace('.head.', '.backbone.')}"
        )
    missing = [name for name in benchmark.classes if name not in found.classes]
    if missing:
        raise ConfigError(
            f"{found.path.name} knows {len(found.classes)} classes and not '{missing[0]}' of {benchmark.name}; use "
            "zero_shot or linear_probe on its tower for other classes"
        )
    rows = torch.tensor([found.classes.index(name) for name in benchmark.classes])
    device = next(backbone.parameters()).device  # type: ignore[attr-defined]  # every backbone is an nn.Module
    story = {"method": found.method, "classes": len(found.classes), "made": dict(found.made)}
    return StoredHead(found.weight[rows].to(device), found.bias[rows].to(device), found.unit, story)


def said(config: Config) -> dict[str, Any]:
    """Give the file by its content: a run is the same wherever the file lies."""
    return {"file": f"sha256:{_read(config).digest}"}


def _read(config: Config) -> finetuned_tower.HeadFile:
    if config.file is None:
        raise ConfigError(
            "method head needs a file; give method.file=RUN_ID.head.safetensors, which a run of erm, lora or wise_ft "
            "with keep_weights=true left"
        )
    return finetuned_tower.read(Path(config.file).expanduser())


METHOD = Method(
    config=Config,
    build=build,
    trains="nothing",
    needs_file=True,
    said=said,
    story=lambda method: method.story,
)
