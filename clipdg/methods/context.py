"""A learnt context from a file, before this benchmark's class names: nothing is fitted.

``file`` is what a run of coop, cocoop, kgcoop or prograd left beside its record. So a context that was learnt on one
benchmark is tested on another, and one of base classes on new ones (``benchmark.half=new``). The backbone must be the
one that it was learnt with; its precision may differ and counts as this run's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from clipdg.core.benchmark import Benchmark
from clipdg.core.errors import ConfigError
from clipdg.core.model import Backbone
from clipdg.weights import learned_method

TRAINS = "nothing"
NEEDS_TEXT = True
NEEDS_FILE = True


@dataclass
class Config:
    file: str | None = None


def build(config: Config, backbone: Backbone, benchmark: Benchmark) -> nn.Module:
    """See contexts.before for what is refused."""
    learnt = _read(config)
    method = learned_method.before(learnt, backbone, benchmark)
    method.requires_grad_(False)
    method.story = {"method": dict(learnt.method), "classes": len(learnt.classes), "made": dict(learnt.made)}  # type: ignore[assignment]  # no parameter
    return method


def said(config: Config) -> dict[str, Any]:
    """The file counts by its content, not by where it lies."""
    return {"file": f"sha256:{_read(config).digest}"}


def _read(config: Config) -> learned_method.Learnt:
    if config.file is None:
        raise ConfigError("method context needs a file; give method.file=RUN_ID.safetensors, which a run of coop left")
    return learned_method.read(Path(config.file).expanduser())
