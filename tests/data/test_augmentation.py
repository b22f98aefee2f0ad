"""DomainBed's augmentation is torchvision's own, and an image's view depends on its seed alone."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from clipdg.core.model import Preprocessing
from clipdg.data import datasets, loaders
from clipdg.data.augmentation import READ, augmented
from clipdg.data.rows import ArrayRows

SPEC = Preprocessing(32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def picture(seed: int = 0, width: int = 50, height: int = 40) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height // 5, width // 5, 3)).astype(np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def test_a_view_is_what_domainbeds_transform_makes_under_the_seed() -> None:
    # domainbed/datasets.py, MultipleEnvironmentImageFolder, as it stands there but for the size
    theirs = transforms.Compose(
        [
            transforms.RandomResizedCrop(32, scale=(0.7, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(0.3, 0.3, 0.3, 0.3),
            transforms.RandomGrayscale(),
            transforms.ToTensor(),
            transforms.Normalize(mean=SPEC.mean, std=SPEC.std),
        ]
    )
    from clipdg.data.preprocessing import normalize

    for seed in range(20):
        torch.manual_seed(seed)
        expected = theirs(picture())
        assert torch.equal(normalize(augmented(picture(), SPEC, "domainbed", seed), SPEC), expected)


@pytest.mark.parametrize("how", READ)
def test_a_view_leaves_the_stream_of_the_process_alone(how: str) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    augmented(picture(), SPEC, how, 1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("per_domain", [False, True])
def test_views_do_not_depend_on_who_reads_them(per_domain: bool) -> None:
    rows = ArrayRows(
        np.stack([np.asarray(picture(i)) for i in range(12)]), np.zeros(12, np.int64), list("abcdefghijkl")
    )

    def batches(workers: int) -> list[datasets.Batch]:
        parts = [datasets.ImageDataset(rows, range(6 * d, 6 * d + 6), SPEC, d, augment="domainbed") for d in (0, 1)]
        order, views = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
        loader = loaders.loader(
            datasets.concatenate(parts), 3, generator=order, views=views, per_domain=per_domain, workers=workers
        )
        return [batch for _ in range(2) for batch in loader]

    alone, helped = batches(0), batches(1)
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(alone, helped, strict=True))
    seen = [(int(i), view) for b in alone for i, view in zip(b.indices, b.inputs, strict=True)]
    same = [torch.equal(v, w) for n, (i, v) in enumerate(seen) for j, w in seen[:n] if i == j]
    assert same
    assert not any(same)  # an image that is drawn again is seen anew
