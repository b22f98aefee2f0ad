"""timm's image encoders as backbones: exact tags, the library's own numbers, no classifier."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm as library
import torch
from PIL import Image
from safetensors.torch import save_file

from clipdg.backbones import timm
from clipdg.core import Backbone, ClipBackbone
from clipdg.errors import ConfigError, DataError

NAME = "resnet18.tv_in1k"


def images(n: int, size: int = 64) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(7)
    found: torch.nn.Module = library.create_model(NAME).eval()
    return found


@pytest.fixture(scope="module")
def checkpoint(model: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("timm") / "w.safetensors"
    save_file(model.state_dict(), path)
    return path


def test_features_are_what_the_classifier_sees(model: torch.nn.Module, checkpoint: Path) -> None:
    backbone = timm.load(NAME, str(checkpoint))
    assert isinstance(backbone, Backbone)
    assert not isinstance(backbone, ClipBackbone)
    with torch.no_grad():
        features = backbone.encode_image(images(2))
        assert features.shape == (2, 512) == (2, backbone.embed_dim)
        torch.testing.assert_close(model.fc(features), model(images(2)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [NAME, "resnet18.a1_in1k", "beit_base_patch16_224.in22k_ft_in22k_in1k"])
def test_preprocessing_is_the_tags(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = {"pretrained_cfg": library.get_pretrained_cfg(name).to_dict()}
    shell = type("Model", (), cfg)()
    transform = library.data.create_transform(**library.data.resolve_model_data_config(shell), is_training=False)
    pixels = np.random.default_rng(0).integers(0, 256, (300, 401, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    torch.testing.assert_close(timm.preprocess(image, timm.preprocessing_of(shell, name)), transform(image))


def test_a_name_without_its_exact_tag_is_refused_with_the_tags() -> None:
    with pytest.raises(ConfigError, match=r"no tag given for timm:resnet50; .*resnet50\.a1_in1k.*resnet50\.tv_in1k"):
        timm.load("resnet50", None)
    with pytest.raises(ConfigError, match=r"no tag 'v1' of timm:resnet50; .*resnet50\.tv_in1k"):
        timm.load("resnet50.v1", None)
    with pytest.raises(ConfigError, match=r"no timm model 'resnet05'.*Did you mean 'resnet"):
        timm.load("resnet05.tv_in1k", None)


def test_random_weights_follow_the_seed() -> None:
    one, same, other = (timm.load(NAME, f"random:{seed}").weights for seed in (0, 0, 1))
    assert one == same
    assert (one.tag, one.random) == ("random:0", True)
    assert one.fingerprint != other.fingerprint


def test_weights_that_do_not_fit_are_refused(model: torch.nn.Module, tmp_path: Path) -> None:
    state = dict(model.state_dict())
    state["extra.weight"] = state.pop("bn1.weight")
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(DataError, match=r"missing: bn1\.weight; unexpected: extra\.weight"):
        timm.load(NAME, str(tmp_path / "w.safetensors"))
