"""Parquet and saved data sets that are odd: image columns of every form, missing values, damage, a changed file."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import datasets
import fsspec
import layouts
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipdg.core.download_source import Hub
from clipdg.core.errors import DataError
from clipdg.data.rows import Table, open_table
from clipdg.data.rows.stream import StreamTable

GIVEN = layouts.samples()
BYTES = [s.content for s in GIVEN[:3]]


def parquet(path: Path, **columns: Any) -> Path:
    """Written by pyarrow alone, without datasets' description."""
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, row_group_size=2)
    return layouts.put(path, buffer.getvalue())


def both_ways(path: Path) -> list[Table]:
    return [open_table(path), StreamTable(fsspec.filesystem("file"), [str(path)], "stream", {})]


def refused(path: Path) -> str:
    with pytest.raises(DataError) as error:
        open_table(path)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "cells",
    [
        pa.array([{"bytes": b, "path": "x.jpg"} for b in BYTES]),
        pa.array([{"bytes": b, "path": None} for b in BYTES], pa.struct({"bytes": pa.binary(), "path": pa.string()})),
        pa.array(BYTES),
        pa.array(BYTES, pa.large_binary()),
    ],
    ids=["bytes and paths", "bytes", "plain bytes", "large bytes"],
)
def test_an_image_column_is_found_by_its_type_and_never_by_its_name(tmp_path: Path, cells: pa.Array) -> None:
    for table in both_ways(parquet(tmp_path / "a.parquet", image=["a", "b", "c"], label=[1, 2, 3], strange=cells)):
        assert [table.read(i) for i in range(3)] == BYTES
        assert table.column("image") == ["a", "b", "c"]
        assert list(table.column("label")) == [1, 2, 3]
        assert ("path" in table.columns) == (pa.types.is_struct(cells.type) and cells[0].as_py()["path"] is not None)


def test_no_image_column_and_two_of_them_are_refused(tmp_path: Path) -> None:
    assert "has no column of images; its columns are a, label" in refused(
        parquet(tmp_path / "a.parquet", a=["x"], label=[1])
    )
    assert "has 2 columns of images (a, b)" in refused(parquet(tmp_path / "b.parquet", a=[b"x"], b=[b"y"]))


def test_a_row_without_an_image_or_a_value_is_named(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", image=[BYTES[0], None, BYTES[1]], label=[1, 2, None], name=["a", None, "c"])
    for table in both_ways(path):
        with pytest.raises(DataError, match=r"row 1 has no image$"):
            table.read(1)
        with pytest.raises(DataError, match=r"row 2: 'label' has no value \(1 such rows\)"):
            table.column("label")
        with pytest.raises(DataError, match=r"row 1: 'name' has no value"):
            table.column("name")
        with pytest.raises(DataError, match=r"has no column 'lable'\. Did you mean 'label'\?"):
            table.column("lable")


def test_a_path_alone_is_no_image(tmp_path: Path) -> None:
    # what a foreign file names is not opened
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    path = parquet(tmp_path / "a.parquet", image=pa.array([{"bytes": None, "path": "/etc/hostname"}], kind))
    for table in both_ways(path):
        with pytest.raises(DataError, match=r"row 0 has no image, only its path /etc/hostname; save the data set anew"):
            table.read(0)


def test_columns_that_are_neither_numbers_nor_texts_are_refused(tmp_path: Path) -> None:
    for table in both_ways(parquet(tmp_path / "a.parquet", image=BYTES[:1], box=[[1, 2]])):
        with pytest.raises(DataError, match=r"column 'box' holds list<.*neither numbers nor texts"):
            table.column("box")


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", image=BYTES, label=[1, 2, 3])
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "a.parquet cannot be read as parquet: " in refused(path)
    assert "a.parquet cannot be read as parquet: " in refused(layouts.put(path, b""))
    assert "cannot be read as parquet: " in refused(layouts.put(path, b"<html>not found</html>"))
    with pytest.raises(DataError, match="stream cannot be streamed: "):
        StreamTable(fsspec.filesystem("file"), [str(path)], "stream", {})


def test_files_of_different_columns_are_refused(tmp_path: Path) -> None:
    parquet(tmp_path / "data" / "train-00000-of-00002.parquet", image=BYTES, label=[1, 2, 3])
    parquet(tmp_path / "data" / "train-00001-of-00002.parquet", image=BYTES, other=["a", "b", "c"])
    assert "cannot be read as parquet: " in refused(tmp_path)


def test_a_parquet_file_replaced_under_its_old_time_and_size_is_read_again(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", image=[b"\xff\xd8\xff1"], label=[1])
    os.utime(path, (1_600_000_000, 1_600_000_000))
    before = open_table(path)
    first = before.read(0), before.digests()
    parquet(path, image=[b"\xff\xd8\xff2"], label=[1])
    os.utime(path, (1_600_000_000, 1_600_000_000))
    after = open_table(path)
    assert (after.read(0), after.digests()) != first
    assert after.read(0) == b"\xff\xd8\xff2"


def test_a_saved_data_set_of_several_splits_asks_for_one(tmp_path: Path) -> None:
    parts = {"train": GIVEN[:6], "test": GIVEN[6:10]}
    for name, given in parts.items():
        layouts.saved(tmp_path / name, given)
    saved = datasets.DatasetDict({name: datasets.load_from_disk(str(tmp_path / name)) for name in parts})
    saved.save_to_disk(str(tmp_path / "both"))
    assert "has the splits train, test; name the one that is meant" in refused(tmp_path / "both")
    table = open_table(tmp_path / "both", Hub("x/y", split="test"))
    assert [table.read(i) for i in range(len(table))] == [s.content for s in parts["test"]]
    assert table.at(3) == f"{tmp_path / 'both'}, split test, row 3"
    (tmp_path / "train" / "dataset_info.json").write_text("{")
    assert "cannot be opened as a saved data set" in refused(tmp_path / "train")


def test_a_stream_fetches_each_group_of_rows_once_when_read_in_order(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", image=[s.content for s in GIVEN], label=list(range(len(GIVEN))))
    table = StreamTable(fsspec.filesystem("file"), [str(path), str(path)], "stream", {})
    fetched: list[int] = []
    file = table._parquet[0]
    original = file.read_row_group

    def spy(group: int, **options: Any) -> Any:
        fetched.append(group)
        return original(group, **options)

    file.read_row_group = spy
    assert [table.read(i) for i in range(len(table))] == [s.content for s in GIVEN] * 2
    assert fetched == list(range(len(GIVEN) // 2))
