"""A step of ERM through the Trainer: against a loop written by hand over the same model and batches."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from harness import Case, Setting, Side, Step
from torch import nn
from torch.nn import functional as F

import clipdg
from clipdg.core.benchmark import Benchmark
from clipdg.data import datasets, preprocessing
from clipdg.methods import erm
from clipdg.training import trainer
from clipdg.training.classifier import Classifier

CLASSES = tuple(f"class {i}" for i in range(7))  # as many as PACS has
STEPS, DOMAINS, PER_DOMAIN = 6, 3, 4
SETTINGS = erm.Config(augment="none", epochs=1)


class Batches:
    """The same batches on each pass, as data.PerDomain makes them."""

    def __init__(self, size: int, device: str) -> None:
        generator = torch.Generator().manual_seed(1)
        num = DOMAINS * PER_DOMAIN
        domains = torch.arange(DOMAINS).repeat_interleave(PER_DOMAIN).to(device)

        def batch() -> datasets.Batch:
            pixels = torch.randint(256, (num, 3, size, size), dtype=torch.uint8, generator=generator).to(device)
            labels = torch.randint(len(CLASSES), (num,), generator=generator).to(device)
            return datasets.Batch(pixels, labels, domains, torch.arange(num, device=device))

        self.batches = [batch() for _ in range(STEPS)]

    def __iter__(self) -> Iterator[datasets.Batch]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def start(name: str, setting: Setting) -> tuple[Any, nn.Module, Batches]:
    """Backbone, head and batches, the same for both sides."""
    small = "timm:resnet18.tv_in1k" if setting.small else name
    backbone: Any = clipdg.load_backbone(small, "random:0")
    backbone.to(setting.device)
    torch.manual_seed(0)
    head = erm.build(SETTINGS, backbone, Benchmark("b", CLASSES)).to(setting.device)
    return backbone, head, Batches(64 if setting.small else backbone.preprocessing.size, setting.device)


def by_hand(name: str) -> Any:
    def prepare(setting: Setting) -> Step:
        backbone, head, batches = start(name, setting)

        def step() -> list[float]:
            tower, last = copy.deepcopy(backbone).requires_grad_(True).train(), copy.deepcopy(head)
            trained = [p for p in (*tower.parameters(), *last.parameters()) if p.requires_grad]
            adam = torch.optim.Adam(trained, SETTINGS.lr)
            losses = []
            for batch in batches:
                features = tower.encode_image(preprocessing.normalize(batch.inputs, tower.preprocessing))
                loss = F.cross_entropy(last(features), batch.labels)
                adam.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                adam.step()
                losses.append(loss.item())
            return losses

        return step

    return prepare


def ours(name: str) -> Any:
    def prepare(setting: Setting) -> Step:
        backbone, head, batches = start(name, setting)

        def step() -> list[float]:
            losses: list[float] = []
            tower, last = copy.deepcopy(backbone), copy.deepcopy(head)
            classifier = Classifier(tower, last, len(CLASSES), erm.fit(SETTINGS), erm.METHOD, SETTINGS)
            classifier.objective.register_forward_hook(lambda *given: losses.append(given[2].item()))
            with trainer.quiet():
                made = trainer.make("fit", accelerator="gpu" if setting.device == "cuda" else "cpu", max_epochs=1)
                made.fit(classifier, batches)
            return losses

        return step

    return prepare


def facts(found: Sequence[Any]) -> Mapping[str, float]:
    theirs, mine = (torch.tensor(losses) for losses in found)
    return {"largest difference of a loss": float((theirs - mine).abs().max())}


def case(name: str, model: str) -> Case:
    return Case(
        name,
        f"{STEPS} steps of ERM, {model}, {DOMAINS} x {PER_DOMAIN} images: is one within 5 % of a plain loop's?",
        (Side("a loop by hand", by_hand(model)), Side("clipdg", ours(model))),
        facts,
        limits={"largest difference of a loss": 1e-4},
        at_least=0.95,
    )


CASES = (case("erm-resnet50", "timm:resnet50.tv_in1k"), case("erm-vit-b32", "open_clip:ViT-B-32-quickgelu"))
