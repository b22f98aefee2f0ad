"""CoOp: learned context vectors in the place of a prompt's words (Zhou et al. 2022, arXiv:2109.01134).

The prompt is [SOS] [V]_1 … [V]_M [class name] [suffix] [EOS], or has the name in the middle of the V or before them;
only the V are trained, by SGD on the cross-entropy of the scaled cosines, and they stay in fp32. Settings are those of
the authors' code (KaiyangZhou/CoOp, on Dassl): constant warm-up of one epoch at 1e-5, cosine stepped per epoch, last
epoch evaluated. Different from it: features are stored, so that of its random crops and flips there are as many to an
image as ``fit.views`` says, none by default, and M counts tokens, not words, if the context starts from text, which may
be a class-specific one too.
"""

from __future__ import annotations

from dataclasses import dataclass

from clipdg.core.benchmark import Benchmark
from clipdg.core.fit import Fit
from clipdg.core.model import Backbone
from clipdg.core.plugins import Method
from clipdg.methods import _context


@dataclass(frozen=True)
class Config(_context.Learning):
    """See _context.py."""


def build(config: Config, backbone: Backbone, benchmark: Benchmark) -> _context.PromptLearner:
    return _context.learner(config, backbone, benchmark)


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
