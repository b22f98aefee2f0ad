"""PACS, VLCS, OfficeHome, TerraIncognita and DomainNet: what is known of them, and every way to open them."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import domain_sets
import numpy as np
import pytest
from domain_sets import Sample

from clipdg.benchmarks import _domains, domain_net, office_home, pacs, terra_incognita, vlcs
from clipdg.benchmarks._domains import DomainSet
from clipdg.core.benchmark import Benchmark
from clipdg.core.errors import ConfigError, DataError
from clipdg.data import splits
from clipdg.storage.publish import digest

MODULES = {"pacs": pacs, "vlcs": vlcs, "office_home": office_home, "terra_incognita": terra_incognita,
           "domain_net": domain_net}  # fmt: skip
SETS: dict[str, DomainSet] = {
    "pacs": pacs.PACS,
    "vlcs": vlcs.VLCS,
    "office_home": office_home.OFFICE_HOME,
    "terra_incognita": terra_incognita.TERRA_INCOGNITA,
    "domain_net": domain_net.DOMAIN_NET,
}
SMALL = ["pacs", "vlcs", "terra_incognita"]


def opened(name: str, root: Path | None, **settings: str) -> Benchmark:
    module: ModuleType = MODULES[name]
    benchmark: Benchmark = module.build(module.Config(**settings), root)
    return benchmark


def content(benchmark: Benchmark) -> dict[str, list[tuple[str, int, str]]]:
    """Per domain: id, label and a digest of the pixels, in order."""
    return {
        name: [
            (rows.ids[i], int(rows.labels[i]), hashlib.sha256(np.asarray(rows.image(i)).tobytes()).hexdigest())
            for i in range(len(rows))
        ]
        for name, rows in ((n, d.rows) for n, d in benchmark.domains.items())
    }


def refusal(name: str, root: Path | None, kind: type[Exception] = DataError, **settings: str) -> str:
    with pytest.raises(kind) as error:
        opened(name, root, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


# What is known


@pytest.mark.parametrize(
    ("name", "total", "num_classes"),
    [("pacs", 9_991, 7), ("vlcs", 10_729, 5), ("office_home", 15_588, 65), ("terra_incognita", 24_788, 10),
     ("domain_net", 586_575, 345)],
)  # fmt: skip
def test_counts_are_those_of_the_papers(name: str, total: int, num_classes: int) -> None:
    known = SETS[name]
    assert sum(m.count for m in known.members) == total
    assert len(known.classes) == num_classes
    for member in known.members:
        assert not member.by_class or (sum(member.by_class), len(member.by_class)) == (member.count, num_classes)


def test_todays_terra_has_24330_images() -> None:
    assert sum(terra_incognita.TERRA_INCOGNITA.editions["today's download from LILA"]) == 24_330


@pytest.mark.parametrize("name", SETS)
def test_classes_and_domains_are_in_the_order_of_sorted_folders(name: str) -> None:
    folders = list(SETS[name].classes)
    assert folders == sorted(folders)
    domains = [domain_sets.FOLDERS.get(m.name, m.name) for m in SETS[name].members]
    assert domains == sorted(domains)


@pytest.mark.parametrize("name", SETS)
def test_no_two_classes_are_one_for_a_reader_or_a_prompt(name: str) -> None:
    known = SETS[name]
    assert len({_domains.key(folder) for folder in known.classes}) == len(known.classes)
    assert len({text.casefold() for text in known.classes.values()}) == len(known.classes)
    assert not any("_" in text for text in known.classes.values())


@pytest.mark.parametrize("name", SETS)
def test_an_alias_means_one_domain(name: str) -> None:
    used = Counter(_domains.key(alias) for m in SETS[name].members for alias in (m.name, *m.aliases))
    assert set(used.values()) == {1}


def test_domain_nets_duplicates_are_domainbeds() -> None:
    listed = domain_net.duplicates()
    counts = Counter(path.split("/")[0] for path in listed)
    assert counts == {"clipart": 704, "infograph": 1596, "painting": 3493, "real": 2380, "sketch": 1258}
    assert len(set(listed)) == 9_431
    assert {path.split("/")[1] for path in listed} <= set(domain_net.FOLDERS)
    text = "".join(f"{path}\n" for path in listed)
    assert hashlib.sha256(text.encode()).hexdigest().startswith("a52b4ab70203f4f3")  # of DomainBed's file


# DomainBed's layout


@pytest.mark.parametrize("name", [*SMALL, "office_home"])
def test_domainbeds_folders_are_read_as_imagefolder_reads_them(name: str, tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    chosen = domain_sets.samples(SETS[name])
    root = domain_sets.tree(tmp_path, chosen)
    benchmark = opened(name, root)
    assert [s.targets for s in benchmark.shifts] == [(m.name,) for m in SETS[name].members]
    for domain, opened_domain in benchmark.domains.items():
        folder = root / domain_sets.FOLDERS.get(domain, domain)
        theirs = ImageFolder(str(folder))
        assert [str(folder / i) for i in opened_domain.rows.ids] == [path for path, _ in theirs.samples]
        assert opened_domain.rows.labels.tolist() == theirs.targets
        assert theirs.classes == list(SETS[name].classes)
        pixels = np.asarray(opened_domain.rows.image(4))[3, 3].tolist()
        assert tuple(pixels) == domain_sets.colour([s for s in chosen if s.domain == domain][4])


def test_the_holdout_is_domainbeds_images(tmp_path: Path) -> None:
    # Ten images in sketch: PROTOCOLS.md gives the held-out keys 2, 3 of n=10 for trial 0, environment 0 (art_painting).
    chosen = [Sample(m.name, c, "0.png") for m in pacs.PACS.members for c in pacs.PACS.classes]
    chosen += [Sample("art_painting", "person", f"{i}.png") for i in (1, 2, 3)]
    domain = opened("pacs", domain_sets.tree(tmp_path, chosen)).domains["art_painting"]
    parts = splits.splits(domain, 0, 0)
    assert [domain.rows.ids[i] for i in parts["out"]] == ["giraffe/0.png", "guitar/0.png"]


def test_names_of_other_sources_are_understood(tmp_path: Path) -> None:
    chosen = domain_sets.samples(terra_incognita.TERRA_INCOGNITA, 1)
    short = [s._replace(domain=s.domain.replace("location_", "L")) for s in chosen]
    plain = [s._replace(domain=s.domain.replace("location_", "")) for s in chosen]
    for place, renamed in (("a", short), ("b", plain)):
        benchmark = opened("terra_incognita", domain_sets.tree(tmp_path / place, renamed))
        assert list(benchmark.domains) == ["location_100", "location_38", "location_43", "location_46"]


def test_a_folder_of_several_data_sets_is_a_root_too(tmp_path: Path) -> None:
    domain_sets.tree(tmp_path / "PACS", domain_sets.samples(pacs.PACS, 1))
    domain_sets.tree(tmp_path / "VLCS", domain_sets.samples(vlcs.VLCS, 1))
    assert len(opened("pacs", tmp_path).domains["photo"].rows) == 7
    assert len(opened("vlcs", tmp_path).domains["sun09"].rows) == 5


def test_counts_that_differ_are_remarks_and_name_the_classes(tmp_path: Path) -> None:
    chosen = domain_sets.samples(pacs.PACS, 1)
    known = replace(
        pacs.PACS, members=tuple(replace(m, count=7, by_class=(1,) * 7) for m in pacs.PACS.members), notes=()
    )
    root = domain_sets.tree(tmp_path, chosen)
    assert _domains.build(known, root).notes == ()
    domain_sets.tree(root, [Sample("photo", "dog", "more.png"), Sample("photo", "horse", "more.png")])
    assert _domains.build(known, root).notes == ("photo has 9 images, expected are 7 (dog 2 for 1, horse 2 for 1).",)


def test_a_known_edition_is_named(tmp_path: Path) -> None:
    root = domain_sets.tree(tmp_path, domain_sets.samples(terra_incognita.TERRA_INCOGNITA, 1))
    known = replace(terra_incognita.TERRA_INCOGNITA, editions={"today's download": (10, 10, 10, 10)}, notes=())
    assert _domains.build(known, root).notes == ("40 images: today's download; the paper has 24,788.",)


def test_duplicates_are_removed_and_counted(tmp_path: Path) -> None:
    chosen = domain_sets.samples(pacs.PACS, 2)
    root = domain_sets.tree(tmp_path, chosen)
    known = replace(pacs.PACS, duplicates=frozenset({"photo/dog/pic_000.png", "photo/dog/elsewhere.png"}))
    benchmark = _domains.build(known, root)
    assert "dog/pic_000.png" not in benchmark.domains["photo"].rows.ids
    assert "dog/pic_001.png" in benchmark.domains["photo"].rows.ids
    assert "1 of the 2 images on DomainBed's list of duplicates were removed." in benchmark.notes


def test_domain_net_opens_without_its_duplicates_under_domainbeds_protocol(tmp_path: Path) -> None:
    chosen = domain_sets.samples(domain_net.DOMAIN_NET, 1)
    again = domain_net.duplicates()[0].split("/")
    root = domain_sets.tree(tmp_path, [*chosen, Sample(*again)])
    benchmark = opened("domain_net", root)
    assert f"{again[1]}/{again[2]}" not in benchmark.domains["clipart"].rows.ids
    assert len(benchmark.domains["clipart"].rows) == 345
    assert benchmark.classes[:4] == ("The Eiffel Tower", "The Great Wall of China", "The Mona Lisa", "aircraft carrier")


# The same images, whichever way they came


@pytest.mark.parametrize("name", SMALL)
def test_every_place_gives_the_same_pixels_and_labels(name: str, tmp_path: Path) -> None:
    known = SETS[name]
    chosen = domain_sets.samples(known, 2)
    shuffled = [chosen[i] for i in np.random.default_rng(0).permutation(len(chosen))]
    backwards = list(reversed(known.classes))
    expected = content(opened(name, domain_sets.tree(tmp_path / "tree", chosen)))
    domains = sorted((m.name for m in known.members), reverse=True)
    places = {
        "texts": domain_sets.parquet(tmp_path / "texts", shuffled, backwards, None),
        "numbers": domain_sets.parquet(tmp_path / "numbers", shuffled, backwards, domains),
        "saved": domain_sets.saved(tmp_path / "saved", shuffled, backwards),
        "shards": domain_sets.shards(tmp_path / "shards", shuffled),
    }
    for place, root in places.items():
        benchmark = opened(name, root)
        assert content(benchmark) == expected, place
        assert not any("file names" in note for note in benchmark.notes)


def test_a_copy_in_two_splits_is_read_whole(tmp_path: Path) -> None:
    chosen = domain_sets.samples(pacs.PACS, 2)
    for split, part in (("train", chosen[::2]), ("test", chosen[1::2])):
        file = f"{split}-00000-of-00001.parquet"
        domain_sets.parquet(tmp_path / "data", part, list(pacs.PACS.classes), None, file=file)
    assert len(opened("pacs", tmp_path).domains["photo"].rows) == 14


def test_a_saved_copy_in_two_splits_is_read_whole(tmp_path: Path) -> None:
    import datasets

    chosen = domain_sets.samples(pacs.PACS, 2)
    expected = content(opened("pacs", domain_sets.tree(tmp_path / "tree", chosen)))
    parts = {
        split: datasets.load_from_disk(str(domain_sets.saved(tmp_path / split, part, list(pacs.PACS.classes))))
        for split, part in (("train", chosen[::2]), ("test", chosen[1::2]))
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "both"))
    assert content(opened("pacs", tmp_path / "both")) == expected


def test_a_copy_without_file_names_says_that_the_split_is_not_domainbeds(tmp_path: Path) -> None:
    chosen = domain_sets.samples(pacs.PACS, 2)
    root = domain_sets.parquet(tmp_path, chosen[::-1], list(pacs.PACS.classes), None, named=False)
    benchmark = opened("pacs", root)
    assert "This copy has lost its file names: the seeded holdout is not exactly DomainBed's." in benchmark.notes
    rows = benchmark.domains["photo"].rows
    assert rows.labels.tolist() == [label for label in range(7) for _ in range(2)]
    assert len(set(rows.ids)) == 14
    assert tuple(np.asarray(rows.image(0))[3, 3]) == domain_sets.colour(Sample("photo", "dog", "pic_001.png"))


def test_labels_that_are_bare_numbers_are_refused(tmp_path: Path) -> None:
    import datasets

    chosen = domain_sets.samples(pacs.PACS, 1)
    root = domain_sets.parquet(tmp_path / "a", chosen, list(pacs.PACS.classes), None)
    found = datasets.Dataset.from_parquet(
        str(root / "train-00000-of-00001.parquet"), cache_dir=str(tmp_path / "cache")
    ).cast_column("label", datasets.Value("int64"))
    (tmp_path / "b").mkdir()
    found.to_parquet(str(tmp_path / "b" / "train-00000-of-00001.parquet"))
    assert "holds numbers and nothing says which class they mean" in refusal("pacs", tmp_path / "b")


# What is refused


def test_without_a_copy_on_the_hub_the_message_says_where_it_is_and_how_it_must_look() -> None:
    for name in ("vlcs", "terra_incognita"):
        message = refusal(name, None, ConfigError)
        assert "download.py" in message
        assert "benchmark.root=DIR" in message


def test_a_class_or_domain_that_is_unknown_or_missing_is_named(tmp_path: Path) -> None:
    chosen = domain_sets.samples(pacs.PACS, 1)
    root = domain_sets.tree(tmp_path / "a", [*chosen, Sample("photo", "horses", "1.png")])
    message = refusal("pacs", root)
    assert "photo/horses" in message
    assert "Did you mean 'horse'?" in message
    root = domain_sets.tree(tmp_path / "b", [s for s in chosen if s.domain != "sketch"])
    assert "no image of domain sketch" in refusal("pacs", root)
    root = domain_sets.tree(tmp_path / "c", [s for s in chosen if s[:2] != ("sketch", "house")])
    assert "domain 'sketch' has no image of class house" in refusal("pacs", root)
    backwards = [*list(pacs.PACS.classes)[:-1], "human"]
    renamed = [s._replace(folder="human") if s.folder == "person" else s for s in chosen]
    assert "human" in refusal("pacs", domain_sets.parquet(tmp_path / "d", renamed, backwards, None))


def test_images_outside_the_domains_are_remarked(tmp_path: Path) -> None:
    root = domain_sets.tree(tmp_path, [*domain_sets.samples(pacs.PACS, 1), Sample("sketches", "dog", "1.png")])
    notes = opened("pacs", root).notes
    assert "1 image lies outside the domains' folders and is left out: sketches/dog/1.png." in notes


def test_two_copies_below_one_root_are_refused_and_not_read_as_one(tmp_path: Path) -> None:
    chosen = domain_sets.samples(pacs.PACS, 2)
    for copy in ("kfold", "old"):
        domain_sets.tree(tmp_path / "copies" / copy, chosen, litter=False)
    message = refusal("pacs", tmp_path / "copies")
    assert "kfold/art_painting/dog/pic_000.png and old/art_painting/dog/pic_000.png are the same image" in message
    root = domain_sets.tree(tmp_path / "names", [*chosen, *(s._replace(domain="P") for s in chosen if s[0] == "photo")])
    assert "P/dog/pic_000.png and photo/dog/pic_000.png are the same image of domain 'photo'" in refusal("pacs", root)


# Dassl's protocol


def test_dassls_pacs_has_its_published_splits(tmp_path: Path) -> None:
    broken = Sample("sketch", "dog", "n02103406_4068-1.png")
    chosen = [*domain_sets.samples(pacs.PACS), broken]
    root = domain_sets.kfold(tmp_path / "pacs", pacs.PACS, chosen)
    benchmark = opened("pacs", root, protocol="dassl")
    for domain in benchmark.domains.values():
        assert domain.splits is not None
        assert {n: len(r) for n, r in domain.splits.items()} == {"train": 14, "val": 7}
        ids = [domain.rows.ids[i] for i in domain.splits["val"]]
        assert ids == [f"{folder}/pic_000.png" for folder in pacs.PACS.classes]
        assert broken.file not in "".join(domain.rows.ids)
    assert any("Dassl's splits" in note for note in benchmark.notes)
    # The same folder under DomainBed's protocol has every image.
    assert len(opened("pacs", root).domains["sketch"].rows) == 22


def test_dassls_numbers_must_be_the_classes(tmp_path: Path) -> None:
    root = domain_sets.kfold(tmp_path, pacs.PACS, domain_sets.samples(pacs.PACS, 2))
    file = root / "splits" / "photo_train_kfold.txt"
    text = file.read_text()
    file.write_text(text.replace("photo/dog/pic_001.png 1", "photo/dog/pic_001.png 2"))
    assert "does not give dog its number" in refusal("pacs", root, protocol="dassl")
    file.write_text(text + "photo/dog/gone.png 1\n")
    assert "photo/dog/gone.png" in refusal("pacs", root, protocol="dassl")
    file.write_text(text + "photo/dog/pic_000.png 1\n")
    assert "in two of Dassl's splits" in refusal("pacs", root, protocol="dassl")
    file.unlink()
    assert "cannot read" in refusal("pacs", root, ConfigError, protocol="dassl")


def test_dassls_folders_are_splits(tmp_path: Path) -> None:
    names = {"caltech101": "CALTECH", "labelme": "LABELME", "sun09": "SUN", "voc2007": "PASCAL"}
    chosen = domain_sets.samples(vlcs.VLCS)
    root = domain_sets.split_folders(tmp_path, chosen, ("train", "crossval", "test"), names)
    domain = opened("vlcs", root, protocol="dassl").domains["voc2007"]
    assert domain.splits is not None
    assert {n: len(r) for n, r in domain.splits.items()} == {"train": 5, "val": 5, "test": 5}
    assert {domain.rows.ids[i].split("/")[0] for i in domain.splits["val"]} == {"crossval"}
    assert "set benchmark.protocol=dassl" in refusal("vlcs", root, ConfigError)


def test_numbered_class_folders_count_only_if_the_numbers_of_images_confirm_them(tmp_path: Path) -> None:
    names = {"caltech101": "CALTECH", "labelme": "LABELME", "sun09": "SUN", "voc2007": "PASCAL"}
    per_class = {"bird": 1, "car": 2, "chair": 3, "dog": 4, "person": 5}
    chosen = [
        Sample(m.name, str(number), f"{part}{i}.png")
        for m in vlcs.VLCS.members
        for number, count in enumerate(per_class.values())
        for part in "abc"
        for i in range(count)
    ]
    for sample in chosen:
        part = {"a": "train", "b": "crossval", "c": "test"}[sample.file[0]]
        domain_sets.put(
            tmp_path / names[sample.domain] / part / sample.folder / sample.file, domain_sets.picture(sample)
        )
    assert "do not confirm which class is which" in refusal("vlcs", tmp_path, protocol="dassl")
    counted = tuple(replace(m, count=45, by_class=(3, 6, 9, 12, 15)) for m in vlcs.VLCS.members)
    benchmark = _domains.build(replace(vlcs.VLCS, members=counted), tmp_path, "dassl")
    assert benchmark.domains["sun09"].rows.ids[0] == "train/bird/a0.png"


def test_dassls_protocol_needs_dassls_copy(tmp_path: Path) -> None:
    root = domain_sets.tree(tmp_path, domain_sets.samples(office_home.OFFICE_HOME, 1))
    assert "needs Dassl's copy" in refusal("office_home", root, ConfigError, protocol="dassl")


# Few shots


def test_few_shot_picks_stay_what_they_are(tmp_path: Path) -> None:
    # Golden: picks published with a paper must be those of any later version.
    domain = opened("pacs", domain_sets.tree(tmp_path, domain_sets.samples(pacs.PACS, 6))).domains["sketch"]
    picks = {}
    for seed in (1, 2, 3):
        rows = splits.pick(domain, tuple(pacs.PACS.classes), splits.splits(domain, 3, seed)["in"], 2, seed)
        picks[seed] = [domain.rows.ids[i] for i in rows]
    assert picks[1][:3] == ["elephant/pic_001.png", "giraffe/pic_004.png", "dog/pic_004.png"]
    assert [digest(ids)[:12] for ids in picks.values()] == ["4c23cf13fa12", "759e6f493c37", "d039b391ec07"]
