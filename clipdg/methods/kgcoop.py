"""KgCoOp: CoOp with class directions held near written prompts.

Yao et al., Visual-Language Prompt Tuning with Knowledge-guided Context Optimization, CVPR 2023, arXiv:2303.13283. The
loss is CoOp's plus ``weight`` times the mean over classes of ``1 - cos(w_i, w_i^clip)``, where w^clip are the
directions of the written prompts. This is the formula of the authors' code (htyao89/KgCoOp), which uses weight 8. The
paper prints the squared distance instead, which is twice as large: its formula at 8 is ``weight=16`` here. The other
settings are the code's for ViT-B/16 (vit_b16_ep100_ctxv1): 100 epochs in batches of 128, and a context that starts from
"a photo of a".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from clipdg.core.benchmark import Benchmark
from clipdg.core.model import Backbone, ClipBackbone
from clipdg.core.plugins import Method
from clipdg.methods import _context
from clipdg.text import prompts
from clipdg.text.templates import Prompted, texts_of


@dataclass(frozen=True)
class Config(_context.ContextConfig, Prompted):
    """Settings of the learnt context (_context.py) and of the written prompts (text/templates.py).

    ``weight``: how strongly the directions are held.
    """

    context_init: str | None = "a photo of a"
    num_context: int = field(default=4, metadata={"min": 1})
    epochs: int = field(default=100, metadata={"min": 1})
    batch_size: int = field(default=128, metadata={"min": 1})
    weight: float = field(default=8.0, metadata={"min": 0.0})


class NearWrittenPrompts:
    """Adds to the loss how far the class directions are from the written ones; a ``_context.Regularizer``."""

    def __init__(self, written: Tensor, weight: float) -> None:
        """``written``: (C, D), of unit length."""
        self.written, self.weight = written, weight

    def __call__(self, loss: Tensor, context: nn.Parameter, passes: Sequence[_context.Pass]) -> Tensor:
        cosines = (passes[-1].directions * self.written.to(loss.device)).sum(dim=1)  # (C,)
        return loss + self.weight * (1 - cosines).mean()


def build(config: Config, backbone: Backbone, benchmark: Benchmark) -> _context.PromptLearner:
    """Raises ConfigError if the context cannot be put into the text tower."""
    assert isinstance(backbone, ClipBackbone)
    own = texts_of(config, benchmark).prompts(benchmark.classes)
    written = prompts.prompt_directions(backbone, own, config.ensemble)
    return _context.prompt_learner(config, backbone, benchmark, NearWrittenPrompts(written, config.weight))


METHOD = Method(
    config=Config,
    build=build,
    trains="method",
    fit=_context.schedule,
    needs_text=True,
    regularize=_context.PromptLearner.regularize,
    learns_context=True,
)
