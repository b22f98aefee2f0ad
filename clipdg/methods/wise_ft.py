"""WiSE-FT: weights between zero-shot and fine-tuned ones.

Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022, arXiv:2109.01903; mlfoundations/wise-ft at 58b7a4b.
The head starts as the class directions times the logit scale, with a bias of 0, over features of unit length. AdamW
trains tower and head at 3e-5, with weight decay 0.1 on every parameter, gradients clipped at 1, 500 updates of linear
warm-up and then a cosine. After the fit all weights become (1 - alpha) · zero-shot + alpha · fine-tuned. The run's
evaluations are those at ``alpha``; its record has the whole curve beside them.

Different from the authors' code, batch-norm statistics are interpolated too. ViTs have none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from clipdg.core.benchmark import Benchmark
from clipdg.core.fit import Fit
from clipdg.core.model import Backbone, ClipBackbone
from clipdg.core.plugins import Method
from clipdg.methods._zero_shot_head import ZeroShotHead, zero_shot_directions
from clipdg.text.templates import Prompted


@dataclass(frozen=True)
class Config(Prompted):
    """``alpha``: the share of the fine-tuned weights in what is evaluated; 1 for these alone.

    The other settings are those of the prompts (text/templates.py) and of the fit.
    """

    alpha: float = field(default=0.5, metadata={"min": 0.0, "max": 1.0})  # the authors' choice without a target to see
    epochs: int = field(default=10, metadata={"min": 1})
    lr: float = field(default=3e-5, metadata={"min": 0.0, "max": 100.0})
    batch_size: int = field(default=512, metadata={"min": 1})
    weight_decay: float = field(default=0.1, metadata={"min": 0.0})
    warmup_steps: int = field(default=500, metadata={"min": 0})
    label_smoothing: float = field(default=0.0, metadata={"min": 0.0, "max": 0.999})
    augment: Literal["none", "light", "domainbed", "crop"] = "crop"


def build(config: Config, backbone: Backbone, benchmark: Benchmark) -> ZeroShotHead:
    """Raises ConfigError for prompts that differ between domains, since all domains share one head."""
    assert isinstance(backbone, ClipBackbone)
    return ZeroShotHead(zero_shot_directions("wise_ft", config, backbone, benchmark), backbone.logit_scale)


def fit(config: Config) -> Fit:
    return Fit(
        optimizer="adamw",
        lr=config.lr,
        epochs=config.epochs,
        batch_size=config.batch_size,
        weight_decay=config.weight_decay,
        decay_all=True,
        schedule="cosine_after_warmup",
        warmup_steps=config.warmup_steps,
        label_smoothing=config.label_smoothing,
        augment=config.augment,
        clip_norm=1.0,
    )


METHOD = Method(
    config=Config,
    build=build,
    trains="everything",
    fit=fit,
    needs_text=True,
    represent=ZeroShotHead.represent,
    classify=ZeroShotHead.classify,
    interpolates=lambda config: config.alpha,
    alphas=tuple(i / 10 for i in range(11)),  # of the curve in the record
)
