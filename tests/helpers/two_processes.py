"""A script that fits and tests methods on given features and writes what came out. Nothing here is a test.

It is run once in each process: python two_processes.py CASES FILE DEVICES
"""

import json
import os
import sys
import warnings
from pathlib import Path

import torch
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import clipdg

RANK = int(os.environ.get("LOCAL_RANK", "0"))
CASES = json.loads(sys.argv[1])
CLASSES = ("circle", "square", "heart")


def loader(
    seed: int, count: int, batch_size: int, devices: int = 1, *, ordered: bool = False
) -> DataLoader[tuple[torch.Tensor, ...]]:
    """Batches of made features. ``ordered``: deal them out in order; Lightning shuffles what it deals for training."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    features = torch.randn(count, 64, generator=generator) + 2 * torch.eye(3, 64)[labels]
    data = TensorDataset(features, labels)
    if not ordered:
        return DataLoader(data, batch_size)
    return DataLoader(data, batch_size, sampler=DistributedSampler(data, devices, RANK, shuffle=False))


def main(out: Path, devices: int) -> None:
    import lightning  # after clipdg, which lets a torchvision of another build be imported

    torch.set_num_threads(1)
    backbone = clipdg.load_backbone("tiny", "random:0")
    found = []
    for name, settings, num_fit in CASES:
        torch.manual_seed(0)
        model = clipdg.method(name, backbone, CLASSES, **settings)
        trainer = lightning.Trainer(
            max_epochs=2, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        )  # fmt: skip
        batch_size = 8 // devices
        ordered = name != "linear_probe" or num_fit % 2 == 0  # the probe's solution does not depend on the order
        if num_fit:
            trainer.fit(model, loader(1, num_fit, batch_size, devices, ordered=ordered), loader(2, 13, batch_size))
        trainer.test(model, loader(3, 23, batch_size), verbose=False)
        predictions = model.predictions["test"]
        found.append(
            {
                "parameters": {n: p.flatten().tolist() for n, p in model.method.named_parameters()},
                "results": model.results["test", "test"],
                "indices": predictions.indices.tolist(),
                "labels": predictions.labels.tolist(),
                "predicted": predictions.predicted.tolist(),
                "confidence": predictions.confidence.tolist(),
            }
        )
    if trainer.is_global_zero:
        out.write_text(json.dumps(found))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(Path(sys.argv[2]), int(sys.argv[3]))
