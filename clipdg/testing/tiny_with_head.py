"""A tiny image tower with random weights and a classifier of ten outputs, for methods that need one (``needs_head``).

Its outputs are called as the classes of coloured_squares are in its made-up WordNet, and three more.
"""

from __future__ import annotations

from typing import Any, cast

from PIL import Image
from torch import Tensor, nn

from clipdg.core import plugins
from clipdg.core.model import Backbone
from clipdg.core.plugins import BackboneFamily, NoSettings
from clipdg.weights.files import identify, seed_of, seeded

NUM_OUTPUTS = 10


class TinyWithHead(nn.Module):
    """Legend: N images, D features, S pixels a side."""

    name = "clipdg.testing.tiny_with_head"

    def __init__(self, tower: Backbone, seed: int) -> None:
        super().__init__()
        self.tower = cast(nn.Module, tower)
        self.embed_dim, self.preprocessing = tower.embed_dim, tower.preprocessing
        self.head = nn.Linear(tower.embed_dim, NUM_OUTPUTS)
        self.head_wnids = tuple(f"n{number:08}" for number in reversed(range(NUM_OUTPUTS)))
        self.weights = identify(
            self.name, f"random:{seed}", self, "a tower and a head", self.preprocessing, random=True
        )

    def preprocess(self, image: Image.Image) -> Tensor:
        """One RGB image -> (3, S, S), normalised."""
        return cast(Backbone, self.tower).preprocess(image)

    def encode_image(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N, D)"""
        return cast(Backbone, self.tower).encode_image(images)

    def classify(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, 10) logits."""
        return self.head(features)  # type: ignore[no-any-return]  # of an nn.Module


def load(model: str | None, weights: str | None, config: NoSettings) -> Any:
    """The one model that there is, with random weights."""
    tiny = plugins.backbone("tiny")
    seed = seed_of(weights or "random:0") or 0
    with seeded(seed):
        made = TinyWithHead(tiny.load("resnet", f"random:{seed}", tiny.config()), seed)
    return made.eval().requires_grad_(False)


BACKBONE = BackboneFamily(config=NoSettings, load=load)
