"""ProGrad: CoOp that takes no step against what CLIP knows.

Zhu et al., Prompt-aligned Gradient for Prompt Tuning, ICCV 2023, arXiv:2205.14865. Let g be the gradient of the
cross-entropy and h the gradient of the divergence from the zero-shot probabilities. Where the two oppose each other, g
loses its part along h: it becomes ``g - strength (g·h / h·h) h`` if ``g·h < 0``. ``strength`` is the authors' lambda
and ``temperature`` their T; both are 1. The settings are those of the authors' code (BeierZhu/Prompt-align,
base-to-new): 100 epochs, 4 shots, and 16 vectors, of which the last are "a photo of a" and those before them are zeros.

With several processes, both gradients are averaged over the processes before they are compared. A step is then the same
as that of one process with all images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipdg.core import distributed
from clipdg.core.benchmark import Benchmark
from clipdg.core.model import Backbone, ClipBackbone
from clipdg.core.plugins import Method
from clipdg.methods import _context
from clipdg.text import prompts
from clipdg.text.templates import Prompted, texts_of


@dataclass(frozen=True)
class Config(_context.ContextConfig, Prompted):
    """Settings of the learnt context (_context.py) and of the zero-shot prompts (text/templates.py)."""

    context_init: str | None = "a photo of a"
    epochs: int = field(default=100, metadata={"min": 1})
    strength: float = field(default=1.0, metadata={"min": 0.0})
    temperature: float = field(default=1.0, metadata={"min": 1e-3})


class Projection:
    """Takes out of the gradient what opposes zero-shot; a ``_context.Regularizer``."""

    def __init__(self, written: Tensor, scale: float, strength: float, temperature: float) -> None:
        """``written``: (C, D), of unit length."""
        self.written, self.scale, self.strength, self.temperature = written, scale, strength, temperature

    def __call__(self, loss: Tensor, context: nn.Parameter, passes: Sequence[_context.Pass]) -> Tensor:
        """Return the same value as ``loss``, with the projected gradient."""
        features = torch.cat([p.features for p in passes])
        zero_shot = self.scale * features @ self.written.to(features).T  # (N, C)
        logits = torch.cat([p.logits for p in passes])
        teacher = (zero_shot / self.temperature).softmax(dim=1)
        student = (logits / self.temperature).log_softmax(dim=1)
        divergence = self.temperature**2 * F.kl_div(student, teacher, reduction="batchmean")
        general = distributed.mean(*torch.autograd.grad(divergence, context, retain_graph=True))
        own = distributed.mean(*torch.autograd.grad(loss, context))
        along = (own * general).sum()
        if along < 0:
            own = own - self.strength * along / general.square().sum() * general
        # The first term has the value; the second is 0 and has the gradient.
        return loss.detach() + ((context - context.detach()) * own).sum()


def build(config: Config, backbone: Backbone, benchmark: Benchmark) -> _context.PromptLearner:
    """Raises ConfigError if the context cannot be put into the text tower."""
    assert isinstance(backbone, ClipBackbone)
    own = texts_of(config, benchmark).prompts(benchmark.classes)
    written = prompts.prompt_directions(backbone, own, config.ensemble)
    projection = Projection(written, backbone.logit_scale, config.strength, config.temperature)
    return _context.prompt_learner(config, backbone, benchmark, projection, padded=True)


METHOD = Method(
    config=Config,
    build=build,
    trains="method",
    fit=_context.schedule,
    needs_text=True,
    regularize=_context.PromptLearner.regularize,
    learns_context=True,
)
