"""Lightning trainers for clipdg's own runs: quiet, on whatever device there is, reporting to a progress function."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning

Progress = Callable[[str, int, int], None]  # stage, done, total


class _Report(lightning.Callback):
    def __init__(self, stage: str, progress: Progress) -> None:
        self.stage, self.progress = stage, progress

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        total = int(trainer.estimated_stepping_batches)
        self.progress(self.stage, min(trainer.global_step, total), total)


def make(stage: str, progress: Progress | None = None, **options: Any) -> lightning.Trainer:
    """A ``lightning.Trainer`` that logs, saves and prints nothing; on one device, the accelerator if there is one."""
    defaults: dict[str, Any] = {
        "accelerator": "auto",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return lightning.Trainer(callbacks=[_Report(stage, progress)] if progress else [], **(defaults | options))


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning's advice on devices, workers and loggers is for people who wrote the trainer themselves."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
