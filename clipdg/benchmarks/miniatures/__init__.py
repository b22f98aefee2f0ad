"""miniatures: 20 drawn classes in 7 domains; no download.

A run trains on ``photo`` and tests on six domains that differ from it in style alone. With ``leave_one_out`` it trains
on six and tests on the seventh, as DomainBed's sets are used. Every image has its own random pose, size, proportions,
colours and ground. ``web`` draws the image-caption pairs that ``tiny`` is pre-trained on, in eight styles. Three
domains (silhouette, neon, mosaic) and fifteen combinations of class and style are not among them. The benchmark
demonstrates the pipeline, with answers that are known by construction. It is no evidence about CLIP, and ``notes`` says
what a table made from it must say.

Every image has a stream of random numbers named by the seed, the purpose, the style, the class and its number, so an
image is the same whatever is drawn beside it. On one machine and with one version of torch, numpy and Pillow, equal
settings give equal bytes. Another processor may round a pixel differently.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipdg.benchmarks.miniatures.captions import STYLE_WORDS, caption
from clipdg.benchmarks.miniatures.scenes import compose, stream
from clipdg.benchmarks.miniatures.shapes import KINDS
from clipdg.core import plugins
from clipdg.core.benchmark import Benchmark, Domain, Shift, leave_one_out
from clipdg.core.errors import ConfigError, StorageError
from clipdg.core.plugins import BenchmarkSource
from clipdg.core.versions import version
from clipdg.data.rows import ArrayRows
from clipdg.storage import cache_folder
from clipdg.storage.publish import digest, publish

VERSION = 1  # the drawing's: raise it with every change that can alter a pixel or a caption
BATCH = 64  # images drawn at a time: larger batches are slower
CLASSES = tuple(KINDS)
SOURCE = "photo"
NOUNS = {
    "photo": "photo", "cartoon": "cartoon", "painting": "painting", "sketch": "sketch", "silhouette": "silhouette",
    "neon": "neon sign", "mosaic": "mosaic",
}  # fmt: skip
SHIFTED = tuple(d for d in NOUNS if d != SOURCE)
NEVER_SEEN = tuple(d for d in NOUNS if d not in STYLE_WORDS)  # pre-training neither sees nor names them
WEB = {
    "photo": 0.28, "cartoon": 0.13, "painting": 0.13, "sketch": 0.13, "watercolor": 0.09, "sticker": 0.08,
    "chalk": 0.08, "poster": 0.08,
}  # fmt: skip
# How often an object has a colour, and a ground, that is natural for it. The web's images are more varied.
TYPICAL, TYPICAL_ON_THE_WEB = 0.9, 0.5
TEMPLATES = (
    "a photo of {a}", "a picture of {a}", "a cartoon of {a}", "a sketch of {a}", "a painting of {a}",
    "an artwork of {a}", "a drawing of {a}", "a sticker of {a}", "this is {a}", "my {}", "a small {}", "a large {}",
    "the {}", "{}",
)  # fmt: skip

Images = NDArray[np.uint8]  # (N, P, P, 3)
Progress = Callable[[int, int], None]  # images done, of how many


@dataclass(frozen=True)
class Config:
    """How many images are drawn, and how.

    ``size``: pixels a side. ``num_classes``: so many of the 20, the first ones. ``num_train``: photos per class, of
    which some are held out for validation. ``num_test``: images per class and domain. ``natural``: paintings and
    mosaics keep natural colours, with which a source-only ResNet does better on them. ``leave_one_out``: each domain
    has ``num_train`` training images per class and is left out once.
    """

    seed: int = field(default=0, metadata={"min": 0, "max": 2**31 - 1})
    size: int = field(default=32, metadata={"min": 16, "max": 512})
    num_classes: int = field(default=20, metadata={"min": 2, "max": len(CLASSES)})
    num_train: int = field(default=75, metadata={"min": 1})
    num_test: int = field(default=30, metadata={"min": 1})
    natural: bool = False
    leave_one_out: bool = False


def build(config: Config, root: str | None = None, progress: Progress | None = None) -> Benchmark:
    """Draw the benchmark, or take it from the cache."""
    if root is not None:
        raise ConfigError(f"miniatures is drawn, not read from {root}; leave root out, or use benchmark=folder")
    classes = _classes(config.num_classes)
    sources = tuple(NOUNS) if config.leave_one_out else (SOURCE,)
    wanted = [*((d, "train", config.num_train) for d in sources), *((d, "test", config.num_test) for d in NOUNS)]
    steps = _Steps(sum(num for _, _, num in wanted) * len(classes), progress)
    drawn = {(d, split): _split(config, d, split, num, steps) for d, split, num in wanted}
    domains = {}
    for name, noun in NOUNS.items():
        parts = [(split, drawn[name, split]) for split in ("train", "test") if (name, split) in drawn]
        images = np.concatenate([part for _, part in parts])
        splits, ids, start = {}, [], 0
        for split, part in parts:
            splits[split] = np.arange(start, start + len(part))
            ids += [f"{name}/{split}/{classes[i % len(classes)]}/{i // len(classes):04d}" for i in range(len(part))]
            start += len(part)
        labels = np.concatenate([np.arange(len(part)) % len(classes) for _, part in parts])
        domains[name] = Domain(name, ArrayRows(images, labels, ids), splits, noun=noun)
    return Benchmark(
        name="miniatures",
        classes=classes,
        domains=domains,
        shifts=leave_one_out(sources) if config.leave_one_out else (Shift(SOURCE, (SOURCE,), SHIFTED),),
        templates=TEMPLATES,
        notes=notes(config),
        licence="MIT; drawn by clipdg",
    )


def notes(config: Config) -> tuple[str, ...]:
    """Say what a table must tell about these numbers."""
    withheld = held_out_combinations(config.num_classes)
    colours = (
        "Painting and mosaic are drawn in natural colours here."
        if config.natural
        else "Painting and mosaic were redesigned after accuracies had been seen, both times against the source-only "
        "ResNet; natural=true gives them natural colours."
    )
    return (
        "The images are drawn by a program: a demonstration of the pipeline, no evidence about CLIP.",
        "The web images that tiny was pre-trained on show every class by name, in the styles "
        f"{_and(STYLE_WORDS)}; never {_and(NEVER_SEEN)}.",
        "Seen styles in which it never saw some classes: "
        + "; ".join(f"{style}: {', '.join(kinds)}" for style, kinds in withheld.items())
        + ".",
        "Chalk is akin to neon, sticker and poster to silhouette; mosaic has no relative among the web images.",
        "Not data-matched: tiny saw thousands of captioned images in eight styles, a source-only model only the "
        "labelled photos.",
        colours,
    )


def held_out_combinations(num_classes: int = len(CLASSES)) -> dict[str, tuple[str, ...]]:
    """Map a style to the classes that pre-training never sees in it: every fourth, other ones for each style."""
    classes = _classes(num_classes)
    return {style: classes[first::4] for first, style in enumerate(("cartoon", "painting", "sketch"))}


def web(
    seed: int,
    num_pairs: int = 13_500,
    size: int = 32,
    styles: Mapping[str, float] | None = None,
    progress: Progress | None = None,
    num_classes: int = len(CLASSES),
) -> tuple[Images, list[str]]:
    """Draw image-caption pairs for pre-training, in random order: images (N, P, P, 3) and N captions.

    ``styles`` gives the share of each style in place of the usual mix; ``{"photo": 1.0}`` is the photo-only control.
    3 % of the captions name a wrong class and 3 % none.
    """
    mix = dict(WEB if styles is None else styles)
    for style in mix:
        if style in NEVER_SEEN:
            raise ConfigError(f"style '{style}' is for evaluation only; pre-training may see {_and(STYLE_WORDS)}")
        if style not in STYLE_WORDS:
            raise ConfigError(
                f"no style '{style}'.{plugins.nearest(style, tuple(STYLE_WORDS))} There are: {', '.join(STYLE_WORDS)}."
            )
    if num_pairs < 1 or any(share < 0 for share in mix.values()) or not sum(mix.values()) > 0:
        raise ConfigError(f"{num_pairs} pairs in shares {mix} cannot be drawn; give at least one pair and one share")
    mix = {s: mix[s] for s in WEB if s in mix}  # the order in which they were given does not matter
    held_out = held_out_combinations(num_classes)
    allowed = {s: tuple(c for c in _classes(num_classes) if c not in held_out.get(s, ())) for s in mix}
    steps = _Steps(num_pairs, progress)
    key = {"seed": seed, "num_pairs": num_pairs, "size": size, "mix": mix, "num_classes": num_classes}

    def draw() -> tuple[Images, list[str]]:
        images, captions = [], []
        for style, num in _shares(mix, num_pairs).items():
            jobs = [(f"{seed}/web/{style}/{i}", allowed[style]) for i in range(num)]
            pixels, texts = _draw(jobs, style, size, TYPICAL_ON_THE_WEB, steps, captioned=True)
            images.append(pixels)
            captions += texts
        order = stream(seed, "web", "order").permutation(num_pairs)
        return np.concatenate(images)[order], [captions[i] for i in order]

    return _cached(f"web-{num_pairs}", key, draw, steps, num_pairs)


def _split(config: Config, domain: str, split: str, num: int, steps: _Steps) -> Images:
    """The images of a domain's split, (num · C, P, P, 3), with the classes in turn."""
    natural = config.natural and domain in ("painting", "mosaic")
    key = {"seed": config.seed, "domain": domain, "split": split, "num": num, "size": config.size,
           "num_classes": config.num_classes, "natural": natural}  # fmt: skip

    def draw() -> tuple[Images, list[str]]:
        classes = _classes(config.num_classes)
        jobs = [(f"{config.seed}/{split}/{domain}/{c}/{k}", (c,)) for k in range(num) for c in classes]
        return _draw(jobs, domain, config.size, TYPICAL, steps, natural=natural)

    images, _ = _cached(f"{domain}-{split}", key, draw, steps, num * config.num_classes)
    return images


def _draw(
    jobs: Sequence[tuple[str, tuple[str, ...]]], style: str, size: int, typical: float, steps: _Steps,
    natural: bool = False, captioned: bool = False,
) -> tuple[Images, list[str]]:  # fmt: skip
    """Draw an image, and a caption if ``captioned``, for each job: a stream's name and the classes to choose from."""
    from clipdg.benchmarks.miniatures.styles import render

    images, captions = np.empty((len(jobs), size, size, 3), np.uint8), []
    for start in range(0, len(jobs), BATCH):
        batch = jobs[start : start + BATCH]
        streams = [stream(name) for name, _ in batch]
        scenes = [
            compose(kinds[int(rng.integers(len(kinds)))], rng, typical)
            for rng, (_, kinds) in zip(streams, batch, strict=True)
        ]
        if captioned:
            captions += [
                caption(scene, style, rng, kinds) for scene, rng, (_, kinds) in zip(scenes, streams, batch, strict=True)
            ]
        with _one_thread():
            images[start : start + BATCH] = render(scenes, style, streams, size, natural)
        steps.advance(len(batch))
    return images, captions


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch use one thread. Two are hardly faster for images so small, and seven times slower on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Steps:
    """Counts drawn images for a progress display."""

    def __init__(self, total: int, report: Progress | None) -> None:
        self.done, self.total, self.report = 0, total, report

    def advance(self, num: int) -> None:
        self.done += num
        if self.report is not None:
            self.report(self.done, self.total)


def _cached(
    name: str, key: Mapping[str, object], draw: Callable[[], tuple[Images, list[str]]], steps: _Steps, num: int
) -> tuple[Images, list[str]]:
    """The result of ``draw``, from the cache if it is there. A file that is not as it was written counts as absent."""
    made_by = {package: version(package) for package in ("numpy", "pillow", "torch")}
    path = cache_folder.folder("miniatures") / f"{name}-{digest([VERSION, made_by, key])[:16]}.bin"
    kept = _read(path)
    if kept is not None:
        steps.advance(num)
        return kept
    images, captions = draw()
    buffer = io.BytesIO()
    np.save(buffer, images)
    np.save(buffer, np.array(captions, dtype=np.str_))
    content = buffer.getbuffer()
    publish(path, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
    return images, captions


def _read(path: Path) -> tuple[Images, list[str]] | None:
    """Read the images and captions in a cache file; None unless it is whole.

    The file begins with the SHA-256 of the rest, which is two arrays.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"cannot read {path} ({error.strerror}); remove it, or set CLIPDG_CACHE") from error
    sha, _, body = content.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != sha:
        return None
    buffer = io.BytesIO(body)
    images: Images = np.load(buffer, allow_pickle=False)
    return images, np.load(buffer, allow_pickle=False).tolist()


def _shares(mix: Mapping[str, float], total: int) -> dict[str, int]:
    """Divide ``total`` in proportion. What rounding down leaves goes to the largest remainders."""
    exact = {k: total * share / sum(mix.values()) for k, share in mix.items()}
    counts = {k: int(x) for k, x in exact.items()}
    for k in sorted(exact, key=lambda k: counts[k] - exact[k])[: total - sum(counts.values())]:
        counts[k] += 1
    return {k: n for k, n in counts.items() if n}


def _classes(num: int) -> tuple[str, ...]:
    """The first ``num`` classes. Raises ConfigError if there are not so many."""
    if not 2 <= num <= len(CLASSES):
        raise ConfigError(
            f"miniatures has {len(CLASSES)} classes, not {num}; give num_classes from 2 to {len(CLASSES)}"
        )
    return CLASSES[:num]


def _and(words: Mapping[str, object] | Sequence[str]) -> str:
    """Write a list as "a, b and c"."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


BENCHMARK = BenchmarkSource(config=Config, build=build)
