"""LoRA leaves the tower as it was at first, then adds the products of its matrices, for towers of three libraries."""

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import clipdg
from clipdg.core.benchmark import Benchmark
from clipdg.core.errors import ConfigError
from clipdg.core.model import ClipBackbone
from clipdg.methods import lora
from clipdg.records.record import Record
from clipdg.runs import config
from clipdg.runs import run as run_
from clipdg.runs.session import Session

pytestmark = pytest.mark.usefixtures("plugins_of_a_user")

BASE = ("benchmark=plugins_of.a_user", "shift=dark", "backbone=tiny:vit", "backbone.weights=random:0",
        "method.templates=['a {}']")  # fmt: skip
LORA = ("method=lora", "method.epochs=2", "method.batch_size=12", "method.augment=none")


class Hf(nn.Module):
    """The part of a backbone that lora.adapt touches, around a CLIP of transformers."""

    name = "small"

    def __init__(self) -> None:
        super().__init__()
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        vision = {**sizes, "image_size": 32, "patch_size": 16}
        torch.manual_seed(0)
        self.model = transformers.CLIPModel(
            transformers.CLIPConfig(text_config=sizes, vision_config=vision, projection_dim=16)
        ).eval()

    def encode_image(self, images: Tensor) -> Tensor:
        pooled = self.model.vision_model(images).pooler_output
        return self.model.visual_projection(pooled)  # type: ignore[no-any-return]


def tiny_vit() -> Any:
    return clipdg.load_backbone("tiny:vit", "random:0")


def open_clip_vit() -> Any:
    return clipdg.load_backbone("open_clip:ViT-S-32-alt", "random:0")


TOWERS = {"tiny": (tiny_vit, 32), "transformers": (Hf, 32), "open_clip": (open_clip_vit, 224)}
Made = tuple[Any, Any, Tensor]


@pytest.fixture(params=list(TOWERS), scope="module")
def made(request: pytest.FixtureRequest) -> Made:
    """A backbone, the same with updates of rank 3 that are not zero, and two images."""
    load, size = TOWERS[request.param]
    before = load()
    after = copy.deepcopy(before)
    lora.adapt(after, lora.Config(rank=3, alpha=6.0))
    after.eval()
    generator = torch.Generator().manual_seed(0)
    return before, after, torch.randn(2, 3, size, size, generator=generator)


def encode(backbone: Any, images: Tensor) -> Tensor:
    with torch.no_grad():
        return backbone.encode_image(images)  # type: ignore[no-any-return]


def with_updates(module: nn.Module) -> nn.Module:
    """Draw each B, which is zero at first."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in module.named_parameters():
        if ".lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return module


def test_at_first_the_tower_is_as_it_was(made: Made) -> None:
    before, after, images = made
    assert sum(".lora_B" in name for name, _ in after.named_parameters()) >= 4
    torch.testing.assert_close(encode(after, images), encode(before, images), rtol=1e-5, atol=1e-5)


def test_an_update_is_the_product_of_its_matrices_times_alpha_over_rank(made: Made) -> None:
    before, after, images = made
    adapted, merged = with_updates(copy.deepcopy(after)), copy.deepcopy(before)
    tensors = dict(adapted.named_parameters())
    places = dict(merged.named_parameters())
    for name, b in tensors.items():
        if ".lora_B" not in name:
            continue
        place = name.replace(".lora_B.default.weight", ".weight")
        if place not in places:  # nn.MultiheadAttention's own names
            place = place.replace(".qkv.weight", ".in_proj_weight").replace(".out.weight", ".out_proj.weight")
        places[place].data += 6.0 / 3 * b.data @ tensors[name.replace("lora_B", "lora_A")].data
    found = encode(adapted, images)
    torch.testing.assert_close(found, encode(merged, images), rtol=1e-4, atol=1e-5)
    assert (found - encode(before, images)).abs().max() > 1e-2
    plain = lora.merged(adapted, copy.deepcopy(before))
    assert [n for n, _ in plain.named_parameters()] == [n for n, _ in before.named_parameters()]  # type: ignore[attr-defined]
    torch.testing.assert_close(encode(plain, images), encode(merged, images), rtol=1e-5, atol=1e-6)


def test_no_tower_but_the_images_is_changed(made: Made) -> None:
    _, after, _ = made
    assert not [n for n, _ in after.named_parameters() if ".lora_" in n and ".text" in f".{n}"]


def run(*overrides: str, session: Session | None = None) -> Record:
    [record] = run_.run(config.load(overrides=[*BASE, *overrides]), None, session)
    return record


def nlls(record: Record) -> dict[tuple[str, str], float]:
    return {(e.domain, e.split): e.metrics["nll"] for e in record.evaluations}


def test_a_run_starts_at_zero_shot_learns_and_leaves_the_backbone_alone() -> None:
    session = Session()
    rested = run(*LORA, "method.lr=0", session=session)
    learnt = run(*LORA, "method.lr=0.01", session=session)
    zero_shot = run("method=zero_shot", session=session)
    assert nlls(rested) == pytest.approx(nlls(zero_shot), rel=1e-5)
    assert nlls(learnt)["bright", "in"] < 0.9 * nlls(zero_shot)["bright", "in"]


@pytest.mark.parametrize(("head", "more"), [("false", 0), ("true", 3 * 64 + 3)])
def test_the_matrices_alone_are_trained_and_the_head_where_it_is_asked_for(head: str, more: int) -> None:
    """Four blocks of width 128: 128 -> 384 and 128 -> 128, at rank 5."""
    record = run(*LORA, "method.epochs=1", "method.rank=5", f"method.head={head}")
    assert record.content["timing"]["trainable_parameters"] == 4 * 5 * (128 + 384 + 128 + 128) + more


def test_a_tower_without_such_attention_is_refused(squares: Benchmark) -> None:
    resnet = clipdg.load_backbone("tiny", "random:0")
    with pytest.raises(ConfigError, match=r"vision transformers: .*; tiny has none of these; use wise_ft"):
        lora.build(lora.Config(templates=["a {}"]), resnet, squares)


def test_prompts_that_name_the_domain_are_refused(clip: ClipBackbone, squares: Benchmark) -> None:
    with pytest.raises(ConfigError, match="lora starts from one classifier for all domains"):
        lora.build(lora.Config(templates=["a {domain} of a {}"]), clip, squares)
