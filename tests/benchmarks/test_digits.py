import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import rotate
from sklearn.datasets import load_digits

from clipdg.benchmarks import _digits, colored_digits, rotated_digits
from clipdg.core.benchmark import Benchmark
from clipdg.core.errors import ConfigError
from clipdg.data.rows import ArrayRows

DIGITS = load_digits()


@pytest.fixture(scope="module")
def coloured() -> Benchmark:
    return colored_digits.build(colored_digits.Config(seed=3))


@pytest.fixture(scope="module")
def rotated() -> Benchmark:
    return rotated_digits.build(rotated_digits.Config(seed=3))


def pixels(benchmark: Benchmark, domain: str) -> np.ndarray:
    rows = benchmark.domains[domain].rows
    assert isinstance(rows, ArrayRows)
    return rows.array


def drawn(seed: int, num: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Per environment: which of the 1,797 digits, their images and the digits they show."""
    digits = _digits.sklearn_digits("x", None)
    parts = _digits.environments(1797, num, _digits.OwnDraws(seed))
    return [(part, digits.images[part], digits.labels[part]) for part in parts]


def which(benchmark: Benchmark, domain: str) -> list[int]:
    return [int(name.removeprefix("digit/")) for name in benchmark.domains[domain].rows.ids]


def assert_fraction(hits: np.ndarray, expected: float) -> None:
    """Within 4 standard errors of a binomial: by chance, outside once in 16,000 times (and the seed is fixed)."""
    assert hits.mean() == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / len(hits)))


@pytest.mark.parametrize("module", [colored_digits, rotated_digits])
def test_every_digit_is_in_one_environment(module) -> None:
    benchmark = module.build(module.Config(seed=0))
    used = [which(benchmark, d) for d in benchmark.domains]
    assert sorted(itertools.chain.from_iterable(used)) == list(range(1797))
    assert max(map(len, used)) - min(map(len, used)) <= 1
    assert [s.targets for s in benchmark.shifts] == [(d,) for d in benchmark.domains]
    assert all(len(s.sources) == len(benchmark.domains) - 1 for s in benchmark.shifts)


@pytest.mark.parametrize("module", [colored_digits, rotated_digits])
def test_the_seed_decides_everything_and_the_global_generators_nothing(module) -> None:
    np.random.seed(1)
    torch.manual_seed(1)
    first = module.build(module.Config(seed=1))
    np.random.seed(2)
    torch.manual_seed(2)
    again, other = module.build(module.Config(seed=1)), module.build(module.Config(seed=2))
    for domain in first.domains:
        assert first.domains[domain].rows.digests() == again.domains[domain].rows.digests()
        assert (first.domains[domain].rows.labels == again.domains[domain].rows.labels).all()
        assert which(first, domain) != which(other, domain)


def test_environment_i_takes_every_nth_of_one_permutation() -> None:
    order = np.random.default_rng(5).permutation(1797)
    for i, (taken, _, digits) in enumerate(drawn(5, 3)):
        assert (taken == order[i::3]).all()
        assert (digits == DIGITS.target[order[i::3]]).all()


def test_doubling_is_torchs_bilinear_interpolation() -> None:
    [(taken, images, _)] = drawn(0, 1)
    small = torch.from_numpy(DIGITS.images[taken] / 16)[:, None]
    large = F.interpolate(small, (16, 16), mode="bilinear", align_corners=False)[:, 0].numpy() * 255
    assert np.abs(images - large).max() <= 0.5 + 1e-6  # rounding to a byte


@pytest.mark.parametrize(("domain", "agreement"), [("+90%", 0.9), ("+80%", 0.8), ("-90%", 0.1)])
def test_colours_agree_with_labels_as_often_as_the_environment_says(
    coloured: Benchmark, domain: str, agreement: float
) -> None:
    image, labels = pixels(coloured, domain), coloured.domains[domain].rows.labels
    red, green, blue = (image[..., c].any(axis=(1, 2)) for c in range(3))
    assert (red ^ green).all()
    assert not blue.any()
    assert_fraction(green == labels, agreement)  # class 1, "digit 0-4", is green


def test_one_label_in_four_is_wrong_in_every_environment(coloured: Benchmark) -> None:
    for name, domain in coloured.domains.items():
        truth = DIGITS.target[which(coloured, name)] < 5
        assert_fraction(domain.rows.labels == truth, 0.75)


def test_label_noise_and_colour_noise_are_independent(coloured: Benchmark) -> None:
    # In "+90%" the colour agrees with the *noisy* label: with the true one it does for .75 · .9 + .25 · .1 = 70 %.
    truth = DIGITS.target[which(coloured, "+90%")] < 5
    assert_fraction(pixels(coloured, "+90%")[..., 1].any(axis=(1, 2)) == truth, 0.7)


def test_colouring_keeps_the_digit(coloured: Benchmark) -> None:
    [(_, images, _)] = drawn(0, 1)
    order = np.argsort(drawn(0, 1)[0][0])
    for domain in coloured.domains:
        assert (pixels(coloured, domain).max(axis=3) == images[order][which(coloured, domain)]).all()


@pytest.mark.parametrize("angle", _digits.ANGLES)
def test_turning_is_scipys_rotation(rotated: Benchmark, angle: int) -> None:
    [(taken, images, _)] = drawn(0, 1)
    upright = images[np.argsort(taken)][which(rotated, f"{angle}")].astype(float)
    expected = rotate(upright, angle, axes=(2, 1), reshape=False, order=1)
    # Outside the centres of the outermost pixels scipy is 0 at once; Pillow, and so DomainBed, half a pixel later.
    inside = rotate(np.ones((16, 16)), angle, reshape=False, order=1) > 0.999
    image = pixels(rotated, f"{angle}").astype(float)
    assert inside.mean() > 0.75
    assert np.abs(image[..., 0] - expected)[:, inside].max() < 1 + 1e-6  # Pillow rounds down
    assert (image == image[..., :1]).all()
    assert (rotated.domains[f"{angle}"].rows.labels == DIGITS.target[which(rotated, f"{angle}")]).all()


@pytest.mark.parametrize("module", [colored_digits, rotated_digits])
def test_a_root_is_refused(module) -> None:
    with pytest.raises(ConfigError, match="leave root out"):
        module.build(module.Config(), root="somewhere")
