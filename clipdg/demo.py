"""``clipdg demo``: the whole story on the built-in benchmark, from scratch.

A CLIP is pre-trained on drawn images with captions; zero-shot, linear probe and CoOp over its frozen encoder stand
beside ResNets trained on the source domain alone. What is there from an earlier call is used again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from clipdg import config
from clipdg import sweep as sweep_
from clipdg.trainer import Progress

RUNS = Path(__file__).with_name("demo.yaml")


def pretrain(out: Path, progress: Progress | None = None) -> Path:
    """The demo's own CLIP, in ``out``; trained unless the file there was made by the same settings."""
    from clipdg import pretrain as pretrain_
    from clipdg import weights

    settings = pretrain_.PretrainConfig(seed=0)
    path = out / f"{pretrain_.file_name(settings)}.safetensors"
    if path.exists():
        _, header = weights.read(path)
        if header.get("provenance", {}).get("config") == pretrain_.settings(settings):
            return path
    return pretrain_.pretrain(settings, out, progress)


def sweep(
    out: Path,
    weights: Path,
    progress: Progress | None = None,
    on_start: Callable[[int, int, config.Resolved], None] | None = None,
) -> sweep_.Outcome:
    """The demo's runs over those weights; the supervised ResNets have none."""
    from clipdg.run import Session

    planned = sweep_.plan(RUNS)
    for resolved in planned:
        backbone = resolved.values["backbone"]
        if backbone["weights"] is None:
            backbone["weights"] = str(weights)
    return sweep_.execute(planned, out, Session(progress=progress), on_start)
