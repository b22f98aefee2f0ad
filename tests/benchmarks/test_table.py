from __future__ import annotations

from pathlib import Path
from typing import Any

import layouts
import numpy as np
import pytest

import clipdg
from clipdg.core.benchmark import Benchmark, Shift
from clipdg.core.errors import ClipdgError, ConfigError, DataError
from clipdg.data.rows import fingerprint
from clipdg.runs import config

GIVEN = layouts.samples()
NUMBERS = {0: "a dog", 1: "an elephant", 2: "guitar"}


def opened(root: Path, **settings: Any) -> Benchmark:
    return clipdg.load_benchmark("table", str(root), **settings)


def refused(kind: type[ClipdgError], root: Path, **settings: Any) -> str:
    with pytest.raises(kind) as error:
        opened(root, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def csv(root: Path, **changes: Any) -> Path:
    return layouts.wilds(root, GIVEN, **changes) / "metadata.csv"


def test_every_place_makes_the_same_benchmark_as_the_folder(tmp_path: Path) -> None:
    mixed = layouts.shuffled(GIVEN, 3)
    names = ["guitar", "dog", "elephant"]
    reference = clipdg.load_benchmark("folder", str(layouts.domain_folders(tmp_path / "folder", GIVEN)))
    listed = layouts.wilds(tmp_path / "csv", mixed) / "metadata.csv"
    places = {
        "layout": opened(tmp_path / "folder", layout="{domain}/{label}"),
        "dassl": opened(layouts.dassl(tmp_path / "dassl", mixed), layout="images/{domain}/{label}"),
        "csv": opened(listed),
        "saved": opened(layouts.saved(tmp_path / "saved", mixed, names=names), classes=sorted(names)),
        "ids": opened(
            layouts.hub_parquet(tmp_path / "ids", mixed, layouts.DOMAIN_NET, names, ["sketch", "photo"]),
            classes=sorted(names),
        ),
        "shards": opened(
            layouts.wds(tmp_path / "wds", GIVEN, names), label="cls", domain="json.domain",
            classes={1: "dog", 2: "elephant", 0: "guitar"},
        ),
    }  # fmt: skip
    for place, benchmark in places.items():
        assert benchmark.classes == reference.classes, place
        assert list(benchmark.domains) == list(reference.domains), place
        assert benchmark.shifts == reference.shifts, place
        for name, domain in reference.domains.items():
            found = benchmark.domains[name]
            assert found.rows.labels.tolist() == domain.rows.labels.tolist(), place
            assert fingerprint(found, benchmark.classes) == fingerprint(domain, reference.classes), place
            if place not in ("csv", "shards"):
                assert found.rows.ids == domain.rows.ids, place


def test_a_names_own_order_decides_the_ids_and_not_the_alphabet(tmp_path: Path) -> None:
    names = ["guitar", "dog", "elephant"]
    benchmark = opened(layouts.hub_parquet(tmp_path, GIVEN, names=names))
    assert benchmark.classes == tuple(names)
    labels = [benchmark.classes[i] for i in benchmark.domains["photo"].rows.labels]
    assert labels == ["guitar"] * 3 + ["dog"] * 3 + ["elephant"] * 3


def test_a_yaml_of_a_few_lines_is_a_benchmark(tmp_path: Path) -> None:
    csv(tmp_path / "data", columns=("path", "y", "domain", "split"))
    file = layouts.put(
        tmp_path / "mine.yaml",
        """
        title: mine
        root: data/metadata.csv
        label: y
        classes: {0: a dog, 1: an elephant, 2: guitar}
        nouns: {photo: photograph}
        split: split
        templates: ["a {}", "the {}"]
        expected: {photo: 9, sketch: {a dog: 3, guitar: 3}}
        """,
    )
    for values in (config.load(overrides=[f"benchmark={file}"]), config.load(values={"benchmark": str(file)})):
        benchmark = clipdg.load_benchmark(**values.plain["benchmark"])
        assert benchmark.name == "mine"
        assert benchmark.classes == ("a dog", "an elephant", "guitar")
        assert benchmark.templates == ("a {}", "the {}")
        assert [d.noun for d in benchmark.domains.values()] == ["photograph", "sketch"]
        assert benchmark.shifts[0] == Shift("photo", ("sketch",), ("photo",))
        splits = benchmark.domains["sketch"].splits
        assert splits is not None
        assert {name: rows.tolist() for name, rows in splits.items()} == {
            "train": [0, 3, 6], "val": [1, 4, 7], "test": [2, 5, 8],
        }  # fmt: skip
    assert not [key for key in values.identity() if str(tmp_path) in f"{key}{values.identity()[key]}"]


def test_settings_go_over_those_of_the_file(tmp_path: Path) -> None:
    root = csv(tmp_path / "elsewhere")
    file = layouts.put(tmp_path / "mine.yaml", "root: nowhere.csv\nsources: photo")
    resolved = config.load(overrides=["benchmark.root=" + str(root), f"benchmark={file}", "benchmark.sources=sketch"])
    assert resolved.plain["benchmark"]["root"] == str(root)
    assert resolved.plain["benchmark"]["sources"] == "sketch"
    assert len(clipdg.load_benchmark(str(file), str(root)).shifts) == 1
    with pytest.raises(DataError, match=r"nowhere\.csv cannot be read"):
        clipdg.load_benchmark(str(file))
    with pytest.raises(ConfigError, match=r"cannot read .*none\.yaml"):
        config.load(overrides=[f"benchmark={tmp_path / 'none.yaml'}"])


def test_numbers_without_names_are_never_guessed(tmp_path: Path) -> None:
    root = csv(tmp_path, columns=("path", "y", "domain"))
    assert "the numbers 0 to 2; say their names: benchmark.classes=[" in refused(ConfigError, root, label="y")
    by_list = opened(root, label="y", classes=["dog", "elephant", "guitar"])
    by_mapping = opened(root, label="y", classes={2: "guitar", 0: "dog", 1: "elephant"})
    assert by_mapping.classes == ("guitar", "dog", "elephant")
    names = [[b.classes[i] for i in b.domains["photo"].rows.labels] for b in (by_list, by_mapping)]
    assert sorted(names[0]) == sorted(names[1])
    message = refused(DataError, root, label="y", classes=["dog", "elephant"])
    assert "photo_guitar_pic_001.jpg has the label '2', which is not in benchmark.classes" in message


def test_a_label_outside_its_names_is_refused(tmp_path: Path) -> None:
    # ILSVRC/imagenet-1k's test split has -1 for every label
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"]), "domain": datasets.Value("string")}
    )
    cells = {"image": [{"bytes": s.content, "path": None} for s in GIVEN[:2]], "label": [0, -1], "domain": ["p", "q"]}
    datasets.Dataset.from_dict(cells, features=features).save_to_disk(str(tmp_path / "saved"))
    assert "row 1: 'label' is -1, which is none of its 2 names" in refused(DataError, tmp_path / "saved")


def test_split_names_are_mapped_and_unknown_ones_refused(tmp_path: Path) -> None:
    root = csv(tmp_path, columns=("path", "label", "domain", "split"))
    mapped = opened(root, split="split", splits={"train": "train", "val": "test", "test": "test"})
    assert mapped.domains["photo"].splits is not None
    assert list(mapped.domains["photo"].splits) == ["train", "test"]
    message = refused(DataError, root, split="split", splits={"train": "train", "test": "test"})
    assert "is in the split 'val', which benchmark.splits does not name; it names train, test" in message
    assert "give a mapping from value to train, val, test" in refused(
        ConfigError, root, split="split", splits={"a": "b"}
    )


def test_another_split_is_another_fingerprint(tmp_path: Path) -> None:
    root = csv(tmp_path, columns=("path", "label", "domain", "split"))
    one = opened(root, split="split")
    root.write_text(root.read_text().replace("train", "x").replace("val", "train").replace("x", "val"))
    two = opened(root, split="split")
    prints = [fingerprint(b.domains["photo"], b.classes) for b in (one, two, opened(root))]
    assert len(set(prints)) == 3


def test_domains_are_chosen_renamed_and_joined(tmp_path: Path) -> None:
    given = layouts.samples(["Real World", "Art", "Clipart"])
    root = layouts.hub_parquet(tmp_path, given)
    assert list(opened(root).domains) == ["Art", "Clipart", "Real World"]
    assert list(opened(root, domains=["Art", "Real World"]).domains) == ["Art", "Real World"]
    renamed = opened(root, domains={"Real World": "real", "Art": "drawn", "Clipart": "drawn"})
    assert {name: len(d.rows) for name, d in renamed.domains.items()} == {"drawn": 18, "real": 9}
    assert "no value 'Arts'. Did you mean 'Art'?" in refused(ConfigError, root, domains=["Arts", "Clipart"])
    assert "has no domain 'Arts'" in refused(ConfigError, root, domains={"Arts": "a", "Clipart": "b"})


def test_what_was_expected_is_compared_and_the_difference_said(tmp_path: Path) -> None:
    root = csv(tmp_path)
    assert opened(root, expected={"photo": 9, "sketch": 9}).domains
    assert "'sketch' is not as expected: it has 9 images and not 1,000" in refused(
        DataError, root, expected={"photo": 9, "sketch": 1000}
    )
    assert "it has 3 of dog and not 2, 3 of guitar and not 4" in refused(
        DataError, root, expected={"photo": {"dog": 2, "guitar": 4, "elephant": 3}, "sketch": 9}
    )
    assert "does not say how many images 'sketch' has" in refused(ConfigError, root, expected={"photo": 9})


def test_a_class_that_a_domain_lacks_is_named_unless_that_is_allowed(tmp_path: Path) -> None:
    given = [s for s in GIVEN if (s.domain, s.label) != ("sketch", "guitar")]
    root = layouts.hub_parquet(tmp_path, given)
    assert "domain 'sketch' has no image of class 'guitar'" in refused(DataError, root)
    allowed = opened(root, lacking=True)
    assert np.unique(allowed.domains["sketch"].rows.labels).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label,domain\nx/1.jpg,dog\n", "line 2 does not have the 3 columns path, label, domain"),
        ("path,label,domain\nx/1.jpg,dog,photo,more\n", "line 2 does not have the 3 columns"),
        ("path,label,domain\n../1.jpg,dog,photo\n", "line 2: '../1.jpg' is no path inside"),
        ("path,label,domain\n/1.jpg,dog,photo\n", "line 2: '/1.jpg' is no path inside"),
        ("path,label,domain\n,dog,photo\n", "line 2: '' is no path inside"),
        ("path,label,domain\n1.jpg,dog,photo\n1.jpg,dog,photo\n", "line 3: 1.jpg stands in line 2 already"),
        ("path,label,domain\nnone.jpg,dog,photo\n", "none.jpg cannot be read: No such file"),
        ("path,label,domain\nmetadata.csv,dog,photo\n", "metadata.csv is a file that begins with"),
        ("path,label,domain\n1.jpg,dog,\n", "row 0: 'domain' has no value"),
        ("file,label,domain\n1.jpg,dog,photo\n", "has no column 'path'"),
        ("path,label,domain\n", "lists no image"),
        ("", "has no column 'path'"),
        ('path,label,domain\n"1.jpg,dog,photo\n', "cannot be read as CSV"),
        ("path,label,domain\n1.jpg,dog,photo\n", "has one domain, 'photo'"),
    ],
)
def test_what_is_wrong_with_a_csv_is_said_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    layouts.put(tmp_path / "1.jpg", GIVEN[0].content)
    assert message in refused(DataError, layouts.put(tmp_path / "metadata.csv", text))


def test_what_a_layout_cannot_mean_is_refused(tmp_path: Path) -> None:
    root = layouts.domain_folders(tmp_path, GIVEN)
    assert "a part is {domain}, {label}" in refused(ConfigError, root, layout="{domian}/{label}")
    assert "without {domain}" in refused(ConfigError, root, layout="{label}")
    assert "is not in the layout */{domain}/{label}" in refused(DataError, root, layout="*/{domain}/{label}")
    assert "has no column 'label'. It has: path." in refused(DataError, root)
    with pytest.raises(ConfigError, match=r"benchmark\.root=DIR .* or benchmark\.repository=ORG/NAME"):
        clipdg.load_benchmark("table")
