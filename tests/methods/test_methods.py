"""What every method must satisfy; a new file in methods/ is tested here the moment it exists."""

import pytest
import torch
from torch import nn

import clipdg
from clipdg.core import plugins
from clipdg.core.benchmark import Benchmark
from clipdg.core.model import ClipBackbone

# The weights' own classifier has no classes to permute, and a context from a file is the method that learnt it; their
# tests are tests/methods/test_own_head.py and tests/weights/test_learned_method.py.
METHODS = [
    name
    for name in plugins.names("methods")
    if not plugins.method(name).needs_head and not plugins.method(name).needs_file
]
CLASSES = ("cat", "dog", "small bird", "house", "owl")  # as many as no method has inner features or vectors


def built(name: str, clip: ClipBackbone, classes: tuple[str, ...] = CLASSES) -> nn.Module:
    """A method with parameters that are not all zero, the same for each class whatever their order."""
    definition = plugins.method(name)
    if name == "lora":  # puts its updates into a vision transformer, of which each method gets one of its own
        fresh = clipdg.load_backbone("tiny:vit", "random:0")
        assert isinstance(fresh, ClipBackbone)
        clip = fresh
    torch.manual_seed(0)
    method: nn.Module = definition.build(definition.config(), clip, Benchmark("b", classes, templates=("a {}",))).eval()
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.shape[0] == len(classes):
                for row, name_ in enumerate(classes):
                    generator = torch.Generator().manual_seed(CLASSES.index(name_))
                    parameter[row] = torch.randn(parameter[row].shape, generator=generator)
    return method


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(6, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", METHODS)
def test_logits_are_one_per_class(name: str, clip: ClipBackbone, features: torch.Tensor) -> None:
    assert built(name, clip)(features).shape == (6, 5)


@pytest.mark.parametrize("name", METHODS)
def test_permuting_classes_permutes_logits(name: str, clip: ClipBackbone, features: torch.Tensor) -> None:
    order = [2, 0, 4, 3, 1]
    turned = built(name, clip, tuple(CLASSES[i] for i in order))(features)
    torch.testing.assert_close(turned, built(name, clip)(features)[:, order], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_logits_do_not_depend_on_the_rest_of_the_batch(name: str, clip: ClipBackbone, features: torch.Tensor) -> None:
    method = built(name, clip)
    together = method(features)
    alone = torch.cat([method(f[None]) for f in features.flip(0)]).flip(0)
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_the_backbone_is_not_a_part_of_the_method(name: str, clip: ClipBackbone) -> None:
    own = sum(p.numel() for p in built(name, clip).parameters())
    assert own <= 2 * 64 * 16 + 64 * 5 + 5  # a context, an adapter or a head, never a text tower
