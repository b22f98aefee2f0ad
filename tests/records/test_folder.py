"""Records in folders and in archives: what is found, and what is told of what is none."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from made_records import leave_one_out

from clipdg.core.errors import RecordError
from clipdg.records.folder import ARCHIVE, files_beside, pack, places, read_records
from clipdg.storage.publish import hash_bytes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for record in leave_one_out(seeds=(0,)):
        record.publish(tmp_path / "run")
    return tmp_path / "run"


def archive(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:xz") as made:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
    return path


def test_an_archive_is_read_as_its_folder(folder: Path, tmp_path: Path) -> None:
    expected, _ = read_records([folder])
    for file in (tmp_path / "packed" / ARCHIVE, tmp_path / "alone" / "paper.tar.xz"):
        assert pack(folder, file) == len(expected) == 8
    for place in (tmp_path / "packed", tmp_path / "packed" / ARCHIVE, tmp_path / "alone" / "paper.tar.xz"):
        found, errors = read_records([place])
        assert not errors
        assert {r.bytes() for r in found} == {r.bytes() for r in expected}


def test_a_run_in_a_folder_and_in_its_archive_counts_once(folder: Path) -> None:
    pack(folder, folder / ARCHIVE)
    assert len(read_records([folder])[0]) == 8
    assert pack(folder, folder / ARCHIVE) == 8


def test_predictions_and_sheets_go_with_their_records_and_nothing_else_does(tmp_path: Path) -> None:
    from clipdg.records.record import Record

    [first, *_] = leave_one_out(seeds=(0,))
    stored = {"file": "a.parquet", "digest": hash_bytes(b"rows")}
    Record({**first.content, "predictions": stored}).publish(tmp_path)
    sheet = f"contact-{first.data.fingerprint[:12]}.png"
    for name, content in {"a.parquet": b"rows", sheet: b"png", "b.parquet": b"?", "x.safetensors": b"?"}.items():
        (tmp_path / name).write_bytes(content)
    pack(tmp_path, tmp_path / "out.tar.xz")
    found = files_beside([tmp_path / "out.tar.xz"])
    assert set(found) == {f"{first.run_id}.json", "a.parquet", sheet}
    assert found["a.parquet"]() == b"rows"


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_a_file_that_is_no_archive_is_one_sentence(folder: Path, content: bytes | None) -> None:
    pack(folder, folder / ARCHIVE)
    whole = (folder / ARCHIVE).read_bytes()
    (folder / ARCHIVE).write_bytes(whole[: len(whole) // 2] if content is None else content)
    found, [error] = read_records([folder])
    assert len(found) == 8  # the files beside it are read all the same
    assert str(error).startswith(f"{folder / ARCHIVE} is no archive of records, or was cut: ")
    assert "\n" not in str(error)


def test_a_record_that_was_altered_in_an_archive_is_told_with_its_place(folder: Path, tmp_path: Path) -> None:
    [name, other, *_] = sorted(p.name for p in folder.glob("*.json"))
    files = {name: (folder / name).read_bytes().replace(b"0.9", b"0.8"), other: (folder / other).read_bytes()}
    files["notes.json"], files["0" * 16 + ".json"] = b"{}", b"{"
    place = archive(tmp_path / "made" / ARCHIVE, files)
    found, errors = read_records([tmp_path / "made"])
    assert [r.run_id for r in found] == [other.removesuffix(".json")]
    assert {str(e).partition(" ")[0] for e in errors} == {f"{place}/{name}", f"{place}/{'0' * 16}.json"}


def test_a_name_that_leads_out_of_an_archive_is_only_a_name(folder: Path, tmp_path: Path) -> None:
    name = next(folder.glob("*.json")).name
    place = archive(tmp_path / "made" / ARCHIVE, {f"../../{name}": (folder / name).read_bytes()})
    assert len(read_records([place])[0]) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made", "run"]


def test_nothing_to_pack_is_told(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordError, match=r"no record in .*empty; there is nothing to pack"):
        pack(tmp_path / "empty", tmp_path / "a.tar.xz")
    (folder / f"{'0' * 16}.json").write_text("{")
    with pytest.raises(RecordError, match="is not a record"):
        pack(folder, tmp_path / "a.tar.xz")
    with pytest.raises(RecordError, match="no folder"):
        places(tmp_path / "nowhere")
