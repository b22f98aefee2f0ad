"""Features before the projection: the rest of the library's own forward on them gives the library's features."""

from pathlib import Path

import pytest
import torch

import clipdg
from clipdg.core.benchmark import Benchmark
from clipdg.core.errors import ConfigError
from clipdg.core.model import ClipBackbone
from clipdg.runs import feature_store
from clipdg.runs.feature_store import FeatureStore


def pixels(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_tinys_projection_makes_them_its_features(clip: ClipBackbone) -> None:
    backbone = clipdg.load_backbone("tiny", "random:0", features="penultimate")
    with torch.no_grad():
        found, expected = backbone.encode_image(pixels(32)), clip.encode_image(pixels(32))
        torch.testing.assert_close(clip.image_projection(found), expected)  # type: ignore[attr-defined]
    assert found.shape == (2, backbone.embed_dim) != expected.shape


def test_open_clips_projection_makes_them_its_features() -> None:
    backbone = clipdg.load_backbone("open_clip:ViT-S-32-alt", "random:0", features="penultimate")
    assert not isinstance(backbone, ClipBackbone)
    model = backbone.backbone.model  # type: ignore[attr-defined]
    with torch.no_grad():
        found, expected = backbone.encode_image(pixels(224)), model.encode_image(pixels(224))
        torch.testing.assert_close(found @ model.visual.proj, expected)
    assert found.shape == (2, backbone.embed_dim)


def test_a_tower_without_a_projection_is_refused() -> None:
    with pytest.raises(ConfigError, match="tiny:resnet has no projection after its features; use projected"):
        clipdg.load_backbone("tiny:resnet", "random:0", features="penultimate")


def test_both_sorts_of_features_are_stored_apart(clip: ClipBackbone, squares: Benchmark, tmp_path: Path) -> None:
    domain, store = squares.domains["bright"], FeatureStore(tmp_path)
    before = clipdg.load_backbone("tiny", "random:0", features="penultimate")
    shapes = {store.encode(b, domain).shape for b in (clip, before, clip, before)}
    assert shapes == {(36, clip.embed_dim), (36, before.embed_dim)}
    assert store.num_encoded == 72
    assert feature_store._story(before, domain, None)["point"] == "penultimate"


def test_a_method_with_texts_is_refused() -> None:
    before = clipdg.load_backbone("tiny", "random:0", features="penultimate")
    with pytest.raises(ConfigError, match="penultimate layer has none"):
        clipdg.zero_shot(before, ["a", "b"])
    assert clipdg.linear_probe(before, ["a", "b"]).method.weight.shape == (2, before.embed_dim)  # type: ignore[union-attr]
