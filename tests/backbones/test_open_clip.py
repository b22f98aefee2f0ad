"""open_clip's models as backbones: the same numbers as the library's own, and none of its silent choices."""

from __future__ import annotations

import dataclasses
import io
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import open_clip as library
import pytest
import timm
import tokenizers
import torch
import transformers
from open_clip.transform import image_transform
from PIL import Image
from safetensors.torch import save_file
from tokenizers import models as kinds
from tokenizers import pre_tokenizers, processors

from clipdg.backbones import open_clip
from clipdg.core.benchmark import Benchmark
from clipdg.core.errors import ConfigError, DataError, NetworkError, UnsafeError
from clipdg.core.model import ClipBackbone
from clipdg.data.decode import decode
from clipdg.data.preprocessing import preprocess
from clipdg.methods import coop
from clipdg.text import prompt_encoder
from clipdg.training.pretrain import PretrainConfig, pretrain
from clipdg.weights.files import pack

VISION: dict[str, Any] = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
TEXT: dict[str, Any] = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
CONFIG: dict[str, Any] = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}
TEXTS = ["a photo of a cat.", "two dogs and a very small cat"]
WORDS = ("a", "photo", "of", "cat", "dog", "dogs", "and", "two", "very", "small", "x", "y", ".")


def small_models(folder: Path) -> dict[str, dict[str, Any]]:
    """One small architecture of each sort; tokenizers and text towers of transformers lie in ``folder``."""
    own = {**TEXT, "vocab_size": 64}
    siglip = {
        **own,
        "hf_tokenizer_name": str(folder / "t5"),
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
        "act_kwargs": {"approximate": "tanh"},
    }
    clipa = {
        **own,
        "hf_tokenizer_name": str(folder / "bert"),
        "tokenizer_kwargs": {"strip_sep_token": True},
        "pool_type": "last",
        "no_causal_mask": True,
    }
    worldwide = {**own, "hf_tokenizer_name": str(folder / "xlmr"), "pool_type": "eos", "eos_id": 2}
    timm_vit = {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"}
    convnext = {"image_size": 64, "timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear"}
    eva = {"image_size": 224, "timm_model_name": "eva02_tiny_patch14_224", "timm_pool": "token", "timm_proj": None}

    def transformers_text(name: str, pooler: str, proj: str = "mlp") -> dict[str, Any]:
        place = str(folder / name)
        return {"hf_model_name": place, "hf_tokenizer_name": place, "hf_pooler_type": pooler, "hf_proj_type": proj}

    return {
        "small": CONFIG,
        "small-custom": {**CONFIG, "custom_text": True},
        "small-quickgelu": {**CONFIG, "quick_gelu": True},
        "small-resnet": {**CONFIG, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}},
        "small-convnext": {**CONFIG, "vision_cfg": convnext},
        "small-eva": {**CONFIG, "vision_cfg": eva, "custom_text": True},
        "small-mobile": {
            **CONFIG,
            "vision_cfg": convnext,
            "text_cfg": {**TEXT, "no_causal_mask": True},
            "custom_text": True,
        },
        "small-siglip": {
            "embed_dim": 64,
            "init_logit_bias": -10,
            "custom_text": True,
            "vision_cfg": timm_vit,
            "text_cfg": siglip,
        },
        "small-clipa": {**CONFIG, "text_cfg": clipa},
        "small-clips": {**CONFIG, "text_cfg": {**clipa, "tokenizer_mode": "clips", "tokenizer_kwargs": {}}},
        "small-worldwide": {**CONFIG, "text_cfg": worldwide},
        "small-xlmr": {**CONFIG, "text_cfg": transformers_text("xlmr", "mean_pooler")},
        "small-mt5": {**CONFIG, "text_cfg": transformers_text("mt5", "mean_pooler")},
        "small-nllb": {**CONFIG, "text_cfg": transformers_text("nllb", "cls_pooler", "linear")},
        "small-coca": {
            **CONFIG,
            "embed_dim": 32,
            "vision_cfg": {**VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
            "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
            "multimodal_cfg": {**TEXT, "attn_pooler_heads": 2},
            "custom_text": True,
        },
    }


# name -> causal, number of tokens in front of the text; None: cannot be prompted
TOWERS = {
    "small": (True, 1),
    "small-custom": (True, 1),
    "small-quickgelu": (True, 1),
    "small-resnet": (True, 1),
    "small-convnext": (True, 1),
    "small-eva": (True, 1),
    "small-mobile": (False, 1),
    "small-siglip": (False, 0),
    "small-clipa": (False, 1),
    "small-clips": None,
    "small-worldwide": (True, 1),
    "small-xlmr": (False, 1),
    "small-mt5": (False, 0),
    "small-nllb": (False, 1),
    "small-coca": (True, 1),
}


def tokenizer(special: list[str], template: str, **named: str) -> transformers.PreTrainedTokenizerFast:
    """SentencePiece's Unigram over WORDS and letters, as T5's and XLM-R's tokenizer.json hold it."""
    vocabulary = [(s, 0.0) for s in special] + [("▁" + w, -1.0) for w in WORDS] + [(c, -8.0) for c in "▁.abcdefghij"]
    core = tokenizers.Tokenizer(kinds.Unigram(vocabulary, unk_id=special.index("<unk>")))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(s, special.index(s)) for s in special if s in template]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>", **named)


def write_parts(folder: Path) -> None:
    """Tokenizers and configurations of text towers, in transformers' own files."""
    t5 = ["<pad>", "</s>", "<unk>"]
    tokenizer(t5, "$A </s>", pad_token="<pad>").save_pretrained(folder / "mt5")
    tokenizer(t5, "$A </s>", pad_token="</s>").save_pretrained(folder / "t5")
    xlmr = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer(xlmr, "<s> $A </s>", bos_token="<s>", pad_token="<pad>").save_pretrained(folder / "xlmr")
    nllb = tokenizer([*xlmr, "eng_Latn"], "eng_Latn $A </s>", pad_token="<pad>", additional_special_tokens=["eng_Latn"])
    nllb.save_pretrained(folder / "nllb")
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[BOS]", "[EOS]", *WORDS])}
    bert = tokenizers.Tokenizer(kinds.WordPiece(vocabulary, unk_token="[UNK]"))
    bert.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    bert.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=bert,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        bos_token="[BOS]",
        eos_token="[EOS]",
    ).save_pretrained(folder / "bert")
    transformers.XLMRobertaConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=90,
        pad_token_id=1,
    ).save_pretrained(folder / "xlmr")
    transformers.MT5Config(
        vocab_size=64, d_model=32, d_kv=16, d_ff=48, num_layers=2, num_decoder_layers=1, num_heads=2
    ).save_pretrained(folder / "mt5")
    transformers.M2M100Config(
        vocab_size=64,
        d_model=32,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=90,
    ).save_pretrained(folder / "nllb")


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The small architectures, known to open_clip while these tests run."""
    folder = tmp_path_factory.mktemp("models")
    write_parts(folder)
    (folder / "configs").mkdir()
    before = dict(library.factory._MODEL_CONFIGS)
    for name, config in small_models(folder).items():
        (folder / "configs" / f"{name}.json").write_text(json.dumps(config))
    library.add_model_config(folder / "configs")
    yield folder
    library.factory._MODEL_CONFIGS.clear()
    library.factory._MODEL_CONFIGS.update(before)
    library.factory._MODEL_CONFIG_PATHS.pop()


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks the network; the hub's cache is empty but for what a test puts there."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def theirs(name: str) -> Any:
    """The library's model; nothing in it is zero or one, as fresh biases, norms and running means are."""
    torch.manual_seed(7)
    model = library.create_model(name, pretrained_text=False).eval()
    with torch.no_grad():
        if isinstance(model, library.CoCa):  # open_clip leaves it as the memory was
            model.text_decoder.text_projection.fill_(0.1)
        for key, tensor in model.state_dict().items():
            if tensor.is_floating_point() and key not in ("logit_scale", "logit_bias"):
                tensor.add_(0.05 * torch.randn(tensor.shape).abs())
    return model


def images(n: int, size: int = 32) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def same(ours: torch.Tensor, expected: torch.Tensor) -> None:
    """Within 1e-5, relative to the largest number."""
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.fixture(scope="module", params=TOWERS)
def pair(request: pytest.FixtureRequest, models: Path) -> tuple[Any, open_clip.OpenClip]:
    """The library's model, and ours from a file of its weights."""
    model, path = theirs(request.param), models / f"{request.param}.safetensors"
    save_file(model.state_dict(), path)
    return model, open_clip.load(request.param, str(path))


def test_features_and_logits_are_the_librarys(pair: tuple[Any, open_clip.OpenClip]) -> None:
    model, backbone = pair
    assert isinstance(backbone, ClipBackbone)
    tokens = backbone.tokenize(TEXTS)
    assert torch.equal(tokens, library.get_tokenizer(backbone.name.removeprefix("open_clip:"))(TEXTS))
    batch = images(2, backbone.preprocessing.size)
    with torch.no_grad():
        image, text = model.encode_image(batch, normalize=False), model.encode_text(tokens, normalize=False)
        same(backbone.encode_image(batch), image)
        same(backbone.encode_text(tokens), text)
        if isinstance(model, library.CoCa):  # which has no get_logits
            out = model(batch, tokens)
            expected = out["logit_scale"] * out["image_features"] @ out["text_features"].T
        else:
            expected = model.get_logits(batch, tokens)[0]
        ours, transposed = backbone(batch, tokens)
    same(ours, expected)
    assert torch.equal(transposed, ours.T)
    assert image.shape == (2, backbone.embed_dim)
    assert backbone.logit_scale == pytest.approx(1 / 0.07, rel=1e-5)
    assert backbone.logit_bias == (-10 if "siglip" in backbone.name else 0)
    assert not any(p.requires_grad for p in backbone.parameters())


def test_a_replaced_embedding_is_what_the_library_makes_of_another_token(pair: tuple[Any, open_clip.OpenClip]) -> None:
    model, backbone = pair
    expected = TOWERS[backbone.name.removeprefix("open_clip:")]
    tower = backbone.text_tower
    if expected is None:
        assert tower is None
        return
    assert tower is not None
    assert (tower.causal, tower.num_prefix_tokens) == expected
    tokens = backbone.tokenize(TEXTS)
    assert (tower.width, tower.context_length) == (32, tokens.shape[1])
    place, other = tower.num_prefix_tokens + 1, 50  # the second word; a token that no text here has
    vector = torch.linspace(-1, 1, 32)
    text = getattr(model, "text", model)
    table = text.transformer.get_input_embeddings() if hasattr(text, "pooler") else text.token_embedding
    kept = table.weight[other].clone()
    with torch.no_grad():
        embeddings = tower.embed(tokens)
        embeddings[:, place] = vector * getattr(table, "embed_scale", 1.0)
        swapped = tokens.clone()
        swapped[:, place] = other
        table.weight[other] = vector
        answer = model.encode_text(swapped, normalize=False)
        table.weight[other] = kept
        same(tower.encode(embeddings, swapped), answer)
        assert (answer - model.encode_text(tokens, normalize=False)).abs().max() > 1e-4 * answer.abs().max()


DESCRIBED = {n for n in TOWERS if n not in ("small-clips", "small-xlmr", "small-mt5", "small-nllb", "small-coca")}


@pytest.mark.parametrize("form", ["plain", "cut", "shared"])
def test_each_form_of_its_text_tower_has_the_librarys_features_and_gradients(
    pair: tuple[Any, open_clip.OpenClip], form: prompt_encoder.Form
) -> None:
    model, backbone = pair
    tower = backbone.text_tower
    assert (tower is not None and tower.description is not None) == (
        backbone.name.removeprefix("open_clip:") in DESCRIBED
    )
    if tower is None:
        return
    texts = [
        f"{a} {b} {c}" for a in ("a photo of", "two") for b in ("a", "very small") for c in ("cat", "dogs", "dog.")
    ]
    tokens = backbone.tokenize(texts * 3)
    with torch.no_grad():
        same(prompt_encoder.Prompts(tower, tokens, form=form).encode(), model.encode_text(tokens, normalize=False))
    where = torch.full(tokens.shape, -1)
    where[:, tower.num_prefix_tokens : tower.num_prefix_tokens + 2] = torch.arange(2)
    ours, theirs = (torch.full((2, tower.width), 0.3).requires_grad_() for _ in range(2))
    found = prompt_encoder.Prompts(tower, tokens, where, form=form).encode(ours)
    embeddings = torch.where((where >= 0)[:, :, None], theirs[where.clamp(min=0)], tower.embed(tokens))
    expected = tower.encode(embeddings, tokens)
    same(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    same(ours.grad, theirs.grad)


def test_a_causal_tower_passes_gradients_to_what_precedes_the_end_and_another_to_every_token_it_sees(
    pair: tuple[Any, open_clip.OpenClip],
) -> None:
    _, backbone = pair
    tower = backbone.text_tower
    if tower is None:
        pytest.skip("it cannot be prompted")
    tokens = backbone.tokenize(TEXTS)
    embeddings = tower.embed(tokens).requires_grad_()
    (gradient,) = torch.autograd.grad(tower.encode(embeddings, tokens).sum(), embeddings)
    reached = [int((g.abs().sum(1) > 0).nonzero().max()) + 1 for g in gradient]
    name = backbone.name.removeprefix("open_clip:small")
    if name in ("-mobile", "-siglip", "-clipa"):  # they have no mask at all
        assert reached == [20, 20]
    elif name == "-coca":  # its mask is shifted by one, so that the first padding is seen
        assert reached == [int((row != 0).sum()) + 1 for row in tokens]
    else:
        pad = {"-xlmr": 1, "-worldwide": 1, "-nllb": 1}.get(name, 0)
        assert reached == [int((row != pad).sum()) for row in tokens]


def test_coops_prompt_of_a_texts_own_embeddings_is_that_text(pair: tuple[Any, open_clip.OpenClip]) -> None:
    model, backbone = pair
    benchmark = Benchmark("b", ("cat", "small dog"))
    settings = coop.Config(context_init="a photo of a", suffix="")
    if backbone.text_tower is None:
        with pytest.raises(ConfigError, match="replaces token embeddings"):
            coop.build(settings, backbone, benchmark)
        return
    with torch.no_grad():
        directions = coop.build(settings, backbone, benchmark).directions()
        tokens = backbone.tokenize([f"a photo of a {name}" for name in benchmark.classes])
        same(directions, model.encode_text(tokens, normalize=True))


def test_the_catalogue_is_what_loading_gives(pair: tuple[Any, open_clip.OpenClip]) -> None:
    _, backbone = pair
    row = next(row for row in open_clip.catalogue() if row["name"] == backbone.name)
    tags: list[str] = []
    assert row == {
        "name": backbone.name,
        "tags": tags,
        "size": backbone.preprocessing.size,
        "embed_dim": backbone.embed_dim,
        "can_prompt": backbone.text_tower is not None,
    }


# ---- every pair that open_clip lists ----

REFUSED = {  # their tags say QuickGELU and these names do not have it; NAME-quickgelu does
    "RN50": ("openai", "yfcc15m", "cc12m"),
    "RN101": ("openai", "yfcc15m"),
    "RN50x4": ("openai",),
    "RN50x16": ("openai",),
    "RN50x64": ("openai",),
    "ViT-B-32": ("openai", "laion400m_e31", "laion400m_e32", "metaclip_400m", "metaclip_fullcc"),
    "ViT-B-16": ("openai", "dfn2b", "metaclip_400m", "metaclip_fullcc"),
    "ViT-L-14": ("openai", "metaclip_400m", "metaclip_fullcc", "dfn2b"),
    "ViT-L-14-336": ("openai",),
    "ViT-H-14": ("metaclip_fullcc", "dfn5b"),
    "ViT-H-14-378": ("dfn5b",),
    "ViT-bigG-14": ("metaclip_fullcc",),
    "ViT-H-14-worldwide": ("metaclip2_worldwide",),
    "roberta-ViT-B-32": ("laion2b_s12b_b32k",),  # the other way round, and there is no twin
}


class Shell(torch.nn.Module):
    """Stands for a model in open_clip's factory, which then settles everything but the towers."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.visual = torch.nn.Module()
        self.visual.image_size = config["vision_cfg"].get("image_size", 224)


@pytest.mark.parametrize(("model", "tag"), library.list_pretrained())
def test_each_listed_pair_means_what_open_clip_makes_of_it(
    model: str, tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def download(repo_id: str, filename: str, **_: Any) -> str:
        asked.append((repo_id, filename))
        raise OSError("no network")

    def find(card: dict[str, Any], **_: Any) -> str:
        with pytest.raises(FileNotFoundError):
            library.pretrained.download_pretrained(card)
        return ""

    monkeypatch.setattr(library.pretrained, "hf_hub_download", download)
    monkeypatch.setattr(library.factory, "download_pretrained", find)
    for kind in ("CLIP", "CustomTextCLIP", "CoCa"):
        monkeypatch.setattr(library.factory, kind, Shell)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cfg = library.create_model(model, pretrained=tag).visual.preprocess_cfg
    mismatch = [w for w in caught if "QuickGELU mismatch" in str(w.message)]
    assert bool(mismatch) == (tag in REFUSED.get(model, ()))
    row = next(row for row in open_clip.catalogue() if row["name"] == f"open_clip:{model}")
    assert (tag in row["tags"]) != bool(mismatch)
    if mismatch:
        twin = f"{model}-quickgelu"
        other = "hf-hub:laion/CLIP-ViT-B-32-roberta-base-laion2B-s12B-b32k," if "roberta" in model else f"{twin}$"
        with pytest.raises(ConfigError, match=f"QuickGELU.*use open_clip:{other}"):
            open_clip.load(model, tag)
        if "roberta" in model:
            return
        model = twin
    source = open_clip.resolve(model, tag)
    spec = source.preprocessing
    assert [(source.repository, name) for name in source.files] == asked
    assert (spec.size, spec.mean, spec.std) == (cfg["size"], cfg["mean"], cfg["std"])
    assert (spec.resize, spec.interpolation, spec.crop_fraction) == (cfg["resize_mode"], cfg["interpolation"], 1.0)


@pytest.mark.parametrize("model", sorted({model for model, _ in library.list_pretrained()}))
def test_each_listed_model_has_open_clips_tokenizer(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    def from_pretrained(name: str, *, cache_dir: None, **options: Any) -> SimpleNamespace:
        names.append(name)
        options.pop("local_files_only", None)
        assert options.pop("trust_remote_code", False) is False
        return SimpleNamespace(options=options)

    def simple(**options: Any) -> SimpleNamespace:
        return SimpleNamespace(options=options)

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", from_pretrained)
    monkeypatch.setattr(library, "SimpleTokenizer", simple)
    monkeypatch.setattr(library.factory, "SimpleTokenizer", simple)
    ours, expected = open_clip._tokenizer(open_clip.resolve(model, "random:0"), "", None), library.get_tokenizer(model)
    assert vars(ours) == vars(expected)
    assert names in ([], names[:1] * 2)
    timm_name = library.get_model_config(model)["vision_cfg"].get("timm_model_name")
    assert timm_name is None or timm.is_model(timm_name)


# ---- preprocessing ----


def picture(mode: str, size: tuple[int, int]) -> Image.Image:
    rng = np.random.default_rng(size)
    channels = {"L": 1, "LA": 2, "RGB": 3, "P": 3, "RGBA": 4, "CMYK": 4}[mode]
    pixels = rng.integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    if mode in ("LA", "RGBA"):
        pixels[..., -1] = 255
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels, "RGB" if mode == "P" else mode)
    return image.quantize(64) if mode == "P" else image


def stored(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG" if image.mode == "CMYK" or "exif" in options else "PNG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("resize", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(77, 50), (33, 32), (31, 201), (32, 32), (20, 7)])
def test_preprocessing_is_the_librarys_pixel_by_pixel(resize: str, interpolation: str, size: tuple[int, int]) -> None:
    card = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3), "resize_mode": resize, "interpolation": interpolation}
    spec = open_clip.preprocessing_of(CONFIG, card)
    transform = image_transform(32, is_train=False, **card)
    for mode in ("RGB", "L", "RGBA", "LA"):
        data = stored(picture(mode, size))
        assert torch.equal(preprocess(decode(data, mode), spec), transform(Image.open(io.BytesIO(data)))), mode
    for mode in ("P", "CMYK"):
        # open_clip's transform resizes indices of a palette (without interpolation) and amounts of ink; here RGB comes
        # first, as in torchvision's ImageFolder, which is what its own evaluations read with.
        image = Image.open(io.BytesIO(stored(picture(mode, size))))
        ours = preprocess(decode(stored(picture(mode, size)), mode), spec)
        assert torch.equal(ours, transform(image.convert("RGB"))), mode
        assert size != (77, 50) or not torch.equal(ours, transform(image)), mode


def test_preprocessing_differs_where_the_decode_policy_does() -> None:
    spec = open_clip.preprocessing_of(CONFIG, {})
    transform = image_transform(32, is_train=False)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    data = stored(picture("RGB", (50, 77)), exif=exif)
    image = Image.open(io.BytesIO(data))
    ours = preprocess(decode(data, "turned"), spec)
    assert torch.equal(ours, transform(image.transpose(Image.Transpose.ROTATE_270)))
    assert not torch.equal(ours, transform(image))
    veiled = picture("RGBA", (50, 77))
    veiled.putalpha(Image.new("L", veiled.size, 100))
    over_white = Image.alpha_composite(Image.new("RGBA", veiled.size, "white"), veiled)
    ours = preprocess(decode(stored(veiled), "veiled"), spec)
    assert torch.equal(ours, transform(over_white.convert("RGB")))
    assert not torch.equal(ours, transform(veiled))


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"resize_mode": "longest"}, "resize_mode=longest"),
        ({"interpolation": "random"}, "interpolation=random"),
        ({"mean": (0.5,)}, "not those of three colours"),
    ],
)
def test_preprocessing_that_is_not_known_is_refused(card: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_clip.preprocessing_of(CONFIG, card)


# ---- texts ----


def test_a_text_is_never_cut() -> None:
    backbone = open_clip.load("small", "random:0")
    assert backbone.tokenize([" ".join(["cat"] * 18)])[0, -1] == 49407
    with pytest.raises(DataError, match=r"'cat .*' is 21 tokens for open_clip:small, which takes 20"):
        backbone.tokenize([" ".join(["cat"] * 19)])
    siglip = open_clip.load("small-siglip", "random:0")
    assert siglip.tokenize([" ".join(["cat"] * 19)])[0, -2:].tolist() == [6, 1]
    with pytest.raises(DataError, match=r"'cat .*' is 21 tokens for open_clip:small-siglip, which takes 20"):
        siglip.tokenize([" ".join(["cat"] * 20)])


@pytest.mark.parametrize(("name", "text"), [("small", "a <end_of_text> cat"), ("small-siglip", "a 猫")])
def test_a_text_that_would_move_the_end_or_has_no_tokens_is_refused(name: str, text: str) -> None:
    with pytest.raises(DataError, match=f"'{text}' has a part that the tokenizer of open_clip:{name} cannot"):
        open_clip.load(name, "random:0").tokenize([text])


def test_a_tower_whose_padding_stands_in_front_cannot_be_prompted() -> None:
    backbone = open_clip.load("small-xlmr", "random:0")
    assert open_clip.text_tower_of(backbone.model, backbone.tokenizer) is not None
    backbone.tokenizer.tokenizer.padding_side = "left"
    assert open_clip.text_tower_of(backbone.model, backbone.tokenizer) is None


# ---- where weights come from ----


def test_random_weights_only_if_asked_for() -> None:
    one, again, other = (open_clip.load("small-coca", f"random:{seed}") for seed in (0, 0, 1))
    assert one.weights == again.weights
    decoder = one.get_parameter("model.text_decoder.text_projection")  # which open_clip does not initialise
    assert decoder.std().item() == pytest.approx(32**-0.5, rel=0.01)
    assert (one.weights.random, one.weights.tag) == (True, "random:0")
    assert one.weights.fingerprint != other.weights.fingerprint
    with pytest.raises(ConfigError, match="open_clip:small needs weights"):
        open_clip.load("small")


def test_names_tags_and_files_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no open_clip model 'ViT-B-23'.*Did you mean 'ViT-B-32'"):
        open_clip.load("ViT-B-23", "openai")
    with pytest.raises(ConfigError, match=r"no weights 'openia' for open_clip:ViT-B-32.*openai, laion400m_e31"):
        open_clip.load("ViT-B-32", "openia")
    with pytest.raises(ConfigError, match=r"no weights 'aaaa.*and no such file"):
        open_clip.load("ViT-B-32", 4000 * "a")
    with pytest.raises(ConfigError, match="brings its own weights"):
        open_clip.load("hf-hub:org/repo", "openai")
    with pytest.raises(ConfigError, match=r"local-dir:.* cannot be opened: there is no .*open_clip_config\.json"):
        open_clip.load(f"local-dir:{tmp_path}")


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    state = dict(theirs("small").state_dict())
    del state["ln_final.bias"]
    state["positional_embedding"] = state["positional_embedding"][:18].clone()  # which open_clip would stretch
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(
        DataError, match=r"w\.safetensors does not fit .*missing: ln_final\.bias; .*\(18, 32\) for \(20"
    ):
        open_clip.load("small", str(tmp_path / "w.safetensors"))


def test_the_activation_is_part_of_the_identity(tmp_path: Path) -> None:
    save_file(theirs("small").state_dict(), tmp_path / "w.safetensors")
    plain, quick = (open_clip.load(m, str(tmp_path / "w.safetensors")) for m in ("small", "small-quickgelu"))
    assert plain.weights.fingerprint != quick.weights.fingerprint


def test_checkpoints_of_training_of_openai_and_of_the_old_layout_hold_the_same_weights(tmp_path: Path) -> None:
    state = {name: t.half() for name, t in theirs("small").state_dict().items()}
    expected = theirs("small")
    expected.load_state_dict(state)
    torch.save({"epoch": 1, "state_dict": {f"module.{n}": t for n, t in state.items()}}, tmp_path / "epoch_1.pt")
    extras = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(20), "vocab_size": torch.tensor(9)}
    save_file(state | extras | {"logit_scale": state["logit_scale"].view(1)}, tmp_path / "openai.safetensors")
    with torch.no_grad():
        answer = expected.encode_image(images(2))
        for name, model in (("epoch_1.pt", "small"), ("openai.safetensors", "small"), ("epoch_1.pt", "small-custom")):
            same(open_clip.load(model, str(tmp_path / name)).encode_image(images(2)), answer)


def test_torchscript_is_refused_with_the_way_to_the_same_weights(tmp_path: Path) -> None:
    path = tmp_path / "ViT-B-32.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    with pytest.raises(UnsafeError, match=r"ViT-B-32\.pt is a TorchScript program.*save_file; .*the tag 'openai'"):
        open_clip.load("ViT-B-32-quickgelu", str(path))


def test_a_file_takes_its_preprocessing_from_its_models_tags_if_they_agree(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    spec = open_clip.resolve("ViT-B-16-SigLIP", str(path)).preprocessing
    assert (spec.mean, spec.resize) == ((0.5, 0.5, 0.5), "squash")  # open_clip itself would take OpenAI's
    # dfn5b squashes, and is a tag of ViT-H-14-quickgelu
    assert open_clip.resolve("ViT-H-14", str(path)).doubt == ""
    with pytest.raises(ConfigError, match=r"w\.safetensors does not say .*ViT-L-14 do it in 2 ways.*local-dir"):
        open_clip.load("ViT-L-14", str(path))


def test_a_file_of_ours_brings_its_preprocessing(tmp_path: Path) -> None:
    backbone = open_clip.load("small", "random:0")
    spec = dataclasses.replace(backbone.preprocessing, mean=(0.1, 0.2, 0.3), resize="squash")
    header = {"architecture": backbone.architecture, "preprocessing": dataclasses.asdict(spec)}
    (tmp_path / "w.safetensors").write_bytes(pack(backbone.tensors(), header))
    assert open_clip.load("small", str(tmp_path / "w.safetensors")).preprocessing == spec


def write_folder(folder: Path, config: dict[str, Any], state: dict[str, torch.Tensor] | None, **card: Any) -> None:
    """A model as open_clip's push_to_hf_hub lays it out."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": card}))
    if state is not None:
        save_file(state, folder / "open_clip_model.safetensors")


def test_a_local_folder_in_the_hubs_layout(tmp_path: Path) -> None:
    model = theirs("small")
    spec = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.3], "interpolation": "bilinear", "resize_mode": "squash"}
    write_folder(tmp_path / "m", CONFIG, None, **spec)
    with pytest.raises(ConfigError, match=r"has no checkpoint in .*; name it open_clip_model\.safetensors"):
        open_clip.load(f"local-dir:{tmp_path / 'm'}")
    write_folder(tmp_path / "m", CONFIG, model.state_dict(), **spec)
    backbone = open_clip.load(f"local-dir:{tmp_path / 'm'}")
    with torch.no_grad():
        same(backbone.encode_image(images(2)), model.encode_image(images(2)))
    p = backbone.preprocessing
    assert (p.size, p.mean, p.resize, p.interpolation) == (32, (0.4, 0.5, 0.6), "squash", "bilinear")
    assert backbone.weights.tag == "m"


def test_a_local_folder_with_its_text_tower_and_tokenizer_is_the_same_wherever_it_lies(
    models: Path, tmp_path: Path
) -> None:
    model = theirs("small-xlmr")
    prints = []
    for place in ("here", "there"):
        config = {**CONFIG, "text_cfg": {"hf_model_name": "tower", "hf_tokenizer_name": str(tmp_path / place / "xlmr")}}
        folder = tmp_path / place / "m"
        write_folder(folder, config, model.state_dict())
        for file in (models / "xlmr").glob("tokenizer*"):
            (folder / file.name).write_bytes(file.read_bytes())
        (folder / "tower").mkdir()
        (folder / "tower" / "config.json").write_bytes((models / "xlmr" / "config.json").read_bytes())
        backbone = open_clip.load(f"local-dir:{folder}")
        prints.append(backbone.weights.fingerprint)
    assert prints[0] == prints[1]
    tokens = backbone.tokenize(TEXTS)
    assert tokens.shape == (2, 77)
    with torch.no_grad():
        same(backbone.encode_text(tokens), model.encode_text(tokens))
    # another activation in the text tower's own configuration is another function
    values = json.loads((models / "xlmr" / "config.json").read_text())
    (folder / "tower" / "config.json").write_text(json.dumps({**values, "hidden_act": "relu"}))
    assert open_clip.load(f"local-dir:{folder}").weights.fingerprint != prints[0]
    (folder / "tower" / "config.json").write_text(json.dumps(values))
    assert open_clip.load(f"local-dir:{folder}").weights.fingerprint == prints[0]
    # and so is another tokenizer
    content = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(content.replace("▁small", "▁large"), encoding="utf-8")
    assert open_clip.load(f"local-dir:{folder}").weights.fingerprint != prints[0]


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("vision_cfg", 3, "vision_cfg in .* is 3, not an object"),
        ("text_cfg", None, "text_cfg in .* is None, not an object"),
        ("embed_dim", float("nan"), "NaN is no number"),
        ("embed_dim", "x", "cannot be loaded"),
        ("vision_cfg", {**VISION, "patch_size": 0}, "cannot be loaded: integer division or modulo by zero"),
        ("vision_cfg", {**VISION, "image_size": "x"}, "images of x pixels; only square"),
        ("vision_cfg", {**VISION, "image_size": 0}, "images of 0 pixels; only square"),
        ("vision_cfg", {**VISION, "image_size": None}, "cannot be loaded"),
        ("text_cfg", {**TEXT, "tokenizer_kwargs": 3}, "cannot be loaded"),
        ("text_cfg", {**TEXT, "tokenizer_kwargs": {"clean": "no"}}, "cannot be loaded: Invalid clean function"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_one_sentence(
    part: str, value: Any, message: str, tmp_path: Path
) -> None:
    write_folder(tmp_path, {**CONFIG, part: value}, {})
    with pytest.raises(ConfigError, match=message):
        open_clip.load(f"local-dir:{tmp_path}")


@pytest.mark.parametrize("card", [{"mean": ["a", "b", "c"]}, {"std": [0, 0, 0]}])
def test_a_preprocessing_that_makes_no_sense_is_one_sentence(card: dict[str, Any], tmp_path: Path) -> None:
    write_folder(tmp_path, CONFIG, {}, **card)
    with pytest.raises(ConfigError):
        open_clip.load(f"local-dir:{tmp_path}")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": 3}))
    with pytest.raises(ConfigError, match=r"preprocess_cfg in .* is 3, not an object"):
        open_clip.load(f"local-dir:{tmp_path}")


def test_where_a_folder_lies_is_no_part_of_its_name(tmp_path: Path) -> None:
    for place in ("here", "there"):
        write_folder(tmp_path / place / "m", CONFIG, theirs("small").state_dict())
    here, there = (open_clip.load(f"local-dir:{tmp_path / place / 'm'}") for place in ("here", "there"))
    assert here.weights == there.weights
    assert here.name == here.weights.backbone == "open_clip:local-dir:m"


def test_a_configuration_cannot_ask_for_code_to_be_run(tmp_path: Path) -> None:
    text = {**TEXT, "hf_tokenizer_name": "org/repo", "tokenizer_kwargs": {"trust_remote_code": True}}
    write_folder(tmp_path, {**CONFIG, "text_cfg": text}, theirs("small").state_dict())
    with pytest.raises(UnsafeError, match="gives its tokenizer trust_remote_code"):
        open_clip.load(f"local-dir:{tmp_path}")


OLD, NEW = "0" * 40, "1" * 40


def write_repository(cache: Path, repository: str) -> None:
    """Two commits of a repository in the hub's cache, the second of which is main."""
    place = cache / f"models--{repository.replace('/', '--')}"
    for commit in (OLD, NEW):
        state = {name: t + (0.01 if commit == NEW else 0) for name, t in theirs("small").state_dict().items()}
        write_folder(place / "snapshots" / commit, CONFIG, state)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(NEW)


def test_a_repository_is_read_at_its_commit_which_is_recorded(tmp_path: Path) -> None:
    write_repository(tmp_path / "hub", "org/repo")
    latest, pinned = open_clip.load("hf-hub:org/repo"), open_clip.load(f"hf-hub:org/repo@{OLD}")
    assert latest.weights.provenance == {
        "repository": "org/repo",
        "file": "open_clip_model.safetensors",
        "revision": NEW,
    }
    assert pinned.weights.provenance["revision"] == OLD
    assert (latest.weights.tag, pinned.weights.tag) == ("org/repo", f"org/repo@{OLD}")
    with torch.no_grad():
        same(pinned.encode_image(images(1)), theirs("small").encode_image(images(1)))
        assert not torch.allclose(latest.encode_image(images(1)), pinned.encode_image(images(1)))


def test_a_tag_is_read_from_the_cache_at_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_repository(tmp_path / "hub", "org/repo")
    card = {"hf_hub": "org/repo/", "mean": (0.5,) * 3, "std": (0.5,) * 3, "resize_mode": "squash"}
    monkeypatch.setitem(library.pretrained._PRETRAINED, "small", {"some_tag": card})
    backbone = open_clip.load("small", f"Some-Tag@{OLD}")  # open_clip takes tags in any case
    assert (backbone.weights.tag, backbone.weights.provenance["revision"]) == (f"some_tag@{OLD}", OLD)
    assert (backbone.preprocessing.mean, backbone.preprocessing.resize) == ((0.5, 0.5, 0.5), "squash")
    with torch.no_grad():
        same(backbone.encode_image(images(1)), theirs("small").encode_image(images(1)))


def test_what_is_missing_offline_is_named_with_the_way_to_fetch_it() -> None:
    with pytest.raises(
        NetworkError,
        match=r"open_clip:ViT-B-32 with weights laion2b_s34b_b79k needs open_clip_model\.safetensors or "
        r"open_clip_pytorch_model\.bin of repository laion/CLIP-ViT-B-32-laion2B-s34B-b79K, which is not in the hub's "
        r"cache .*hub, and HF_HUB_OFFLINE is set; "
        r"`clipdg fetch backbone open_clip:ViT-B-32 --weights laion2b_s34b_b79k` fetches it",
    ):
        open_clip.load("ViT-B-32", "laion2b_s34b_b79k")
    with pytest.raises(NetworkError, match=r"hf-hub:org/repo needs open_clip_config\.json of repository org/repo"):
        open_clip.load("hf-hub:org/repo")
    with pytest.raises(
        NetworkError, match=r"the tokenizer of open_clip:xlm-roberta-base-ViT-B-32, xlm-roberta-base, is not"
    ):
        open_clip.load("xlm-roberta-base-ViT-B-32", "random:0")
    with pytest.raises(ConfigError, match=r"repository a/b/c, which is no repository's name"):
        open_clip.load("hf-hub:a/b/c")


def test_a_file_that_a_repository_lacks_is_looked_for_under_its_next_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    asked: list[tuple[str, str | None]] = []

    def download(repository: str, name: str, revision: str | None) -> str:
        asked.append((name, revision))
        if name.endswith(".safetensors"):
            raise huggingface_hub.errors.EntryNotFoundError("404")
        place = tmp_path / "snapshots" / NEW
        place.mkdir(parents=True)
        torch.save(theirs("small").state_dict(), place / name)
        return str(place / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setitem(library.pretrained._PRETRAINED, "small", {"some_tag": {"hf_hub": "org/repo/"}})
    backbone = open_clip.load("small", "some_tag")
    assert asked == [("open_clip_model.safetensors", None), ("open_clip_pytorch_model.bin", None)]
    assert backbone.weights.provenance["revision"] == NEW

    def empty(*_: Any, **__: Any) -> str:
        raise huggingface_hub.errors.EntryNotFoundError("404")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", empty)
    with pytest.raises(ConfigError, match="of repository org/repo, and the hub has no such file there"):
        open_clip.load("small", "some_tag")

    def unreachable(*_: Any, **__: Any) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(NetworkError, match="and the hub cannot be reached; `clipdg fetch backbone open_clip:small"):
        open_clip.load("small", "some_tag")


@pytest.mark.parametrize("weights", [None, "random:0"])
def test_a_folder_can_be_pre_trained_and_takes_the_file_back(weights: str | None, tmp_path: Path) -> None:
    write_folder(tmp_path / "m", CONFIG, theirs("small").state_dict(), std=[0.3, 0.3, 0.3])
    for i in range(6):
        Image.new("RGB", (32, 32), (40 * i, 99, 9)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(TEXTS[i % 2])
    spec = f"open_clip:local-dir:{tmp_path / 'm'}"
    settings = PretrainConfig("folder", str(tmp_path), backbone=spec, weights=weights, epochs=1, batch_size=3)
    path = pretrain(settings, tmp_path / "out")
    after = open_clip.load(spec.partition(":")[2], str(path))
    assert after.weights.fingerprint == after.weights.provenance["fingerprint"]
    assert after.preprocessing.std == (0.3, 0.3, 0.3)


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
