from __future__ import annotations

import io
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipdg.benchmarks import folder
from clipdg.benchmarks.folder import Config
from clipdg.core.benchmark import Shift
from clipdg.core.errors import ClipdgError, ConfigError, DataError
from clipdg.data import decode


def picture(colour: str = "red", kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, kind)
    return buffer.getvalue()


def put(root: Path, *files: str, data: bytes | None = None) -> Path:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture() if data is None else data)
    return root


@pytest.fixture
def pacs(tmp_path: Path) -> Path:
    """Three domains, two classes, an image each."""
    return put(
        tmp_path / "pacs", *(f"{d}/{c}/1.png" for d in ("art_painting", "photo", "sketch") for c in ("cat", "dog"))
    )


def refused(root: Path | None, kind: type[ClipdgError] = DataError, **settings: object) -> str:
    with pytest.raises(kind) as error:
        folder.build(Config(**settings), root)  # type: ignore[arg-type]  # wrong settings are what is tested
    message = str(error.value)
    assert "\n" not in message
    return message


def test_domains_and_classes_are_the_sorted_folders(pacs: Path) -> None:
    benchmark = folder.build(Config(), str(pacs))
    assert list(benchmark.domains) == ["art_painting", "photo", "sketch"]
    assert benchmark.classes == ("cat", "dog")
    rows = benchmark.domains["photo"].rows
    assert rows.ids == ("cat/1.png", "dog/1.png")
    assert rows.labels.tolist() == [0, 1]
    assert np.asarray(rows.image(1))[0, 0].tolist() == [255, 0, 0]
    assert [d.noun for d in benchmark.domains.values()] == ["art painting", "photo", "sketch"]


def test_each_domain_is_left_out_once_unless_sources_are_named(pacs: Path) -> None:
    assert folder.build(Config(), pacs).shifts[0] == Shift("art_painting", ("photo", "sketch"), ("art_painting",))
    assert len(folder.build(Config(), pacs).shifts) == 3
    expected = (Shift("from photo", ("photo",), ("art_painting", "sketch")),)
    assert folder.build(Config(sources="photo"), pacs).shifts == expected
    two = folder.build(Config(sources=["sketch", "photo"]), pacs).shifts
    assert two == (Shift("from photo+sketch", ("photo", "sketch"), ("art_painting",)),)


def test_the_order_is_torchvisions(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    names = ["Zebra", "ant", "a b", "a-b", "a_b1", "0", "10", "2"]
    inside = ["b.png", "B.png", "10.png", "9.png", "x/1.png", "x-y/1.png", "x/y/1.PNG", "X/1.jpeg"]
    put(tmp_path, *(f"{d}/{c}/{f}" for d in ("p", "q") for c in names for f in inside))
    benchmark = folder.build(Config(class_names={"a-b": "ab"}), tmp_path)
    theirs = ImageFolder(str(tmp_path / "q"))
    ours = benchmark.domains["q"].rows
    assert [str(tmp_path / "q" / i) for i in ours.ids] == [path for path, _ in theirs.samples]
    assert ours.labels.tolist() == theirs.targets
    assert len(benchmark.classes) == len(theirs.classes)


def test_endings_count_in_any_case_and_other_files_are_ignored(pacs: Path) -> None:
    wanted = [f"sketch/cat/x{i}{e.upper() if i % 2 else e}" for i, e in enumerate(decode.ENDINGS)]
    put(pacs, *wanted)
    put(
        pacs, "README.txt", "sketch/labels.csv", "sketch/cat/Thumbs.db", "sketch/cat/._1.jpg", "sketch/cat/.DS_Store",
        "sketch/.cache/1.png", ".git/a/1.png", "sketch/stray.png", data=b"no image",
    )  # fmt: skip
    rows = folder.build(Config(), pacs).domains["sketch"].rows
    assert sorted(rows.ids) == sorted(["cat/1.png", "dog/1.png", *(w.removeprefix("sketch/") for w in wanted)])


def test_class_names_are_made_readable_or_given(tmp_path: Path) -> None:
    root = put(tmp_path, *(f"{d}/{c}/1.png" for d in "ab" for c in ("alarm_clock", "t-shirt", "n01440764")))
    benchmark = folder.build(Config(class_names={"n01440764": "tench"}, nouns={"a": "sketch"}), root)
    assert benchmark.classes == ("alarm clock", "tench", "t shirt")
    assert [d.noun for d in benchmark.domains.values()] == ["sketch", "b"]
    assert benchmark.templates == ("a photo of a {}.",)
    assert folder.build(Config(templates=["a {}", "{}"]), root).templates == ("a {}", "{}")


def test_domains_says_which_folders_are_domains(pacs: Path) -> None:
    put(pacs, "splits/train.txt")
    assert "domain 'splits' has no class" in refused(pacs)
    benchmark = folder.build(Config(domains=["sketch", "photo"]), pacs)
    assert list(benchmark.domains) == ["photo", "sketch"]
    assert "no folder 'sketsh'. Did you mean 'sketch'?" in refused(pacs, ConfigError, domains=["photo", "sketsh"])


def test_a_root_is_needed(tmp_path: Path) -> None:
    assert "benchmark.root=DIR" in refused(None, ConfigError)
    assert "no folder" in refused(tmp_path / "nowhere", ConfigError)
    (tmp_path / "file").write_text("x")
    assert "no folder" in refused(tmp_path / "file", ConfigError)


def test_no_domain_and_one_domain_are_refused(tmp_path: Path) -> None:
    assert "has no domain" in refused(tmp_path)
    put(tmp_path, "photo/cat/1.png", "photo/dog/1.png")
    assert "has one domain, 'photo'" in refused(tmp_path)


def test_images_straight_in_a_domain_are_no_classes(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.png", "dog/1.png")  # ImageFolder's layout, without domains
    assert "domain 'cat' has no class" in refused(tmp_path)


def test_one_class_is_refused(tmp_path: Path) -> None:
    assert "one class, 'cat'" in refused(put(tmp_path, "a/cat/1.png", "b/cat/1.png"))


def test_the_first_difference_between_class_lists_is_named(pacs: Path) -> None:
    put(pacs, "sketch/emu/1.png", "sketch/zebra/1.png")
    message = refused(pacs)
    assert "'sketch' has a class 'emu' and 'art_painting' has none" in message
    assert "2 such classes" in message
    put(pacs, "art_painting/bee/1.png")
    assert "'art_painting' has a class 'bee' and 'photo' has none" in refused(pacs)


def test_an_empty_class_is_named(pacs: Path) -> None:
    (pacs / "photo" / "dog" / "1.png").rename(pacs / "photo" / "dog" / "1.txt")
    assert "class 'dog' of domain 'photo' is empty" in refused(pacs)


@pytest.mark.parametrize(
    ("data", "reason"), [(b"", "is empty: 0 bytes"), (b"<html>", "HTML page"), (b"hello", "not an")]
)
def test_a_file_that_is_no_image_is_named_when_the_folder_is_opened(pacs: Path, data: bytes, reason: str) -> None:
    put(pacs, "photo/dog/2.jpg", "photo/dog/3.jpg", data=data)
    message = refused(pacs)
    assert message.startswith(f"{pacs / 'photo' / 'dog' / '2.jpg'} ")
    assert reason in message
    assert message.endswith(f"(and 1 more such files in {pacs})")


def test_a_cut_image_is_named_when_it_is_read(pacs: Path) -> None:
    put(pacs, "photo/dog/1.png", data=picture()[:45])
    rows = folder.build(Config(), pacs).domains["photo"].rows
    with pytest.raises(DataError, match=r"photo/dog/1\.png\) is cut or broken"):
        rows.image(1)


def test_an_image_of_a_kind_that_is_not_read_is_not_left_out_silently(pacs: Path) -> None:
    put(pacs, "photo/dog/2.HEIC", data=b"x")
    assert "2.HEIC is an image of a kind that is not read here" in refused(pacs)


def test_unknown_and_impossible_sources_are_refused(pacs: Path) -> None:
    assert "no domain 'foto'. Did you mean 'photo'? There are: art_painting, photo, sketch." in refused(
        pacs, ConfigError, sources="foto"
    )
    every = ["art_painting", "photo", "sketch"]
    assert "leaves none to test on" in refused(pacs, ConfigError, sources=every)
    assert "twice" in refused(pacs, ConfigError, sources=["photo", "photo"])
    for nonsense in ([], 3, [1], {}):
        assert "give a name or a list" in refused(pacs, ConfigError, sources=nonsense)


def test_labels_that_become_the_same_are_refused(tmp_path: Path) -> None:
    put(tmp_path, *(f"{d}/{c}/1.png" for d in "ab" for c in ("alarm_clock", "alarm-clock", "dog")))
    message = refused(tmp_path, ConfigError)
    assert "'alarm-clock' and 'alarm_clock' would both be called 'alarm clock'" in message
    assert folder.build(Config(class_names={"alarm-clock": "alarm"}), tmp_path).classes == (
        "alarm",
        "alarm clock",
        "dog",
    )
    capital = {"alarm-clock": "x", "alarm_clock": "Dog"}
    assert "'alarm_clock' and 'dog' would both be called 'dog'" in refused(tmp_path, ConfigError, class_names=capital)
    assert "has no name" in refused(tmp_path, ConfigError, class_names={"alarm-clock": "x", "dog": " "})
    assert "no class 'dgo'. Did you mean 'dog'?" in refused(tmp_path, ConfigError, class_names={"dgo": "dog"})
    assert "benchmark.nouns: no domain 'c'" in refused(
        tmp_path, ConfigError, class_names={"alarm-clock": "x"}, nouns={"c": "x"}
    )


def test_links_are_followed_but_not_in_circles(pacs: Path, tmp_path: Path) -> None:
    put(tmp_path / "elsewhere", "2.png")
    (pacs / "photo" / "dog" / "linked").symlink_to(tmp_path / "elsewhere")
    assert folder.build(Config(), pacs).domains["photo"].rows.ids[-1] == "dog/linked/2.png"
    (pacs / "photo" / "dog" / "back").symlink_to(pacs / "photo" / "dog")
    assert "is a link back" in refused(pacs)


def test_a_broken_link_is_named(pacs: Path) -> None:
    (pacs / "photo" / "dog" / "2.png").symlink_to(pacs / "gone.png")
    assert "2.png cannot be read: No such file" in refused(pacs)


def test_names_that_are_not_utf8_are_refused(pacs: Path) -> None:
    with open(os.fsencode(pacs / "photo" / "dog") + b"/\xff.png", "wb") as file:
        file.write(picture())
    assert "not UTF-8" in refused(pacs)


def test_names_that_break_a_line_are_refused(pacs: Path) -> None:
    put(pacs / "photo" / "dog", "a\nb.png")
    assert "control character: 'a\\nb.png'" in refused(pacs)


def test_a_pipe_is_refused_and_not_waited_for(pacs: Path) -> None:
    os.mkfifo(pacs / "photo" / "dog" / "2.png")
    assert "2.png is a pipe or a device" in refused(pacs)


def test_images_outside_the_class_folders_are_noted(pacs: Path) -> None:
    assert folder.build(Config(), pacs).notes == ()
    put(pacs / "photo", "all.png")
    assert folder.build(Config(), pacs).notes == ("1 image lies in no class's folder and is left out: photo/all.png.",)
    put(pacs, "a.png")
    put(pacs, "b.png")
    [note] = folder.build(Config(), pacs).notes
    assert note == "3 images lie in no class's folder and are left out: a.png, b.png, photo/all.png."


def test_thousands_of_files_open_at_once(tmp_path: Path) -> None:
    # 100,000 files are to open in seconds: 4,000 in less than one, on a machine that does other things as well
    for domain in "ab":
        for name in ("cat", "dog"):
            (tmp_path / domain / name).mkdir(parents=True)
            for i in range(1000):
                (tmp_path / domain / name / f"{i}.jpg").write_bytes(b"\xff\xd8\xff")
    start = time.perf_counter()
    benchmark = folder.build(Config(), tmp_path)
    assert time.perf_counter() - start < 1
    assert len(benchmark.domains["a"].rows) == 2000
