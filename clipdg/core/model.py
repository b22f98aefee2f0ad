"""The light nouns of a model: backbone, preprocessing and weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from clipdg.core.text_transformer import Transformer


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
        """The same tower for text/prompt_encoder.py, faster with many prompts; None if it is no plain transformer."""

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
