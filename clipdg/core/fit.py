"""What a fit is given: its length, optimizer and schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    pass


Augment: TypeAlias = Literal["none", "light", "domainbed", "crop", "coop"]


@dataclass(frozen=True)
class Fit:
    """How a method's parameters are found by gradient descent; a method that solves for them needs none.

    ``epochs`` passes, or ``steps`` updates where that is given. ``per_domain``: each batch has ``batch_size`` images of
    each source domain, drawn with replacement, in the place of ``batch_size`` of all in a shuffled order.

    The learning rate is constant at ``warmup_lr`` for ``warmup_epochs``, then follows a cosine, stepped per epoch or
    per step; ``schedule="constant"`` keeps it. ``cosine_after_warmup``: a line up to ``lr`` over ``warmup_steps``, then
    a cosine over the steps that are left.

    ``augment``: "light" is images.augment_light, on the device; the others are augmentation.py's, for images as they
    are read.
    ``views``: of features, so many random views of each image are stored, and each step draws one; 0 for the image as
    it is evaluated.
    ``squash``: images are resized without keeping their aspect ratio, bilinearly, as DomainBed does; else as the
    backbone's weights want them. ``val_augmented``: the sources' images are evaluated under DomainBed's augmentation.
    ``decay_all``: weight decay for biases and norms as well (adamw; adam's and sgd's is for all).

    ``precision``: of the arithmetic; weights, sums of gradients and the optimiser stay fp32. ``accumulate``: batches to
    an update. ``clip_norm``: the longest that a gradient may be. ``average``: not the last weights are tested but their
    mean over the updates from ``average_from`` on, equally weighted ("swa") or with ``ema_decay``.
    """

    optimizer: Literal["sgd", "adam", "adamw"]
    lr: float
    epochs: int
    batch_size: int
    weight_decay: float = 0.0
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["cosine_epoch", "cosine_step", "cosine_after_warmup", "constant"] = "constant"
    warmup_epochs: float = 0.0
    warmup_lr: float | None = None  # None: linear from 0
    warmup_steps: int = 0
    label_smoothing: float = 0.0
    augment: Augment = "none"
    views: int = 0
    drop_last: bool = False
    squash: bool = False
    val_augmented: bool = False
    decay_all: bool = False
    steps: int | None = None
    per_domain: bool = False
    checkpoint_every: int | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulate: int = 1
    clip_norm: float | None = None
    average: Literal["none", "swa", "ema"] = "none"
    average_from: int = 0
    ema_decay: float = 0.999
