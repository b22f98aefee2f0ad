"""Tip-Adapter(-F) and CLIP-Adapter equal the published formulas, written out one image at a time."""

import math

import pytest
import torch
from torch.nn import functional as F

from clipdg.core.benchmark import Benchmark
from clipdg.core.errors import DataError
from clipdg.core.model import ClipBackbone
from clipdg.methods import clip_adapter, tip_adapter, zero_shot

BENCH = Benchmark("b", ("cat", "dog", "bird"), templates=("a {}", "my {}"))


def data(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three clusters with a common part, as features lie."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(3, 64, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(count) % 3
    return 3 * (torch.randn(count, 64, generator=generator) + centres[labels] + 0.5), labels


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm()


def cached(method: tip_adapter.TipAdapter, keys: torch.Tensor, labels: torch.Tensor, alpha: float, beta: float,
           features: torch.Tensor) -> torch.Tensor:  # fmt: skip
    """Logits by the paper's formula, one image and one key at a time."""
    rows = []
    for f in features:
        row = [method.scale * float(unit(f) @ d) for d in method.directions]
        for key, label in zip(keys, labels.tolist(), strict=True):
            row[label] += alpha * math.exp(-beta * (1 - float(unit(f) @ key)))
        rows.append(row)
    return torch.tensor(rows)


def test_tip_adapter_is_the_papers_formula(clip: ClipBackbone) -> None:
    (x, y), (new, _) = data(12, 0), data(7, 1)
    method = tip_adapter.build(tip_adapter.Config(search=False), clip, BENCH)
    torch.testing.assert_close(method(new), zero_shot.build(zero_shot.Config(), clip, BENCH)(new))  # no cache yet
    method.solve(x, y)
    keys = torch.stack([unit(row) for row in x])
    expected = cached(method, keys, y, 1.17, 1.0, new)
    torch.testing.assert_close(method(new), expected, atol=1e-4, rtol=1e-5)


def test_the_search_takes_the_authors_grid_and_the_first_best(clip: ClipBackbone) -> None:
    (x, y), (val_x, val_y) = data(9, 0), data(30, 1)
    method = tip_adapter.build(tip_adapter.Config(betas=6, alphas=4), clip, BENCH)
    method.solve(x, y, (val_x, val_y))
    keys = torch.stack([unit(row) for row in x])
    best = (-1.0, 0.0, 0.0)
    for beta in [i * (7 - 0.1) / 6 + 0.1 for i in range(6)]:  # search_hp in the authors' utils.py
        for alpha in [i * (3 - 0.1) / 4 + 0.1 for i in range(4)]:
            right = cached(method, keys, y, alpha, beta, val_x).argmax(dim=1) == val_y
            if float(right.float().mean()) > best[0]:
                best = (float(right.float().mean()), alpha, beta)
    found = method.story
    assert (found["validation_accuracy"], found["alpha"], found["beta"]) == pytest.approx(best)
    assert found["num_validation"] == 30
    torch.testing.assert_close(method.strengths, torch.tensor(best[1:]))


def test_tip_adapter_f_steps_as_the_formula_does(clip: ClipBackbone) -> None:
    """One batch holds all, so the order drawn does not matter: three steps of AdamW by the formula's own gradient."""
    (x, y), (new, _) = data(12, 0), data(5, 1)
    method = tip_adapter.build(tip_adapter.Config(search=False, fine_tune=True, epochs=3), clip, BENCH)
    method.solve(x, y)
    inputs = F.normalize(x, dim=1)
    keys = inputs.clone().requires_grad_()
    optimizer = torch.optim.AdamW([keys], lr=1e-3, eps=1e-4)
    for step in range(3):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 + math.cos(math.pi * step / 3)) / 2
        cache = torch.exp(-1.0 * (1 - inputs @ keys.T)) @ torch.eye(3)[y]
        loss = F.cross_entropy(method.scale * inputs @ method.directions.T + 1.17 * cache, y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    torch.testing.assert_close(method.keys.data, keys.data, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(method.keys.data, inputs, atol=1e-4)
    expected = cached(method, keys.detach(), y, 1.17, 1.0, new)
    torch.testing.assert_close(method(new), expected, atol=1e-4, rtol=1e-5)


def test_a_search_without_validation_images_is_refused(clip: ClipBackbone) -> None:
    with pytest.raises(DataError, match="search=false"):
        tip_adapter.build(tip_adapter.Config(), clip, BENCH).solve(*data(9, 0))


def test_a_cache_is_loaded_whatever_its_size(clip: ClipBackbone) -> None:
    one, two = (tip_adapter.build(tip_adapter.Config(search=False), clip, BENCH) for _ in range(2))
    one.solve(*data(12, 0))
    two.load_state_dict(one.state_dict())
    new, _ = data(5, 1)
    assert torch.equal(one(new), two(new))


@pytest.mark.parametrize(("ratio", "reduction"), [(0.2, 4), (0.6, 8)])
def test_clip_adapter_is_the_authors_module(clip: ClipBackbone, ratio: float, reduction: int) -> None:
    method = clip_adapter.build(clip_adapter.Config(ratio=ratio, reduction=reduction), clip, BENCH)
    features, _ = data(4, 0)
    down, up = method.down.weight, method.up.weight
    assert (down.shape, up.shape) == ((64 // reduction, 64), (64, 64 // reduction))
    for row, f in zip(method(features), features, strict=True):
        hidden = torch.stack([torch.clamp(w @ f, min=0) for w in down])
        adapted = torch.stack([torch.clamp(w @ hidden, min=0) for w in up])
        mixed = unit(ratio * adapted + (1 - ratio) * f)
        expected = torch.stack([method.scale * (mixed @ d) for d in method.directions])
        torch.testing.assert_close(row, expected, atol=1e-4, rtol=1e-4)


def test_an_adapter_of_ratio_0_is_zero_shot(clip: ClipBackbone) -> None:
    features, _ = data(6, 0)
    method = clip_adapter.build(clip_adapter.Config(ratio=0.0), clip, BENCH)
    torch.testing.assert_close(method(features), zero_shot.build(zero_shot.Config(), clip, BENCH)(features))
