"""tiny: its tokenizer, its towers and its file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from clipdg.backbones import tiny
from clipdg.benchmarks import miniatures
from clipdg.core.errors import ConfigError, DataError
from clipdg.core.model import Backbone, ClipBackbone, Preprocessing
from clipdg.data.preprocessing import normalize
from clipdg.weights.files import pack, read

CAPTIONS = ["a photo of a red fish", "A sketch of a tree, large."]


@pytest.fixture(scope="module")
def clip() -> tiny.Tiny:
    backbone = tiny.initialise(None, 0, CAPTIONS)
    assert isinstance(backbone, tiny.Tiny)
    return backbone


def images(n: int, seed: int = 0, size: int = 32) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def write(path: Path, backbone: tiny.TinyImage) -> Path:
    spec = {"size": 32, "mean": tiny.MEAN, "std": tiny.STD}
    header = {"architecture": backbone.architecture, "preprocessing": spec, "provenance": {"seed": 3}}
    path.write_bytes(pack(backbone.state_dict(), header))
    return path


def test_words_of_captions_are_one_token_and_others_are_spelled(clip: tiny.Tiny) -> None:
    # words, sorted: a fish large of photo red sketch tree -> 3...10; then the letters: a 11, b 12, ...
    letter = {c: 11 + i for i, c in enumerate(tiny.CHARACTERS)}
    tokens = clip.tokenize(["a Red fish.", "a dog"])
    assert tokens.shape == (2, 48)
    assert tokens[0].tolist() == [1, 3, 8, 4, letter["."], 2] + [0] * 42
    assert tokens[1].tolist() == [1, 3, letter["d"], letter["o"], letter["g"], 2] + [0] * 42
    assert clip.unknown_words(["a dog", "red cat, 3 dog fish"]) == ["dog", "cat"]


def test_what_cannot_be_spelled_is_named(clip: tiny.Tiny) -> None:
    with pytest.raises(DataError, match="'a 狗' has '狗'"):
        clip.tokenize(["a fish", "a 狗"])


def test_a_text_is_never_cut(clip: tiny.Tiny) -> None:
    assert clip.tokenize([" ".join(["fish"] * 46)])[0, -1] == tiny.END
    with pytest.raises(DataError, match=r"'fish .*' is 49 tokens for tiny, which takes 48"):
        clip.tokenize([" ".join(["fish"] * 47)])


@pytest.mark.parametrize("model", [None, "vit"])
def test_the_clip_is_a_clip_backbone(model: str | None) -> None:
    backbone = tiny.load(model, "random:0")
    assert isinstance(backbone, ClipBackbone)
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not backbone.training
    tokens = backbone.tokenize(["fish", "a tree"])
    logits, transposed = backbone(images(3), tokens)
    # scaled cosines, computed with another routine
    image, text = backbone.encode_image(images(3)), backbone.encode_text(tokens)
    assert image.shape == (3, 64) == (3, backbone.embed_dim)
    cosines = F.cosine_similarity(image[:, None], text[None], dim=2)
    torch.testing.assert_close(logits, cosines / 0.07, rtol=1e-5, atol=1e-5)
    assert backbone.logit_scale == pytest.approx(1 / 0.07)
    assert torch.equal(transposed, logits.T)


def test_the_text_tower_is_the_text_encoder_and_passes_gradients(clip: tiny.Tiny) -> None:
    tokens = clip.tokenize(["a photo of a tree", "fish"])
    embeddings = clip.text_tower.embed(tokens).requires_grad_()
    encoded = clip.text_tower.encode(embeddings, tokens)
    assert torch.equal(encoded, clip.encode_text(tokens))
    (gradient,) = torch.autograd.grad(encoded.square().sum(), embeddings)
    per_token = gradient.abs().sum(2) > 0
    assert per_token.sum(1).tolist() == [7, 3]  # start, words, end; nothing after the end
    assert bool(per_token[1, :3].all())


def test_a_text_is_encoded_the_same_beside_a_longer_one(clip: tiny.Tiny) -> None:
    alone = clip.encode_text(clip.tokenize(["fish"]))
    beside = clip.encode_text(clip.tokenize(["fish", "a photo of a large tree, red fish"]))[:1]
    torch.testing.assert_close(alone, beside, rtol=1e-5, atol=1e-6)


def test_the_residual_network_is_the_one_of_the_recipe() -> None:
    tower = tiny.load("resnet", "random:0")
    assert isinstance(tower, Backbone)
    assert not isinstance(tower, ClipBackbone)
    assert tower.encode_image(images(2)).shape == (2, 128) == (2, tower.embed_dim)
    # by hand, width 32: stem 3*32*9 + 64; block i -> o: o(9i + 9o + i) + 6o
    expected = 864 + 64 + 64 * (9 * 32 + 9 * 64 + 32) + 384 + 128 * (9 * 64 + 9 * 128 + 64) + 768
    assert sum(p.numel() for p in tower.parameters()) == expected


def test_an_image_is_preprocessed_to_the_towers_size_and_range() -> None:
    tower = tiny.load("resnet", "random:0")
    out = tower.preprocess(Image.new("RGB", (40, 64), (255, 0, 51)))
    assert out.shape == (3, 32, 32)
    torch.testing.assert_close(out[:, 5, 5], torch.tensor([0.5, -0.5, -0.3]) / 0.27)


def test_a_file_brings_back_the_same_backbone(clip: tiny.Tiny, tmp_path: Path) -> None:
    path = write(tmp_path / "mine.safetensors", clip)
    back = tiny.load(None, str(path))
    assert isinstance(back, tiny.Tiny)
    assert back.weights.fingerprint == clip.weights.fingerprint
    assert (back.weights.tag, back.weights.random, back.weights.provenance) == ("mine.safetensors", False, {"seed": 3})
    tokens = clip.tokenize(["a red tree"])
    assert torch.equal(back(images(2), tokens)[0], clip(images(2), tokens)[0])


def test_the_image_tower_can_be_taken_out_of_a_clip(clip: tiny.Tiny, tmp_path: Path) -> None:
    tower = tiny.load("resnet", str(write(tmp_path / "mine.safetensors", clip)))
    torch.testing.assert_close(clip.image_projection(tower.encode_image(images(2))), clip.encode_image(images(2)))


def test_a_file_of_another_kind_is_refused(clip: tiny.Tiny, tmp_path: Path) -> None:
    path = write(tmp_path / "mine.safetensors", clip)
    with pytest.raises(ConfigError, match=r"mine.safetensors holds tiny and not tiny:vit"):
        tiny.load("vit", str(path))
    tensors, header = read(path)
    (tmp_path / "foreign.safetensors").write_bytes(pack(tensors, {}))
    with pytest.raises(DataError, match=r"foreign.safetensors is not a file of tiny's weights"):
        tiny.load(None, str(tmp_path / "foreign.safetensors"))
    header["architecture"]["words"].append("zebra")
    (tmp_path / "grown.safetensors").write_bytes(pack(tensors, header))
    with pytest.raises(DataError, match=r"of another shape: text.tokens.weight"):
        tiny.load(None, str(tmp_path / "grown.safetensors"))


def test_names_and_weights_that_do_not_exist_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no 'tiny:res'"):
        tiny.load("res", "random:0")
    monkeypatch.setattr(tiny, "SHIPPED", tmp_path / "tiny.safetensors")
    with pytest.raises(ConfigError, match="clipdg pretrain"):
        tiny.load(None, None)


def test_random_weights_follow_the_seed_and_say_that_they_are_random() -> None:
    one, same, other = (tiny.load("resnet", f"random:{seed}").weights for seed in (0, 0, 1))
    assert one == same
    assert one.random
    assert one.tag == "random:0"
    assert one.fingerprint != other.fingerprint


def test_the_size_is_part_of_the_identity() -> None:
    small, large = tiny.initialise("resnet", 0, size=32), tiny.initialise("resnet", 0, size=33)
    assert large.encode_image(images(1, size=33)).shape == (1, 128)  # an odd size too
    assert small.weights.fingerprint != large.weights.fingerprint
    assert large.preprocessing == Preprocessing(33, tiny.MEAN, tiny.STD)
    json.dumps(large.architecture)
    with pytest.raises(ConfigError, match="does not divide 33"):
        tiny.initialise("vit", 0, size=33)


def test_the_shipped_weights_are_those_of_their_story_and_know_images_they_never_saw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPDG_CACHE", str(tmp_path))
    clip = tiny.load()
    assert isinstance(clip, tiny.Tiny)
    story = clip.weights.provenance
    assert story["fingerprint"] == clip.weights.fingerprint
    assert story["command"] == "clipdg pretrain seed=0"
    pixels, captions = miniatures.web(12345, 96)
    batch = normalize(torch.from_numpy(pixels).permute(0, 3, 1, 2), clip.preprocessing)
    with torch.no_grad():
        logits, _ = clip(batch, clip.tokenize(captions))
    # chance is log(96) = 4.56; the last training batch had 1.10
    assert F.cross_entropy(logits, torch.arange(96)).item() < 2
    assert clip.unknown_words(["a photo of a cat", "a zebra"]) == ["zebra"]
