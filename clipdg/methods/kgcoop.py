"""KgCoOp: CoOp whose class directions are held near those of written prompts (Yao et al., CVPR 2023, arXiv:2303.13283).

The loss is CoOp's plus ``weight`` times the mean over classes of ``1 - cos(w_i, w_i^clip)``, w^clip being the direction
of the benchmark's templates. That is the authors' code (htyao89/KgCoOp), whose numbers are with weight 8; the squared
distance that the paper prints is twice as much, so its formula at 8 is ``weight=16`` here. Other settings are the
code's for ViT-B/16 (vit_b16_ep100_ctxv1): 100 epochs in batches of 128, a context that starts from "a photo of a".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from clipdg.core.benchmark import Benchmark
from clipdg.core.fit import Fit
from clipdg.core.model import Backbone, ClipBackbone
from clipdg.core.plugins import Method
from clipdg.methods import _context
from clipdg.text import prompts
from clipdg.text.templates import Prompted, texts_of


@dataclass(frozen=True)
class Config(_context.Learning, Prompted):
    """``templates`` and the rest of templates.py: the written prompts. See _context.py for the learnt ones."""

    context_init: str | None = "a photo of a"
    num_context: int = field(default=4, metadata={"min": 1})
    epochs: int = field(default=100, metadata={"min": 1})
    batch_size: int = field(default=128, metadata={"min": 1})
    weight: float = field(default=8.0, metadata={"min": 0.0})


class Knowledge:
    """A ``_context.Guide``."""

    def __init__(self, written: Tensor, weight: float) -> None:
        """``written``: (C, D), of unit length."""
        self.written, self.weight = written, weight

    def __call__(self, loss: Tensor, context: nn.Parameter, seen: Sequence[_context.Seen]) -> Tensor:
        cosines = (seen[-1].directions * self.written.to(loss.device)).sum(dim=1)  # (C,)
        return loss + self.weight * (1 - cosines).mean()


def build(config: Config, backbone: Backbone, benchmark: Benchmark) -> _context.PromptLearner:
    assert isinstance(backbone, ClipBackbone)
    own = texts_of(config, benchmark).prompts(benchmark.classes)
    written = prompts.prompt_directions(backbone, own, config.ensemble)
    return _context.learner(config, backbone, benchmark, Knowledge(written, config.weight))


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
