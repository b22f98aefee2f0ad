"""The weights' own classifier gives timm's logits, matched to classes by WordNet id."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import clipdg
from clipdg.backbones.timm import TimmImage
from clipdg.benchmarks.imagenet.classes import classes
from clipdg.core.benchmark import Benchmark
from clipdg.core.errors import ConfigError
from clipdg.core.model import ClipBackbone
from clipdg.core.plugins import NoSettings
from clipdg.methods import own_head

WNIDS = tuple(one.wnid for one in classes())
NAMES = tuple(one.name for one in classes())


@pytest.fixture(scope="module")
def resnet() -> TimmImage:
    backbone = clipdg.load_backbone("timm:resnet18.tv_in1k", "random:0")
    assert isinstance(backbone, TimmImage)
    return backbone


def built(backbone: Any, wnids: tuple[str, ...] = WNIDS) -> own_head.OwnHead:
    return own_head.build(NoSettings(), backbone, Benchmark("b", NAMES[: len(wnids)], wnids=wnids))


def test_its_logits_are_timms(resnet: TimmImage) -> None:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = resnet.encode_image(images)
        torch.testing.assert_close(built(resnet)(features), resnet.model(images))


def test_classes_are_told_by_wnid_in_whatever_order(resnet: TimmImage) -> None:
    features = torch.randn(3, 512, generator=torch.Generator().manual_seed(0))
    turned = torch.randperm(1000, generator=torch.Generator().manual_seed(1)).tolist()
    with torch.inference_mode():
        whole = built(resnet)(features)
        some = built(resnet, tuple(WNIDS[i] for i in turned[:300]))(features)
    assert torch.equal(some, whole[:, turned[:300]])


def test_1000_classes_are_found_among_21841(resnet: TimmImage) -> None:
    class Large(torch.nn.Module):
        name, weights = "large", resnet.weights
        head_wnids = ("n00000001", *WNIDS[::-1])

        def __init__(self) -> None:
            super().__init__()
            self.anything = torch.nn.Linear(1, 1)

        def classify(self, features: torch.Tensor) -> torch.Tensor:
            return features

    logits = torch.arange(1001.0)[None]
    assert torch.equal(built(Large())(logits), logits[:, 1:].flip(1))


def test_it_has_nothing_of_the_backbone_in_its_checkpoint(resnet: TimmImage) -> None:
    assert list(built(resnet).state_dict()) == ["order"]
    assert not list(built(resnet).parameters())


def test_what_has_no_such_classifier_is_refused(resnet: TimmImage, clip: ClipBackbone) -> None:
    with pytest.raises(ConfigError, match="has no classifier whose outputs are known; use linear_probe or erm"):
        built(clip)
    with pytest.raises(ConfigError, match="b has none; use it with benchmark=imagenet"):
        built(resnet, ())
    with pytest.raises(ConfigError, match="has 1,000 outputs and none for n99999998 and 1 other classes"):
        built(resnet, ("n99999998", *WNIDS[:3], "n99999999"))
