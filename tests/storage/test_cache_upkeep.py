"""Looking after the store, and the commands that do it."""

import hashlib
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from clipdg import cli
from clipdg.cli.cache import parse_size
from clipdg.core.errors import ConfigError
from clipdg.storage import cache_upkeep, sharded_array
from clipdg.storage.sharded_array import StoredArray

DAY = 86400.0


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "features"  # CLIPDG_CACHE is tmp_path/cache in every test


def folder_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def put(store: Path, name: str, days: float, num_rows: int = 1000, whole: bool = True) -> Path:
    """An array of 256 numbers a row that was used so many days ago."""
    about = {"domain": name, "num_images": num_rows, "precision": "fp32", "backbone": "tiny:vit", "tag": "random:0"}
    array = StoredArray(store / folder_of(name), num_rows, 256, 600, about)
    rows = np.random.default_rng(0).normal(size=(num_rows, 256)).astype(np.float32)
    with array.lease():
        array.begin()
        for i, part in enumerate(array.ranges[: None if whole else 1]):
            array.write(i, rows[part.start : part.stop])
        assert array.join() == whole
    when = time.time() - days * DAY
    for path in array.folder.iterdir():
        os.utime(path, (when, when))
    return array.folder


def clipdg(
    *arguments: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["clipdg", "cache", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    return lambda *arguments: clipdg(*arguments, capsys=capsys, monkeypatch=monkeypatch)


def test_the_least_recently_used_come_first_and_a_use_counts(store: Path) -> None:
    for name, days in (("b", 2), ("a", 9), ("c", 5)):
        put(store, name, days)
    assert [one.about["domain"] for one in cache_upkeep.kept(store)] == ["a", "c", "b"]
    assert StoredArray(store / folder_of("a"), 1000, 256, 600, {}).open() is not None
    assert [one.about["domain"] for one in cache_upkeep.kept(store)] == ["c", "b", "a"]


def test_surplus_by_hand() -> None:
    # 40, 30, 20 and 10 bytes, last used 4, 3, 2 and 1 days ago
    arrays = [cache_upkeep.Kept(Path(str(n)), 10 * n, -n * DAY) for n in (4, 3, 2, 1)]

    def numbers(older_than: float | None, max_bytes: int | None) -> list[int]:
        return [int(one.folder.name) for one in cache_upkeep.surplus(arrays, older_than, max_bytes, now=0.0)]

    assert numbers(None, None) == []
    assert numbers(2.5 * DAY, None) == [4, 3]
    assert numbers(None, 100) == []
    assert numbers(None, 99) == [4]
    assert numbers(None, 30) == [4, 3]
    assert numbers(3.5 * DAY, 59) == [4, 3]
    assert numbers(None, 0) == [4, 3, 2, 1]


def test_info_says_what_each_array_is_in_80_columns(store: Path, call) -> None:  # type: ignore[no-untyped-def]
    put(store, "a domain with a long name", 3)
    put(store, "sketch\x1b[2J", 0, whole=False)
    code, out, _ = call("info")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "tiny:vit random:0 fp32"
    assert lines[1].split() == ["sketch?[2J", "1,000", "images", "0.6", "MiB", "now", "unfinished"]
    assert lines[2].split()[-6:] == ["1,000", "images", "1.0", "MiB", "3", "days"]
    assert lines[3] == "features: 2 arrays, 1.6 MiB"
    assert max(map(len, lines)) <= 80


def test_info_of_nothing(call) -> None:  # type: ignore[no-untyped-def]
    assert call("info")[:2] == (0, "features: 0 arrays, 0.0 MiB\n")


def test_verify_names_what_is_damaged(store: Path, call) -> None:  # type: ignore[no-untyped-def]
    put(store, "good", 0)
    put(store, "half", 0, whole=False)
    assert call("verify")[:2] == (0, "1 sound, 0 damaged, 1 unfinished\n")
    bad = put(store, "bad", 0) / "array"
    content = bytearray(bad.read_bytes())
    content[123_456] ^= 1
    bad.write_bytes(content)
    put(store, "cut", 0).joinpath("manifest.json").write_bytes(b"{")
    code, out, err = call("verify")
    assert code == 4
    assert f"damaged: {folder_of('bad')[:12]}, bad" in out
    assert f"damaged: {folder_of('cut')[:12]}, cut" in out
    assert "1 sound, 2 damaged, 1 unfinished" in out
    assert err.startswith("clipdg: 2 of 4 stored arrays are damaged")


def test_gc_removes_what_it_said_and_nothing_else(store: Path, call) -> None:  # type: ignore[no-untyped-def]
    old, new = put(store, "old", 40), put(store, "new", 1)
    before, cut_off, now = f"{folder_of('before')}.safetensors", f".part-00000.{'0' * 32}", f".array.{'1' * 32}"
    (store / before).write_bytes(b"an older form")
    (new / cut_off).write_bytes(b"cut off")
    for path in (store / before, new / cut_off):
        os.utime(path, (0, 0))
    (new / now).write_bytes(b"being written now")
    said = call("gc", "--older-than", "30", "--dry-run")
    assert (said[0], said[1].splitlines()[-1]) == (0, "would go: 1 arrays, 2 leftover files, 1.0 MiB")
    assert old.exists()
    assert call("gc", "--older-than", "30")[1].splitlines()[-1] == "removed: 1 arrays, 2 leftover files, 1.0 MiB"
    assert not old.exists()
    assert sorted(p.name for p in new.iterdir()) == [now, "about.json", "array", "lock", "manifest.json"]
    assert sorted(p.name for p in store.iterdir()) == [new.name]
    assert sharded_array.is_sound(new)
    assert call("gc", "--max-size", "100K")[1].splitlines()[-1].startswith("removed: 1 arrays")


def test_gc_leaves_everything_alone_that_is_no_part_of_the_store(store: Path, tmp_path: Path, call) -> None:  # type: ignore[no-untyped-def]
    array = put(store, "old", 40)
    elsewhere, beside = tmp_path / "pictures", store / "pictures"
    mine = [elsewhere / "manifest.json", beside / "a.png", beside / "array", store / "notes.txt", array / ".nfs01"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"not ours")
        os.utime(path, (0, 0))
    (store / folder_of("a link")).symlink_to(elsewhere)
    assert "left alone, for it is no part of the store" in call("info")[2]
    assert call("verify")[:2] == (0, "1 sound, 0 damaged, 0 unfinished\n")
    assert call("gc", "--older-than", "0")[1].splitlines()[-1] == "removed: 1 arrays, 0 leftover files, 1.0 MiB"
    assert all(path.read_bytes() == b"not ours" for path in mine)
    assert [p.name for p in elsewhere.iterdir()] == ["manifest.json"]
    assert [p.name for p in array.iterdir()] == [".nfs01"]


def test_an_array_that_another_process_removed_is_removed(store: Path) -> None:
    array = put(store, "old", 40)
    assert sharded_array.remove(array)
    assert sharded_array.remove(store / folder_of("never there"))


def test_gc_leaves_what_is_being_made(store: Path, call) -> None:  # type: ignore[no-untyped-def]
    folder = put(store, "now", 3, whole=False)
    with StoredArray(folder, 1000, 256, 600, {}).lease():
        code, out, err = call("gc", "--older-than", "1")
    assert (code, out.splitlines()[-1]) == (0, "removed: 0 arrays, 0 leftover files, 0.0 MiB")
    assert "kept now: a process is making it now" in err
    assert folder.exists()


def test_sizes_are_read_in_powers_of_1024() -> None:
    assert [parse_size(s) for s in ("12", "1K", "1.5M", "2 GiB", "3tb")] == [12, 1024, 1572864, 2**31, 3 * 2**40]
    for wrong in ("", "G", "-1G", "1X", "1e9", "nan"):
        with pytest.raises(ConfigError, match="such as 500M or 20G"):
            parse_size(wrong)
