"""erm: the mean cross-entropy of all images, from whichever domain.

Vapnik, Statistical Learning Theory, 1998.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from clipdg.core.model import Model
from clipdg.core.plugins import NoSettings, Objective


class ERM(nn.Module):
    """The mean cross-entropy."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, model: Model, inputs: Tensor, labels: Tensor, domains: Tensor | None) -> Tensor:
        _, logits = model(inputs)
        return F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)


def build(config: NoSettings, domains: Sequence[int], label_smoothing: float, seed: int) -> ERM:
    return ERM(label_smoothing)


OBJECTIVE = Objective(config=NoSettings, build=build, needs="images")
