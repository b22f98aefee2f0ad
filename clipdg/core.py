"""The nouns: backbone, domain, shift, benchmark, fit. Nothing here loads, draws or runs anything.

Legend: N images, C classes, D features, L tokens, W token width, S pixels a side.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import Tensor

    from clipdg.text import Transformer


@dataclass(frozen=True)
class Preprocessing:
    """How an RGB image becomes a backbone's input; it travels with the weights and can be hashed.

    ``shortest``: the shorter side to ``size / crop_fraction`` pixels, then the central ``size`` square (CLIP, timm).
    ``shortest_floor``: the same, but where an odd number of pixels is cut off, the greater half goes at the right and
    at the bottom (transformers); in ``shortest`` half pixels are rounded to even, as in torchvision.
    ``squash``: both sides to ``size``, the aspect ratio lost (DomainBed, SigLIP).

    ``bicubic`` and ``bilinear`` are Pillow's to the last bit, as the libraries have them; ``_fast`` are torch's of the
    same kernels in 16-bit arithmetic, seldom one and at most two levels of 255 from them (see ``images.fast``).
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: Literal["shortest", "shortest_floor", "squash"] = "shortest"
    interpolation: Literal["bicubic", "bilinear", "nearest", "bicubic_fast", "bilinear_fast"] = "bicubic"
    crop_fraction: float = 1.0


@dataclass(frozen=True)
class Weights:
    """Which weights these are, for the record. ``fingerprint`` is what identity rests on; the rest is for people."""

    backbone: str  # the spec, "open_clip:ViT-B-32-quickgelu"
    tag: str  # "openai", a repository, a file name without its folder, or "random:SEED"
    fingerprint: str  # SHA-256 of the tensors' bytes, the architecture and the preprocessing
    random: bool = False  # nothing was trained
    provenance: Mapping[str, object] = field(default_factory=dict)  # command, seed, config, hash of the training


@runtime_checkable
class Backbone(Protocol):
    """An ``nn.Module`` that encodes images, with the preprocessing its weights were trained with."""

    name: str
    weights: Weights
    embed_dim: int
    preprocessing: Preprocessing

    def preprocess(self, image: Image.Image) -> Tensor:
        """One RGB image -> (3, S, S), normalised."""

    def encode_image(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) normalised -> (N, D), not of unit length."""


class TextTower(Protocol):
    """A text encoder cut at its token embeddings, which is where prompt learning puts its vectors."""

    width: int  # W
    context_length: int  # the longest L
    num_prefix_tokens: int  # start tokens in front of the text: 1 in CLIP
    causal: bool

    @property
    def description(self) -> Transformer | None:
        """The same tower for text.py, which is faster with many prompts; None if it is no plain transformer."""

    def embed(self, tokens: Tensor) -> Tensor:
        """(C, L) -> (C, L, W), without positions."""

    def encode(self, embeddings: Tensor, tokens: Tensor) -> Tensor:
        """(C, L, W) embeddings, and the (C, L) tokens they stand for (the end token says where to pool) -> (C, D)."""


@runtime_checkable
class ClipBackbone(Backbone, Protocol):
    """A backbone whose text encoder shares the image encoder's space."""

    @property
    def logit_scale(self) -> float:
        """Already exponentiated: 100 in OpenAI's CLIP."""

    @property
    def text_tower(self) -> TextTower | None:
        """None if the text encoder cannot be cut exactly."""

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """C texts -> (C, L). Raises DataError naming a text that is too long or cannot be represented."""

    def encode_text(self, tokens: Tensor) -> Tensor:
        """(C, L) -> (C, D), not of unit length."""

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """-> logits_per_image (N, C), logits_per_text (C, N): scaled cosines."""


# inputs (N, ...) -> what the classifier reads of them (N, F), logits (N, C); an objective may call it several times
Model: TypeAlias = "Callable[[Tensor], tuple[Tensor, Tensor]]"


class HeadedBackbone(Backbone, Protocol):
    """A backbone with the classifier that its weights were trained with."""

    @property
    def head_wnids(self) -> tuple[str, ...] | None:
        """The classifier's K outputs in WordNet; None if there is no classifier or its outputs are not known."""

    def classify(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, K) logits."""


class Rows(Protocol):
    """Labelled images in a fixed order; labels are known without decoding an image."""

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64, index into the benchmark's classes."""

    @property
    def ids(self) -> Sequence[str]:
        """N names that stay the same wherever the data lie: "dog/n02103406_1001.jpg"."""

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """RGB, decoded under the policy of images.py. Raises DataError naming the sample."""

    def digests(self) -> Sequence[str]:
        """SHA-256 of each sample's stored bytes, in order."""


@dataclass(frozen=True)
class Subset:
    """Some of a benchmark's classes, among which alone an accuracy is measured (ImageNet-A: 200 of 1,000).

    ``groups``: ids that count as one class because the labels do not tell them apart (ObjectNet's chair is three of
    ImageNet's). A group's logit is its highest, and the group goes by its first id, in predictions and in labels.
    """

    ids: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        grouped = [i for group in self.groups for i in group]
        assert len(set(self.ids)) == len(self.ids)
        assert len(set(grouped)) == len(grouped)
        assert set(grouped) <= set(self.ids)

    @property
    def labels(self) -> tuple[int, ...]:
        """The ids that its images' labels may be: all but those that go by their group's first."""
        others = {i for group in self.groups for i in group[1:]}
        return tuple(i for i in self.ids if i not in others)


@dataclass(frozen=True)
class Domain:
    """One distribution of labelled images.

    ``splits``: the split its authors published ("train", "test" -> row indices); None where there is none and
    DomainBed's seeded holdout makes ``in`` and ``out``. ``subset``: its classes, where these are fewer than the
    benchmark's. ``noun``: how a domain-aware prompt calls an image of it ("sketch"). ``aliases``: what others call it
    ("S"); a target may be named by them. ``views``: evaluations of its tested images beside the one of all of them,
    each restricted to the classes of its name ("a-classes" -> those of ImageNet-A). ``pool``: opens training images
    apart from ``rows``, too many to read them all: of these a run reads the ones that it fits or validates on, and
    ``rows`` is the test split. ``cropped``: its images were stored as the evaluation transform leaves them
    (ImageNet-C), so none of their border is cut off again. ``eval_only``: its licence forbids to fit or to choose
    anything on it.
    """

    name: str
    rows: Rows
    splits: Mapping[str, np.ndarray] | None = None
    subset: Subset | None = None
    noun: str | None = None
    aliases: tuple[str, ...] = ()
    views: Mapping[str, Subset] = field(default_factory=dict)
    pool: Callable[[], Rows] | None = None
    cropped: bool = False
    eval_only: bool = False


@dataclass(frozen=True)
class Shift:
    """Train on ``sources``, test on ``targets`` (and on held-out images of the sources)."""

    name: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]


@dataclass(frozen=True)
class Benchmark:
    """Domains that share a class list, and the shifts that the literature measures between them."""

    name: str
    classes: tuple[str, ...]  # as prompts call them
    domains: Mapping[str, Domain] = field(default_factory=dict)
    shifts: tuple[Shift, ...] = ()
    templates: tuple[str, ...] = ("a photo of a {}.",)
    notes: tuple[str, ...] = ()  # what every table made from it must disclose
    citation: str = ""
    licence: str = ""
    provenance: Mapping[str, object] = field(default_factory=dict)  # repository, commit, … ; identity is by content
    skipped: tuple[str, ...] = ()  # "domain/id" of images that a list left out
    wnids: tuple[str, ...] = ()  # the classes in WordNet, where a classifier's own outputs are told apart by them
    shows_images: bool = True  # whether a folder of results, which may be published, may hold pictures of it


def known_as(benchmark: Benchmark, name: str) -> str:
    """The domain that others call ``name``; ``name`` itself if it is none's alias."""
    return next((d.name for d in benchmark.domains.values() if name in d.aliases), name)


def leave_one_out(domains: Sequence[str]) -> tuple[Shift, ...]:
    """DomainBed's shifts: each domain once as the target of all the others."""
    return tuple(Shift(target, tuple(d for d in domains if d != target), (target,)) for target in domains)


def pairs(benchmark: Benchmark) -> tuple[Shift, ...]:
    """Shifts "a+b" that leave out two domains, of a benchmark that leaves each out once; none of another.

    DomainBed's leave-one-domain-out cross-validation chooses by them: how well a draw does on b without a and b.
    """
    targets = [shift.targets[0] for shift in benchmark.shifts if len(shift.targets) == 1]
    if len(targets) < 3 or tuple(targets) != tuple(benchmark.domains):
        return ()
    return tuple(
        Shift(f"{a}+{b}", tuple(d for d in targets if d not in (a, b)), (a, b))
        for a, b in itertools.combinations(targets, 2)
    )


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
