"""Shards as others write them, and shards that are broken or made to harm."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import layouts
import numpy as np
import pytest

from clipdg.core.errors import DataError
from clipdg.data.rows import open_table, shards
from clipdg.storage import cache_folder

PICTURE = layouts.picture(0)


def refused(path: Path) -> str:
    with pytest.raises(DataError) as error:
        open_table(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def with_member(path: Path, **fields: object) -> Path:
    """A good sample, and a member of a kind of its own."""
    with tarfile.open(path, "w") as archive:
        for name in ("a.jpg", "b.jpg"):
            member = tarfile.TarInfo(name)
            member.size = len(PICTURE)
            if name == "b.jpg":
                for field, value in fields.items():
                    setattr(member, field, value)
            archive.addfile(member, io.BytesIO(PICTURE))
    return path


def test_the_columns_are_the_texts_beside_the_images(tmp_path: Path) -> None:
    members = [
        ("x/1.jpg", PICTURE), ("x/1.cls", b"7\n"), ("x/1.json", b'{"domain": "photo", "n": 3, "tags": ["a"]}'),
        ("x/1.txt", "a café".encode()), ("x/2.cls", b"10"), ("x/2.PNG", PICTURE), ("x/2.txt", b"b"),
        ("x/2.json", b'{"domain": "sketch", "n": 4, "tags": []}'), ("README.txt", b"hello"), ("x/Thumbs.db", b"?"),
    ]  # fmt: skip
    table = open_table(layouts.tar(tmp_path / "a.tar", members))
    assert table.columns == ("__key__", "path", "cls", "json.domain", "json.n", "json.tags", "txt")
    assert table.column("__key__") == ["x/1", "x/2"]
    assert table.column("path") == ["x/1.jpg", "x/2.PNG"]
    assert np.array_equal(table.column("cls"), [7, 10])
    assert table.column("json.domain") == ["photo", "sketch"]
    assert np.array_equal(table.column("json.n"), [3, 4])
    assert table.column("txt") == ["a café", "b"]
    assert table.at(1) == f"{tmp_path / 'a.tar'}: x/2.PNG"
    with pytest.raises(DataError, match=r"a\.tar: x/1\.jpg holds several values in its 'json\.tags'"):
        table.column("json.tags")
    with pytest.raises(DataError, match=r"has no column 'clas'\. Did you mean 'cls'\?"):
        table.column("clas")


def test_a_text_that_a_sample_lacks_is_named(tmp_path: Path) -> None:
    table = open_table(layouts.tar(tmp_path / "a.tar", [("1.jpg", PICTURE), ("1.cls", b"0"), ("2.jpg", PICTURE)]))
    with pytest.raises(DataError, match=r"a\.tar: 2\.jpg has no 'cls'"):
        table.column("cls")


def test_ten_comes_after_two(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        layouts.tar(tmp_path / f"{number}.tar", [(f"s{number}.jpg", layouts.picture(number))])
    assert open_table(tmp_path).column("__key__") == ["s1", "s2", "s10"]


def test_an_opened_shard_is_not_gone_through_again_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = layouts.tar(tmp_path / "a.tar", [("1.jpg", PICTURE)])
    monkeypatch.setattr("clipdg.data.rows.file_facts.time.time_ns", lambda: 2**62)  # long after
    digests = open_table(path).digests()
    opened: list[Path] = []
    original = shards._samples
    monkeypatch.setattr(shards, "_samples", lambda shard: opened.append(shard) or original(shard))
    assert open_table(path).digests() == digests
    assert opened == []
    layouts.tar(path, [("1.jpg", layouts.picture(1))])
    assert open_table(path).digests() != digests
    assert opened == [path]
    for store in cache_folder.folder("shards").glob("*.json"):
        store.write_text(store.read_text()[:-5])
    assert len(open_table(path)) == 1
    assert opened == [path, path]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("1.jpg", PICTURE), ("1.png", PICTURE)], "1.png and 1.jpg have the same key"),
        ([("1.cls", b"3"), ("2.jpg", PICTURE)], "1.cls is a label without an image beside it"),
        ([("/etc/1.jpg", PICTURE)], "/etc/1.jpg is no name inside an archive"),
        ([("a/../../1.jpg", PICTURE)], "../1.jpg is no name inside an archive"),
        ([("1.jpg", PICTURE), ("1.txt", b"\xff")], "1.txt is not text in UTF-8"),
        ([("1.jpg", PICTURE), ("1.json", b"{")], "1.json is not JSON"),
        ([("1.jpg", PICTURE), ("1.txt", b"x" * (shards.MAX_SIDECAR + 1))], "has 1,048,577 bytes, more than 1,048,576"),
        ([("README.txt", b"hello")], "has no image"),
        ([], "has no image"),
    ],
)
def test_what_is_wrong_with_a_member_is_said(tmp_path: Path, members: list[tuple[str, bytes]], message: str) -> None:
    assert message in refused(layouts.tar(tmp_path / "a.tar", members))


def test_an_image_over_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_IMAGE", len(PICTURE) - 1)
    assert "a.tar: 1.jpg has" in refused(layouts.tar(tmp_path / "a.tar", [("1.jpg", PICTURE)]))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    path = with_member(tmp_path / "a.tar", type=kind, linkname="/etc/passwd", size=0)
    assert "b.jpg is a link, a device or a sparse file" in refused(path)


@pytest.mark.parametrize("at", [700, 5_000, 20_000])
def test_a_cut_shard_is_refused(tmp_path: Path, at: int) -> None:
    path = layouts.tar(tmp_path / "a.tar", [(f"{i}.jpg", PICTURE) for i in range(20)])
    path.write_bytes(path.read_bytes()[:at])
    assert "a.tar is not a whole, uncompressed .tar" in refused(path)


def test_a_shard_cut_between_two_samples_is_no_smaller_shard(tmp_path: Path) -> None:
    path = layouts.tar(tmp_path / "a.tar", [(f"{i}.jpg", PICTURE) for i in range(3)])
    with tarfile.open(path) as archive:
        third = archive.getmembers()[2].offset
    path.write_bytes(path.read_bytes()[:third])
    assert f"is not a whole, uncompressed .tar file: its end mark is missing at {third:,}" in refused(path)


def test_what_is_no_tar_is_refused(tmp_path: Path) -> None:
    assert "is not a whole, uncompressed .tar" in refused(layouts.put(tmp_path / "a.tar", b"no archive"))
    assert "is not a whole, uncompressed .tar" in refused(layouts.put(tmp_path / "a.tar", b""))


def test_a_shard_that_shrinks_while_it_is_open_is_seen(tmp_path: Path) -> None:
    path = layouts.tar(tmp_path / "a.tar", [("1.jpg", PICTURE)])
    table = open_table(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DataError, match=r"a\.tar: 1\.jpg is cut: the shard has changed"):
        table.read(0)
    path.unlink()
    with pytest.raises(DataError, match=r"a\.tar: 1\.jpg cannot be read: No such file"):
        table.read(0)
