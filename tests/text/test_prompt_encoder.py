"""Text towers run through their description: the same features and gradients as the tower itself, in every form.

Small towers in fp64 stand beside naive references, so that what is left is rounding and a mistake is not.
"""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from clipdg.backbones.tiny import END, PAD, START
from clipdg.core.errors import OutOfMemoryError
from clipdg.core.model import ClipBackbone, TextTower
from clipdg.core.text_transformer import Block, Linear, Norm, Transformer
from clipdg.text import prompt_encoder
from clipdg.text.prompt_encoder import Form, Prompts
from clipdg.weights.precision import place

FORMS: tuple[Form, ...] = ("plain", "cut", "shared")
WIDTH, HEADS, LENGTH, FEATURES = 16, 2, 14, 5


def random_tower(activation: str = "quick_gelu", causal: bool = True, **changes: Any) -> Transformer:
    """Three blocks in fp64, with LayerScale; no weight is zero or one."""
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return 0.5 * torch.randn(*shape, generator=generator, dtype=torch.float64)

    def norm() -> Norm:
        return Norm(1 + numbers(WIDTH), numbers(WIDTH), 1e-5)

    def linear(out: int, inputs: int) -> Linear:
        return Linear(numbers(out, inputs), numbers(out))

    blocks = tuple(
        Block(
            norm(),
            linear(3 * WIDTH, WIDTH),
            linear(WIDTH, WIDTH),
            norm(),
            linear(4 * WIDTH, WIDTH),
            linear(WIDTH, 4 * WIDTH),
            (numbers(WIDTH), numbers(WIDTH)),
        )
        for _ in range(3)
    )
    fields: dict[str, Any] = {
        "tokens": numbers(40, WIDTH),
        "positions": numbers(LENGTH, WIDTH),
        "blocks": blocks,
        "norm": norm(),
        "projection": Linear(numbers(FEATURES, WIDTH)),
        "heads": HEADS,
        "activation": activation,
        "causal": causal,
        "pool": "argmax",
    }
    return Transformer(**(fields | changes))


class Tower:
    """A description alone, with a forward that is written out token by token."""

    num_prefix_tokens = 1
    width, context_length = WIDTH, LENGTH

    def __init__(self, description: Transformer) -> None:
        self.description = description
        self.causal = description.causal

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.description.tokens[tokens]

    def encode(self, embeddings: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        d = self.description
        x = embeddings + d.positions[: embeddings.shape[1]]
        activation = {
            "gelu": F.gelu,
            "tanh_gelu": lambda x: F.gelu(x, approximate="tanh"),
            "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
        }[d.activation]
        for block in d.blocks:
            assert isinstance(block.query_key_value, Linear)
            assert block.scales is not None
            q, k, v = (t.unflatten(2, (HEADS, -1)) for t in block.query_key_value(block.norm1(x)).chunk(3, dim=2))
            scores = torch.einsum("nqhd,nkhd->nhqk", q, k) / (WIDTH // HEADS) ** 0.5
            if d.causal:
                scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
            mixed = torch.einsum("nhqk,nkhd->nqhd", scores.softmax(dim=-1), v).flatten(2)
            x = x + block.scales[0] * block.out(mixed)
            x = x + block.scales[1] * block.down(activation(block.up(block.norm2(x))))
        out = d.norm(x)[torch.arange(len(x)), d.pooled(tokens)]
        return out if d.projection is None else d.projection(out)


def rows(num: int, words: int = 3, seed: int = 0) -> torch.Tensor:
    """Prompts that begin alike, of several lengths, closed by token 39 and padded with 0."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.zeros(num, LENGTH, dtype=torch.long)
    for row in tokens:
        end = int(torch.randint(4, LENGTH, (), generator=generator))
        row[0] = 38
        row[1:end] = torch.randint(1, 1 + words, (end - 1,), generator=generator)
        row[end] = 39
    return tokens


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Up to fp64's rounding."""
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11 * expected.abs().max().item())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("activation", ["gelu", "tanh_gelu", "quick_gelu"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("num", [3, 400])
def test_each_form_gives_the_features_of_the_tower(form: Form, activation: str, causal: bool, num: int) -> None:
    tower = Tower(random_tower(activation, causal))
    tokens = rows(num)
    close(Prompts(tower, tokens, form=form).encode(), tower.encode(tower.embed(tokens), tokens))


@pytest.mark.parametrize("pool", ["argmax", "end", "first", "last"])
@pytest.mark.parametrize("causal", [True, False])
def test_each_way_to_pool_is_the_towers(pool: str, causal: bool) -> None:
    tower = Tower(random_tower(causal=causal, pool=pool, end_token=39))
    tokens = rows(200)
    close(Prompts(tower, tokens).encode(), tower.encode(tower.embed(tokens), tokens))


def test_a_tower_without_projection_and_with_three_projections_in_attention_is_the_same_tower() -> None:
    fused = random_tower()
    blocks = []
    for block in fused.blocks:
        assert isinstance(block.query_key_value, Linear)
        assert block.query_key_value.bias is not None
        parts = zip(block.query_key_value.weight.chunk(3), block.query_key_value.bias.chunk(3), strict=True)
        query, key, value = (Linear(w, b) for w, b in parts)
        blocks.append(Block(block.norm1, (query, key, value), *list(vars(block).values())[2:]))
    tokens = rows(200)
    apart = Prompts(Tower(random_tower(blocks=tuple(blocks), projection=None)), tokens).encode()
    together = Tower(random_tower(projection=None))
    close(apart, together.encode(together.embed(tokens), tokens))


def learnt(tower: Tower, tokens: torch.Tensor, where: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """The tower's own features of prompts with vectors in the place of some embeddings."""
    embeddings = tower.embed(tokens)
    mixed = torch.where((where >= 0)[:, :, None], vectors[where.clamp(min=0)], embeddings)
    return tower.encode(mixed, tokens)


def places(num: int, kind: str) -> torch.Tensor:
    """Two learnt vectors a prompt: behind the start, between words, or of each prompt's own."""
    where = torch.full((num, LENGTH), -1)
    at = 2 if kind == "within" else 1
    for i in range(num):
        where[i, at : at + 2] = torch.arange(2) + (2 * i if kind == "own" else 0)
    return where


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["front", "within", "own"])
@pytest.mark.parametrize("num", [3, 150])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("pieces", [False, True])
def test_learnt_vectors_have_the_towers_features_and_gradients(
    form: Form, kind: str, num: int, causal: bool, pieces: bool
) -> None:
    """``pieces``: with so little memory that chunks are computed again on the way back."""
    tower = Tower(random_tower(causal=causal))
    tokens, where = rows(num), places(num, kind)
    count = int(where.max()) + 1
    start = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours, theirs = (start.clone().requires_grad_() for _ in range(2))
    prompts = Prompts(tower, tokens, where, form=form)
    found = prompts.encode(ours, memory=_little(prompts) if pieces else 2**40)
    expected = learnt(tower, tokens, where, theirs)
    close(found, expected)
    weights = torch.randn(num, FEATURES, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    close(ours.grad, theirs.grad)


def _little(prompts: Prompts) -> int:
    """Memory for the trunk and three bins."""
    packed, description = prompts._packed, prompts._tower.description
    assert packed is not None
    assert description is not None
    run = prompt_encoder._Run(description, packed, None)
    trunk = packed.trunk.num_slots if packed.trunk else 0
    return run.kept_slot * (trunk + 3 * packed.leaves.nodes.shape[1])


def test_chunks_without_gradients_are_the_whole_and_tell_how_far_they_are() -> None:
    tower = Tower(random_tower())
    tokens = rows(2000, words=2)
    told: list[tuple[int, int]] = []
    prompts = Prompts(tower, tokens)
    found = prompts.encode(memory=100_000, progress=lambda done, total: told.append((done, total)))
    close(found, tower.encode(tower.embed(tokens), tokens))
    total = len(torch.unique(tokens, dim=0))
    assert len(told) > 5
    assert [t for _, t in told] == [total] * len(told)
    assert [d for d, _ in told] == sorted(d for d, _ in told)
    assert told[-1] == (total, total)


def test_what_fits_nowhere_is_refused_before_the_work() -> None:
    tower = Tower(random_tower())
    vectors = torch.zeros(2, WIDTH, dtype=torch.float64, requires_grad=True)
    with pytest.raises(OutOfMemoryError, match=r"150 prompts needs .* MiB even one after another"):
        Prompts(tower, rows(150, words=30), places(150, "front")).encode(vectors, memory=1000)


def test_shared_beginnings_are_computed_once() -> None:
    tokens = torch.zeros(500, LENGTH, dtype=torch.long)
    tokens[:, 0], tokens[:, 1:6], tokens[:, 8] = 38, torch.arange(1, 6), 39
    tokens[:, 6], tokens[:, 7] = torch.arange(500) % 30 + 1, torch.arange(500) // 30 + 1
    tower = Tower(random_tower())
    plain, cut, shared = (Prompts(tower, tokens, form=form).num_computed for form in FORMS)
    assert (plain, cut) == (500 * LENGTH, 500 * 9)
    # 6 of the start and 30 words behind it, 500 words behind those, 500 ends; the rest is what bins leave empty
    assert 1036 <= shared < 1.15 * 1036 + 64


def test_weights_are_read_where_they_lie_and_not_remembered(clip: ClipBackbone) -> None:
    assert isinstance(clip, nn.Module)
    own = copy.deepcopy(clip)
    tower = own.text_tower
    assert tower is not None
    tokens = own.tokenize(["a cat", "a dog", "two dogs"])
    prompts = Prompts(tower, tokens)
    before = prompts.encode()
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.mul_(1.1)
        after = prompts.encode()
        assert (after - before).abs().max() > 0.01
        torch.testing.assert_close(after, own.encode_text(tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_bf16_weights_compute_in_bf16_and_give_fp32(clip: ClipBackbone, form: Form) -> None:
    assert isinstance(clip, nn.Module)
    placed = place(copy.deepcopy(clip), "bf16", "cpu")
    assert isinstance(placed, ClipBackbone)
    tower = placed.text_tower
    assert tower is not None
    tokens = placed.tokenize([f"{a} {b}" for a in ("a", "the", "two") for b in ("cat", "dog", "bird", "house")])
    found = Prompts(tower, tokens, form=form).encode()
    assert found.dtype == torch.float32
    assert F.cosine_similarity(found, clip.encode_text(tokens)).min() > 0.999
    vectors = torch.zeros(1, tower.width, requires_grad=True)
    where = torch.full(tokens.shape, -1)
    where[:, 1] = 0
    Prompts(tower, tokens, where, form=form).encode(vectors).sum().backward()
    assert vectors.grad is not None
    assert vectors.grad.dtype == torch.float32


class Undescribed:
    """tiny's tower, which says nothing about itself."""

    description = None

    def __init__(self, tower: TextTower) -> None:
        self._tower = tower
        self.width, self.context_length = tower.width, tower.context_length
        self.num_prefix_tokens, self.causal = tower.num_prefix_tokens, tower.causal

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        return self._tower.embed(tokens)

    def encode(self, embeddings: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return self._tower.encode(embeddings, tokens)


def test_a_tower_that_is_not_described_is_run_as_it_is(clip: ClipBackbone) -> None:
    tower = clip.text_tower
    assert tower is not None
    tokens = torch.full((300, 12), PAD)
    tokens[:, 0], tokens[:, 6] = START, END
    tokens[:, 1:6] = torch.randint(3, 20, (300, 5), generator=torch.Generator().manual_seed(0))
    told: list[tuple[int, int]] = []
    found = Prompts(Undescribed(tower), tokens).encode(progress=lambda *at: told.append(at))
    torch.testing.assert_close(found, Prompts(tower, tokens).encode(), atol=1e-5, rtol=1e-5)
    assert told == [(256, 300), (300, 300)]
    where = torch.full(tokens.shape, -1)
    where[:, 2:4] = torch.arange(2)
    vectors = torch.randn(2, tower.width, generator=torch.Generator().manual_seed(1))
    ours, theirs = (vectors.clone().requires_grad_() for _ in range(2))
    one, two = (Prompts(t, tokens, where).encode(v) for t, v in ((Undescribed(tower), theirs), (tower, ours)))
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)
    one.square().sum().backward()
    two.square().sum().backward()
    assert ours.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMS)
def test_a_gpu_gives_the_cpus_features_and_gradients(clip: ClipBackbone, form: Form) -> None:
    assert isinstance(clip, nn.Module)
    moved = copy.deepcopy(clip).cuda()
    tokens = clip.tokenize([f"{a} {b}" for a in ("a", "the", "two") for b in ("cat", "dog", "bird", "house")] * 20)
    where = torch.full(tokens.shape, -1)
    where[:, 1] = 0
    found = []
    for backbone, device in ((clip, "cpu"), (moved, "cuda")):
        tower = backbone.text_tower
        assert tower is not None
        vectors = torch.full((1, tower.width), 0.3, device=device).requires_grad_()
        features = Prompts(tower, tokens.to(device), where, form=form).encode(vectors)
        (gradient,) = torch.autograd.grad(features.square().sum(), vectors)
        found.append((features.detach().cpu(), gradient.cpu()))
    for ours, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
