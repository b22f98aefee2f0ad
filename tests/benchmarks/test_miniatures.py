import colorsys
import hashlib
import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipdg.benchmarks import miniatures
from clipdg.benchmarks.miniatures import captions, scenes, shapes, styles
from clipdg.core.benchmark import Benchmark
from clipdg.core.errors import ConfigError, StorageError
from clipdg.data.rows import ArrayRows
from clipdg.storage import cache_folder
from clipdg.text import prompts

SMALL = miniatures.Config(num_classes=4, num_train=3, num_test=2)


def pixels(benchmark: Benchmark, domain: str) -> np.ndarray:
    rows = benchmark.domains[domain].rows
    assert isinstance(rows, ArrayRows)
    return rows.array


def by_id(benchmark: Benchmark) -> dict[str, np.ndarray]:
    found = {}
    for domain in benchmark.domains.values():
        found |= dict(zip(domain.rows.ids, pixels(benchmark, domain.name), strict=True))
    return found


def draw(style: str, size: int = 32, natural: bool = False, num: int = 20) -> np.ndarray:
    """(num, P, P, 3): one of each class, always the same."""
    streams = [scenes.stream("test", style, i) for i in range(num)]
    composed = [scenes.compose(miniatures.CLASSES[i % 20], s, 0.8) for i, s in enumerate(streams)]
    return styles.render(composed, style, streams, size, natural)


def undrawn(composed, style, streams, size, natural=False) -> np.ndarray:
    """Stands in for styles.render where a test is about captions and counts."""
    return np.zeros((len(composed), size, size, 3), np.uint8)


def test_each_domain_is_left_out_once_on_request() -> None:
    config = miniatures.Config(num_classes=3, num_train=2, num_test=1, leave_one_out=True)
    benchmark, usual = miniatures.build(config), miniatures.build(replace(config, leave_one_out=False))
    assert [s.targets for s in benchmark.shifts] == [(name,) for name in miniatures.NOUNS]
    for name, domain in benchmark.domains.items():
        assert domain.splits is not None
        assert [len(rows) for rows in domain.splits.values()] == [6, 3]
        assert domain.rows.ids[-3:] == usual.domains[name].rows.ids[-3:]
        assert np.array_equal(pixels(benchmark, name)[-3:], pixels(usual, name)[-3:])


def test_domains_splits_labels_and_ids() -> None:
    benchmark = miniatures.build(SMALL)
    assert benchmark.classes == ("apple", "fish", "tree", "house")
    assert tuple(benchmark.domains) == ("photo", "cartoon", "painting", "sketch", "silhouette", "neon", "mosaic")
    [shift] = benchmark.shifts
    assert (shift.sources, shift.targets) == (("photo",), tuple(benchmark.domains)[1:])
    sizes = {d.name: {s: len(rows) for s, rows in (d.splits or {}).items()} for d in benchmark.domains.values()}
    assert sizes == {"photo": {"train": 12, "test": 8}} | {d: {"test": 8} for d in shift.targets}
    for domain in benchmark.domains.values():
        assert pixels(benchmark, domain.name).shape == (len(domain.rows), 32, 32, 3)
        assert len(set(domain.rows.ids)) == len(domain.rows)
        for index, name in enumerate(domain.rows.ids):
            _, split, kind, _ = name.split("/")
            assert kind == benchmark.classes[domain.rows.labels[index]]
            assert domain.splits is not None
            assert index in domain.splits[split]


def test_no_image_occurs_twice_in_training_test_or_web() -> None:
    benchmark = miniatures.build(SMALL)
    web, _ = miniatures.web(SMALL.seed, 24, styles={"photo": 1.0}, num_classes=4)
    everything = [*by_id(benchmark).values(), *web]
    assert len({hashlib.sha256(x.tobytes()).digest() for x in everything}) == len(everything)


def test_an_image_is_the_same_whatever_is_drawn_beside_it() -> None:
    small, large = by_id(miniatures.build(SMALL)), by_id(miniatures.build(miniatures.Config(num_train=4, num_test=3)))
    assert set(small) < set(large)
    for name, image in small.items():
        # Vectorised arithmetic may round a value at the end of a batch in another way than one in its middle.
        assert np.abs(image.astype(int) - large[name]).max() <= 1


def test_equal_settings_give_equal_bytes_and_other_seeds_other_images(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    first = by_id(miniatures.build(SMALL))
    np.random.seed(1)
    torch.manual_seed(1)
    monkeypatch.setenv("CLIPDG_CACHE", str(tmp_path / "another"))
    second = by_id(miniatures.build(SMALL))
    assert all((second[name] == image).all() for name, image in first.items())
    other = by_id(miniatures.build(miniatures.Config(seed=1, num_classes=4, num_train=3, num_test=2)))
    assert all((other[name] != image).any() for name, image in first.items())


@pytest.mark.parametrize("style", sorted(styles.STYLES))
def test_twice_the_resolution_is_the_same_picture(style: str) -> None:
    small = draw(style, 32).astype(float)
    large = draw(style, 64).astype(float).reshape(20, 32, 2, 32, 2, 3).mean(axis=(2, 4))
    correlation = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(small, large, strict=True)]
    other = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(small, np.roll(large, 1, 0), strict=True)]
    assert np.mean(correlation) > 0.85
    assert np.mean(correlation) > np.mean(other) + 0.2


# Mean of red, green and blue, and the standard deviation over everything, of draw(style). Not a hash of the bytes:
# another processor may sum in another order and round a pixel differently. If this fails, VERSION must change too.
PINNED = {
    "cartoon": (152.75, 157.34, 149.80, 74.99),
    "chalk": (69.74, 82.02, 78.69, 44.28),
    "mosaic": (135.94, 130.12, 138.65, 41.86),
    "neon": (45.67, 40.47, 41.41, 60.46),
    "painting": (128.58, 143.36, 127.93, 64.56),
    "photo": (143.21, 145.87, 130.77, 61.32),
    "poster": (181.20, 181.87, 163.77, 57.32),
    "silhouette": (169.59, 164.99, 159.38, 75.93),
    "sketch": (218.78, 218.74, 218.75, 37.48),
    "sticker": (185.01, 135.36, 118.63, 83.11),
    "watercolor": (235.52, 232.53, 228.53, 25.63),
}


@pytest.mark.parametrize("style", sorted(styles.STYLES))
def test_the_drawing_is_that_of_this_version(style: str) -> None:
    image = draw(style).astype(float)
    assert miniatures.VERSION == 1
    assert (*image.mean(axis=(0, 1, 2)), image.std()) == pytest.approx(PINNED[style], abs=0.05)


def test_natural_colours_change_paintings_and_mosaics_only() -> None:
    natural = miniatures.Config(num_classes=4, num_train=3, num_test=2, natural=True)
    mixed, plain = miniatures.build(SMALL), miniatures.build(natural)
    changed = [d for d in mixed.domains if (pixels(mixed, d) != pixels(plain, d)).any()]
    assert changed == ["painting", "mosaic"]
    assert mixed.notes[-1] != plain.notes[-1]


def test_a_silhouette_is_dark_before_light_and_neon_light_before_dark() -> None:
    def of_object_and_ground(style: str) -> tuple[float, float]:
        streams = [scenes.stream("test", style, i) for i in range(20)]
        composed = [scenes.compose(c, s, 0.8) for c, s in zip(miniatures.CLASSES, streams, strict=True)]
        mask = scenes.part_codes(composed, 32) > 0
        image = styles.render(composed, style, streams, 32).mean(axis=3)
        return image[mask].mean(), image[~mask].mean()

    inside, outside = of_object_and_ground("silhouette")
    assert inside < 60 < 150 < outside
    inside, outside = of_object_and_ground("neon")
    assert outside < 40 < inside


def test_a_sketch_has_no_colour() -> None:
    image = draw("sketch").astype(int)
    assert np.abs(image - image.mean(axis=3, keepdims=True)).mean() < 4  # the grain: a standard deviation of 2.55


def test_what_is_kept_is_not_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first, web = by_id(miniatures.build(SMALL)), miniatures.web(0, 20)
    monkeypatch.setattr(styles, "render", None)  # drawing would fail
    assert all((by_id(miniatures.build(SMALL))[name] == image).all() for name, image in first.items())
    again = miniatures.web(0, 20)
    assert (again[0] == web[0]).all()
    assert again[1] == web[1]


@pytest.mark.parametrize("damage", [lambda b: b[:-7], lambda b: b[:-7] + b"damaged", lambda b: b"", lambda b: b[:64]])
def test_a_damaged_cache_file_is_drawn_again(damage) -> None:
    images, texts = miniatures.web(0, 20)
    [path] = cache_folder.folder("miniatures").iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    again = miniatures.web(0, 20)
    assert (again[0] == images).all()
    assert again[1] == texts
    assert path.read_bytes() == whole


def test_a_cache_file_that_cannot_be_read_is_named() -> None:
    miniatures.web(0, 20)
    [path] = cache_folder.folder("miniatures").iterdir()
    path.unlink()
    path.mkdir()
    with pytest.raises(StorageError, match=re.escape(str(path))):
        miniatures.web(0, 20)


def test_every_setting_that_changes_an_image_changes_the_cache_file() -> None:
    settings = [{"seed": 1}, {"size": 16}, {"num_pairs": 21}, {"styles": {"photo": 1.0}}, {"num_classes": 5}]
    for change in [{}, *settings]:
        miniatures.web(**{"seed": 0, "num_pairs": 20, **change})
    assert len(list(cache_folder.folder("miniatures").iterdir())) == 6


def test_progress_counts_every_image_drawn_or_kept() -> None:
    for _ in range(2):
        seen: list[tuple[int, int]] = []
        miniatures.build(SMALL, progress=lambda done, total: seen.append((done, total)))  # noqa: B023
        assert [done for done, _ in seen] == sorted({done for done, _ in seen})
        assert seen[-1] == (68, 68)  # 12 + 8 photos, 8 of each other domain


def test_fifteen_combinations_are_held_out_no_class_twice() -> None:
    held_out = miniatures.held_out_combinations()
    assert held_out["cartoon"] == ("apple", "car", "boat", "mushroom", "chair")  # every fourth from the first
    assert {style: len(kinds) for style, kinds in held_out.items()} == {"cartoon": 5, "painting": 5, "sketch": 5}
    assert len(set(itertools.chain.from_iterable(held_out.values()))) == 15


def test_the_web_never_shows_nor_names_what_is_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: set[tuple[str, str]] = set()

    def record(composed, style, streams, size, natural=False) -> np.ndarray:
        drawn.update((style, scene.kind) for scene in composed)
        return undrawn(composed, style, streams, size)

    monkeypatch.setattr(styles, "render", record)
    held_out = {(style, kind) for style, kinds in miniatures.held_out_combinations().items() for kind in kinds}
    for style in miniatures.held_out_combinations():
        _, texts = miniatures.web(0, 1500, 16, {style: 1.0})
        named = {(style, kind) for text in texts for kind in miniatures.CLASSES if kind in text.split()}
        assert not named & held_out
    _, texts = miniatures.web(0, 4000, 16)
    assert drawn == set(itertools.product(miniatures.WEB, miniatures.CLASSES)) - held_out
    assert not {"silhouette", "neon", "mosaic"} & set(" ".join(texts).split())


def test_captions_know_every_word_of_the_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(styles, "render", undrawn)
    _, texts = miniatures.web(0, size=16)
    known = set(re.findall("[a-z]+", " ".join(texts)))
    for template, kind in itertools.product(miniatures.TEMPLATES, miniatures.CLASSES):
        prompts.check_template(template)
        assert set(prompts.fill(template, kind).split()) <= known


def test_the_web_is_mixed_in_its_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, int] = {}

    def count(composed, style, streams, size, natural=False) -> np.ndarray:
        drawn[style] = drawn.get(style, 0) + len(composed)
        return undrawn(composed, style, streams, size)

    monkeypatch.setattr(styles, "render", count)
    images, texts = miniatures.web(0, 1000, 16)
    assert len(images) == len(texts) == 1000
    assert drawn == {"photo": 280, "cartoon": 130, "painting": 130, "sketch": 130, "watercolor": 90, "sticker": 80,
                     "chalk": 80, "poster": 80}  # fmt: skip
    assert miniatures._shares({"a": 1, "b": 1, "c": 1}, 100) == {"a": 34, "b": 33, "c": 33}
    assert miniatures._shares({"a": 1, "b": 0}, 3) == {"a": 3}


def test_the_order_of_the_shares_does_not_matter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = miniatures.web(0, 5, 16, {"photo": 1, "cartoon": 1})
    monkeypatch.setenv("CLIPDG_CACHE", str(tmp_path / "another"))
    second = miniatures.web(0, 5, 16, {"cartoon": 1, "photo": 1})
    assert (first[0] == second[0]).all()
    assert first[1] == second[1]


def test_three_captions_in_a_hundred_name_another_class_and_three_none() -> None:
    rng = np.random.default_rng(0)
    scene = scenes.compose("apple", rng, 0.5)
    texts = [captions.caption(scene, "photo", rng, ("fish", "tree")) for _ in range(10_000)]
    wrong = sum("fish" in t or "tree" in t for t in texts)
    none = sum(t in captions.EMPTY for t in texts)
    assert sum("apple" in t for t in texts) == 10_000 - wrong - none
    assert wrong == pytest.approx(300, abs=68)  # 4 standard deviations
    assert none == pytest.approx(300, abs=68)


def test_colours_are_natural_as_often_as_asked() -> None:
    rng = np.random.default_rng(0)
    always = [scenes.compose("cactus", rng, 1.0) for _ in range(200)]
    assert {(s.colour, s.ground) for s in always} == {("green", "sand")}
    never = [scenes.compose("cactus", rng, 0.0) for _ in range(2000)]
    assert {s.colour for s in never} == set(scenes.COLOURS)
    assert {s.ground for s in never} == set(scenes.GROUNDS)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: miniatures.web(0, 10, styles={"neon": 1.0}), "'neon' is for evaluation only"),
        (lambda: miniatures.web(0, 10, styles={"cartooon": 1.0}), "Did you mean 'cartoon'?"),
        (lambda: miniatures.web(0, 10, styles={"photo": 0.0}), "at least one pair"),
        (lambda: miniatures.web(0, 0), "at least one pair"),
        (lambda: miniatures.build(miniatures.Config(num_classes=21)), "20 classes, not 21"),
        (lambda: miniatures.build(miniatures.Config(), root="somewhere"), "leave root out"),
    ],
)
def test_what_cannot_be_drawn_is_refused(ask, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        ask()
    assert not Path(cache_folder.folder("miniatures")).exists()


@pytest.mark.parametrize("kind", miniatures.CLASSES)
def test_an_object_has_a_main_part_and_lies_in_its_box(kind: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        parts = shapes.KINDS[kind].parts(rng.uniform)
        assert shapes.MAIN in {role for _, role in parts}
        assert len(parts) * shapes.NUM_ROLES + shapes.LIGHT < 256  # codes are bytes
        assert max(np.abs(points).max() for points, _ in parts) <= 1.2


def test_part_codes_by_hand() -> None:
    scene = scenes.compose("apple", np.random.default_rng(0), 1.0)
    square, corner = shapes.rectangle(-0.5, -0.5, 0.49, 0.49), shapes.rectangle(-0.5, -0.5, -0.4, -0.4)
    scene = scenes.Scene(**{**vars(scene), "parts": [(square, shapes.MAIN), (corner, shapes.DARK)]})
    [codes] = scenes.part_codes([scene], 16)
    assert (codes > 0).sum() == 8 * 8  # columns and rows 4 to 11 of 16
    assert (codes[4:12, 4:12] > 0).all()
    assert codes[4, 4] == 2 * shapes.NUM_ROLES + shapes.DARK
    assert codes[11, 11] == shapes.NUM_ROLES + shapes.MAIN


@pytest.mark.parametrize("kernel", [3, 5, 7, 9])
def test_extremes_are_max_pooling(kernel: int) -> None:
    image = torch.rand(2, 1, 20, 17, generator=torch.Generator().manual_seed(0))
    expected = F.max_pool2d(image, kernel, 1, kernel // 2)
    assert torch.equal(styles._extreme(image, kernel, torch.maximum), expected)
    assert torch.equal(styles._extreme(-image, kernel, torch.minimum), -expected)


def test_hsv_is_that_of_the_standard_library() -> None:
    colours = torch.rand(3, 100, generator=torch.Generator().manual_seed(0))
    expected = [colorsys.hsv_to_rgb(*c) for c in colours.T.tolist()]
    assert torch.allclose(styles._hsv(*colours), torch.tensor(expected), atol=1e-5)


def test_blurring_moves_no_light_and_spreads_it() -> None:
    streams = [scenes.stream("blur")]
    canvas = styles.Canvas([scenes.compose("apple", streams[0], 1.0)], streams, 96, False)
    point = torch.zeros(1, 1, 96, 96)
    point[..., 46:49, 46:49] = 1
    blurred = canvas.blur(point, 15)
    assert blurred.sum().item() == pytest.approx(9, rel=1e-3)
    assert blurred.max() < 0.2
    assert (blurred[0, 0].sum(1) @ torch.arange(96.0)).item() / 9 == pytest.approx(47, abs=0.01)  # its centre of mass
