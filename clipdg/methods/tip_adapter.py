"""Tip-Adapter: zero-shot logits plus those of an image cache.

Zhang et al. 2022, arXiv:2207.09519. An image's logits are
``scale cos(f, text) + alpha sum_i exp(-beta (1 - cos(f, key_i))) onehot(y_i)``, where the keys are the features of the
training images. ``fine_tune=true`` is Tip-Adapter-F, which trains the keys (AdamW, 20 epochs). The settings and the
search of alpha and beta on a grid are those of the authors' code (gaopengcuhk/Tip-Adapter, configs/imagenet.yaml). The
search is on validation images of the sources and takes the first of equally good pairs.

Two things differ from that code. A key is one stored feature, and not the mean of ten augmented views. The last epoch
is taken, where the authors' code takes the epoch that is best on the test images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipdg.core.benchmark import Benchmark
from clipdg.core.errors import DataError, DivergedError
from clipdg.core.model import Backbone, ClipBackbone
from clipdg.core.plugins import Method
from clipdg.text import prompts
from clipdg.text.templates import Prompted, texts_of

CHUNK = 1024  # validation images at a time


@dataclass(frozen=True)
class Config(Prompted):
    """``alpha``, ``beta``: used in training, and in testing if there is no search.

    The search tries ``alphas`` × ``betas`` pairs, from 0.1 to below ``max_alpha`` and ``max_beta``. The other settings
    are those of the prompts (text/templates.py) and of Tip-Adapter-F's fit.
    """

    alpha: float = field(default=1.17, metadata={"min": 0.0})
    beta: float = field(default=1.0, metadata={"min": 0.0})
    search: bool = True
    max_alpha: float = field(default=3.0, metadata={"min": 0.1})
    max_beta: float = field(default=7.0, metadata={"min": 0.1})
    alphas: int = field(default=20, metadata={"min": 1})
    betas: int = field(default=200, metadata={"min": 1})
    fine_tune: bool = False
    epochs: int = field(default=20, metadata={"min": 1})
    lr: float = field(default=1e-3, metadata={"min": 0.0, "max": 100.0})
    batch_size: int = field(default=256, metadata={"min": 1})


class TipAdapter(nn.Module):
    """Zero-shot logits plus those of a cache; without a cache, zero-shot logits alone.

    ``story``: what the search found, for the record.
    Legend: N images, K cached images, C classes, D features.
    """

    directions: Tensor
    values: Tensor
    strengths: Tensor

    def __init__(self, config: Config, directions: Tensor, scale: float) -> None:
        """``directions``: (C, D), of unit length."""
        super().__init__()
        self.config, self.scale = config, scale
        self.register_buffer("directions", directions)
        self.keys = nn.Parameter(directions.new_empty(0, directions.shape[1]), requires_grad=False)  # (K, D)
        self.register_buffer("values", directions.new_empty(0, len(directions)))  # (K, C), one-hot
        self.register_buffer("strengths", torch.tensor([config.alpha, config.beta]))
        self.story: dict[str, Any] = {}
        self._seed = torch.initial_seed()  # the run's, for the order of the images in Tip-Adapter-F

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, C)"""
        features = F.normalize(features, dim=1)
        alpha, beta = self.strengths
        logits: Tensor = self._by_text(features) + alpha * self._by_cache(features @ self.keys.T, beta)
        return logits

    def _by_text(self, features: Tensor) -> Tensor:
        return self.scale * features @ self.directions.T

    def _by_cache(self, affinity: Tensor, beta: Tensor | float) -> Tensor:
        return (beta * (affinity - 1)).exp() @ self.values

    def solve(self, features: Tensor, labels: Tensor, validation: tuple[Tensor, Tensor] | None = None) -> None:
        """Make the cache from (K, D) features and (K,) labels; train it and search alpha and beta if the settings say.

        Raises DataError if there are no images to search on, DivergedError if a loss in training is not finite.
        """
        if self.config.search and (validation is None or not len(validation[1])):
            raise DataError("tip_adapter searches alpha and beta on validation images; hold some out or search=false")
        features = F.normalize(features, dim=1)
        self.keys.data = features.clone()
        self.values = F.one_hot(labels, len(self.directions)).to(features)
        self.strengths = self.strengths.new_tensor([self.config.alpha, self.config.beta])
        if self.config.fine_tune:
            self._fine_tune(features, labels)
        if validation is not None and self.config.search:
            self._search(F.normalize(validation[0], dim=1), validation[1])

    @torch.enable_grad()
    def _fine_tune(self, features: Tensor, labels: Tensor) -> None:
        generator = torch.Generator().manual_seed(self._seed)
        self.keys.requires_grad_(True)
        optimizer = torch.optim.AdamW([self.keys], self.config.lr, eps=1e-4)
        num_steps = self.config.epochs * math.ceil(len(labels) / self.config.batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
        for _ in range(self.config.epochs):
            order = torch.randperm(len(labels), generator=generator).to(labels.device)
            for batch in torch.split(order, self.config.batch_size):
                loss = F.cross_entropy(self(features[batch]), labels[batch])
                if not torch.isfinite(loss):
                    raise DivergedError(f"tip_adapter's loss is {loss.item()}; lower method.lr")
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
        self.keys.requires_grad_(False)

    @torch.no_grad()
    def _search(self, features: Tensor, labels: Tensor) -> None:
        config = self.config
        betas = [0.1 + i * (config.max_beta - 0.1) / config.betas for i in range(config.betas)]
        alphas = [0.1 + i * (config.max_alpha - 0.1) / config.alphas for i in range(config.alphas)]
        right = torch.zeros(len(betas), len(alphas), dtype=torch.int64)
        for x, y in zip(torch.split(features, CHUNK), torch.split(labels, CHUNK), strict=True):
            by_text, affinity = self._by_text(x), x @ self.keys.T
            for row, beta in enumerate(betas):
                by_cache = self._by_cache(affinity, beta)
                for column, alpha in enumerate(alphas):
                    right[row, column] += int(((by_text + alpha * by_cache).argmax(dim=1) == y).sum())
        best = int(right.flatten().argmax())  # the first of equally good pairs
        alpha, beta = alphas[best % len(alphas)], betas[best // len(alphas)]
        self.strengths = self.strengths.new_tensor([alpha, beta])
        accuracy = int(right.max()) / len(labels)
        self.story = {"alpha": alpha, "beta": beta, "validation_accuracy": accuracy, "num_validation": len(labels)}

    def learnt(self) -> dict[str, Tensor]:
        """The cache, its labels, and alpha and beta."""
        return {"keys": self.keys, "labels": self.values.argmax(dim=1), "strengths": self.strengths}

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        """Make room for the cache, whose number of rows is that of the images of the fit."""
        if f"{prefix}keys" in state_dict:
            self.keys.data = torch.empty_like(state_dict[f"{prefix}keys"], device=self.keys.device)
            self.values = torch.empty_like(state_dict[f"{prefix}values"], device=self.keys.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def build(config: Config, backbone: Backbone, benchmark: Benchmark) -> TipAdapter:
    """Build the classifier with an empty cache."""
    assert isinstance(backbone, ClipBackbone)
    own = texts_of(config, benchmark).prompts(benchmark.classes)
    return TipAdapter(config, prompts.prompt_directions(backbone, own, config.ensemble), backbone.logit_scale)


METHOD = Method(
    config=Config,
    build=build,
    trains="solver",
    solve=TipAdapter.solve,
    needs_text=True,
    validates=lambda config: config.search,
    story=lambda method: method.story,
    learnt=TipAdapter.learnt,
)
