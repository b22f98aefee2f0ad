"""transformers' CLIPs as backbones: the same numbers as the library's own, from folders in its own formats."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.nn import functional as F

import clipdg
from clipdg.backbones import hf
from clipdg.core.errors import ConfigError, DataError, NetworkError, UnsafeError
from clipdg.core.model import ClipBackbone
from clipdg.data import decode, preprocessing
from clipdg.methods import _context
from clipdg.text.prompt_encoder import Form, Prompts
from clipdg.training.pretrain import PretrainConfig, pretrain

CORPUS = ["a photo of a red cat.", "two dogs beside the tree", "ein Foto, grün", "一只红色的猫", "一张狗的照片"] * 3
CORPUS += [f"{c} {c.upper()}" for c in "abcdefghijklmnopqrstuvwxyz"]
TEXTS = ["a Photo of  the red cats.", "dog", "一只 猫的照片"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NETWORK = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**NETWORK, "image_size": 32, "patch_size": 16}


def trained(model: Any, trainer: Any, like: Any) -> dict[str, Any]:
    """A vocabulary for CORPUS, split and normalised as the tokenizer ``like`` does it."""
    tokenizer = Tokenizer(model)
    if like.backend_tokenizer.normalizer is not None:
        tokenizer.normalizer = like.backend_tokenizer.normalizer
    tokenizer.pre_tokenizer = like.backend_tokenizer.pre_tokenizer
    tokenizer.train_from_iterator(CORPUS, trainer)
    found: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return found


def clip_tokenizer() -> Any:
    """Byte-level BPE with </w>, as OpenAI's."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    like = transformers.CLIPTokenizer(vocab={start: 0, end: 1}, merges=[])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    found = trained(models.BPE(end_of_word_suffix="</w>"), trainer, like)
    vocab = found["vocab"]
    for byte in alphabet:
        vocab.setdefault(f"{byte}</w>", len(vocab))
    vocab |= {start: len(vocab), end: len(vocab) + 1}
    return transformers.CLIPTokenizer(vocab=vocab, merges=[tuple(m) for m in found["merges"]])


def xlm_tokenizer() -> Any:
    """SentencePiece's Unigram with XLM-R's special tokens."""
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    found = trained(models.Unigram(), trainer, transformers.XLMRobertaTokenizer())
    return transformers.XLMRobertaTokenizer(vocab=[tuple(p) for p in found["vocab"]])


def gemma_tokenizer(kind: str = "Siglip2Tokenizer", **settings: Any) -> Any:
    """BPE over SentencePiece's spaces, with bytes for what it does not know, as SigLIP 2's."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special + [f"<0x{i:02X}>" for i in range(256)], show_progress=False
    )
    found = trained(
        models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True), trainer, transformers.Siglip2Tokenizer()
    )
    tokenizer = getattr(transformers, kind)(
        vocab=found["vocab"], merges=[tuple(m) for m in found["merges"]], padding_side="right", **settings
    )
    eos = tokenizer.eos_token_id
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", eos)])
    return tokenizer


def save_clip(folder: Path, *, legacy: bool = False, **processor: Any) -> None:
    tokenizer = clip_tokenizer()
    text = {
        **NETWORK,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 40,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": 2 if legacy else tokenizer.eos_token_id,
        "pad_token_id": 1 if legacy else tokenizer.pad_token_id,
    }
    config = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16)
    processor = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, **processor}
    images = transformers.CLIPImageProcessorPil(**processor)
    write(folder, transformers.CLIPModel(config), tokenizer, images)


def save_metaclip_2(folder: Path) -> None:
    tokenizer = xlm_tokenizer()
    text = {**NETWORK, "vocab_size": len(tokenizer), "max_position_embeddings": 40, "bos_token_id": 0}
    text |= {"eos_token_id": 2, "pad_token_id": 1}
    config = transformers.MetaClip2Config(text_config=text, vision_config=VISION, projection_dim=16)
    images = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    write(folder, transformers.MetaClip2Model(config), tokenizer, images)


def siglip(vocab_size: int, **text: Any) -> Any:
    text = {**NETWORK, "vocab_size": vocab_size, "max_position_embeddings": 24, "projection_size": 32, **text}
    model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=VISION))
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
        model.logit_bias.fill_(-3.0)
    return model


def save_siglip_2(folder: Path) -> None:
    """SigLIP 2 of one resolution: SigLIP's model with another tokenizer."""
    tokenizer = gemma_tokenizer(model_max_length=24)
    model = siglip(len(tokenizer), bos_token_id=2, eos_token_id=1, pad_token_id=0)
    write(folder, model, tokenizer, transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32}))


def save_altclip(folder: Path) -> None:
    tokenizer = xlm_tokenizer()
    text = {**NETWORK, "vocab_size": len(tokenizer), "max_position_embeddings": 42, "project_dim": 24}
    text |= {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "initializer_factor": 1.0}
    config = transformers.AltCLIPConfig(text_config=text, vision_config=VISION, projection_dim=16)
    images = transformers.CLIPImageProcessorPil(size={"shortest_edge": 33}, crop_size={"height": 32, "width": 32})
    write(folder, transformers.AltCLIPModel(config), tokenizer, images)


def save_chinese_clip(folder: Path) -> None:
    """As the authors' repository has it: vocab.txt alone for the tokenizer, pytorch_model.bin for the weights."""
    letters = sorted({*"abcdefghijklmnopqrstuvwxyz,.", *"一只红色的猫张狗照片"})
    words = [*["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], *letters, *[f"##{c}" for c in letters], "photo", "red"]
    text = {**NETWORK, "vocab_size": len(words), "max_position_embeddings": 40}
    config = transformers.ChineseCLIPConfig(text_config=text, vision_config=VISION, projection_dim=16)
    model = shuffled(transformers.ChineseCLIPModel(config))
    model.config.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    processor = transformers.ChineseCLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False)
    processor.save_pretrained(folder)


def write(folder: Path, model: Any, tokenizer: Any, processor: Any) -> None:
    for part in (shuffled(model), tokenizer, processor):
        part.save_pretrained(folder)


def shuffled(model: Any) -> Any:
    """No bias and no norm at its initial value, so that one left out would show."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 0 and parameter.shape != (1,):
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


SAVE: dict[str, Callable[[Path], None]] = {
    "clip": save_clip,
    "clip, highest number": lambda folder: save_clip(folder, legacy=True),
    "metaclip_2": save_metaclip_2,
    "siglip 2": save_siglip_2,
    "altclip": save_altclip,
    "chinese_clip": save_chinese_clip,
}
CAUSAL = {"clip": True, "metaclip_2": True, "siglip": False, "altclip": False, "chinese_clip": False}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {name: tmp_path_factory.mktemp("family") for name in SAVE}
    for name, save in SAVE.items():
        torch.manual_seed(7)
        save(made[name])
    return made


@pytest.fixture(params=list(SAVE))
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


@pytest.fixture
def own(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the CLIP to break."""
    return Path(shutil.copytree(folders["clip"], tmp_path / "clip"))


def library(folder: Path) -> tuple[Any, Any]:
    """The model and the tokenizer as transformers' own documentation loads them."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def batch_of(model: Any, tokenizer: Any, texts: list[str]) -> Any:
    """The inputs that each family's documentation tells to give: SigLIP's are padded to full length, without mask."""
    if model.config.model_type == "siglip":
        length = model.config.text_config.max_position_embeddings
        tokens = tokenizer(texts, padding="max_length", max_length=length, return_tensors="pt").input_ids
        return {"input_ids": tokens}
    return tokenizer(texts, padding=True, return_tensors="pt")


def pixels(n: int) -> torch.Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Within 1e-5 of the largest value there is; single values near zero are sums of larger ones."""
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_features_and_logits_are_the_librarys(folder: Path) -> None:
    model, tokenizer = library(folder)
    backbone = clipdg.load_backbone(f"hf:{folder}")
    assert isinstance(backbone, ClipBackbone)
    batch, tokens = batch_of(model, tokenizer, TEXTS), backbone.tokenize(TEXTS)
    length = batch["input_ids"].shape[1]
    assert torch.equal(tokens[:, :length], batch["input_ids"])
    with torch.no_grad():
        output = model(pixel_values=pixels(2), **batch)
        text = backbone.encode_text(tokens)
        close(text, model.get_text_features(**batch).pooler_output)
        close(F.normalize(text, dim=1), output.text_embeds)
        close(backbone.encode_image(pixels(2)), model.get_image_features(pixel_values=pixels(2)).pooler_output)
        for ours, theirs in zip(
            backbone(pixels(2), tokens), (output.logits_per_image, output.logits_per_text), strict=True
        ):
            close(ours, theirs)
    assert backbone.logit_scale == pytest.approx(model.logit_scale.exp().item())
    assert (text[0] - text[1]).abs().max() > 0.01  # not all pooled at the start token
    assert text.shape == (3, backbone.embed_dim)


def test_penultimate_features_are_the_librarys_before_its_projection(folder: Path) -> None:
    model, _ = library(folder)
    if not hasattr(model, "visual_projection"):
        with pytest.raises(ConfigError, match="has no projection after its features"):
            clipdg.load_backbone(f"hf:{folder}", features="penultimate")
        return
    backbone = clipdg.load_backbone(f"hf:{folder}", features="penultimate")
    assert not isinstance(backbone, ClipBackbone)
    with torch.no_grad():
        found = backbone.encode_image(pixels(2))
        close(model.visual_projection(found), model.get_image_features(pixel_values=pixels(2)).pooler_output)
    assert found.shape == (2, backbone.embed_dim)


def test_a_texts_features_do_not_depend_on_the_texts_beside_it(folder: Path) -> None:
    backbone = hf.load(str(folder))
    with torch.no_grad():
        together = backbone.encode_text(backbone.tokenize(TEXTS))
        for i, text in enumerate(TEXTS):
            torch.testing.assert_close(
                backbone.encode_text(backbone.tokenize([text]))[0], together[i], rtol=1e-4, atol=1e-5
            )


def test_siglips_bias_is_part_of_its_logits_and_of_no_others(folders: dict[str, Path]) -> None:
    backbone = hf.load(str(folders["siglip 2"]))
    assert (backbone.logit_bias, backbone.logit_scale) == (-3.0, pytest.approx(np.exp(2.0)))
    tokens = backbone.tokenize(TEXTS)
    with torch.no_grad():
        logits, _ = backbone(pixels(2), tokens)
        cosines = (
            F.normalize(backbone.encode_image(pixels(2)), dim=1) @ F.normalize(backbone.encode_text(tokens), dim=1).T
        )
    torch.testing.assert_close(logits, np.exp(2.0).item() * cosines - 3.0, rtol=1e-5, atol=1e-5)
    assert hf.load(str(folders["clip"])).logit_bias is None


def test_the_text_tower_takes_embeddings_in_the_place_of_tokens(folder: Path) -> None:
    # a word's embeddings in the place of another's are that word, wherever the tower looks
    backbone = hf.load(str(folder))
    model, tokenizer = library(folder)
    tower = backbone.text_tower
    assert tower.causal == CAUSAL[model.config.model_type]
    assert tower.num_prefix_tokens == (0 if model.config.model_type == "siglip" else 1)
    one, other = backbone.tokenize(["a cat a"]), backbone.tokenize(["a dog a"])
    same = min(one.shape[1], other.shape[1])
    one, other = one[:, :same], other[:, :same]
    place = int((one != other).int().argmax())
    mixed = one.clone()
    mixed[0, place] = other[0, place]  # the library is given the mixed tokens, the tower one's with other's embedding
    embeddings = tower.embed(one).clone()
    assert embeddings.shape == (1, same, tower.width)
    embeddings[0, place] = tower.embed(other)[0, place]
    embeddings.requires_grad_()
    features = tower.encode(embeddings, one)
    masked = model.config.model_type in ("altclip", "chinese_clip")
    mask = {"attention_mask": (mixed != tokenizer.pad_token_id).long()} if masked else {}
    theirs = model.get_text_features(input_ids=mixed, **mask).pooler_output
    close(features.detach(), theirs.detach())
    assert (theirs - model.get_text_features(input_ids=one, **mask).pooler_output).abs().max() > 1e-3
    (gradient,) = torch.autograd.grad(features.square().sum(), embeddings)
    assert gradient[0, place].abs().max() > 0


def test_padding_reaches_only_siglip(folder: Path) -> None:
    backbone = hf.load(str(folder))
    tower = backbone.text_tower
    tokens = backbone.tokenize(["dog", TEXTS[0]])
    alone = len(backbone.tokenizer("dog").input_ids)
    embeddings = tower.embed(tokens).requires_grad_()
    (gradient,) = torch.autograd.grad(tower.encode(embeddings, tokens)[0].square().sum(), embeddings)
    seen = (gradient[0].abs().sum(dim=1) > 0).nonzero().flatten().tolist()
    assert seen == list(range(tokens.shape[1] if backbone.model.config.model_type == "siglip" else alone))


@pytest.mark.parametrize("form", ["plain", "cut", "shared"])
def test_each_form_of_its_text_tower_has_the_librarys_features_and_gradients(folder: Path, form: Form) -> None:
    model, tokenizer = library(folder)
    backbone = hf.load(str(folder))
    tower = backbone.text_tower
    assert (tower.description is None) == (model.config.model_type in ("altclip", "chinese_clip"))
    texts = [*TEXTS, *(f"{text} cat" for text in TEXTS), *TEXTS]
    tokens = backbone.tokenize(texts)
    with torch.no_grad():
        theirs = model.get_text_features(**batch_of(model, tokenizer, texts)).pooler_output
        close(Prompts(tower, tokens, form=form).encode(), theirs)
    where = torch.full(tokens.shape, -1)
    where[:, tower.num_prefix_tokens] = 0
    ours, own = (torch.full((1, tower.width), 0.3).requires_grad_() for _ in range(2))
    found = Prompts(tower, tokens, where, form=form).encode(ours)
    expected = tower.encode(torch.where((where >= 0)[:, :, None], own, tower.embed(tokens)), tokens)
    close(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    assert ours.grad is not None
    assert own.grad is not None
    close(ours.grad, own.grad)


def test_coop_trains_on_every_text_tower(folder: Path) -> None:
    model = clipdg.coop(hf.load(str(folder)), ["cat", "red dog", "tree"], num_context=3)
    features = torch.randn(4, model.backbone.embed_dim, generator=torch.Generator().manual_seed(0))
    F.cross_entropy(model.method(features), torch.tensor([0, 1, 2, 0])).backward()
    assert (model.method.context.grad.abs().sum(dim=1) > 0).all()


def test_words_as_context_are_the_prompt_with_these_words(folder: Path) -> None:
    backbone = hf.load(str(folder))
    tower, tokens = backbone.text_tower, backbone.tokenize(["a red cat."])
    start = tower.num_prefix_tokens
    padding = torch.full((1, 2), backbone.tokenizer.pad_token_id)
    without = torch.cat([tokens[:, :start], tokens[:, start + 2 :], padding], dim=1)  # the first two tokens left out
    with torch.no_grad():
        room, words = _context.make_room(tower, without, 2), tower.embed(tokens)[0, start : start + 2]
        learner = _context.PromptLearner(tower, room, words, backbone.logit_scale)
        expected = F.normalize(backbone.encode_text(tokens), dim=1)
        close(learner.directions(), expected)
        assert (F.normalize(backbone.encode_text(without), dim=1) - expected).abs().max() > 1e-3


# Preprocessing


SHAPES = [(60, 80), (80, 61), (33, 32), (31, 57), (90, 41), (37, 37), (200, 33)]


def test_preprocessing_is_the_processors_pixel_for_pixel(folder: Path) -> None:
    backbone = hf.load(str(folder))
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    for height, width in SHAPES:
        image = Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8))
        theirs = processor(image, return_tensors="pt", do_rescale=False, do_normalize=False).pixel_values[0]
        assert torch.equal(preprocessing.to_uint8(image, backbone.preprocessing), theirs)
        # values up to 2.7: the library multiplies by 1/255 in float64 where torchvision divides in float32
        whole = processor(image, return_tensors="pt").pixel_values[0]
        torch.testing.assert_close(backbone.preprocess(image), whole, rtol=1e-6, atol=5e-7)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "RGBA", "LA"])
def test_files_of_every_colour_mode_are_read_as_by_the_library(folders: dict[str, Path], mode: str) -> None:
    data = encoded(mode)
    processor = transformers.AutoImageProcessor.from_pretrained(folders["clip"], backend="pil")
    theirs = processor(Image.open(io.BytesIO(data)), return_tensors="pt").pixel_values[0]
    ours = hf.load(str(folders["clip"])).preprocess(decode.decode(data, "file"))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=5e-7)


def test_photos_on_their_side_are_read_upright(folders: dict[str, Path]) -> None:
    # on purpose not as by the library, which leaves them lying
    processor = transformers.AutoImageProcessor.from_pretrained(folders["clip"], backend="pil")
    data = encoded("RGB", rotated=True)
    image = Image.open(io.BytesIO(data))
    ours = hf.load(str(folders["clip"])).preprocess(decode.decode(data, "file"))
    upright = processor(ImageOps.exif_transpose(image), return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(ours, upright, rtol=1e-6, atol=5e-7)
    assert (ours - processor(image, return_tensors="pt").pixel_values[0]).abs().max() > 0.1


def encoded(mode: str, *, rotated: bool = False) -> bytes:
    values = np.random.default_rng(3).integers(0, 256, (51, 70, 4), dtype=np.uint8)
    image = Image.fromarray(values[..., :3]).convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(values[..., 3]))
    exif = Image.Exif()
    if rotated:
        exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG" if mode == "CMYK" or rotated else "PNG", exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_center_crop": False}, "crops to nothing"),
        ({"do_normalize": False}, "do_normalize"),
        ({"resample": 1}, "resamples by"),
        ({"size": {"shortest_edge": 30}}, "resizes to"),
        ({"crop_size": {"height": 32, "width": 30}}, "crops to"),
        ({"do_pad": True}, "no padding"),
        ({"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}, "48 pixels a side .* takes 32"),
    ],
)
def test_processors_without_a_word_are_refused(own: Path, changes: dict[str, Any], message: str) -> None:
    settings = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, **changes}
    transformers.CLIPImageProcessorPil(**settings).save_pretrained(own)
    with pytest.raises((ConfigError, DataError), match=message):
        hf.load(str(own))


def test_a_processor_with_steps_of_its_own_is_refused(own: Path) -> None:
    transformers.Siglip2ImageProcessorPil().save_pretrained(own)
    with pytest.raises(ConfigError, match="is a Siglip2ImageProcessorPil, whose steps are its own"):
        hf.load(str(own))


def test_the_crop_fraction_gives_the_edge_back() -> None:
    for size in (32, 224, 336):
        for edge in range(size, 2 * size):
            assert int(np.floor(size / hf.crop_fraction(size, edge))) == edge


# Texts


def test_a_text_is_never_cut(folder: Path) -> None:
    backbone = hf.load(str(folder))
    most = {"siglip": 24}.get(backbone.model.config.model_type, 40)
    assert backbone.text_tower.context_length == most
    words = 1
    while len(backbone.tokenizer(" ".join(["a"] * words)).input_ids) < most:
        words += 1
    longest = " ".join(["a"] * words)
    assert backbone.tokenize([longest]).shape == (1, most)
    assert torch.isfinite(backbone.encode_text(backbone.tokenize([longest]))).all()
    num = len(backbone.tokenizer(f"{longest} a").input_ids)
    assert num > most
    with pytest.raises(DataError, match=rf"'{longest} a' is {num} tokens .* takes {most}"):
        backbone.tokenize([f"{longest} a"])


def test_what_the_tokenizer_does_not_know_is_named(folders: dict[str, Path]) -> None:
    for name in ("altclip", "metaclip_2", "chinese_clip"):
        with pytest.raises(DataError, match="'a ☃' has a part"):
            hf.load(str(folders[name])).tokenize(["a cat", "a ☃"])


@pytest.mark.parametrize(
    ("name", "text"), [("clip", "a <|endoftext|> cat"), ("altclip", "a <pad> cat"), ("chinese_clip", "a [PAD] 猫")]
)
def test_a_special_token_within_a_text_is_refused(folders: dict[str, Path], name: str, text: str) -> None:
    with pytest.raises(DataError, match="has a part that the tokenizer"):
        hf.load(str(folders[name])).tokenize([text])


def test_lower_casing_is_the_checkpoints_own(folders: dict[str, Path], tmp_path: Path) -> None:
    lower = hf.load(str(folders["siglip 2"]))
    assert torch.equal(lower.tokenize(["A Cat"]), lower.tokenize(["a cat"]))
    shutil.copytree(folders["siglip 2"], tmp_path, dirs_exist_ok=True)
    gemma_tokenizer("GemmaTokenizer", model_max_length=24).save_pretrained(tmp_path)
    keeps = hf.load(str(tmp_path))
    assert not torch.equal(keeps.tokenize(["A Cat"]), keeps.tokenize(["a cat"]))
    theirs = library(tmp_path)[1](["A Cat"], padding="max_length", return_tensors="pt").input_ids
    assert torch.equal(keeps.tokenize(["A Cat"]), theirs)


def test_a_tokenizer_of_other_weights_is_refused(own: Path) -> None:
    xlm_tokenizer().save_pretrained(own)
    with pytest.raises(DataError, match="the tokenizer does not belong to these weights"):
        hf.load(str(own)).tokenize(["a cat"])


def test_padding_on_the_left_is_refused(own: Path) -> None:
    settings = json.loads((own / "tokenizer_config.json").read_text())
    (own / "tokenizer_config.json").write_text(json.dumps({**settings, "padding_side": "left"}))
    with pytest.raises(ConfigError, match="pads on the left"):
        hf.load(str(own))


def spiece(path: Path) -> None:
    """A SentencePiece model: protobuf, field 1 a piece (1 text, 2 score, 3 kind), field 2 the trainer's settings."""

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3}
    pieces = ["<unk>", "<s>", "</s>", "▁", "▁a", "▁photo", "▁cat", "▁of", "▁the", "▁red", *letters]
    content = b""
    for i, text in enumerate(pieces):
        score = struct.pack("<f", 0.0 if text in kinds else -float(i))
        content += field(1, field(1, text.encode()) + b"\x15" + score + b"\x18" + bytes([kinds.get(text, 1)]))
    path.write_bytes(content + field(2, b"\x18\x01"))  # model_type: unigram


def test_siglips_sentencepiece_is_the_librarys_or_is_said_to_be_missing(tmp_path: Path) -> None:
    siglip(36, eos_token_id=2, pad_token_id=2).save_pretrained(tmp_path)
    spiece(tmp_path / "spiece.model")
    settings = {"tokenizer_class": "SiglipTokenizer", "model_max_length": 24, "model_input_names": ["input_ids"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    if importlib.util.find_spec("sentencepiece") is None:
        with pytest.raises(ConfigError, match="install it with `pip install sentencepiece protobuf`"):
            hf.load(str(tmp_path))
        return
    backbone = hf.load(str(tmp_path))
    model, tokenizer = library(tmp_path)
    texts = ["A photo of the red cat!", "dog"]
    tokens = backbone.tokenize(texts)
    assert torch.equal(tokens, tokenizer(texts, padding="max_length", return_tensors="pt").input_ids)
    assert tokens[0, :7].tolist() == [4, 5, 7, 8, 9, 6, 2]  # lower-cased, without punctuation, ended
    close(backbone.encode_text(tokens), model.get_text_features(input_ids=tokens).pooler_output.detach())


# Loading


def test_half_precision_weights_are_computed_with_in_fp32(own: Path) -> None:
    transformers.CLIPModel.from_pretrained(own).half().save_pretrained(own)
    assert {p.dtype for p in hf.load(str(own)).parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["clip", "altclip", "siglip 2"])
def test_weights_that_do_not_fit_are_refused_by_name(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    shutil.copytree(folders[name], tmp_path, dirs_exist_ok=True)
    state = load_file(tmp_path / "model.safetensors")
    gone, bent = sorted(k for k in state if "layer_norm" in k or "LayerNorm" in k)[:2]
    del state[gone]
    state |= {bent: torch.zeros(3), "extra.bias": torch.zeros(2)}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match="do not fit its architecture") as caught:
        hf.load(str(tmp_path))
    message = str(caught.value).partition("do not fit its architecture: ")[2]
    found = dict(part.split(": ", 1) for part in message.split("; "))
    assert list(found) == ["missing", "unexpected", "of another shape"]
    assert found["missing"].replace("layers", "layer") == gone.replace("layers", "layer")
    assert found["unexpected"] == "extra.bias"
    assert found["of another shape"].replace("layers", "layer") == bent.replace("layers", "layer")


def test_positions_that_older_versions_saved_are_no_error(own: Path) -> None:
    state = load_file(own / "model.safetensors")
    for tower, num in (("text", 40), ("vision", 5)):
        state[f"{tower}_model.embeddings.position_ids"] = torch.arange(num)[None]
    fingerprint = hf.load(str(own)).weights.fingerprint
    save_file(state, own / "model.safetensors", metadata={"format": "pt"})
    assert hf.load(str(own)).weights.fingerprint == fingerprint


def test_safetensors_come_before_pickles_and_shards_are_joined(own: Path) -> None:
    model = transformers.CLIPModel.from_pretrained(own)
    fingerprint = hf.load(str(own)).weights.fingerprint
    torch.save({"not": torch.zeros(1)}, own / "pytorch_model.bin")
    assert hf.load(str(own)).weights.fingerprint == fingerprint
    (own / "pytorch_model.bin").unlink()
    (own / "model.safetensors").unlink()
    model.save_pretrained(own, max_shard_size="60KB")
    assert len(list(own.glob("model-*-of-*.safetensors"))) > 1
    assert hf.load(str(own)).weights.fingerprint == fingerprint
    last = sorted(own.glob("model-*-of-*.safetensors"))[-1]
    last.unlink()
    with pytest.raises(DataError, match=rf"lists {last.name}, which is not beside it"):
        hf.load(str(own))


def test_a_pickle_that_could_run_code_is_refused(own: Path) -> None:
    (own / "model.safetensors").unlink()
    torch.save({"path": Path("x")}, own / "pytorch_model.bin")
    with pytest.raises(UnsafeError, match="holds Python objects beside tensors"):
        hf.load(str(own))


def test_code_that_a_repository_brings_is_never_run(own: Path) -> None:
    (own / "evil.py").write_text("raise SystemExit('ran')")
    for file, key in (("config.json", "AutoConfig"), ("tokenizer_config.json", "AutoTokenizer")):
        content = json.loads((own / file).read_text())
        content["auto_map"] = {key: "evil.Evil" if key == "AutoConfig" else ["evil.Evil", None]}
        (own / file).write_text(json.dumps(content))
    assert type(hf.load(str(own)).model) is transformers.CLIPModel


def test_weights_of_a_file_or_a_seed(folder: Path, tmp_path: Path) -> None:
    repository, random, again = (hf.load(str(folder), w) for w in (None, "random:3", "random:3"))
    assert random.weights == again.weights
    assert random.weights.random
    assert random.weights.fingerprint != repository.weights.fingerprint
    save_file(random.tensors(), tmp_path / "w.safetensors")
    loaded = hf.load(str(folder), str(tmp_path / "w.safetensors"))
    assert loaded.weights.fingerprint == random.weights.fingerprint
    assert (loaded.weights.tag, loaded.weights.random) == ("w.safetensors", False)
    assert (repository.weights.tag, dict(repository.weights.provenance)) == (folder.name, {})


def test_a_file_as_transformers_writes_it_is_read_under_its_former_names(folders: dict[str, Path]) -> None:
    # AltCLIP's files say encoder.layer, the model in memory encoder.layers
    file = folders["altclip"] / "model.safetensors"
    assert any(".encoder.layer.0." in key for key in load_file(file))
    loaded = hf.load(str(folders["altclip"]), str(file))
    assert loaded.weights.fingerprint == hf.load(str(folders["altclip"])).weights.fingerprint


def test_what_is_no_folder_and_no_clip_is_refused(tmp_path: Path, own: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ConfigError, match="is a bert model; here are clip, metaclip_2, siglip, altclip, chinese_clip"):
        hf.load(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip2"}))
    with pytest.raises(ConfigError, match="is SigLIP 2 NaFlex, whose images keep their own shape"):
        hf.load(str(tmp_path))
    with pytest.raises(ConfigError, match="no such folder, and a repository is ORG/REPO or ORG/REPO@REVISION"):
        hf.load(str(tmp_path / "none"))
    (own / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"the folder has no model\.safetensors or"):
        hf.load(str(own))


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("config.json", "model_type", ["clip"]),
        ("config.json", "vision_config", [1]),
        ("config.json", "projection_dim", None),
        ("config.json", "text_config.hidden_size", "x"),
        ("config.json", "text_config.num_attention_heads", 0),
        ("config.json", "text_config.hidden_act", "nope"),
        ("config.json", "text_config.eos_token_id", None),
        ("config.json", "vision_config.patch_size", 0),
        ("preprocessor_config.json", "size", None),
        ("preprocessor_config.json", "image_mean", 0.5),
        ("preprocessor_config.json", "image_std", [0, 0, 0]),
        ("preprocessor_config.json", "resample", "bicubic"),
        ("preprocessor_config.json", "rescale_factor", None),
        ("preprocessor_config.json", "image_processor_type", 3),
        ("preprocessor_config.json", "", [1]),
        ("tokenizer_config.json", "", 3),
        ("tokenizer.json", "", None),
    ],
)
def test_a_folder_that_makes_no_sense_is_one_sentence(own: Path, part: str, key: str, value: object) -> None:
    content = json.loads((own / part).read_text())
    place = content
    *outer, last = key.split(".")
    for each in outer:
        place = place[each]
    if key:
        place[last] = value
    (own / part).write_text(json.dumps(content if key else value))
    with pytest.raises(ConfigError, match=str(own)):
        hf.load(str(own))


@pytest.mark.parametrize("shard", [3, None, "../model.safetensors"])
def test_an_index_that_lists_no_file_beside_it_is_refused(own: Path, shard: object) -> None:
    (own / "model.safetensors").unlink()
    (own / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"logit_scale": shard}}))
    with pytest.raises(DataError, match=r"model\.safetensors\.index\.json"):
        hf.load(str(own))


def test_integers_in_the_place_of_weights_are_refused(own: Path) -> None:
    state = load_file(own / "model.safetensors")
    state["visual_projection.weight"] = (100 * state["visual_projection.weight"]).to(torch.int8)
    save_file(state, own / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"are integers, not floating-point numbers: visual_projection\.weight"):
        hf.load(str(own))


@pytest.mark.parametrize("name", ["a..b", "org/repo.git", "a--b/c", 5000 * "a", "a b", "@v1", "org/repo@"])
def test_what_can_be_no_repository_is_one_sentence(name: str) -> None:
    with pytest.raises(ConfigError, match=r"there is no (such folder|revision after the @)"):
        hf.load(name)


@pytest.mark.parametrize("part", ["tokenizer", "length"])
def test_what_makes_tokens_is_part_of_the_identity(folders: dict[str, Path], tmp_path: Path, part: str) -> None:
    # the same weights read capitals, or pad, in another way: the features of a text are others
    shutil.copytree(folders["siglip 2"], tmp_path, dirs_exist_ok=True)
    before = hf.load(str(tmp_path))
    if part == "tokenizer":
        gemma_tokenizer("GemmaTokenizer", model_max_length=24).save_pretrained(tmp_path)
    else:
        settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 20}))
    after = hf.load(str(tmp_path))
    assert after.weights.fingerprint != before.weights.fingerprint
    before.tokenize(["a", "a cat"])  # the last call's padding is none of it
    assert hf.load(str(folders["siglip 2"])).architecture == before.architecture


def test_where_a_folder_lies_is_no_part_of_its_name(own: Path, tmp_path: Path) -> None:
    there = hf.load(str(shutil.copytree(own, tmp_path / "elsewhere" / "clip")))
    assert there.weights == hf.load(str(own)).weights
    assert there.name == there.weights.backbone == "hf:clip"


# The hub's cache


@pytest.fixture
def hub(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in the hub's own layout that holds ORG/clip at one commit, which is main and v1; no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    root = tmp_path / "models--org--clip"
    shutil.copytree(folders["clip"], root / "snapshots" / COMMIT)
    (root / "refs").mkdir()
    for ref in ("main", "v1"):
        (root / "refs" / ref).write_text(COMMIT)
    return root


@pytest.mark.parametrize("at", ["", f"@{COMMIT}", "@v1"])
def test_a_repository_is_read_from_the_cache_and_its_commit_recorded(
    hub: Path, folders: dict[str, Path], at: str
) -> None:
    backbone = clipdg.load_backbone(f"hf:org/clip{at}")
    assert backbone.name == f"hf:org/clip{at}"
    assert backbone.weights.tag == "org/clip"
    assert dict(backbone.weights.provenance) == {"revision": COMMIT}
    assert backbone.weights.fingerprint == hf.load(str(folders["clip"])).weights.fingerprint


def test_what_is_not_in_the_cache_is_said_with_how_to_fetch_it(hub: Path) -> None:
    for spec in ("org/other", "org/clip@v2"):
        with pytest.raises(NetworkError, match=r"has no config\.json of org") as caught:
            hf.load(spec)
        message = str(caught.value)
        assert str(hub.parent) in message
        assert f"`clipdg fetch backbone hf:{spec}`" in message
    (hub / "snapshots" / COMMIT / "model.safetensors").unlink()
    with pytest.raises(NetworkError, match=r"has no model\.safetensors or .* HF_HUB_OFFLINE is set"):
        hf.load("org/clip")
    assert hf.load("org/clip", "random:0").weights.random  # which needs no weights


def test_a_repository_is_downloaded_once_and_without_its_pickles(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.name: path.read_bytes() for path in folders["clip"].iterdir()} | {"pytorch_model.bin": b"never asked"}
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        """As much of the hub's interface as its client uses; it has one repository."""

        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            name = path.rpartition("/")[2]
            asked.append(name)
            code, content = 200, b""
            if path.startswith("/api/models/org/clip/tree/"):
                tree = [{"type": "file", "path": n, "size": len(b), "oid": digest(b)} for n, b in files.items()]
                content = json.dumps(tree).encode()
            elif path == "/api/models/org/clip/revision/main":
                content = json.dumps({"id": "org/clip", "_id": "1", "sha": COMMIT}).encode()
            elif path == f"/org/clip/resolve/{COMMIT}/{name}" and name in files:
                content = files[name]
            else:
                code = 404
            self.send_response(code)
            if code == 404:
                self.send_header("X-Error-Code", "RepoNotFound" if "org/clip" not in path else "RevisionNotFound")
            for header, value in (("ETag", f'"{digest(content)}"'), ("X-Repo-Commit", COMMIT)):
                self.send_header(header, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    script = """
import json
from clipdg.backbones import hf
from clipdg.core.errors import ConfigError
said = []
for spec in ("org/clip", "org/clip", "org/none", "org/clip@v9"):
    try:
        said.append(dict(hf.load(spec).weights.provenance))
    except ConfigError as error:
        said.append(str(error))
print(json.dumps(said))
"""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for key, value in {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path)}.items():
            monkeypatch.setenv(key, value)
        for key in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
            monkeypatch.delenv(key, raising=False)
        # in a process of its own: the hub's client reads its settings when it is imported
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        server.shutdown()
    first, second, repository, revision = json.loads(done.stdout)
    assert first == second == {"revision": COMMIT}
    assert "there is no folder and no repository 'org/none'" in repository
    assert "no branch, tag or commit 'v9'" in revision
    assert "pytorch_model.bin" not in asked
    assert asked.count("model.safetensors") == 2  # its head and itself


def digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


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
    # the loss is a softmax, which a constant does not change
    assert still == (["model.logit_bias"] if after.logit_bias is not None else [])
