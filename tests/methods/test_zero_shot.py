"""Zero-shot equals the CLIP's own logits, and domain-aware prompts those of each domain."""

import torch

from clipdg.core.benchmark import Benchmark
from clipdg.core.model import ClipBackbone
from clipdg.methods import zero_shot


def test_logits_equal_the_clips_own(clip: ClipBackbone, squares: Benchmark) -> None:
    images = torch.stack([clip.preprocess(squares.domains["bright"].rows.image(i)) for i in range(0, 36, 5)])
    prompts = [f"a {name}" for name in squares.classes]
    expected, _ = clip.forward(images, clip.tokenize(prompts))
    found = zero_shot.build(zero_shot.Config(), clip, squares)(clip.encode_image(images))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_domain_aware_prompts_use_each_images_own_domain(clip: ClipBackbone, squares: Benchmark) -> None:
    aware = zero_shot.build(zero_shot.Config(templates=["{domain} {}"]), clip, squares)
    features = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    mixed = aware(features, torch.tensor([0, 1, 1, 0]))
    for number, noun in enumerate(("bright", "dark")):
        alone = zero_shot.build(zero_shot.Config(templates=[f"{noun} {{}}"]), clip, squares)(features)
        rows = [i for i, d in enumerate([0, 1, 1, 0]) if d == number]
        torch.testing.assert_close(mixed[rows], alone[rows], atol=1e-4, rtol=1e-5)
