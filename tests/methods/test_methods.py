"""What holds for every method beside the contract of clipdg.testing, which tests/testing checks."""

import pytest
import torch

import clipdg
from clipdg.core import plugins
from clipdg.core.benchmark import Benchmark

CLASSES = ("cat", "dog", "small bird", "house", "owl")
# A method of a file is the one that left the file, and the weights' own classifier needs weights that have one.
METHODS = [
    name
    for name in plugins.names("methods")
    if not plugins.method(name).needs_head and not plugins.method(name).needs_file
]


@pytest.mark.parametrize("name", METHODS)
def test_the_backbone_is_not_a_part_of_the_method(name: str) -> None:
    definition = plugins.method(name)
    backbone = clipdg.load_backbone("tiny:vit", "random:0")  # lora needs a vision transformer
    torch.manual_seed(0)
    module = definition.build(definition.config(), backbone, Benchmark("b", CLASSES, templates=("a {}",)))
    own = sum(p.numel() for p in module.parameters())
    assert own <= 2 * 64 * 16 + 64 * 5 + 5  # a context, an adapter or a head, never a tower
