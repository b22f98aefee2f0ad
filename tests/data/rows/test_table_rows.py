from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipdg.core.benchmark import Domain
from clipdg.core.errors import DataError
from clipdg.data.rows import ArrayRows, FolderTable, TableRows, fingerprint
from clipdg.storage import cache_folder

OLD = 1_600_000_000  # a time of change long ago, so that a digest is remembered


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPDG_CACHE", str(tmp_path / "cache"))


def put(path: Path, data: bytes, when: int = OLD) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (when, when))


def png(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), colour).save(buffer, "PNG")
    return buffer.getvalue()


def rows_of(root: Path, *files: str) -> TableRows:
    return TableRows(FolderTable(root, files), range(len(files)), np.arange(len(files)), files)


def folder(tmp_path: Path) -> TableRows:
    put(tmp_path / "art" / "cat" / "1.png", png((255, 0, 0)))
    put(tmp_path / "art" / "dog" / "1.png", png((0, 255, 0)))
    return rows_of(tmp_path / "art", "cat/1.png", "dog/1.png")


def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read from now on."""
    seen: list[str] = []
    original = Path.read_bytes

    def spy(path: Path) -> bytes:
        if path.suffix == ".png":
            seen.append(f"{path.parent.name}/{path.name}")
        return original(path)

    monkeypatch.setattr(Path, "read_bytes", spy)
    return seen


def test_array_rows_give_back_what_they_hold() -> None:
    array = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 3), dtype=np.uint8)
    rows = ArrayRows(array, np.array([2, 0, 1]), ["a", "b", "c"])
    assert len(rows) == 3
    assert np.array_equal(np.asarray(rows.image(1)), array[1])
    assert rows.labels.dtype == np.int64
    assert rows.ids == ("a", "b", "c")


def test_array_digests_tell_pixels_and_shapes_apart() -> None:
    def of(*shape: int, value: int = 0) -> str:
        return ArrayRows(np.full((1, *shape, 3), value, dtype=np.uint8), np.array([0]), ["x"]).digests()[0]

    assert of(4, 4) == hashlib.sha256(b"\4\0\0\0\4\0\0\0" + b"\0" * 48).hexdigest()
    assert len({of(4, 4), of(2, 8), of(8, 2), of(4, 4, value=1)}) == 4


def test_a_view_of_an_array_has_the_digests_of_its_copy() -> None:
    array = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), dtype=np.uint8)[:, ::2, ::-1]
    labels, ids = np.zeros(4), list("abcd")
    assert ArrayRows(array, labels, ids).digests() == ArrayRows(array.copy(), labels, ids).digests()


def test_folder_rows_read_their_files(tmp_path: Path) -> None:
    rows = folder(tmp_path)
    assert np.asarray(rows.image(1))[0, 0].tolist() == [0, 255, 0]
    assert rows.digests() == tuple(hashlib.sha256(png(c)).hexdigest() for c in ((255, 0, 0), (0, 255, 0)))


def test_a_second_run_reads_no_file_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = folder(tmp_path).digests()
    seen = reads(monkeypatch)
    again = rows_of(tmp_path / "art", "cat/1.png", "dog/1.png")
    assert again.digests() == first
    assert seen == []


def test_a_file_replaced_under_its_old_time_and_size_is_read_again(tmp_path: Path) -> None:
    before = folder(tmp_path).digests()
    path = tmp_path / "art" / "dog" / "1.png"
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = rows_of(tmp_path / "art", "cat/1.png", "dog/1.png").digests()
    assert after == (before[0], hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("how", ["size", "time"])
def test_a_changed_file_is_read_again_and_only_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    before = folder(tmp_path).digests()
    if how == "size":
        put(tmp_path / "art" / "dog" / "1.png", png((0, 255, 0)) + b"x")
    else:
        put(tmp_path / "art" / "dog" / "1.png", png((0, 254, 0)), OLD + 1)
    seen = reads(monkeypatch)
    after = rows_of(tmp_path / "art", "cat/1.png", "dog/1.png").digests()
    assert seen == ["dog/1.png"]
    assert after[0] == before[0]
    assert after[1] != before[1]


def test_a_file_changed_a_moment_ago_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "art" / "cat" / "1.png"
    put(path, b"first")
    now = path.stat().st_mtime_ns + 10**18  # far in the future: as new as can be
    os.utime(path, ns=(now, now))
    one = rows_of(tmp_path / "art", "cat/1.png").digests()
    path.write_bytes(b"later")  # as long as the first, and given the same time
    os.utime(path, ns=(now, now))
    two = rows_of(tmp_path / "art", "cat/1.png").digests()
    assert one != two
    assert two == (hashlib.sha256(b"later").hexdigest(),)


def test_parts_of_one_folder_share_what_they_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path)
    for file in ("cat/1.png", "dog/1.png"):
        rows_of(tmp_path / "art", file).digests()
    seen = reads(monkeypatch)
    rows_of(tmp_path / "art", "dog/1.png", "cat/1.png").digests()
    assert seen == []


@pytest.mark.parametrize("damage", ["cut", "altered"])
def test_damaged_memory_is_not_believed(tmp_path: Path, damage: str) -> None:
    right = folder(tmp_path).digests()
    (store,) = cache_folder.folder("digests").glob("*.json")
    text = store.read_text()
    store.write_text(text[:-9] if damage == "cut" else text.replace(right[0], right[1]))
    assert folder(tmp_path).digests() == right


@pytest.mark.parametrize("border", [0, 1])
def test_an_image_that_changed_after_its_digest_was_taken_is_not_decoded(tmp_path: Path, border: int) -> None:
    rows = folder(tmp_path)
    rows = TableRows(rows.table, rows.indices, rows.labels, rows.ids, border=border)
    before = rows.digests()
    assert rows.image(1).getpixel((0, 0)) == (0, 255, 0)
    put(tmp_path / "art" / "dog" / "1.png", png((0, 0, 255)))
    with pytest.raises(DataError, match=r"image 1 \(.*dog/1\.png\) has changed since its digest was taken"):
        rows.image(1)
    again = TableRows(rows.table, rows.indices, rows.labels, rows.ids, border=border)  # of the next run
    assert again.digests() != before
    assert again.image(1).getpixel((0, 0)) == (0, 0, 255)


def test_an_unreadable_sample_is_named(tmp_path: Path) -> None:
    rows = folder(tmp_path)
    path = tmp_path / "art" / "dog" / "1.png"
    path.write_bytes(png((0, 0, 0))[:45])
    with pytest.raises(DataError, match=r"^image 1 \(.*art/dog/1\.png\) is cut or broken"):
        rows.image(1)
    path.unlink()
    with pytest.raises(DataError, match=r"^image 1 \(.*art/dog/1\.png\) cannot be read: No such file"):
        rows.image(1)
    with pytest.raises(DataError, match=r"art/dog/1\.png cannot be read: No such file"):
        rows.digests()


def test_a_fingerprint_changes_with_images_labels_names_and_order_and_with_nothing_else() -> None:
    array = np.arange(4 * 2 * 2 * 3, dtype=np.uint8).reshape(4, 2, 2, 3)

    def of(order: list[int], labels: list[int], classes: list[str], name: str = "art") -> str:
        rows = ArrayRows(array[order], np.array(labels), [f"{name}{i}" for i in order])
        return fingerprint(Domain(name, rows), classes)

    base = of([0, 1, 2, 3], [0, 0, 1, 1], ["cat", "dog"])
    assert base == of([0, 1, 2, 3], [0, 0, 1, 1], ["cat", "dog"], name="photo")
    assert base == of([0, 1, 2, 3], [1, 1, 0, 0], ["dog", "cat"])  # the labels' names count, not their numbers
    others = [
        of([1, 0, 2, 3], [0, 0, 1, 1], ["cat", "dog"]),
        of([0, 1, 2, 3], [0, 1, 1, 1], ["cat", "dog"]),
        of([0, 1, 2, 3], [0, 0, 1, 1], ["cat", "Dog"]),
        of([0, 1, 2], [0, 0, 1], ["cat", "dog"]),
    ]
    assert len({base, *others}) == 5
