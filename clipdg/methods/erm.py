"""ERM: the image encoder and a linear head trained together on the sources' cross-entropy (Vapnik 1998).

The supervised baseline of DomainBed (Gulrajani & Lopez-Paz 2021): Adam at 5e-5, no weight decay. Different from it:
batches are drawn from the union of the sources without replacement, and its length is counted in epochs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from clipdg.core import Backbone, Benchmark, Fit

TRAINS = "everything"
NEEDS_TEXT = False


@dataclass
class Config:
    epochs: int = field(default=30, metadata={"min": 1})
    lr: float = field(default=5e-5, metadata={"min": 0.0, "max": 100.0})  # DomainBed, image sets
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    batch_size: int = field(default=32, metadata={"min": 1})
    weight_decay: float = field(default=0.0, metadata={"min": 0.0})
    schedule: Literal["cosine_step", "constant"] = "constant"
    warmup_epochs: float = field(default=0.0, metadata={"min": 0.0})
    label_smoothing: float = field(default=0.0, metadata={"min": 0.0, "max": 0.999})
    augment: Literal["none", "light"] = "light"  # flip, shift by a tenth, brightness and colour


def build(config: Config, backbone: Backbone, benchmark: Benchmark) -> nn.Linear:
    return nn.Linear(backbone.embed_dim, len(benchmark.classes))


def fit(config: Config) -> Fit:
    return Fit(
        optimizer=config.optimizer,
        lr=config.lr,
        epochs=config.epochs,
        batch_size=config.batch_size,
        weight_decay=config.weight_decay,
        schedule=config.schedule,
        warmup_epochs=config.warmup_epochs,
        label_smoothing=config.label_smoothing,
        augment=config.augment,
        drop_last=True,
    )
