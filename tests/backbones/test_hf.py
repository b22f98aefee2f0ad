"""transformers' CLIP as a backbone: the same numbers as the library's own, under both end-token conventions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from clipdg.backbones import hf
from clipdg.core import ClipBackbone
from clipdg.errors import ConfigError, DataError
from clipdg.pretrain import PretrainConfig, pretrain

WORDS = ["a", "b", "c", "d", "o", "g", "t", "."]
TEXTS = ["a cat.", "a dog b b", "c"]


def save(folder: Path, *, legacy: bool = False, **changes: Any) -> Path:
    """A small CLIP in transformers' layout: model, tokenizer and processor."""
    vocabulary = {w: i for i, w in enumerate([*WORDS, *(f"{w}</w>" for w in WORDS)])}
    start, end = "<|startoftext|>", "<|endoftext|>"
    vocabulary |= {start: len(vocabulary), end: len(vocabulary) + 1}
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=[], unk_token=end)
    tokenizer.save_pretrained(folder)
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**text, "image_size": 32, "patch_size": 16}
    text |= {
        "vocab_size": len(vocabulary),
        "max_position_embeddings": 12,
        "bos_token_id": vocabulary[start],
        "eos_token_id": 2 if legacy else vocabulary[end],
        "pad_token_id": 1 if legacy else vocabulary[end],
    }
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    torch.manual_seed(7)
    transformers.CLIPModel(config).save_pretrained(folder)
    processor = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, **changes}
    transformers.CLIPImageProcessorPil(**processor).save_pretrained(folder)
    return folder


def images(n: int) -> torch.Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=[False, True], ids=["first end token", "highest number"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("clip"), legacy=request.param)


def test_features_and_logits_are_the_librarys(folder: Path) -> None:
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    backbone = hf.load(str(folder))
    assert isinstance(backbone, ClipBackbone)
    batch = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS, padding="longest", return_tensors="pt")
    tokens = backbone.tokenize(TEXTS)
    assert tokens.shape == (3, 12)
    assert torch.equal(tokens[:, : batch.input_ids.shape[1]], batch.input_ids)
    with torch.no_grad():
        output = model(pixel_values=images(2), **batch)
        torch.testing.assert_close(
            backbone.encode_text(tokens), model.get_text_features(**batch).pooler_output, rtol=1e-5, atol=1e-6
        )
        torch.testing.assert_close(
            backbone.encode_image(images(2)), model.get_image_features(images(2)).pooler_output, rtol=1e-5, atol=1e-6
        )
        torch.testing.assert_close(backbone(images(2), tokens)[0], output.logits_per_image, rtol=1e-5, atol=1e-5)
    assert len({tuple(t.tolist()) for t in backbone.encode_text(tokens)}) == 3  # not all pooled at the start token


def test_the_text_tower_is_the_text_encoder_and_passes_gradients(folder: Path) -> None:
    backbone = hf.load(str(folder))
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    tower = backbone.text_tower
    assert (tower.width, tower.context_length) == (32, 12)
    tokens = backbone.tokenize(TEXTS)
    embeddings = tower.embed(tokens).requires_grad_()
    features = tower.encode(embeddings, tokens)
    torch.testing.assert_close(features, model.get_text_features(tokens).pooler_output, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(features.sum(), embeddings)
    # start, a, c, a, t, ., end; start, a, d, o, g, b, b, end; start, c, end
    assert [int((g.abs().sum(1) > 0).sum()) for g in gradient] == [7, 8, 3]


def test_preprocessing_is_the_processors(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    processor = transformers.CLIPImageProcessorPil.from_pretrained(folder)
    theirs = processor(Image.fromarray(pixels), return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(hf.load(str(folder)).preprocess(Image.fromarray(pixels)), theirs, rtol=1e-5, atol=1e-5)


def test_the_crop_fraction_gives_the_edge_back() -> None:
    for size in (32, 224, 336):
        for edge in range(size, 2 * size):
            assert int(np.floor(size / hf.crop_fraction(size, edge))) == edge


def test_a_text_is_never_cut(folder: Path) -> None:
    backbone = hf.load(str(folder))
    assert backbone.tokenize(["a b c a b c a b c a"]).shape == (1, 12)
    with pytest.raises(DataError, match=r"'a b c a b c a b c a b' is 13 tokens .* takes 12"):
        backbone.tokenize(["a b c a b c a b c a b"])


def test_what_the_tokenizer_does_not_know_is_named(folder: Path) -> None:
    # the unknown token is the end token here, as in CLIP's own tokenizer: the text would be pooled at it
    with pytest.raises(DataError, match="'a 猫' has a part"):
        hf.load(str(folder)).tokenize(["a cat", "a 猫"])


def test_half_precision_weights_are_computed_with_in_fp32(tmp_path: Path) -> None:
    save(tmp_path)
    transformers.CLIPModel.from_pretrained(tmp_path).half().save_pretrained(tmp_path)
    assert {p.dtype for p in hf.load(str(tmp_path)).parameters()} == {torch.float32}


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    save(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["text_model.final_layer_norm.bias"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"missing: text_model\.final_layer_norm\.bias"):
        hf.load(str(tmp_path))


def test_weights_of_a_file_or_a_seed(folder: Path, tmp_path: Path) -> None:
    repository, random, again = (hf.load(str(folder), w) for w in (None, "random:3", "random:3"))
    assert random.weights == again.weights
    assert random.weights.random
    assert random.weights.fingerprint != repository.weights.fingerprint
    save_file(random.tensors(), tmp_path / "w.safetensors")
    loaded = hf.load(str(folder), str(tmp_path / "w.safetensors"))
    assert loaded.weights.fingerprint == random.weights.fingerprint
    assert (loaded.weights.tag, loaded.weights.random) == ("w.safetensors", False)
    assert repository.weights.tag == folder.name


def test_other_models_and_places_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ConfigError, match="is a bert model; here are clip, metaclip_2, siglip, altclip, chinese_clip"):
        hf.load(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip2"}))
    with pytest.raises(ConfigError, match="is SigLIP 2 NaFlex, whose images keep their own shape"):
        hf.load(str(tmp_path))
    with pytest.raises(ConfigError, match="no such folder, and a repository is ORG/REPO or ORG/REPO@REVISION"):
        hf.load(str(tmp_path / "none"))


def test_steps_without_a_word_are_refused(tmp_path: Path) -> None:
    save(tmp_path, do_center_crop=False)
    with pytest.raises(ConfigError, match="crops to nothing"):
        hf.load(str(tmp_path))
    save(tmp_path, do_normalize=False)
    with pytest.raises(ConfigError, match="do_normalize"):
        hf.load(str(tmp_path))


def test_it_can_be_pre_trained_and_read_again(folder: Path, tmp_path: Path) -> None:
    for i in range(6):
        Image.new("RGB", (32, 32), (40 * i, 99, 9)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(TEXTS[i % 3])
    settings = PretrainConfig("folder", str(tmp_path), backbone=f"hf:{folder}", epochs=1, batch_size=3, name="clip")
    path = pretrain(settings, tmp_path / "out")
    before, after = hf.load(str(folder)), hf.load(str(folder), str(path))
    assert after.weights.provenance["start"] == before.weights.fingerprint != after.weights.fingerprint
    assert after.weights.fingerprint == after.weights.provenance["fingerprint"]
    still = [n for n, p in after.named_parameters() if torch.equal(p, before.get_parameter(n))]
    assert still == []
