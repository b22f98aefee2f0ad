"""``clipdg demo``: the whole story on the built-in benchmark, from scratch.

A CLIP is pre-trained on drawn images with captions; zero-shot, linear probe and CoOp over its frozen encoder stand
beside ResNets trained on the source domain alone. What is there from an earlier call is used again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from clipdg import sweep as sweep_
from clipdg.trainer import Progress

if TYPE_CHECKING:
    from clipdg.run import Session

RUNS = Path(__file__).with_name("demo.yaml")


def pretrain(out: Path, progress: Progress | None = None) -> Path:
    """The demo's own CLIP, in ``out``; trained if it is not there."""
    from clipdg.pretrain import PretrainConfig
    from clipdg.pretrain import pretrain as train

    return train(PretrainConfig(), out, progress)


def sweep(
    out: Path, weights: Path, session: Session, on_start: Callable[[int, int, object], None] | None = None
) -> sweep_.Outcome:
    """The demo's runs over those weights; the supervised ResNets have none."""
    planned = sweep_.plan(RUNS)
    for resolved in planned:
        backbone = resolved.values["backbone"]
        if backbone["weights"] is None:
            backbone["weights"] = str(weights)
    return sweep_.execute(planned, out, session, on_start)
