"""What a check of data finds, what a manifest remembers, and what a list leaves out."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import domain_sets
import numpy as np
import pytest
from domain_sets import Sample
from PIL import Image

from clipdg.benchmarks import pacs
from clipdg.core.benchmark import Benchmark, Domain, Subset
from clipdg.core.errors import ConfigError, DataError
from clipdg.data import audit, decode, skip_list
from clipdg.data import splits as splits_
from clipdg.data.audit import Line, Problem
from clipdg.data.rows import ArrayRows, select
from clipdg.data.rows.folder import unlooked


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return domain_sets.tree(tmp_path / "pacs", domain_sets.samples(pacs.PACS, 3))


def opened(root: Path) -> Benchmark:
    with unlooked():
        return pacs.build(pacs.Config(), str(root))


def problems(root: Path) -> list[Problem]:
    return audit.check(opened(root)).problems


def picture(*sample: str) -> bytes:
    return domain_sets.picture(Sample(*sample))


def test_nothing_is_wrong_with_data_that_are_right(root: Path) -> None:
    found = audit.check(opened(root))
    assert found.problems == []
    assert found.remarks == []
    assert found.domains["sketch"] == audit.Extent(21, 7, 6, 8)
    assert len(found.lines) == 84
    assert found.lines[0].id == "dog/pic_000.png"
    assert found.lines[0].class_name == "dog"


def oversized() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (7200, 7200)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty: 0 bytes"),
        (b"<html></html>", "is an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (picture("a", "b", "c")[:60], "is cut or broken"),
        (oversized(), f"claims 7,200 × 7,200 pixels, more than {decode.MAX_PIXELS:,}"),
    ],
)
def test_an_image_that_cannot_be_read_is_named_with_the_reason(root: Path, content: bytes, reason: str) -> None:
    (root / "photo" / "dog" / "pic_001.png").write_bytes(content)
    [problem] = problems(root)
    assert problem[:2] == ("cannot be read", "photo/dog/pic_001.png")
    assert problem.text.startswith(reason)


def test_every_bad_image_is_found_and_not_only_the_first(root: Path) -> None:
    for name in ("photo/dog/pic_001.png", "photo/dog/pic_002.png", "sketch/house/pic_000.png"):
        (root / name).write_bytes(b"")
    assert [p.image for p in problems(root)] == [
        "photo/dog/pic_001.png",
        "photo/dog/pic_002.png",
        "sketch/house/pic_000.png",
    ]


def test_the_same_bytes_are_found_within_and_across_classes_and_domains(root: Path) -> None:
    first = (root / "cartoon" / "dog" / "pic_000.png").read_bytes()
    (root / "cartoon" / "dog" / "pic_001.png").write_bytes(first)  # within a domain and class: a remark
    (root / "sketch" / "dog" / "pic_000.png").write_bytes(first)
    (root / "cartoon" / "horse" / "pic_002.png").write_bytes(first)
    found = audit.check(opened(root))
    assert found.problems == [
        Problem(
            "same image, other class",
            "cartoon/horse/pic_002.png",
            "('horse') has the bytes of cartoon/dog/pic_000.png ('dog')",
        ),
        Problem("same image in two domains", "sketch/dog/pic_000.png", "has the bytes of cartoon/dog/pic_000.png"),
    ]
    assert found.remarks[0].startswith("1 image has the bytes of another")


def array_benchmark(labels: list[int], splits: dict[str, list[int]] | None = None, **more: object) -> Benchmark:
    array = np.arange(len(labels), dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2).repeat(3, 3)
    rows = ArrayRows(array, np.array(labels), [f"{i}" for i in range(len(labels))])
    published = {name: np.array(rows) for name, rows in splits.items()} if splits else None
    return Benchmark("b", ("x", "y"), {"d": replace(Domain("d", rows, published), **more)})  # type: ignore[arg-type]


def test_labels_out_of_range_are_named() -> None:
    found = audit.check(array_benchmark([0, 1, 2, -1]))
    assert found.problems == [
        Problem("labels out of range", "d/2", "has label 2, outside 0 to 1"),
        Problem("labels out of range", "d/3", "has label -1, outside 0 to 1"),
    ]
    found = audit.check(array_benchmark([0, 1], subset=Subset((1,))))
    assert [p.text for p in found.problems] == ["has label 0, which is not among the domain's classes"]


def test_a_class_without_images_is_remarked() -> None:
    assert audit.check(array_benchmark([0, 0])).remarks == ["d has no image of y."]


def test_a_pool_that_was_not_read_is_remarked(squares: Benchmark) -> None:
    bright = squares.domains["bright"]
    pooled = replace(squares, domains={**squares.domains, "bright": replace(bright, pool=lambda: bright.rows)})
    assert audit.check(squares).remarks == []
    assert audit.check(pooled).remarks == ["bright: the pool that training images are drawn from was not read."]


def test_published_splits_that_share_an_image_are_named() -> None:
    benchmark = array_benchmark([0, 1, 0], {"train": [0, 1], "test": [1, 2]})
    assert audit.check(benchmark).problems == [Problem("in two splits", "d/1", "in test is itself in train")]
    benchmark = array_benchmark([0, 1, 0], {"train": [0, 1], "test": [2]})
    benchmark.domains["d"].rows.array[2] = benchmark.domains["d"].rows.array[0]  # type: ignore[attr-defined]
    assert Problem("in two splits", "d/2", "in test is 0 in train") in audit.check(benchmark).problems


# The manifest


def test_a_manifest_comes_back_as_it_was_written(root: Path, tmp_path: Path) -> None:
    lines = [Line("Real World", 'a,"b".png', "flip-flops", "0" * 64), *audit.check(opened(root)).lines]
    (tmp_path / "m.csv").write_bytes(audit.manifest(lines))
    assert audit.read_manifest(tmp_path / "m.csv") == lines


def test_changes_since_a_manifest_are_named() -> None:
    def line(name: str, digest: str, label: str = "dog") -> Line:
        return Line("photo", name, label, digest)

    old = [line("same", "1"), line("bytes", "2"), line("class", "3"), line("gone", "4"), line("old name", "5")]
    new = [line("same", "1"), line("bytes", "9"), line("class", "3", "cat"), line("new name", "5"), line("new", "6")]
    assert [(p.image, p.text) for p in audit.changes(old, new)] == [
        ("photo/bytes", "has other bytes"),
        ("photo/class", "was 'dog' and is 'cat'"),
        ("photo/gone", "is gone"),
        ("photo/old name", "is now called new name"),
        ("photo/new", "is new"),
    ]
    assert audit.changes(old, list(reversed(old))) == []


def test_what_is_no_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        audit.read_manifest(tmp_path / "m.csv")
    for text in ("", "a,b\n", "domain,id,class,digest\nphoto,1\n"):
        (tmp_path / "m.csv").write_text(text)
        with pytest.raises(DataError, match="no manifest"):
            audit.read_manifest(tmp_path / "m.csv")


# Leaving images out


def test_only_what_a_list_names_is_left_out_and_the_benchmark_says_so(root: Path) -> None:
    whole = opened(root)
    less = skip_list.without(whole, ("photo/dog/pic_001.png", "sketch/house/pic_000.png"))
    assert [len(d.rows) for d in less.domains.values()] == [21, 21, 20, 20]
    rows = less.domains["photo"].rows
    assert rows.ids[:2] == ("dog/pic_000.png", "dog/pic_002.png")
    assert np.asarray(rows.image(1))[3, 3].tolist() == list(domain_sets.colour(Sample("photo", "dog", "pic_002.png")))
    assert rows.labels.tolist() == [0, 0] + [c for c in range(1, 7) for _ in range(3)]
    assert rows.digests()[1] == whole.domains["photo"].rows.digests()[2]
    assert less.skipped == ("photo/dog/pic_001.png", "sketch/house/pic_000.png")
    assert less.notes[-1] == "2 images were left out by a list, which is in the record."


def test_published_splits_lose_what_is_left_out() -> None:
    benchmark = array_benchmark([0, 1, 0, 1], {"train": [3, 0], "test": [1, 2]})
    domain = skip_list.without(benchmark, ("d/1",)).domains["d"]
    assert domain.splits is not None
    assert {name: [domain.rows.ids[i] for i in rows] for name, rows in domain.splits.items()} == {
        "train": ["3", "0"],
        "test": ["2"],
    }


def test_images_of_a_pool_are_left_out_as_well() -> None:
    benchmark = array_benchmark([0, 1, 0, 1])
    pool = ArrayRows(np.zeros((3, 2, 2, 3), np.uint8), np.array([0, 1, 1]), ["train/0", "train/1", "train/2"])
    domain = replace(benchmark.domains["d"], pool=lambda: pool)
    less = skip_list.without(replace(benchmark, domains={"d": domain}), ("d/train/1", "d/3")).domains["d"]
    assert less.pool is not None
    assert (list(less.pool().ids), less.pool().labels.tolist()) == (["train/0", "train/2"], [0, 1])
    assert list(less.rows.ids) == ["0", "1", "2"]
    with pytest.raises(ConfigError, match="names d/train/9"):
        skip_list.without(replace(benchmark, domains={"d": domain}), ("d/train/9",))


def test_rows_of_a_plug_ins_own_can_be_chosen_from() -> None:
    class Own:
        def __init__(self, inner: ArrayRows) -> None:
            self.inner, self.labels, self.ids = inner, inner.labels, inner.ids

        def __len__(self) -> int:
            return len(self.inner)

        def image(self, index: int) -> Image.Image:
            return self.inner.image(index)

        def digests(self) -> tuple[str, ...]:
            return self.inner.digests()

    inner = array_benchmark([0, 1, 0]).domains["d"].rows
    assert isinstance(inner, ArrayRows)
    for rows in (inner, Own(inner)):
        chosen = select(rows, np.array([2, 1]))
        assert (tuple(chosen.ids), chosen.labels.tolist(), len(chosen)) == (("2", "1"), [0, 1], 2)
        assert chosen.digests() == (inner.digests()[2], inner.digests()[1])
        assert np.array_equal(np.asarray(chosen.image(0)), inner.array[2])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("photo/dog/pic_01.png", "Did you mean 'dog/pic_001.png'?"),
        ("foto/dog/pic_001.png", "Its domains are art_painting, cartoon, photo, sketch."),
    ],
)
def test_a_list_must_name_what_there_is(root: Path, name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match="pacs does not have") as error:
        skip_list.without(opened(root), (name,))
    assert reason in str(error.value)


def test_a_list_has_comments_and_names_nothing_twice(tmp_path: Path) -> None:
    file = tmp_path / "skip.txt"
    file.write_text("# cut files\nphoto/dog/1.png\n\nphoto/a b/2.png # empty\nphoto/dog/Image #3.png\n")
    assert skip_list.read(file) == ("photo/dog/1.png", "photo/a b/2.png", "photo/dog/Image #3.png")
    file.write_text("photo/dog/1.png\nphoto/dog/1.png\n")
    with pytest.raises(ConfigError, match="twice"):
        skip_list.read(file)
    with pytest.raises(ConfigError, match="cannot read"):
        skip_list.read(tmp_path / "nowhere.txt")


def test_what_is_left_out_need_not_be_an_image_and_all_else_must(root: Path) -> None:
    from dataclasses import replace

    from clipdg.runs.config import load
    from clipdg.runs.session import open_benchmark

    (root / "photo" / "dog" / "pic_001.png").write_bytes(b"")
    file = root.parent / "skip.txt"
    file.write_text("photo/dog/pic_001.png\n")
    settings = load(values={"benchmark": {"name": "pacs", "root": str(root)}}).benchmark
    with pytest.raises(DataError, match=r"pic_001\.png is empty"):
        open_benchmark(settings)
    benchmark = open_benchmark(replace(settings, skip=str(file)))
    assert len(benchmark.domains["photo"].rows) == 20
    assert len(splits_.splits(benchmark.domains["photo"], 2, 0)["out"]) == 4
    (root / "sketch" / "dog" / "pic_001.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"sketch/dog/pic_001\.png is empty"):
        open_benchmark(replace(settings, skip=str(file)))
