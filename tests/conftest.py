"""Shared parts: a cache of each test's own, a small CLIP with random weights, a small benchmark in memory."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import clipdg
from clipdg.core.benchmark import Benchmark, Domain, Shift
from clipdg.core.model import ClipBackbone
from clipdg.data.rows import ArrayRows

CLASSES = ("red square", "green square", "blue square")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPDG_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def clip() -> ClipBackbone:
    """tiny with random weights: two towers, 64 features."""
    backbone = clipdg.load_backbone("tiny", "random:0")
    assert isinstance(backbone, ClipBackbone)
    return backbone


@pytest.fixture
def squares() -> Benchmark:
    """Three classes told apart by their colour; domain "bright" (source) and "dark" (target), 12 images a class."""
    rng = np.random.default_rng(0)
    domains = {}
    for name, low, high in (("bright", 150, 250), ("dark", 50, 120)):
        labels = np.repeat(np.arange(3), 12)
        images = rng.integers(0, 30, (36, 32, 32, 3)).astype(np.uint8)
        for i, label in enumerate(labels):
            images[i, 8:24, 8:24, label] = rng.integers(low, high, (16, 16))
        ids = [f"{name}/{i}" for i in range(36)]
        domains[name] = Domain(name, ArrayRows(images, labels, ids), noun=name)
    return Benchmark("squares", CLASSES, domains, (Shift("dark", ("bright",), ("dark",)),), ("a {}",))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Towers this small gain little from a second thread, and lose much where another process has the core."""
    torch.set_num_threads(1)


Jpeg = Callable[..., bytes]


@pytest.fixture(scope="session")
def jpeg() -> Jpeg:
    """jpeg(colour, size=36): the bytes of a square JPEG of one colour."""

    def encode(colour: tuple[int, ...], size: int = 36) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (size, size), colour).save(buffer, "JPEG")
        return buffer.getvalue()

    return encode


@pytest.fixture
def folder(tmp_path: Path, jpeg: Jpeg) -> Path:
    """48 images of one of four colours each, beside texts that name it."""
    colours = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "yellow": (220, 220, 30)}
    rng = np.random.default_rng(0)
    (tmp_path / "pairs").mkdir()
    for i in range(48):
        name, colour = list(colours.items())[i % 4]
        shade = tuple(int(c) for c in np.clip(np.array(colour) + rng.integers(-25, 26, 3), 0, 255))
        (tmp_path / "pairs" / f"{i:02}.jpg").write_bytes(jpeg(shade))
        (tmp_path / "pairs" / f"{i:02}.txt").write_text(f"a {name} square\n")
    return tmp_path / "pairs"


@pytest.fixture
def plugins_of_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``plugins_of.a_user``, which worker processes can import too; the folder that must be on their path."""
    package = tmp_path / "path" / "plugins_of"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "a_user.py").write_text((Path(__file__).parent / "helpers" / "plugins_of_a_user.py").read_text())
    monkeypatch.syspath_prepend(str(package.parent))
    return package.parent


@pytest.fixture
def helpers_of(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """``helpers_of.three_styles``: tests/helpers as a package, whose files have dotted paths."""
    place = tmp_path_factory.mktemp("path")
    (place / "helpers_of").symlink_to(Path(__file__).parent / "helpers")
    monkeypatch.syspath_prepend(str(place))
