"""Placement: which precision where, and that a backbone in half precision is still the backbone."""

from __future__ import annotations

import copy
import functools
import json
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip as library
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipdg.backbones import open_clip, timm, tiny
from clipdg.benchmarks import miniatures
from clipdg.core.errors import ConfigError
from clipdg.core.model import Backbone, ClipBackbone
from clipdg.data.preprocessing import normalize
from clipdg.text.prompts import class_directions
from clipdg.weights import precision as precision_
from clipdg.weights.precision import Placed, PlacedClip, place, resolve

needs_bf16 = pytest.mark.skipif(not precision_.cpu_has_bf16(), reason="this CPU has no bf16 arithmetic")
RESNET, VIT = "test_resnet.r160_in1k", "test_vit.r160_in1k"
TEXTS = ["a photo of a red fish", "a sketch of a tree", "two houses"]


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A small ViT and a small modified ResNet, known to open_clip while these tests run."""
    folder = tmp_path_factory.mktemp("configs")
    text = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    towers: dict[str, dict[str, Any]] = {
        "small-vit": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
        "small-rn": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16},
    }
    for name, tower in towers.items():
        (folder / f"{name}.json").write_text(json.dumps({"embed_dim": 16, "vision_cfg": tower, "text_cfg": text}))
    before = dict(library.factory._MODEL_CONFIGS)
    library.add_model_config(folder)
    yield
    library.factory._MODEL_CONFIGS.clear()
    library.factory._MODEL_CONFIGS.update(before)


def images(n: int, size: int) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def least_cosine(one: Tensor, other: Tensor) -> float:
    return F.cosine_similarity(one.double(), other.double(), dim=1).min().item()


def test_precisions_and_their_types() -> None:
    assert resolve("fp32", "cpu") == torch.float32
    assert resolve("fp32", "cuda", training=True) == torch.float32
    with pytest.raises(ConfigError, match="no precision 'half'; there are: fp32, bf16, fp16"):
        resolve("half", "cpu")


def test_fp16_is_never_computed_on_a_cpu() -> None:
    with pytest.raises(ConfigError, match="precision=fp16 is for GPUs"):
        resolve("fp16", "cpu")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_not_trained(precision: str) -> None:
    with pytest.raises(ConfigError, match=f"precision={precision} is for frozen backbones.*use fp32"):
        resolve(precision, "cuda", training=True)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="its flags are those of x86")
def test_bf16_on_a_cpu_follows_its_own_flags() -> None:
    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")).split()
    assert precision_.cpu_has_bf16() == ("avx512_bf16" in flags)


@needs_bf16
def test_what_bf16_gains_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that the multiplications move: 3 units in fp32, 4 in bf16 are 3/4 of fp32's speed."""
    now = 0.0

    def linear(rows: Tensor, weight: Tensor) -> None:
        nonlocal now
        now += 3.0 if rows.dtype == weight.dtype == torch.float32 else 4.0

    monkeypatch.setattr("time.process_time", lambda: now)
    monkeypatch.setattr(precision_.F, "linear", linear)
    assert precision_.gain_of_bf16() == pytest.approx(0.75)


@needs_bf16
@pytest.mark.parametrize(
    ("gain", "said"), [(0.5, "fp32, bf16 (slower here: 0.50 times the speed of fp32)"), (1.9, "fp32, bf16")]
)
def test_the_doctor_says_where_bf16_is_slower(
    gain: float, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from clipdg.cli.about import doctor

    monkeypatch.setattr(precision_, "gain_of_bf16", lambda: gain)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    doctor()
    assert f"precision: {said}\n" in capsys.readouterr().out


def test_a_device_without_bf16_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision_, "cpu_has_bf16", lambda: False)
    with pytest.raises(
        ConfigError, match=rf"bf16: {re.escape(precision_.cpu_name())} has no bf16 arithmetic.*use fp32"
    ):
        resolve("bf16", "cpu")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(ConfigError, match="bf16: Tesla T4 has none; use fp32 or fp16"):
        resolve("bf16", "cuda")
    assert resolve("fp16", "cuda") == torch.float16
    with pytest.raises(ConfigError, match="not tried on a device of type 'mps'"):
        resolve("bf16", "mps")


@pytest.mark.parametrize("name", [VIT, "test_convnext.r160_in1k"])
def test_fp32_changes_no_bit_of_a_transformer_and_wraps_nothing(name: str) -> None:
    backbone = timm.load(name, "random:0")
    before = backbone.encode_image(images(3, 160))
    assert place(backbone, "fp32", "cpu") is backbone
    assert torch.equal(backbone.encode_image(images(3, 160)), before)


def test_fp32_convolutions_are_channels_last_and_equal_to_rounding() -> None:
    # The sums are the same ones in another order; measured: 1e-7 to 6e-7 of the feature's length.
    backbone = timm.load("resnet18.tv_in1k", "random:0")
    before = backbone.encode_image(images(3, 64))
    place(backbone, "fp32", "cpu")
    assert backbone.model.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    after = backbone.encode_image(images(3, 64))
    assert ((after - before).norm(dim=1) < 3e-6 * before.norm(dim=1)).all()


def test_fp32_leaves_the_fingerprint_and_the_saved_tensors() -> None:
    plain, placed = timm.load(RESNET, "random:0"), place(timm.load(RESNET, "random:0"), "fp32", "cpu")
    assert isinstance(placed, timm.TimmImage)
    for name, tensor in plain.tensors().items():
        assert torch.equal(tensor, placed.tensors()[name])
        assert placed.tensors()[name].is_contiguous()


@needs_bf16
@pytest.mark.parametrize("name", [RESNET, VIT, "test_efficientnet.r160_in1k"])
def test_bf16_image_features_are_close_and_come_out_in_fp32(name: str) -> None:
    # Measured over random weights: cosines of 0.99993 (ViT) to 0.99999 (ResNet-50); 1 - cosine is bounded fourfold.
    plain, placed = timm.load(name, "random:0"), place(timm.load(name, "random:0"), "bf16", "cpu")
    assert isinstance(placed, Placed)
    assert isinstance(placed, Backbone)
    assert not isinstance(placed, ClipBackbone)
    with torch.inference_mode():
        exact, half = plain.encode_image(images(8, 160)), placed.encode_image(images(8, 160))
        assert half.dtype == torch.float32
        assert 1 - 3e-4 < least_cosine(exact, half) < 1
        logits = placed.classify(half)
        assert logits.dtype == torch.float32
        assert least_cosine(plain.classify(exact), logits) > 1 - 3e-4
    assert (placed.name, placed.weights, placed.embed_dim) == (plain.name, plain.weights, plain.embed_dim)


@needs_bf16
def test_batch_norm_stays_in_fp32_and_everything_else_does_not() -> None:
    plain, placed = timm.load(RESNET, "random:0"), place(timm.load(RESNET, "random:0"), "bf16", "cpu")
    assert isinstance(placed, Placed)
    norms = {n for n, m in plain.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for name, tensor in placed.backbone.state_dict().items():
        kept = name.rpartition(".")[0] in norms
        assert tensor.dtype == (plain.state_dict()[name].dtype if kept else torch.bfloat16), name
        if kept:
            assert torch.equal(tensor, plain.state_dict()[name]), name


def clip_of(spec: str) -> Any:
    return tiny.load() if spec == "tiny" else open_clip.load(spec, "random:0")


@needs_bf16
@pytest.mark.parametrize("spec", ["tiny", "small-vit", "small-rn"])
def test_a_clip_in_bf16_is_a_clip(spec: str) -> None:
    plain, placed = clip_of(spec), place(clip_of(spec), "bf16", "cpu")
    assert isinstance(placed, PlacedClip)
    assert isinstance(placed, ClipBackbone)
    assert placed.logit_scale == plain.logit_scale  # exactly: in bf16 100 would be 98.9
    tokens = placed.tokenize(TEXTS)
    assert torch.equal(tokens, plain.tokenize(TEXTS))
    pixels = images(8, plain.preprocessing.size)
    with torch.inference_mode():
        assert placed.encode_text(tokens).dtype == torch.float32
        assert 1 - 1e-3 < least_cosine(plain.encode_text(tokens), placed.encode_text(tokens)) < 1
        assert 1 - 1e-3 < least_cosine(plain.encode_image(pixels), placed.encode_image(pixels)) < 1
        logits, transposed = placed(pixels, tokens)
        cosines = F.cosine_similarity(placed.encode_image(pixels)[:, None], placed.encode_text(tokens)[None], dim=2)
        torch.testing.assert_close(logits, plain.logit_scale * cosines, rtol=1e-5, atol=1e-5)
        assert torch.equal(transposed, logits.T)
        directions = class_directions(placed, ["fish", "tree"], ["a photo of a {}"])
        assert directions.dtype == torch.float32


@needs_bf16
@pytest.mark.parametrize("spec", ["tiny", "small-vit"])
def test_a_learnt_context_stays_in_fp32_and_gets_its_gradient(spec: str) -> None:
    plain, placed = clip_of(spec), place(clip_of(spec), "bf16", "cpu")
    assert isinstance(placed, PlacedClip)
    tokens = plain.tokenize(TEXTS)
    tower = placed.text_tower
    assert tower is not None
    assert (tower.width, tower.context_length) == (plain.text_tower.width, plain.text_tower.context_length)
    gradients = []
    for each in (plain.text_tower, tower):
        embeddings = plain.text_tower.embed(tokens).detach().requires_grad_()
        features = each.encode(embeddings, tokens)
        assert features.dtype == torch.float32
        (gradient,) = torch.autograd.grad(features[:, 0].sum(), embeddings)
        assert gradient.dtype == torch.float32
        gradients.append(gradient.flatten()[None])
    assert tower.embed(tokens).dtype == torch.float32
    assert 0.995 < least_cosine(*gradients) < 1


@needs_bf16
def test_weights_in_half_precision_refuse_to_be_trained() -> None:
    placed = place(tiny.load("resnet", "random:0"), "bf16", "cpu")
    assert isinstance(placed, nn.Module)
    assert placed.requires_grad_(False) is placed
    with pytest.raises(ConfigError, match="precision=bf16 is for frozen backbones"):
        placed.requires_grad_(True)


@needs_bf16
def test_bf16_does_not_change_what_tiny_sees() -> None:
    # 256 unseen images with captions. Measured: cosines from 0.99997, the same nearest caption for all of them.
    plain, placed = tiny.load(), place(tiny.load(), "bf16", "cpu")
    assert isinstance(plain, tiny.Tiny)
    assert isinstance(placed, PlacedClip)
    pixels, captions = miniatures.web(12345, 256)
    batch = normalize(torch.from_numpy(pixels).permute(0, 3, 1, 2), plain.preprocessing)
    tokens = plain.tokenize(captions)
    with torch.inference_mode():
        exact, half = plain(batch, tokens)[0], placed(batch, tokens)[0]
        assert least_cosine(plain.encode_image(batch), placed.encode_image(batch)) > 1 - 1.5e-4
    assert (exact - half).abs().max() < 0.5  # 0.14 of logits up to 19
    assert (exact.argmax(1) == half.argmax(1)).sum() >= 253


@needs_bf16
def test_what_a_backbone_has_beside_the_protocol_is_still_there() -> None:
    placed = place(tiny.load(None, "random:0"), "bf16", "cpu")
    assert isinstance(placed, PlacedClip)
    assert placed.unknown_words(["a zebra"]) == ["a", "zebra"]
    with pytest.raises(AttributeError, match="colour"):
        _ = placed.colour


@needs_bf16
def test_a_copy_computes_with_its_own_weights() -> None:
    placed = place(tiny.load("resnet", "random:0"), "bf16", "cpu")
    assert isinstance(placed, Placed)
    twin = copy.deepcopy(placed)
    before = placed.encode_image(images(2, 32))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(placed.encode_image(images(2, 32)), before)
    assert not twin.encode_image(images(2, 32)).any()


@pytest.mark.filterwarnings("ignore")  # of torch.compile's own parts
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])  # traced; made code of
def test_a_compiled_image_tower_gives_the_same_features(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        pytest.skip("no C++ compiler")
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    plain = tiny.load("resnet", "random:0")
    placed = place(tiny.load("resnet", "random:0"), "fp32", "cpu", compile=True)
    torch._dynamo.reset()
    counter = torch._dynamo.utils.counters["stats"]
    before = counter["unique_graphs"]
    with torch.no_grad():
        torch.testing.assert_close(
            placed.encode_image(images(4, 32)), plain.encode_image(images(4, 32)), rtol=1e-5, atol=1e-5
        )
    assert counter["unique_graphs"] > before


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match=r"compile needs a C\+\+ compiler on a CPU"):
        place(tiny.load("resnet", "random:0"), "fp32", "cpu", compile=True)


def test_what_a_plugin_returns_is_looked_at() -> None:
    with pytest.raises(ConfigError, match=r"is an nn\.Module, and load returned a int"):
        place(3, "fp32", "cpu")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(ConfigError, match="the backbone Linear has no name, weights, embed_dim, preprocessing"):
        place(nn.Linear(1, 1), "fp32", "cpu")  # type: ignore[arg-type]  # on purpose
