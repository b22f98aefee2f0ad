"""CoOp: context vectors are learnt in place of prompt words.

Zhou et al., Learning to Prompt for Vision-Language Models, IJCV 2022, arXiv:2109.01134. A prompt is
[SOS] [V]_1 … [V]_M [class name] [suffix] [EOS], or has the class name in the middle of the V or in front of them. Only
the V are trained, by SGD on the cross-entropy of the scaled cosines, and they stay in fp32. The settings are those of
the authors' code (KaiyangZhou/CoOp, on Dassl): one epoch of constant warm-up at 1e-5, then a cosine that is stepped per
epoch; the last epoch is evaluated.

Two things differ from that code. Features are stored, so each image has as many random crops and flips as ``fit.views``
says, and none by default. A context that starts from text has a vector for each token of it, not for each word, and may
be class-specific too.
"""

from __future__ import annotations

from dataclasses import dataclass

from clipdg.core.benchmark import Benchmark
from clipdg.core.model import Backbone
from clipdg.core.plugins import Method
from clipdg.methods import _context


@dataclass(frozen=True)
class Config(_context.ContextConfig):
    """The settings of every method that learns a context, see _context.py."""


def build(config: Config, backbone: Backbone, benchmark: Benchmark) -> _context.PromptLearner:
    """Raises ConfigError if the context cannot be put into the text tower, see ``_context.prompt_learner``."""
    return _context.prompt_learner(config, backbone, benchmark)


METHOD = Method(
    config=Config,
    build=build,
    trains="method",
    fit=_context.schedule,
    needs_text=True,
    regularize=_context.PromptLearner.regularize,
    learns_context=True,
)
