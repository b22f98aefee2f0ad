"""ERM: image encoder and linear head are trained together.

Vapnik, Statistical Learning Theory, 1998; the supervised baseline of DomainBed (Gulrajani & Lopez-Paz 2021). It
minimises the cross-entropy on the sources by Adam at 5e-5, with no weight decay, and with dropout in front of the head.
By default it differs from DomainBed's: batches are drawn from the union of the sources without replacement, the length
of the fit is counted in epochs, and images are resized as the weights want them and augmented lightly. These settings
are exactly DomainBed's:

    method  {augment: domainbed, resize: squash, val_transform: domainbed}
    fit     {steps: 5001, per_domain: true, checkpoint_every: 300}      # 100 for the MNIST sets, 1000 for DomainNet

Its results of 2020 were made with backbone {name: timm:resnet50.tv_in1k, frozen_batch_norm: true}; see
configs/domainbed_*.

With a CLIP, the head reads the projected features, which are not of unit length. The text encoder is not trained.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from clipdg.core.benchmark import Benchmark
from clipdg.core.fit import Fit
from clipdg.core.model import Backbone
from clipdg.core.plugins import Method


@dataclass(frozen=True)
class Config:
    """``resize``: as the weights want it ("own"), or both sides to the size, bilinearly, as DomainBed does ("squash").

    ``val_transform``: how images of the sources are evaluated, those that were held out and those that were fitted on.
    DomainBed augments them too ("domainbed"), since its transform belongs to a domain and not to a split.
    """

    epochs: int = field(default=30, metadata={"min": 1})
    lr: float = field(default=5e-5, metadata={"min": 0.0, "max": 100.0})  # DomainBed, image sets
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    batch_size: int = field(default=32, metadata={"min": 1})
    weight_decay: float = field(default=0.0, metadata={"min": 0.0})
    schedule: Literal["cosine_step", "constant"] = "constant"
    warmup_epochs: float = field(default=0.0, metadata={"min": 0.0})
    label_smoothing: float = field(default=0.0, metadata={"min": 0.0, "max": 0.999})
    dropout: float = field(default=0.0, metadata={"min": 0.0, "max": 0.999})
    augment: Literal["none", "light", "domainbed", "crop"] = "light"  # flip, shift by a tenth, brightness and colour
    resize: Literal["own", "squash"] = "own"
    val_transform: Literal["clean", "domainbed"] = "clean"


class LinearHead(nn.Linear):
    """A linear classifier behind dropout. Objectives on features act behind the dropout too, as in DomainBed.

    Legend: N images, C classes, D features.
    """

    def __init__(self, num_features: int, num_classes: int, dropout: float) -> None:
        super().__init__(num_features, num_classes)
        self.dropout = dropout

    def represent(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, D)"""
        return F.dropout(features, self.dropout, self.training) if self.dropout else features

    def classify(self, represented: Tensor) -> Tensor:
        """(N, D) -> (N, C)"""
        return super().forward(represented)

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, C)"""
        return self.classify(self.represent(features))


def build(config: Config, backbone: Backbone, benchmark: Benchmark) -> LinearHead:
    return LinearHead(backbone.embed_dim, len(benchmark.classes), config.dropout)


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
        squash=config.resize == "squash",
        val_augmented=config.val_transform == "domainbed",
    )


METHOD = Method(
    config=Config,
    build=build,
    trains="everything",
    fit=fit,
    represent=LinearHead.represent,
    classify=LinearHead.classify,
)
