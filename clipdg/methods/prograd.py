"""ProGrad: CoOp that takes no step against what CLIP knows (Zhu et al., ICCV 2023, arXiv:2205.14865).

Beside the gradient g of the cross-entropy there is h, that of the divergence from the zero-shot probabilities. Where
the two oppose each other, g loses its part along h: ``g - strength (g·h / h·h) h`` if ``g·h < 0``. ``strength`` is the
authors' lambda and ``temperature`` their T, both 1. Settings are those of the authors' code (BeierZhu/Prompt-align,
base-to-new): 16 vectors of which the last are "a photo of a" and those before them zeros, 100 epochs, 4 shots.

With several processes both gradients are averaged over them before they are compared, so that a step is that of one
process with all images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipdg.core import distributed
from clipdg.core.benchmark import Benchmark
from clipdg.core.fit import Fit
from clipdg.core.model import Backbone, ClipBackbone
from clipdg.core.plugins import Method
from clipdg.methods import _context
from clipdg.text import prompts
from clipdg.text.templates import Prompted, texts_of


@dataclass(frozen=True)
class Config(_context.Learning, Prompted):
    """``templates`` and the rest of templates.py: the zero-shot prompts. See _context.py for the learnt ones."""

    context_init: str | None = "a photo of a"
    epochs: int = field(default=100, metadata={"min": 1})
    strength: float = field(default=1.0, metadata={"min": 0.0})
    temperature: float = field(default=1.0, metadata={"min": 1e-3})


class Projection:
    """A ``_context.Guide``."""

    def __init__(self, written: Tensor, scale: float, strength: float, temperature: float) -> None:
        """``written``: (C, D), of unit length."""
        self.written, self.scale, self.strength, self.temperature = written, scale, strength, temperature

    def __call__(self, loss: Tensor, context: nn.Parameter, seen: Sequence[_context.Seen]) -> Tensor:
        """``loss``, with another gradient."""
        features = torch.cat([s.features for s in seen])
        zero_shot = self.scale * features @ self.written.to(features).T  # (N, C)
        logits = torch.cat([s.logits for s in seen])
        teacher = (zero_shot / self.temperature).softmax(dim=1)
        student = (logits / self.temperature).log_softmax(dim=1)
        divergence = self.temperature**2 * F.kl_div(student, teacher, reduction="batchmean")
        general = distributed.mean(*torch.autograd.grad(divergence, context, retain_graph=True))
        own = distributed.mean(*torch.autograd.grad(loss, context))
        along = (own * general).sum()
        if along < 0:
            own = own - self.strength * along / general.square().sum() * general
        return loss.detach() + ((context - context.detach()) * own).sum()  # the first is its value, the second 0


def build(config: Config, backbone: Backbone, benchmark: Benchmark) -> _context.PromptLearner:
    assert isinstance(backbone, ClipBackbone)
    own = texts_of(config, benchmark).prompts(benchmark.classes)
    written = prompts.prompt_directions(backbone, own, config.ensemble)
    guide = Projection(written, backbone.logit_scale, config.strength, config.temperature)
    return _context.learner(config, backbone, benchmark, guide, padded=True)


def fit(config: Config) -> Fit:
    return _context.schedule(config)


METHOD = Method(
    config=Config,
    build=build,
    trains="method",
    needs_text=True,
    fit=fit,
    learns_context=True,
    regularize=_context.PromptLearner.regularized,
)
