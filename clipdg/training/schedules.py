"""Learning-rate schedules of a fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from clipdg.core.fit import Fit


def lr_factor(fit: Fit, length: int, steps_per_epoch: int) -> Callable[[int], float]:
    """What the learning rate is multiplied by at each epoch or step of ``length``.

    ``cosine_epoch`` is Dassl's: ``warmup_lr`` for the warm-up, then ``(1 + cos(pi (e - warmup) / epochs)) / 2``, which
    does not reach 0. ``cosine_step`` is trainer.warmup_cosine. ``cosine_after_warmup`` is WiSE-FT's:
    ``(s + 1) / warmup``, then ``(1 + cos(pi (s - warmup) / (length - warmup))) / 2``.
    """

    def per_epoch(epoch: int) -> float:
        if epoch < fit.warmup_epochs:
            return (fit.warmup_lr or 0.0) / fit.lr
        return 0.5 * (1 + math.cos(math.pi * (epoch - fit.warmup_epochs) / length))

    def per_step(step: int) -> float:
        return warmup_cosine(step, length, int(fit.warmup_epochs * steps_per_epoch))

    def after_warmup(step: int) -> float:
        if step < fit.warmup_steps:
            return (step + 1) / fit.warmup_steps
        return 0.5 * (1 + math.cos(math.pi * (step - fit.warmup_steps) / max(1, length - fit.warmup_steps)))

    return {"cosine_epoch": per_epoch, "cosine_after_warmup": after_warmup}.get(fit.schedule, per_step)


def warmup_cosine(step: int, num_steps: int, num_warmup: int) -> float:
    """The learning rate's factor: the smaller of a line up to 1 over the warm-up and a cosine over all steps."""
    return min((step + 1) / max(1, num_warmup), 0.5 * (1 + math.cos(math.pi * step / num_steps)))


def decay_groups(parameters: Sequence[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices and kernels, none for biases, norms and scales."""
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
