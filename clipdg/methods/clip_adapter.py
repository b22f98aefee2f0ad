"""CLIP-Adapter: a two-layer bottleneck beside the features.

Gao et al. 2021, arXiv:2110.04544. A feature f becomes ``ratio A(f) + (1 - ratio) f`` with ``A = ReLU W_2 ReLU W_1``.
W_1 is a quarter as wide as the feature, neither layer has a bias, and the ratio is 0.2, as in the authors' code
(gaopengcuhk/CLIP-Adapter). The result is compared with the classes' prompts as in zero-shot.

The authors' code has no optimiser settings. Those here are CoOp's on Dassl, on which that code is built: SGD at 0.002,
momentum 0.9, one epoch at 1e-5 and then a cosine per epoch. It also trains on random crops and flips, which stored
features leave out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn import functional as F

from clipdg.core.benchmark import Benchmark
from clipdg.core.errors import ConfigError
from clipdg.core.model import Backbone, ClipBackbone
from clipdg.core.plugins import Method
from clipdg.methods import _context
from clipdg.text import prompts
from clipdg.text.templates import Prompted, texts_of


@dataclass(frozen=True)
class Config(Prompted):
    """``reduction``: how many times narrower than the feature the bottleneck is.

    The other settings are those of the prompts (text/templates.py) and of the fit.
    """

    ratio: float = field(default=0.2, metadata={"min": 0.0, "max": 1.0})
    reduction: int = field(default=4, metadata={"min": 1})
    epochs: int = field(default=50, metadata={"min": 1})
    lr: float = field(default=2e-3, metadata={"min": 0.0, "max": 100.0})
    batch_size: int = field(default=32, metadata={"min": 1})
    weight_decay: float = field(default=5e-4, metadata={"min": 0.0})
    momentum: float = field(default=0.9, metadata={"min": 0.0, "max": 1.0})
    warmup_epochs: int = field(default=1, metadata={"min": 0})
    warmup_lr: float = field(default=1e-5, metadata={"min": 0.0})


class ClipAdapter(nn.Module):
    """Scaled cosines between adapted features and class directions.

    Legend: N images, C classes, D features.
    """

    directions: Tensor

    def __init__(self, directions: Tensor, scale: float, ratio: float, reduction: int) -> None:
        """``directions``: (C, D), of unit length."""
        super().__init__()
        width = directions.shape[1]
        self.register_buffer("directions", directions)
        self.scale, self.ratio = scale, ratio
        self.down = nn.Linear(width, width // reduction, bias=False, device=directions.device)
        self.up = nn.Linear(width // reduction, width, bias=False, device=directions.device)

    def represent(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, D), adapted, of unit length."""
        adapted = self.up(self.down(features).relu()).relu()
        return F.normalize(self.ratio * adapted + (1 - self.ratio) * features, dim=1)

    def classify(self, represented: Tensor) -> Tensor:
        """(N, D) -> (N, C)"""
        return self.scale * represented @ self.directions.T

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, C)"""
        return self.classify(self.represent(features))


def build(config: Config, backbone: Backbone, benchmark: Benchmark) -> ClipAdapter:
    """Raises ConfigError if the bottleneck would have no width."""
    assert isinstance(backbone, ClipBackbone)
    if config.reduction > backbone.embed_dim:
        raise ConfigError(f"method.reduction is {config.reduction} and there are {backbone.embed_dim} features")
    own = texts_of(config, benchmark).prompts(benchmark.classes)
    directions = prompts.prompt_directions(backbone, own, config.ensemble)
    return ClipAdapter(directions, backbone.logit_scale, config.ratio, config.reduction)


METHOD = Method(
    config=Config,
    build=build,
    trains="method",
    fit=_context.schedule,
    needs_text=True,
    represent=ClipAdapter.represent,
    classify=ClipAdapter.classify,
    represents=True,
)
