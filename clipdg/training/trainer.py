"""Lightning trainers for clipdg's own runs: quiet, on whatever device there is, reporting to a progress function."""

from __future__ import annotations

import logging
import math
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import lightning

from clipdg.core import signals
from clipdg.core.fit import Fit
from clipdg.core.progress import Progress

_LOGGERS = ("lightning.pytorch", "lightning.fabric")


class _Report(lightning.Callback):
    def __init__(self, stage: str, progress: Progress, steps: int | None) -> None:
        self.stage, self.progress, self.steps = stage, progress, steps

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        total = num_updates(trainer, self.steps)
        self.progress(self.stage, min(trainer.global_step, total), total)


class Until(lightning.Callback):
    """Ends a fit after so many updates.

    With Lightning's own ``max_steps``, a fit that goes on from the end of a pass is taken for one within it: its first
    batch is a pass by itself (2.6).
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step >= self.steps:
            trainer.should_stop = True


class _Stop(lightning.Callback):
    """A signal that came while an object was being collected: Python has dropped the exception of its handler."""

    def on_train_batch_end(self, *_: Any) -> None:
        signals.check()


def make(stage: str, progress: Progress | None = None, **options: Any) -> lightning.Trainer:
    """A ``lightning.Trainer`` that logs, saves and prints nothing; on one device, the accelerator if there is one.

    ``steps`` among the options: the updates after which a fit ends, if it is not all of its passes.
    """
    steps: int | None = options.pop("steps", None)
    defaults: dict[str, Any] = {
        "accelerator": "auto",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    callbacks: list[lightning.Callback] = [_Stop()]
    callbacks += [_Report(stage, progress, steps)] if progress else []
    callbacks += options.pop("callbacks", [])
    callbacks += [Until(steps)] if steps is not None else []
    return lightning.Trainer(callbacks=callbacks, **(defaults | options))


def options_of(fit: Fit) -> dict[str, Any]:
    """What ``make`` needs to know of a fit: its length and its arithmetic. ``epochs`` must have room for ``steps``."""
    return {
        "max_epochs": fit.epochs,
        "steps": fit.steps,
        "precision": precision_of(fit),
        "accumulate_grad_batches": fit.accumulate,
        "gradient_clip_val": fit.clip_norm,
    }


def precision_of(fit: Fit) -> Literal["32-true", "bf16-mixed", "16-mixed"]:
    """Lightning's name for the arithmetic of a fit."""
    names: dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
        "fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"
    }  # fmt: skip
    return names[fit.precision]


def passes(trainer: lightning.Trainer, fit: Fit) -> int:
    """The passes over the data that a fit of so many updates takes; schedules that count passes ask for them."""
    assert fit.steps is not None
    trainer.fit_loop.setup_data()
    return math.ceil(fit.steps / max(1, math.ceil(trainer.num_training_batches / fit.accumulate)))


def num_updates(trainer: lightning.Trainer, steps: int | None) -> int:
    """Of a fit: ``steps``, or those of all its passes."""
    return int(trainer.estimated_stepping_batches) if steps is None else steps


def hush() -> None:
    """For the rest of this process, which somebody's ``quiet`` began: no advice of Lightning's."""
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")


@contextmanager
def quiet() -> Iterator[None]:
    """Around the use of a trainer: no advice on devices, workers and loggers, and Ctrl-C is KeyboardInterrupt.

    Lightning turns Ctrl-C into exit code 1 and leaves the signal ignored.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    handler = signal.getsignal(signal.SIGINT)
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning.*")
            yield
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
