"""The same pictures and labels by every route: folders, parquet, saved data sets, shards, a stream."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import fsspec
import layouts
import numpy as np
import pytest

from clipdg.core.download_source import Hub
from clipdg.core.errors import ConfigError, DataError
from clipdg.data import decode
from clipdg.data.rows import Table, TableRows, open_table
from clipdg.data.rows.stream import StreamTable

GIVEN = layouts.samples()
NAMES = ["guitar", "dog", "elephant"]  # not the alphabet's order
Found = dict[str, tuple[str, str]]  # digest of the stored bytes -> domain, label
TRUTH: Found = {hashlib.sha256(s.content).hexdigest(): (s.domain, s.label) for s in GIVEN}


def pairs(table: Table, domains: list[str], labels: list[str]) -> Found:
    digests = table.digests()
    assert list(digests) == [hashlib.sha256(table.read(i)).hexdigest() for i in range(len(table))]
    return dict(zip(digests, zip(domains, labels, strict=True), strict=True))


def by_path(table: Table) -> Found:
    parts = [str(path).split("/")[-3:] for path in table.column("path")]
    return pairs(table, [p[0] for p in parts], [p[1] for p in parts])


def by_names(table: Table) -> Found:
    labels, names = table.column("label"), table.names("label")
    assert names is not None
    domains = list(table.column("domain"))
    of = table.names("domain")
    if of is not None:
        domains = [of[int(i)] for i in domains]
    return pairs(table, [str(d) for d in domains], [names[int(i)] for i in labels])


def by_json(table: Table) -> Found:
    labels = [NAMES[int(i)] for i in table.column("cls")]
    assert labels == table.column("json.label")
    return pairs(table, [str(d) for d in table.column("json.domain")], labels)


def streamed(root: Path) -> Table:
    files = sorted(str(file) for file in root.rglob("*.parquet"))
    return StreamTable(fsspec.filesystem("file"), files, "stream", {})


def tar_of_folders(root: Path, given: list[layouts.Sample]) -> Path:
    members = [(f"./PACS/{s.path}", s.content) for s in given]
    litter = [(f"./PACS/photo/{name}", b"no image") for name in layouts.LITTER]
    return layouts.tar(root / "pacs.tar", [*litter, *members])


Place = tuple[Callable[[Path, list[layouts.Sample]], Path], Callable[[Path], Table], Callable[[Table], Found]]
PLACES: dict[str, Place] = {
    "folders": (layouts.domain_folders, open_table, by_path),
    "dassl": (layouts.dassl, open_table, by_path),
    "parquet": (lambda p, g: layouts.hub_parquet(p, g, names=NAMES), open_table, by_names),
    "domain ids": (
        lambda p, g: layouts.hub_parquet(p, g, layouts.DOMAIN_NET, NAMES, ["sketch", "photo"]), open_table, by_names,
    ),
    "streamed": (lambda p, g: layouts.hub_parquet(p, g, names=NAMES), streamed, by_names),
    "saved": (lambda p, g: layouts.saved(p, g, names=NAMES), open_table, by_names),
    "shards": (lambda p, g: layouts.wds(p, g, NAMES), open_table, by_json),
    "a tar of folders": (tar_of_folders, open_table, by_path),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("messy", [False, True], ids=["tidy", "messy"])
def test_every_place_gives_the_same_bytes_and_labels(tmp_path: Path, place: str, messy: bool) -> None:
    write, read, found = PLACES[place]
    root = write(tmp_path / "data", layouts.shuffled(GIVEN) if messy else GIVEN)
    if messy and root.is_dir():
        layouts.litter(root)
    table = read(root)
    assert len(table) == len(GIVEN)
    assert found(table) == TRUTH


@pytest.mark.parametrize("place", PLACES)
def test_every_place_gives_the_same_pixels(tmp_path: Path, place: str) -> None:
    write, read, _ = PLACES[place]
    table = read(write(tmp_path / "data", layouts.shuffled(GIVEN, 1)))
    rows = TableRows(table, range(len(table)), np.zeros(len(table)), [str(i) for i in range(len(table))])
    pixels = {digest: np.asarray(rows.image(i)) for i, digest in enumerate(rows.digests())}
    for sample in GIVEN:
        decoded = np.asarray(decode.decode(sample.content, "it"))
        assert np.array_equal(pixels[hashlib.sha256(sample.content).hexdigest()], decoded)


@pytest.mark.parametrize("place", PLACES)
def test_columns_and_labels_are_known_without_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    write, read, found = PLACES[place]
    root = write(tmp_path / "data", GIVEN)

    def refuse(*_: object) -> None:
        raise AssertionError("an image was decoded")

    monkeypatch.setattr("PIL.Image.open", refuse)
    monkeypatch.setattr("clipdg.data.decode.decode", refuse)
    assert found(read(root)) == TRUTH


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_shards_hold_any_kind_of_image(tmp_path: Path, kind: str) -> None:
    given = layouts.samples(kind=kind)
    table = open_table(layouts.wds(tmp_path / "wds", given))
    assert [table.read(i) for i in range(len(table))] == [s.content for s in given]


def test_numbered_folders_and_the_hubs_tar_say_the_same_label(tmp_path: Path) -> None:
    given = layouts.samples(["v2"], layouts.WNIDS)
    folders = open_table(layouts.numbered_folders(tmp_path / "v2", given, layouts.WNIDS))
    shards = open_table(layouts.v2_tar(tmp_path / "v2.tar", layouts.shuffled(given), layouts.WNIDS))

    def labels(table: Table, column: str) -> dict[str, int]:
        numbers = [int(str(path).split("/")[-2]) for path in table.column(column)]
        return dict(zip(table.digests(), numbers, strict=True))

    truth = {hashlib.sha256(s.content).hexdigest(): layouts.WNIDS[s.label] for s in given}
    assert labels(folders, "path") == truth
    assert labels(shards, "__key__") == truth


@pytest.mark.parametrize("place", ["parquet", "saved"])
def test_wnids_without_a_label_are_texts(tmp_path: Path, place: str) -> None:
    given = layouts.samples(["r"], layouts.WNIDS)
    write = layouts.hub_parquet if place == "parquet" else layouts.saved
    table = open_table(write(tmp_path / "r", given, layouts.IMAGENET_R))
    assert table.column("wnid") == [s.label for s in given]
    assert table.names("wnid") is None
    with pytest.raises(DataError, match=r"has no column 'label'\. It has: wnid, class_name, path"):
        table.column("label")


def test_a_split_is_chosen_by_name_and_never_guessed(tmp_path: Path) -> None:
    half = len(GIVEN) // 2
    layouts.hub_parquet(tmp_path / "data", GIVEN[:half], split="train")
    layouts.hub_parquet(tmp_path / "data", GIVEN[half:], split="test", shards=1)
    with pytest.raises(DataError, match="has the splits train, test; name the one that is meant"):
        open_table(tmp_path / "data")
    with pytest.raises(DataError, match="has no split 'val'; it has train, test"):
        open_table(tmp_path / "data", Hub("x/y", split="val"))
    table = open_table(tmp_path / "data", Hub("x/y", split="test"))
    assert [table.read(i) for i in range(len(table))] == [s.content for s in GIVEN[half:]]
    again = open_table(tmp_path / "data", Hub("x/y", data_files=("data/test-*.parquet",)))
    assert list(again.digests()) == list(table.digests())
    with pytest.raises(DataError, match=r"has no data/none-\*\.parquet"):
        open_table(tmp_path / "data", Hub("x/y", data_files=("data/none-*.parquet",)))


def test_a_border_is_cut_off_and_changes_the_digest(tmp_path: Path) -> None:
    table = open_table(layouts.domain_folders(tmp_path / "data", GIVEN[:1]))
    whole, cut = (TableRows(table, [0], np.zeros(1), ["x"], border=border) for border in (0, 2))
    assert np.array_equal(np.asarray(cut.image(0)), np.asarray(whole.image(0))[2:-2, 2:-2])
    assert cut.digests() != whole.digests()
    with pytest.raises(DataError, match=r"^image 0 \(.*pic_001.jpg\) has 24 × 18 pixels, which leaves nothing inside"):
        TableRows(table, [0], np.zeros(1), ["x"], border=9).image(0)


def test_where_nothing_is_the_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"benchmark\.root=DIR"):
        open_table(None)
    with pytest.raises(ConfigError, match="no file or folder"):
        open_table(tmp_path / "none")
    with pytest.raises(DataError, match=r"no image in .*; read are \.jpg"):
        open_table(tmp_path)
    with pytest.raises(ConfigError, match=r"gunzip -k v2\.tar\.gz"):
        open_table(layouts.put(tmp_path / "v2.tar.gz", b"\x1f\x8b"))
    with pytest.raises(ConfigError, match=r"neither a folder nor a \.parquet or \.tar file"):
        open_table(layouts.put(tmp_path / "x.zip", b"PK"))


def test_a_single_shard_is_not_outvoted_by_the_text_beside_it(tmp_path: Path) -> None:
    place = layouts.wds(tmp_path, GIVEN[:3], NAMES)  # 0.tar and nshards.txt
    assert len(open_table(place)) == 3
