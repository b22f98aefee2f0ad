"""The ImageNet family: its lists against timm's and open_clip's, its labels by every route, and runs on it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

import imagenet_layouts as family
import layouts
import numpy as np
import pytest
import torch
from layouts import Sample

import clipdg
from clipdg.benchmarks import imagenet
from clipdg.benchmarks.imagenet.classes import classes, objectnet_classes, subset, templates
from clipdg.benchmarks.imagenet.labels import labels_of
from clipdg.core.benchmark import Benchmark, Domain, Shift
from clipdg.core.download_source import Hub
from clipdg.core.errors import ConfigError, DataError
from clipdg.core.model import ClipBackbone
from clipdg.data import datasets, splits
from clipdg.data.datamodule import DataModule
from clipdg.data.rows import open_table
from clipdg.records import evaluations
from clipdg.report import tables
from clipdg.runs import config
from clipdg.runs.feature_store import FeatureStore
from clipdg.runs.run import run
from clipdg.runs.session import Session

INDEX = {one.wnid: i for i, one in enumerate(classes())}
PROMPT = 'method.templates=["{}"]'  # tiny reads 48 letters
CHAIR, CLOCK = 423, 409  # the first ids of ObjectNet's two classes here


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family.family(tmp_path_factory.mktemp("imagenet"))


def built(root: Path | None, domains: object = None, **settings: object) -> Benchmark:
    return imagenet.build(imagenet.Config(domains=domains, **settings), root)  # type: ignore[arg-type]


def timm_list(name: str) -> list[str]:
    return (files("timm") / "data" / "_info" / name).read_text().split()  # type: ignore[no-any-return]


# The lists


def test_classes_and_subsets_are_timms() -> None:
    assert [one.wnid for one in classes()] == timm_list("imagenet_synsets.txt")
    for name in ("a", "r"):
        own = subset(name)
        assert own is not None
        assert list(own.ids) == [int(i) for i in timm_list(f"imagenet_{name}_indices.txt")]
        assert [classes()[i].wnid for i in own.ids] == timm_list(f"imagenet_{name}_synsets.txt")
    assert [subset(name) for name in ("imagenet", "v2", "sketch", "c")] == [None] * 4


def test_names_and_templates_are_open_clips() -> None:
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES

    names = [one.name for one in classes()]
    assert names == list(IMAGENET_CLASSNAMES)
    assert list(templates()) == [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
    alike = {name: [one.wnid for one in classes() if one.name == name] for name in names if names.count(name) > 1}
    assert alike == {"missile": ["n03773504", "n04008634"], "sunglasses": ["n04355933", "n04356056"]}
    for name, wnids in alike.items():
        assert f"'{name}' ({', '.join(wnids)})" in imagenet.SAME_NAMES


def test_the_hubs_label_names_are_wordnets_and_differ() -> None:
    lines = (files("timm") / "data" / "_info" / "imagenet_synset_to_lemma.txt").read_text().splitlines()
    lemmas = dict(line.split("\t") for line in lines)
    other = {one.wnid: one.hub_name for one in classes() if one.hub_name != lemmas[one.wnid]}
    assert other == {"n03126707": "crane2"}
    assert len({one.hub_name for one in classes()}) == 1000


def test_objectnets_113_classes_are_125_of_imagenets() -> None:
    own = subset("objectnet")
    assert own is not None
    shared = [one for one in objectnet_classes() if one.wnids]
    assert (len(objectnet_classes()), len(shared), len(own.ids)) == (313, 113, 125)
    several = {one.name: sorted(INDEX[w] for w in one.wnids) for one in shared if len(one.wnids) > 1}
    assert several == {
        "Alarm clock": [409, 530],
        "Bicycle": [444, 671],
        "Chair": [423, 559, 765],
        "Helmet": [518, 560],
        "Pen": [418, 563, 749],
        "Skirt": [601, 655, 689],
        "Still Camera": [732, 759],
        "Tie": [457, 906],
        "Wheel": [479, 694],
    }
    assert sorted(map(list, own.groups)) == sorted(several.values())
    folders = {one.name: one.folder for one in shared}
    assert folders["Bath towel"] == "full_sized_towel"  # folder and name differ for twelve
    assert [one.folder for one in objectnet_classes()] == sorted(one.folder for one in objectnet_classes())


# Labels, by every route


def truth(given: Sequence[Sample], number: Callable[[str], int] = INDEX.__getitem__) -> dict[str, int]:
    return {hashlib.sha256(s.content).hexdigest(): number(s.label) for s in given}


def found(place: Path, name: str, hub: Hub | None = None) -> dict[str, int]:
    table = open_table(place, hub)
    return dict(zip(table.digests(), labels_of(table, name, name).tolist(), strict=True))


def turned(names: Sequence[str], seed: int = 3) -> list[str]:
    return [names[i] for i in np.random.default_rng(seed).permutation(len(names))]


def wnids(name: str) -> list[str]:
    own = subset(name)
    return [classes()[i].wnid for i in (range(1000) if own is None else own.ids)]


def test_folders_of_any_file_order_are_told_by_their_wnids(tmp_path: Path) -> None:
    given = layouts.shuffled(family.samples("sketch", list(family.WNIDS)))
    place = layouts.litter(layouts.class_folders(tmp_path, given))
    assert found(place, "sketch") == truth(given)


def test_v2s_folders_are_numbers_and_not_sorted_texts(tmp_path: Path) -> None:
    given = family.samples("v2", list(family.WNIDS))
    assert found(family.v2(tmp_path / "folders", given), "v2") == truth(given)
    tar = layouts.v2_tar(tmp_path / "v2.tar", layouts.shuffled(given), family.WNIDS)
    assert found(tar, "v2") == truth(given)


def test_names_are_joined_in_whatever_order_they_stand(tmp_path: Path) -> None:
    given = layouts.shuffled(family.samples("a", family.A))
    for i, names in enumerate((turned(family.A), turned(wnids("a")))):
        place = layouts.hub_parquet(tmp_path / f"parquet{i}", given, layouts.IMAGENET_A, names)
        assert found(place, "a") == truth(given)
        place = layouts.saved(tmp_path / f"saved{i}", given, layouts.IMAGENET_A, names)
        assert found(place, "a") == truth(given)


def test_the_names_of_ilsvrcs_parquet_are_joined(tmp_path: Path) -> None:
    given = family.samples("val", [*family.WNIDS, "n02012849", "n03126707"])  # both cranes
    hub_names = {one.wnid: one.hub_name for one in classes()}
    called = [dataclasses.replace(s, label=hub_names[s.label]) for s in given]
    for i, names in enumerate((list(hub_names.values()), turned(list(hub_names.values())))):
        place = layouts.hub_parquet(tmp_path / str(i), called, layouts.IMAGENET_A, names, split="validation")
        assert found(place, "imagenet") == truth(given)


def test_rs_wnids_are_texts(tmp_path: Path) -> None:
    given = layouts.shuffled(family.samples("r", family.R))
    place = layouts.hub_parquet(tmp_path, given, layouts.IMAGENET_R, split="test")
    assert found(place, "r") == truth(given)


@pytest.mark.parametrize(("name", "labels"), [("a", family.A), ("r", family.R), ("v2", tuple(family.WNIDS))])
def test_mere_numbers_count_the_sets_own_classes(name: str, labels: tuple[str, ...], tmp_path: Path) -> None:
    given = layouts.shuffled(family.samples(name, labels))
    assert found(layouts.wds(tmp_path, given, wnids(name)), name) == truth(given)


def test_objectnet_is_told_by_folder_name_or_number(tmp_path: Path) -> None:
    number = {"chair": CHAIR, "alarm_clock": CLOCK, "air_freshener": -1}.__getitem__
    given = family.samples("objectnet", family.OBJECTS)
    assert found(layouts.class_folders(tmp_path / "folders", given), "objectnet") == truth(given, number)
    shared = [one.folder for one in objectnet_classes() if one.wnids]
    some = [s for s in given if s.label in shared]
    assert found(layouts.wds(tmp_path / "wds", some, shared), "objectnet") == truth(some, number)
    names = {one.folder: one.name for one in objectnet_classes()}
    called = [dataclasses.replace(s, label=names[s.label]) for s in given]
    place = layouts.hub_parquet(tmp_path / "parquet", called, layouts.IMAGENET_A, turned(list(names.values())))
    assert found(place, "objectnet") == truth(given, number)


def test_every_route_gives_the_same_pixels(tmp_path: Path) -> None:
    given = family.samples("a", family.A)
    places = [
        layouts.class_folders(tmp_path / "folders", given),
        layouts.hub_parquet(tmp_path / "parquet", layouts.shuffled(given), layouts.IMAGENET_A),
        layouts.wds(tmp_path / "wds", layouts.shuffled(given, 1), wnids("a")),
    ]
    pixels = []
    for place in places:
        rows = built(None, places=[f"a={place}"]).domains["a"].rows
        assert sorted(rows.labels) == rows.labels.tolist()
        shown = {d: np.asarray(rows.image(i)).tobytes() for i, d in enumerate(rows.digests())}
        pixels.append((shown, dict(zip(rows.digests(), rows.labels.tolist(), strict=True))))
    assert pixels[0] == pixels[1] == pixels[2]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("n01440764", "'n01440764' in .* is no class of ImageNet-A"),  # one of the 1,000, but not of the 200
        ("bald_eagle", "is no class of ImageNet-A"),
    ],
)
def test_a_class_that_the_set_does_not_have_is_named(label: str, message: str, tmp_path: Path) -> None:
    layouts.class_folders(tmp_path, family.samples("a", [*family.A, label]))
    with pytest.raises(DataError, match=message):
        built(None, places=[f"a={tmp_path}"])


def test_numbers_out_of_range_and_hidden_labels_are_refused(tmp_path: Path) -> None:
    given = family.samples("a", family.A)
    place = layouts.wds(tmp_path / "a", given, wnids("imagenet"))  # ImageNet's numbers, where A counts its own 200
    with pytest.raises(DataError, match="has the label 277, which is none of ImageNet-A's 200 classes, 0 to 199"):
        built(None, places=[f"a={place}"])
    hidden = layouts.tar(tmp_path / "b" / "0.tar", [("s0.cls", b"-1"), ("s0.jpg", given[0].content)])
    with pytest.raises(DataError, match="-1 means that it is kept secret"):
        built(None, places=[f"v2={hidden}"])


def test_images_in_no_class_folder_are_refused(tmp_path: Path) -> None:
    layouts.put(tmp_path / "ILSVRC2012_val_00000001.JPEG", layouts.picture(0))
    with pytest.raises(DataError, match="says the class: its images lie in no class folders"):
        built(None, places=[f"imagenet={tmp_path}"])


# The benchmark


def test_the_family_in_its_own_folders(root: Path) -> None:
    benchmark = built(root)
    assert list(benchmark.domains) == ["imagenet", "v2", "sketch", "a", "r", "objectnet"]
    assert benchmark.shifts == (Shift("natural", ("imagenet",), ("v2", "sketch", "a", "r", "objectnet")),)
    assert [len(d.rows) for d in benchmark.domains.values()] == [18, 18, 18, 6, 6, 4]
    assert len(benchmark.templates) == 80
    assert benchmark.domains["r"].rows.labels.tolist() == [1, 1, 22, 22, 277, 277]
    assert benchmark.domains["objectnet"].rows.labels.tolist() == [CLOCK, CLOCK, CHAIR, CHAIR]
    assert [name for name, domain in benchmark.domains.items() if domain.eval_only] == ["objectnet"]
    assert {name: len(own.ids) for name, own in benchmark.domains["imagenet"].class_subsets.items()} == {
        "a-classes": 200, "r-classes": 200, "objectnet-classes": 125,
    }  # fmt: skip
    assert "ObjectNet: 2 images of classes that ImageNet does not have are left out" in benchmark.notes
    assert "ImageNet-A has 6 images here, where 7,500 are expected" in benchmark.notes
    assert benchmark.domains["imagenet"].rows.ids[0] == "val/n01440764/val_0.jpg"


def test_each_set_opens_by_itself(root: Path) -> None:
    for name in ("v2", "a", "objectnet"):
        benchmark = built(root, name)
        assert list(benchmark.domains) == [name]
        assert benchmark.shifts == (Shift("natural", (), (name,)),)


def test_corruptions_are_domains_of_a_shift_of_their_own(root: Path) -> None:
    benchmark = built(root, ["v2", "c", "imagenet"])
    cells = ("c/gaussian_noise/1", "c/gaussian_noise/3", "c/jpeg_compression/1", "c/jpeg_compression/3")
    assert benchmark.shifts == (
        Shift("natural", ("imagenet",), ("v2",)),
        Shift("corruptions", ("imagenet",), cells),
    )
    assert list(built(root, ["c/jpeg_compression", "c/gaussian_noise/3"]).domains) == [cells[1], *cells[2:]]
    with pytest.raises(ConfigError, match="has no fog/2"):
        built(root, ["c/fog/2"])
    with pytest.raises(ConfigError, match="Did you mean 'gaussian_noise'"):
        built(root, ["c/gaussian_nois"])


def test_corruptions_may_lie_in_groups(root: Path, tmp_path: Path) -> None:
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "gaussian_noise").symlink_to(root / "imagenet-c" / "gaussian_noise")
    assert list(built(None, "c", places=[f"c={tmp_path}"]).domains) == ["c/gaussian_noise/1", "c/gaussian_noise/3"]


@pytest.mark.parametrize(
    ("domains", "places", "message"),
    [
        (["v3"], [], "no set 'v3'. Did you mean 'v2'"),
        ([], [], "give a name or a list"),
        (["a", "a"], [], "names a domain twice"),
        (None, ["v2"], "'v2' is not NAME=DIR"),
        (None, ["q=x"], "no set 'q'"),
        (None, ["a=nowhere"], "a is not there: no nowhere"),
    ],
)
def test_what_cannot_be_chosen_is_refused(root: Path, domains: object, places: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        built(root, domains, places=places)


def test_a_set_that_is_not_there_is_named_with_where_it_was_looked_for(tmp_path: Path) -> None:
    layouts.class_folders(tmp_path / "imagenet-a", family.samples("a", family.A))
    assert list(built(tmp_path).domains) == ["a"]
    with pytest.raises(ConfigError, match=r"ImageNet-V2 .* is not in .*: no imagenetv2-matched-frequency-format-val, "):
        built(tmp_path, ["a", "v2"])
    with pytest.raises(ConfigError, match="read from folders"):
        built(tmp_path, ["c"])
    with pytest.raises(ConfigError, match="none of the ImageNet sets"):
        built(tmp_path / "imagenet-a")


def test_both_splits_of_one_saved_data_set_are_source_and_pool(tmp_path: Path) -> None:
    import datasets

    parts = {s: family.samples(s, list(family.WNIDS)) for s in ("train", "validation")}
    made = {
        s: layouts._dataset(given, layouts.IMAGENET_A, turned(wnids("imagenet")), [s]) for s, given in parts.items()
    }
    datasets.DatasetDict(made).save_to_disk(str(tmp_path / "imagenet"))
    source = built(tmp_path).domains["imagenet"]
    assert dict(zip(source.rows.digests(), source.rows.labels.tolist(), strict=True)) == truth(parts["validation"])
    assert source.pool is not None
    pool = source.pool()
    assert dict(zip(pool.digests(), pool.labels.tolist(), strict=True)) == truth(parts["train"])


def test_objectnets_border_is_cut_before_anything_else(root: Path) -> None:
    framed, whole = (built(root, "objectnet", objectnet_border=b).domains["objectnet"].rows for b in (2, 0))
    red = np.asarray(whole.image(0))
    assert red.shape == (30, 40, 3)
    assert (red[:2] == (255, 0, 0)).all()
    assert np.array_equal(np.asarray(framed.image(0)), red[2:-2, 2:-2])
    assert framed.digests() != whole.digests()  # other pixels: other features, another run


def test_images_of_c_are_not_enlarged_before_the_crop(root: Path) -> None:
    backbone = clipdg.load_backbone("timm:resnet18.tv_in1k", "random:0")
    assert backbone.preprocessing.crop_fraction == 0.875
    benchmark = built(root, ["v2", "c/gaussian_noise/1"])
    module = DataModule.of(benchmark, Shift("x", (), tuple(benchmark.domains)), backbone)
    batch = next(iter(module.test_dataloader()[1]))
    rows = benchmark.domains["c/gaussian_noise/1"].rows
    stored = torch.from_numpy(np.array(rows.image(int(batch.indices[0])))).permute(2, 0, 1)
    assert torch.equal(batch.inputs[0], stored)
    spec = datasets.preprocessing_for(benchmark.domains["v2"], backbone.preprocessing)
    assert spec == backbone.preprocessing


# Train, the pool


def test_shots_and_validation_come_from_train_and_are_disjoint(root: Path) -> None:
    source = built(root).domains["imagenet"]
    assert source.pool is not None
    pool = source.pool()
    assert list(pool.ids) == sorted(pool.ids)  # by wnid, then by file name
    one = splits.with_pool(source, 0, built(root).classes, shots=3, seed=1)
    assert one.splits is not None
    assert {name: len(rows) for name, rows in one.splits.items()} == {"test": 18, "val": 27, "train": 27}
    ids = {name: {one.rows.ids[i] for i in rows} for name, rows in one.splits.items()}
    assert all(name.startswith("train/") for name in ids["train"] | ids["val"])
    assert not ids["train"] & ids["val"]
    assert ids["test"] == set(source.rows.ids)
    assert np.bincount(one.rows.labels[one.splits["train"]])[list(family.WNIDS.values())].tolist() == [3] * 9
    again, other = (splits.with_pool(source, 0, built(root).classes, 3, seed) for seed in (1, 2))
    assert again.rows.ids == one.rows.ids != other.rows.ids
    more = splits.with_pool(source, 0, built(root).classes, 4, 1)
    assert more.splits is not None
    assert ids["train"] < {more.rows.ids[i] for i in more.splits["train"]}
    # the same draw as for a domain whose training images are its own rows
    plain = Domain("imagenet", pool, {"train": np.arange(len(pool)), "val": np.arange(0)})
    picked = splits.pick(plain, built(root).classes, np.arange(len(pool)), 3, 1)
    assert {pool.ids[i] for i in picked} == ids["train"]


def test_too_few_training_images_are_named(root: Path) -> None:
    source = built(root).domains["imagenet"]
    with pytest.raises(DataError, match="class 'tench' of domain 'imagenet' has 6 training images, fewer than 7 shots"):
        splits.with_pool(source, 0, built(root).classes, 7, 0)


def test_without_shots_all_of_train_is_fitted_on_but_the_holdout(root: Path) -> None:
    source = built(root).domains["imagenet"]
    whole = splits.with_pool(source, 0, built(root).classes, None, 0, holdout=0.2)
    assert whole.splits is not None
    assert {name: len(rows) for name, rows in whole.splits.items()} == {"test": 18, "val": 10, "train": 44}


# Runs


def settings(root: Path, *more: str) -> config.RunSettings:
    given = ["benchmark=imagenet", f"benchmark.root={root}", "backbone=tiny", "backbone.weights=random:0"]
    return config.load(overrides=[*given, *more])


def test_a_zero_shot_run_opens_no_training_image(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(domain: Domain, *_: object) -> Domain:
        raise AssertionError("nothing is fitted, so the pool stays closed")

    monkeypatch.setattr("clipdg.data.splits.with_pool", refuse)
    [record] = run(settings(root, PROMPT))
    assert {e.split for e in record.evaluations if e.domain == "v2"} == {"test"}


def test_a_record_has_the_clean_accuracy_of_each_subset_and_tables_keep_to_the_test_split(root: Path) -> None:
    [record] = run(settings(root, PROMPT))
    counts = {e.split: e.num_images for e in record.evaluations if e.domain == "imagenet"}
    # of val's nine classes, with two images each, A, R and ObjectNet have four
    assert counts == {"test": 18, "a-classes": 8, "r-classes": 8, "objectnet-classes": 8}
    table = tables.robustness([record])
    assert [c.head for c in table.domains] == ["imagenet", "v2", "sketch", "a", "r", "objectnet"]
    assert table.domains[0].num_images == (18,)
    assert {e.split for e in evaluations.class_subsets(record, "imagenet")} == {*counts} - {"test"}
    assert evaluations.class_subsets(record, "v2") == []
    assert record.content["data"]["eval_only"] == ["objectnet"]
    assert not {"root", "places"} & set(record.content["config"]["benchmark"])


def test_masking_1000_logits_and_building_200_prompts_are_the_same(root: Path, clip: ClipBackbone) -> None:
    from clipdg.methods import zero_shot

    benchmark = built(root, "a")
    own = subset("a")
    assert own is not None
    method = zero_shot.build(zero_shot.Config(["{}"]), clip, benchmark)
    names = tuple(benchmark.classes[i] for i in own.ids)
    few = zero_shot.build(zero_shot.Config(["{}"]), clip, Benchmark("a", names))
    features = FeatureStore().encode(clip, benchmark.domains["a"])
    torch.testing.assert_close(method(features)[:, list(own.ids)], few(features), atol=1e-4, rtol=1e-4)
    [record] = run(settings(root, PROMPT, "benchmark.domains=[a]"))
    labels = torch.tensor([own.ids.index(i) for i in benchmark.domains["a"].rows.labels.tolist()])
    probabilities = few(features).double().softmax(1)
    [e] = record.evaluations
    assert e.metrics["top1"] == float((probabilities.argmax(1) == labels).double().mean())
    assert e.metrics["nll"] == pytest.approx(float(-probabilities.gather(1, labels[:, None]).log().mean()), abs=1e-4)


def test_methods_and_seeds_stand_in_one_table_and_share_what_was_encoded(root: Path, tmp_path: Path) -> None:
    session = Session(store=FeatureStore(tmp_path / "store"))
    [zero] = run(settings(root, PROMPT), session=session)
    num_tested = session.store.num_encoded
    assert num_tested == 18 + 18 + 18 + 6 + 6 + 4
    made = [run(settings(root, "method=linear_probe", "shots=2", f"seed={s}"), session=session)[0] for s in (1, 2)]
    # of each seed two images a class to fit on and two to validate on; the test images are not encoded again
    assert session.store.num_encoded <= num_tested + 2 * 9 * 4
    assert len({r.run_id for r in (zero, *made)}) == 3
    assert len({r.content["data"]["fingerprint"] for r in (zero, *made)}) == 1
    table = tables.robustness([zero, *made])
    assert sorted(row.label for row in table.rows) == ["linear_probe", "zero_shot"]
    fitted = made[0].content["data"]["fitted_on"]["imagenet"]
    assert len(fitted) == 18
    assert all(name.startswith("train/n") for name in fitted)
    assert made[0].content["data"]["num_images"]["imagenet"] == {"test": 18, "val": 18, "train": 18}


def test_other_training_images_are_another_run(root: Path, tmp_path: Path) -> None:
    [first] = run(settings(root, "method=linear_probe", "shots=2", "benchmark.domains=[imagenet,v2]"))
    other = layouts.class_folders(tmp_path / "train", family.samples("other", list(family.WNIDS), 6))
    place = f"benchmark.places=[train={other}]"
    [second] = run(settings(root, "method=linear_probe", "shots=2", "benchmark.domains=[imagenet,v2]", place))
    assert first.run_id != second.run_id
    assert first.content["data"]["fingerprint"] == second.content["data"]["fingerprint"]


def test_the_picks_of_a_record_are_fitted_on_again(root: Path, tmp_path: Path) -> None:
    some = ("method=linear_probe", "benchmark.domains=[imagenet,v2]")
    [drawn] = run(settings(root, *some, "shots=2", "seed=3"), tmp_path)
    [given] = run(settings(root, *some, f"picks={tmp_path / drawn.run_id}.json"))
    assert given.content["data"]["fitted_on"] == drawn.content["data"]["fitted_on"]
    assert given.content["data"]["num_images"]["imagenet"] == {"test": 18, "val": 18, "train": 18}


def test_places_are_no_part_of_a_runs_identity(root: Path) -> None:
    v2 = root / "imagenetv2-matched-frequency-format-val"
    [below] = run(settings(root, PROMPT, "benchmark.domains=[v2]"))
    [beside] = run(settings(root / "imagenet-c", PROMPT, "benchmark.domains=[v2]", f"benchmark.places=[v2={v2}]"))
    assert below.run_id == beside.run_id
    assert below.evaluations == beside.evaluations


def test_no_picture_of_it_lies_beside_its_records(root: Path, tmp_path: Path) -> None:
    run(settings(root, PROMPT, "benchmark.domains=[v2,objectnet]"), tmp_path / "out")
    assert not [p for p in (tmp_path / "out").rglob("*") if p.suffix in (".png", ".jpg", ".jpeg", ".webp")]


def test_fitting_without_training_images_is_refused(root: Path, tmp_path: Path) -> None:
    layouts.class_folders(tmp_path / "val", family.samples("val", list(family.WNIDS)))
    with pytest.raises(ConfigError, match="no training images in 'imagenet'"):
        run(settings(tmp_path, "method=linear_probe"))
    with pytest.raises(ConfigError, match="without a source has nothing to fit linear_probe on"):
        run(settings(root, "method=linear_probe", "benchmark.domains=[v2]"))


def test_objectnet_is_refused_as_a_source(root: Path, clip: ClipBackbone) -> None:
    benchmark = built(root)
    shift = Shift("tuned", ("objectnet",), ("v2",))
    with pytest.raises(ConfigError, match="objectnet is for evaluation only: its licence forbids"):
        DataModule.of(benchmark, shift, clip)
    tuned = dataclasses.replace(benchmark, shifts=(shift,))
    session = Session()
    resolved = settings(root, PROMPT)
    session._benchmarks[repr(resolved.benchmark)] = tuned
    with pytest.raises(ConfigError, match="objectnet is for evaluation only"):
        run(resolved, session=session)


def test_the_data_module_fits_and_validates_on_train(root: Path, clip: ClipBackbone) -> None:
    benchmark = built(root)
    module = DataModule.of(benchmark, benchmark.shifts[0], clip, shots=2)
    rows = module.benchmark.domains["imagenet"].rows
    for loader in (module.train_dataloader(), module.val_dataloader()):
        taken = [rows.ids[int(i)] for batch in loader for i in batch.indices]
        assert len(taken) == 18
        assert all(name.startswith("train/") for name in taken)
    assert module.test_names == tuple(benchmark.domains)
    assert [sum(len(b.labels) for b in loader) for loader in module.test_dataloader()] == [18, 18, 18, 6, 6, 4]


def test_a_supervised_head_stands_beside_zero_shot(root: Path) -> None:
    resnet = ("method=own_head", "backbone=timm:resnet10t.c3_in1k", "backbone.weights=random:0")
    some = "benchmark.domains=[imagenet,a]"
    [head] = run(settings(root, some, *resnet))
    [zero] = run(settings(root, some, PROMPT))
    table = tables.robustness([head, zero])
    assert {row.label.partition(",")[0] for row in table.rows} == {"own_head", "zero_shot"}
    assert head.content["data"]["num_fit"] == 0
