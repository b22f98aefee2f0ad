"""A learnt context from a file, before other class names.

Nothing is fitted. ``file`` is the context that a run of coop, cocoop, kgcoop or prograd left beside its record. This
tests a context that was learnt on one benchmark on another one, and a context of base classes on new classes
(``benchmark.half=new``). The backbone must be the one with which the context was learnt. Its precision may differ; the
record has this run's.
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
    """``file``: RUN_ID.safetensors."""

    file: str | None = None


class LearntContext(nn.Module):
    """The method that learnt a context, before other class names; ``story`` says where the context comes from.

    Legend: N images, C classes, D features.
    """

    def __init__(self, method: nn.Module, story: dict[str, Any]) -> None:
        super().__init__()
        self.method, self.story = method, story

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, C)"""
        logits: Tensor = self.method(features)
        return logits


def build(config: Config, backbone: Backbone, benchmark: Benchmark) -> LearntContext:
    """Raises ConfigError for another backbone, and for other classes if each class has a context of its own."""
    learnt = _read(config)
    method = learned_method.before(learnt, backbone, benchmark)
    method.requires_grad_(False)
    story = {"method": dict(learnt.method), "classes": len(learnt.classes), "made": dict(learnt.made)}
    return LearntContext(method, story)


def said(config: Config) -> dict[str, Any]:
    """Give the file by its content: a run is the same wherever the file lies."""
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
    story=lambda method: method.story,
)
