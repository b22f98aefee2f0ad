"""A script that fits in as many processes as are asked for. Nothing here is a test.

python fit_in_processes.py DEVICES PER_DOMAIN FILE
"""

import json
import sys
from pathlib import Path
from typing import Any

import clipdg  # isort: skip  # before lightning, which imports torchvision: see clipdg/core/torchvision_guard.py

import lightning
import numpy as np
import torch

from clipdg.core.benchmark import Benchmark
from clipdg.data import datasets, loaders
from clipdg.data.rows import ArrayRows
from clipdg.methods import erm
from clipdg.training import trainer as trainer_
from clipdg.training.classifier import Classifier


class Keep(lightning.Callback):
    """The mean of the processes' losses at each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, outputs: Any, *_: Any) -> None:
        mean = trainer.strategy.reduce(outputs["loss"].detach().double(), reduce_op="mean")
        assert isinstance(mean, torch.Tensor)
        self.losses.append(mean.item())


def _sum(name: str, parameter: torch.Tensor) -> float:
    """The sum of a parameter without the keys' biases.

    The softmax cancels these, so their gradient is rounding alone, and Adam makes whole steps of it.
    """
    if name.endswith("qkv.bias"):
        query, _, value = parameter.chunk(3)
        parameter = torch.cat([query, value])
    return parameter.double().sum().item()


def main(devices: int, per_domain: bool, file: Path) -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 32, 32, 3)).astype(np.uint8)
    rows = ArrayRows(images, rng.integers(0, 3, 40), [str(i) for i in range(40)])
    clip = clipdg.load_backbone("tiny:vit", "random:0")  # no batch norm, whose statistics are of a process's share
    parts = [datasets.ImageDataset(rows, range(20 * d, 20 * d + 20), clip.preprocessing, d) for d in (0, 1)]
    order = torch.Generator().manual_seed(0)
    loader = loaders.loader(datasets.concatenate(parts), 4, generator=order, per_domain=per_domain, shared=True)
    settings = erm.Config(augment="none", lr=1e-3)
    torch.manual_seed(0)
    head = erm.build(settings, clip, Benchmark("b", ("a", "b", "c")))
    classifier = Classifier(clip, head, 3, erm.fit(settings), erm.METHOD, settings)
    keep = Keep()
    options: dict[str, Any] = {"strategy": "ddp", "use_distributed_sampler": False} if devices > 1 else {}
    with trainer_.quiet():
        made = trainer_.make("fit", accelerator="cpu", devices=devices, max_epochs=2, callbacks=[keep], **options)
        made.fit(classifier, loader)
    if made.is_global_zero:
        weights = [_sum(name, p) for name, p in classifier.named_parameters() if p.requires_grad]
        file.write_text(json.dumps({"losses": keep.losses, "weights": weights}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2] == "True", Path(sys.argv[3]))
