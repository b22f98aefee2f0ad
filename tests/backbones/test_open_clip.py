"""open_clip's models as backbones: the same numbers as the library's own, and none of its silent choices."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip as library
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file

from clipdg.backbones import open_clip
from clipdg.core import ClipBackbone
from clipdg.errors import ConfigError, DataError
from clipdg.pretrain import PretrainConfig, pretrain

CONFIG: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
TEXTS = ["a photo of a cat.", "two dogs and a very small 猫"]


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two small architectures, known to open_clip while these tests run."""
    folder = tmp_path_factory.mktemp("configs")
    before = dict(library.factory._MODEL_CONFIGS)
    for name, more in (
        ("small", {}),
        ("small-custom", {"custom_text": True}),
        ("small-quickgelu", {"quick_gelu": True}),
    ):
        (folder / f"{name}.json").write_text(json.dumps({**CONFIG, **more}))
    library.add_model_config(folder)
    yield folder
    library.factory._MODEL_CONFIGS.clear()
    library.factory._MODEL_CONFIGS.update(before)


def theirs(name: str) -> Any:
    torch.manual_seed(7)
    return library.create_model(name).eval()


def images(n: int) -> torch.Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["small", "small-custom"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, open_clip.OpenClip]:
    """The library's model, and ours from a file of its weights."""
    model = theirs(request.param)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    return model, open_clip.load(request.param, str(tmp_path / "w.safetensors"))


def test_features_and_logits_are_the_librarys(pair: tuple[Any, open_clip.OpenClip]) -> None:
    model, backbone = pair
    assert isinstance(backbone, ClipBackbone)
    tokens = backbone.tokenize(TEXTS)
    assert torch.equal(tokens, library.get_tokenizer("small")(TEXTS))
    with torch.no_grad():
        torch.testing.assert_close(
            backbone.encode_image(images(3)), model.encode_image(images(3)), rtol=1e-5, atol=1e-6
        )
        torch.testing.assert_close(backbone.encode_text(tokens), model.encode_text(tokens), rtol=1e-5, atol=1e-6)
        ours, transposed = backbone(images(3), tokens)
        torch.testing.assert_close(ours, model.get_logits(images(3), tokens)[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(transposed, ours.T)
    assert backbone.logit_scale == pytest.approx(1 / 0.07, rel=1e-5)
    assert not any(p.requires_grad for p in backbone.parameters())


def test_the_text_tower_is_the_text_encoder_and_passes_gradients(pair: tuple[Any, open_clip.OpenClip]) -> None:
    model, backbone = pair
    tower = backbone.text_tower
    assert tower is not None
    assert (tower.width, tower.context_length, tower.num_prefix_tokens, tower.causal) == (32, 20, 1, True)
    tokens = backbone.tokenize(TEXTS)
    embeddings = tower.embed(tokens).requires_grad_()
    features = tower.encode(embeddings, tokens)
    torch.testing.assert_close(features, model.encode_text(tokens), rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(features.sum(), embeddings)
    ends = tokens.argmax(1).tolist()
    assert [int((g.abs().sum(1) > 0).sum()) for g in gradient] == [end + 1 for end in ends]


def test_preprocessing_is_the_librarys(pair: tuple[Any, open_clip.OpenClip]) -> None:
    model, backbone = pair
    pixels = np.random.default_rng(0).integers(0, 256, (50, 77, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    transform = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    torch.testing.assert_close(backbone.preprocess(image), transform(image))


def test_a_text_is_never_cut() -> None:
    backbone = open_clip.load("small", "random:0")
    assert backbone.tokenize([" ".join(["cat"] * 18)])[0, -1] == 49407
    with pytest.raises(DataError, match=r"'cat .*' is 21 tokens for open_clip:small, which takes 20"):
        backbone.tokenize([" ".join(["cat"] * 19)])


def test_random_weights_only_if_asked_for() -> None:
    one, same, other = (open_clip.load("small", f"random:{seed}") for seed in (0, 0, 1))
    assert one.weights == same.weights
    assert one.weights.random
    assert one.weights.fingerprint != other.weights.fingerprint
    with pytest.raises(ConfigError, match="open_clip:small needs weights"):
        open_clip.load("small")


def test_names_tags_and_files_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no open_clip model 'ViT-B-23'.*Did you mean 'ViT-B-32'"):
        open_clip.load("ViT-B-23", "openai")
    with pytest.raises(ConfigError, match=r"no weights 'openia' for open_clip:ViT-B-32.*openai, laion400m_e31"):
        open_clip.load("ViT-B-32", "openia")
    with pytest.raises(ConfigError, match="brings its own weights"):
        open_clip.load("hf-hub:org/repo", "openai")
    with pytest.raises(ConfigError, match=r"local-dir:.* cannot be opened"):
        open_clip.load(f"local-dir:{tmp_path}")


@pytest.mark.parametrize(
    ("model", "tag", "other"),
    [("ViT-B-32", "openai", "ViT-B-32-quickgelu"), ("RN50", "openai", "RN50-quickgelu")],
)
def test_weights_of_another_activation_are_refused_before_they_are_fetched(model: str, tag: str, other: str) -> None:
    with pytest.raises(ConfigError, match=f"QuickGELU.*use open_clip:{other}$"):
        open_clip.load(model, tag)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    state = dict(theirs("small").state_dict())
    del state["ln_final.bias"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(DataError, match=r"w\.safetensors does not fit .*missing: ln_final\.bias"):
        open_clip.load("small", str(tmp_path / "w.safetensors"))


def test_the_activation_is_part_of_the_identity(tmp_path: Path) -> None:
    save_file(theirs("small").state_dict(), tmp_path / "w.safetensors")
    plain, quick = (open_clip.load(m, str(tmp_path / "w.safetensors")) for m in ("small", "small-quickgelu"))
    assert plain.weights.fingerprint != quick.weights.fingerprint


def test_a_local_folder_in_the_hubs_layout(models: Path, tmp_path: Path) -> None:
    model = theirs("small")
    spec = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.3], "interpolation": "bilinear", "resize_mode": "squash"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": spec}))
    with pytest.raises(ConfigError, match=r"has no checkpoint in .*; name it open_clip_model\.safetensors"):
        open_clip.load(f"local-dir:{tmp_path}")
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    backbone = open_clip.load(f"local-dir:{tmp_path}")
    with torch.no_grad():
        torch.testing.assert_close(backbone.encode_image(images(2)), model.encode_image(images(2)))
    p = backbone.preprocessing
    assert (p.size, p.mean, p.resize, p.interpolation) == (32, (0.4, 0.5, 0.6), "squash", "bilinear")
    assert backbone.weights.tag == tmp_path.name


@pytest.mark.parametrize("name", ["small", "small-custom"])
def test_it_can_be_pre_trained_and_both_we_and_open_clip_read_the_file(name: str, tmp_path: Path) -> None:
    for i in range(6):
        Image.new("RGB", (32, 32), (40 * i, 99, 9)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"a photo of a {TEXTS[0] if i % 2 else 'dog'}")
    settings = PretrainConfig(
        "folder", str(tmp_path), backbone=f"open_clip:{name}", weights="random:0", epochs=1, batch_size=3
    )
    path = pretrain(settings, tmp_path / "out")
    assert path.name == f"open_clip-{name}-0.safetensors"
    before, after = open_clip.load(name, "random:0"), open_clip.load(name, str(path))
    assert after.weights.fingerprint == after.weights.provenance["fingerprint"] != before.weights.fingerprint
    moved = [n for n, p in after.named_parameters() if not torch.equal(p, before.get_parameter(n))]
    assert len(moved) == len(list(after.parameters()))  # both towers and the temperature
    model = library.create_model(name, pretrained=str(path)).eval()
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(images(1)), after.encode_image(images(1)))
    with pytest.raises(DataError, match="another architecture than open_clip:small-quickgelu"):
        open_clip.load("small-quickgelu", str(path))
