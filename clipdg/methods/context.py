"""A learnt context from a file, before this benchmark's class names: nothing is fitted.

``file`` is what a run of coop, cocoop, kgcoop or prograd left beside its record. So a context that was learnt on one
benchmark is tested on another, and one of base classes on new ones (``benchmark.half=new``). The backbone must be the
one that it was learnt with; its precision may differ and counts as this run's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from clipdg.core.benchmark import Benchmark
from clipdg.core.errors import ConfigError
from clipdg.core.model import Backbone
from clipdg.core.plugins import Method
from clipdg.weights import learned_method


@dataclass(frozen=True)
class Config:
    file: str | None = None


class LearntContext(nn.Module):
    """The method of a learnt context before other class names; ``story`` says where it comes from."""

    def __init__(self, method: nn.Module, story: dict[str, Any]) -> None:
        super().__init__()
        self.method, self.story = method, story

    @property
    def context(self) -> Tensor:
        """The learnt vectors (M, W), or (C, M, W) with one context for each class."""
        found = self.method.context
        assert isinstance(found, Tensor)
        return found

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, C)"""
        logits: Tensor = self.method(features)
        return logits


def build(config: Config, backbone: Backbone, benchmark: Benchmark) -> LearntContext:
    """Raises ConfigError; ``learned_method.before`` says for what."""
    learnt = _read(config)
    method = learned_method.before(learnt, backbone, benchmark)
    method.requires_grad_(False)
    return LearntContext(
        method, {"method": dict(learnt.method), "classes": len(learnt.classes), "made": dict(learnt.made)}
    )


def said(config: Config) -> dict[str, Any]:
    """The file counts by its content, not by where it lies."""
    return {"file": f"sha256:{_read(config).digest}"}


def _read(config: Config) -> learned_method.Learnt:
    if config.file is None:
        raise ConfigError("method context needs a file; give method.file=RUN_ID.safetensors, which a run of coop left")
    return learned_method.read(Path(config.file).expanduser())


METHOD = Method(
    config=Config,
    build=build,
    trains="nothing",
    needs_text=True,
    needs_file=True,
    said=said,
    story=lambda module: module.story,
)
