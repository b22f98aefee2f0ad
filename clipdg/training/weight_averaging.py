"""Averages of weights along a fit, which are tested in the place of the last ones.

    swa   the mean of the weights after each update from ``start`` on: SWAD's dense averaging with its interval given
          (Cha et al., NeurIPS 2021, arXiv:2102.08604; Izmailov et al., UAI 2018, averaged once an epoch)
    ema   the average decays by ``decay`` with each update (Polyak & Juditsky 1992)

Running statistics of batch norm are averaged like weights; SWAD freezes them (backbone.frozen_batch_norm). Lightning's
WeightAveraging copies the whole module, a frozen CLIP included; here is a copy of what is trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from clipdg.core.fit import Fit


class Average(lightning.Callback):
    def __init__(self, start: int = 0, decay: float | None = None) -> None:
        """``start``: the number of updates before the first whose weights count. ``decay``: None for the mean."""
        self.start, self.decay = start, decay
        self.num_averaged = 0
        self.mean: list[Tensor] = []
        self.weights: list[Tensor] = []  # what is trained, once the fit has begun
        self._updates = 0  # at which the average is up to date

    @classmethod
    def of(cls, fit: Fit | None) -> Average | None:
        """The average that a fit asks for, if it asks for one."""
        if fit is None or fit.average == "none":
            return None
        return cls(fit.average_from, fit.ema_decay if fit.average == "ema" else None)

    def on_train_start(self, _: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.weights = _trained(module)
        self.mean = [m.to(w.device) for m, w in zip(self.mean, self.weights, strict=False)]  # of a fit that goes on

    @torch.no_grad()
    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step <= max(self.start, self._updates):  # too early, or no update since: gradients add up
            return
        self._updates = trainer.global_step
        self.num_averaged += 1
        if self.num_averaged == 1:
            self.mean = [w.clone() for w in self.weights]
            return
        torch._foreach_lerp_(self.mean, self.weights, 1 / self.num_averaged if self.decay is None else 1 - self.decay)

    def on_train_end(self, *_: Any) -> None:
        self._finish()

    def finish(self, module: lightning.LightningModule) -> None:
        """Put the average into a fit that was over when it was interrupted, which Lightning does not begin again."""
        if not self.weights:
            module.train()
            self.weights = _trained(module)
            self._finish()

    def _finish(self) -> None:
        if self.num_averaged:
            _copy(self.mean, self.weights)

    @contextmanager
    def instead(self) -> Iterator[None]:
        """The average so far in the place of the weights, if there is one."""
        if not self.num_averaged:
            yield
            return
        kept = [w.clone() for w in self.weights]
        _copy(self.mean, self.weights)
        try:
            yield
        finally:
            _copy(kept, self.weights)

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "num_averaged": self.num_averaged, "updates": self._updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.mean, self.num_averaged = list(state_dict["mean"]), state_dict["num_averaged"]
        self._updates = state_dict["updates"]


def _trained(module: lightning.LightningModule) -> list[Tensor]:
    """What changes in training: parameters with a gradient, and the statistics of batch norms that are not frozen."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    running = [b for m in norms for b in (m.running_mean, m.running_var) if b is not None]
    return [p.data for p in module.parameters() if p.requires_grad] + running


@torch.no_grad()
def _copy(values: list[Tensor], into: list[Tensor]) -> None:
    for value, place in zip(values, into, strict=True):
        place.copy_(value)
