"""``clipdg demo``: the whole story on the built-in benchmark, from scratch.

A CLIP is pre-trained on drawn images with captions; zero-shot, linear probe and CoOp over its frozen encoder stand
beside ResNets trained on the source domain alone. What is there from an earlier call is used again.

The models are so small that one thread each is fastest; the ResNets, which need no CLIP, train in a second process
while it is pre-trained.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from clipdg.core.progress import Progress
from clipdg.runs import sweep as sweep_
from clipdg.runs import sweep_file

RUNS = Path(__file__).with_name("demo.yaml")


def run(out: Path, progress: Progress, on_step: Callable[[sweep_.Step], None]) -> sweep_.Outcome:
    """Pre-train, run all of demo.yaml, keep weights and records in ``out``."""
    import torch

    torch.set_num_threads(1)
    planned = sweep_file.plan(RUNS)
    alone = [r for r in planned if r.backbone.weights is not None]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _in_background) as pool:
        try:
            resnets = pool.submit(sweep_.execute, alone, out)
            weights = pretrain(out, progress)
            over_clip = [
                r.changed(backbone={**r.plain["backbone"], "weights": str(weights)})
                for r in planned
                if r.backbone.weights is None
            ]
            outcome = sweep_.execute(over_clip, out, progress, on_step)
            if not resnets.done():
                progress("waiting for the ResNets", 0, 1)
            other = resnets.result()
        except BaseException:  # Ctrl-C above all: the pool would wait for its runs to end
            for process in multiprocessing.active_children():
                process.terminate()
            raise
    return sweep_.Outcome(outcome.done + other.done, outcome.failed + other.failed)


def pretrain(out: Path, progress: Progress | None = None) -> Path:
    """The demo's own CLIP, in ``out``; trained unless the file there was made by the same settings."""
    from clipdg.training import pretrain as pretrain_
    from clipdg.weights import files

    settings = pretrain_.PretrainConfig(seed=0)
    path = out / f"{pretrain_.file_name(settings)}.safetensors"
    if path.exists():
        _, header = files.read(path)
        if header.get("provenance", {}).get("config") == pretrain_.settings(settings):
            return path
    return pretrain_.pretrain(settings, out, progress)


def _in_background() -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches both processes; only the first has a word to say
    torch.set_num_threads(1)
