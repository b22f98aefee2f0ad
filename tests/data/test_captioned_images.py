from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from clipdg.backbones import tiny
from clipdg.core.errors import DataError
from clipdg.data import captioned_images as module
from clipdg.data.captioned_images import from_datasets, from_folder, from_webdataset
from clipdg.training.pretrain import PretrainConfig, open_source


def test_a_folder_of_pairs(folder: Path) -> None:
    source = from_folder(str(folder))
    assert source.captions[:2] == ["a red square", "a green square"]
    pairs = source.pairs(tiny.initialise("resnet", 0).preprocessing)
    images = pairs.images(torch.tensor([1, 4]))
    assert images.shape == (2, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert images[0, :, 9, 9].argmax() == 1  # green
    assert images[1, :, 9, 9].argmax() == 0  # red


def test_images_that_do_not_fit_into_memory_are_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tiny.initialise("resnet", 0).preprocessing
    kept = from_folder(str(folder)).pairs(spec)
    monkeypatch.setattr(module, "IN_MEMORY", 0)
    anew = from_folder(str(folder)).pairs(spec)
    indices = torch.tensor([5, 0, 47])
    assert torch.equal(kept.images(indices), anew.images(indices))
    assert kept.digest == anew.digest
    (folder / "47.txt").write_text("a purple square")
    assert from_folder(str(folder)).pairs(spec).digest != kept.digest


def test_what_is_wrong_with_a_folder_is_named(folder: Path, tmp_path: Path) -> None:
    spec = tiny.initialise("resnet", 0).preprocessing
    with pytest.raises(DataError, match="no folder"):
        from_folder(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty has no images with captions"):
        open_source(PretrainConfig("folder", str(tmp_path / "empty")), 32)
    (folder / "00.jpg").write_text("<html>")
    with pytest.raises(DataError, match=r"00\.jpg"):
        from_folder(str(folder)).pairs(spec)
    (folder / "01.txt").write_text("  \n")
    with pytest.raises(DataError, match=r"01\.jpg has no caption"):
        from_folder(str(folder))
    (folder / "01.txt").unlink()
    with pytest.raises(DataError, match=r"01\.jpg has no caption: there is no 01\.txt"):
        from_folder(str(folder))
    (folder / "01.jpg").rename(folder / "01.heic")
    (folder / "01.txt").write_text("a green square")
    with pytest.raises(DataError, match=r"01\.txt is a caption without an image"):
        from_folder(str(folder))


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_metadata_file_gives_the_captions(folder: Path, kind: str) -> None:
    rows = [{"file_name": "03.jpg", "text": "a, b"}, {"file_name": "02.jpg", "text": "c"}]
    path = folder / f"metadata.{kind}"
    path.write_text(
        'file_name,text\n03.jpg,"a, b"\n02.jpg,c\n' if kind == "csv" else "\n".join(json.dumps(r) for r in rows)
    )
    source = from_folder(str(folder))
    assert source.captions == ["a, b", "c"]
    assert [Path(name).name for name in source.names] == ["03.jpg", "02.jpg"]
    for wrong, message in (("../00.jpg", "outside the folder"), ("99.jpg", "there is no"), ("", "no file_name")):
        path.write_text(f"file_name,text\n{wrong},a\n" if kind == "csv" else json.dumps({"file_name": wrong}))
        with pytest.raises(DataError, match=rf"metadata\.{kind}, row [12]: .*{message}"):
            from_folder(str(folder))


def test_a_saved_dataset(folder: Path, tmp_path: Path) -> None:
    import datasets

    rows = {"image": [str(folder / "01.jpg"), str(folder / "02.jpg")], "caption": ["one", "two"]}
    data = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    data.save_to_disk(str(tmp_path / "saved"))
    source = from_datasets(str(tmp_path / "saved"))
    assert source.captions == ["one", "two"]
    assert source.read is not None
    assert source.read(1) == (folder / "02.jpg").read_bytes()
    data.remove_columns("caption").save_to_disk(str(tmp_path / "mute"))
    with pytest.raises(DataError, match="has no captions: needed is a column called text or caption, and it has path"):
        from_datasets(str(tmp_path / "mute"))
    with pytest.raises(DataError, match=r"has no captions: .* and it has path"):
        from_datasets(str(folder))


def _tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def test_webdataset_shards(tmp_path: Path, jpeg: Callable[..., bytes]) -> None:
    red, blue = jpeg((220, 30, 30)), jpeg((30, 30, 220))
    _tar(tmp_path / "0.tar", {"a/0001.jpg": red, "a/0001.txt": b"red", "a/0001.json": b"{}"})
    _tar(tmp_path / "1.tar", {"b.txt": "蓝".encode(), "b.jpg": blue})
    source = from_webdataset(str(tmp_path))
    assert source.captions == ["red", "蓝"]
    assert source.read is not None
    assert [source.read(0), source.read(1)] == [red, blue]
    _tar(tmp_path / "1.tar", {"b.jpg": blue})
    with pytest.raises(DataError, match=r"1\.tar: b\.jpg has no 'txt'"):
        from_webdataset(str(tmp_path))
    (tmp_path / "1.tar").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"1\.tar is not a whole, uncompressed \.tar"):
        from_webdataset(str(tmp_path / "1.tar"))
