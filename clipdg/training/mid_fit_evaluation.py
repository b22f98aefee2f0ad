"""Evaluations on the way of a fit, of which records/model_selection.py may choose one afterwards.

Counted as in DomainBed: after the first update, and then every so many; its "step 300" is the state after 301 updates,
and is called 301 here. The last update's belongs to whoever evaluates the fit when it is over. Nothing that is found
here reaches the fit: it ends in the same weights, to the bit, whether it is evaluated on its way or not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import lightning

from clipdg.evaluation.evaluator import Results
from clipdg.training.trainer import num_updates
from clipdg.training.weight_averaging import Average


class MidFitEvaluation(lightning.Callback):
    """``found``: by step, the results; they are part of the state of a fit. ``seconds``: what they took."""

    def __init__(
        self, every: int, evaluate: Callable[[int], Results], average: Average | None, steps: int | None
    ) -> None:
        """``steps``: updates of the fit, None for all of its passes."""
        self.every, self.evaluate, self.average, self.steps = every, evaluate, average, steps
        self.found: dict[int, Results] = {}
        self.seconds = 0.0

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        step, last = trainer.global_step, num_updates(trainer, self.steps)
        if step == 0 or (step - 1) % self.every or step in self.found or step >= last:
            return
        started = time.perf_counter()
        with self.average.instead() if self.average else nullcontext():
            self.found[step] = self.evaluate(step)
        self.seconds += time.perf_counter() - started

    def state_dict(self) -> dict[str, Any]:
        return {
            "found": [
                {"step": step, "domain": domain, "split": split, "metrics": dict(metrics)}
                for step, results in self.found.items()
                for (domain, split), metrics in results.items()
            ]
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.found = {}
        for e in state_dict["found"]:
            self.found.setdefault(e["step"], {})[e["domain"], e["split"]] = e["metrics"]
