"""ColoredMNIST and RotatedMNIST from each place where MNIST lies, against DomainBed's own few lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import domain_sets
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import rotate

from clipdg.benchmarks import _mnist, colored_mnist, rotated_mnist
from clipdg.core.benchmark import Benchmark
from clipdg.core.errors import DataError
from clipdg.data import decode
from clipdg.data.rows import ArrayRows
from clipdg.storage import cache_folder

TRAIN, TEST = domain_sets.mnist(50), domain_sets.mnist(13, seed=1)
IMAGES, LABELS = (torch.from_numpy(np.concatenate([a, b])) for a, b in zip(TRAIN, TEST, strict=True))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return domain_sets.idx(tmp_path_factory.mktemp("mnist"), TRAIN, TEST, packed=False)


def pixels(benchmark: Benchmark, domain: str) -> np.ndarray:
    rows = benchmark.domains[domain].rows
    assert isinstance(rows, ArrayRows)
    return rows.array


@pytest.mark.parametrize("place", ["raw", "MNIST/raw", ".", "packed", "parquet"])
def test_every_place_gives_the_same_digits(root: Path, tmp_path: Path, place: str) -> None:
    if place == "parquet":
        domain_sets.mnist_parquet(tmp_path, TRAIN, TEST)
    else:
        domain_sets.idx(tmp_path / ("." if place == "packed" else place), TRAIN, TEST, packed=place == "packed")
    digits, _, remarks = _mnist.read(tmp_path)
    assert np.array_equal(digits.images, IMAGES)
    assert np.array_equal(digits.labels, LABELS)
    assert remarks == (
        "MNIST's train part has 50 images, expected are 60,000.",
        "MNIST's test part has 13 images, expected are 10,000.",
    )


def test_parquet_is_decoded_once_and_a_changed_cache_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain_sets.mnist_parquet(tmp_path / "mnist", TRAIN, TEST)
    _mnist.read(tmp_path / "mnist")
    decoded = []
    original = decode.decode
    monkeypatch.setattr(decode, "decode", lambda *a: decoded.append(a) or original(*a))
    again, _, _ = _mnist.read(tmp_path / "mnist")
    assert decoded == []
    assert np.array_equal(again.images, IMAGES)
    for path in cache_folder.folder("mnist").glob("*.bin"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    again, _, _ = _mnist.read(tmp_path / "mnist")
    assert len(decoded) == 63
    assert np.array_equal(again.images, IMAGES)


def test_domainbeds_stream_gives_domainbeds_colours_bit_for_bit(root: Path) -> None:
    torch.manual_seed(7)  # what train.py does before it makes the data set; then color_dataset, written out
    order = torch.randperm(len(IMAGES))
    images, digits = IMAGES[order], LABELS[order]
    benchmark = colored_mnist.build(colored_mnist.Config(seed=7, stream="domainbed"), str(root))
    for i, (name, e) in enumerate((("+90%", 0.1), ("+80%", 0.2), ("-90%", 0.9))):
        x, y = images[i::3], (digits[i::3] < 5).float()
        y = (y - (torch.rand(len(y)) < 0.25).float()).abs()
        colours = (y - (torch.rand(len(y)) < e).float()).abs()
        two = torch.stack([x, x], dim=1)
        two[torch.arange(len(two)), (1 - colours).long()] *= 0
        seen = pixels(benchmark, name)
        assert np.array_equal(seen[..., :2], two.permute(0, 2, 3, 1))
        assert not seen[..., 2].any()
        assert benchmark.domains[name].rows.labels.tolist() == y.long().tolist()
        assert benchmark.domains[name].rows.ids[0] == f"digit/{order[i]:02d}"


def test_domainbeds_stream_and_torchvisions_rotation_give_rotated_mnist(root: Path) -> None:
    torch.manual_seed(3)
    order = torch.randperm(len(IMAGES))
    benchmark = rotated_mnist.build(rotated_mnist.Config(seed=3, stream="domainbed"), str(root))
    for i, angle in enumerate((0, 15, 30, 45, 60, 75)):
        which = order[i::6]
        upright = [Image.fromarray(image.numpy()) for image in IMAGES[which]]
        expected = [np.asarray(rotate(u, angle, InterpolationMode.BILINEAR, fill=[0])) for u in upright]
        seen = pixels(benchmark, str(angle))
        assert np.array_equal(seen[..., 0], np.stack(expected))
        assert (seen == seen[..., :1]).all()
        assert benchmark.domains[str(angle)].rows.labels.tolist() == LABELS[which].tolist()


def test_the_own_stream_is_the_same_whatever_the_global_ones_are(root: Path) -> None:
    torch.manual_seed(1)
    first = colored_mnist.build(colored_mnist.Config(seed=1), str(root))
    torch.manual_seed(2)
    again = colored_mnist.build(colored_mnist.Config(seed=1), str(root))
    other = colored_mnist.build(colored_mnist.Config(seed=1, stream="domainbed"), str(root))
    for name, domain in first.domains.items():
        assert domain.rows.digests() == again.domains[name].rows.digests()
        assert domain.rows.digests() != other.domains[name].rows.digests()


def test_the_grey_view_hides_the_colour_and_nothing_else(root: Path) -> None:
    coloured = colored_mnist.build(colored_mnist.Config(), str(root))
    grey = colored_mnist.build(colored_mnist.Config(view="grey"), str(root))
    for name in coloured.domains:
        assert np.array_equal(pixels(coloured, name).max(axis=3), pixels(grey, name)[..., 0])
        assert (pixels(grey, name) == pixels(grey, name)[..., :1]).all()
        assert (coloured.domains[name].rows.labels == grey.domains[name].rows.labels).all()
    assert any("its colour hidden" in note for note in grey.notes)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("train-images-idx3-ubyte", lambda b: b[:-5], "is cut"),
        ("train-images-idx3-ubyte", lambda b: b"\0\0\x0d\3" + b[4:], "not an idx file of bytes"),
        ("t10k-labels-idx1-ubyte", lambda b: b[:-1] + b"\x0c", "label 12, which is no digit"),
        ("t10k-labels-idx1-ubyte", lambda b: None, "cannot be read"),
        ("t10k-labels-idx1-ubyte", lambda b: b[:7] + b"\x0c" + b[8:-1], "12 labels"),
    ],
)
def test_files_that_are_not_mnists_are_named(tmp_path: Path, name: str, change: Any, reason: str) -> None:
    domain_sets.idx(tmp_path, TRAIN, TEST, packed=False)
    changed = change((tmp_path / name).read_bytes())
    (tmp_path / name).unlink() if changed is None else (tmp_path / name).write_bytes(changed)
    with pytest.raises(DataError, match=reason):
        _mnist.read(tmp_path)
