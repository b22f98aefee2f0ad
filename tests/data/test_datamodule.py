from __future__ import annotations

import dataclasses
import types
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from PIL import Image

from clipdg.core.benchmark import Benchmark, Domain, Rows, Shift
from clipdg.core.errors import ConfigError, DataError
from clipdg.core.model import Preprocessing
from clipdg.core.seeding import seed_hash
from clipdg.data import datasets, preprocessing, splits
from clipdg.data import loaders as loaders_
from clipdg.data.datamodule import DataModule
from clipdg.data.rows import ArrayRows, FolderTable, TableRows
from clipdg.training import trainer

SPEC = Preprocessing(8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
BACKBONE: Any = types.SimpleNamespace(preprocessing=SPEC)  # all that a data module asks of a backbone


def array_rows(num: int, size: int = 8, num_classes: int = 2, seed: int = 0, name: str = "") -> ArrayRows:
    array = np.random.default_rng(seed).integers(0, 256, (num, size, size, 3), dtype=np.uint8)
    return ArrayRows(array, np.arange(num) % num_classes, [f"{name}{i}" for i in range(num)])


def folder_rows(root: Path, num: int, seed: int = 0) -> TableRows:
    rows = array_rows(num, 10, seed=seed)
    root.mkdir(parents=True, exist_ok=True)
    for i in range(num):
        rows.image(i).save(root / f"{i}.png")
    files = [f"{i}.png" for i in range(num)]
    return TableRows(FolderTable(root, files), range(num), rows.labels, files)


class Sealed:
    """Rows of which neither an image nor a digest can be had."""

    def __init__(self, num: int) -> None:
        self.labels = np.arange(num) % 2
        self.ids = [str(i) for i in range(num)]

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> Image.Image:
        raise AssertionError("a target was read")

    def digests(self) -> list[str]:
        raise AssertionError("a target was read")


# Splits and shots


def test_seed_hash_is_domainbeds() -> None:
    # PROTOCOLS.md, computed with DomainBed's own code
    assert [seed_hash(*a) for a in ((0, 0), (0, 1), (1, 0), (2, 3))] == [
        894182419, 1514274641, 785910682, 1709828778,
    ]  # fmt: skip
    assert seed_hash("PACS", "ERM", [0], 0, 0) == 94828300


def test_the_holdout_is_domainbeds() -> None:
    parts = splits.splits(Domain("art", array_rows(10)), 0, 0)
    assert list(parts) == ["in", "out"]
    assert parts["out"].tolist() == [2, 3]
    assert parts["in"].tolist()[:6] == [8, 1, 4, 5, 0, 9]
    assert sorted(np.concatenate(list(parts.values()))) == list(range(10))


def test_the_holdout_is_rounded_down_and_follows_seed_and_domain() -> None:
    domain = Domain("art", array_rows(36))
    assert [len(rows) for rows in splits.splits(domain, 0, 0).values()] == [29, 7]  # int(7.2)
    assert len(splits.splits(domain, 0, 0, 0.0)["out"]) == 0
    outs = [tuple(splits.splits(domain, index, seed)["out"]) for index in range(2) for seed in range(2)]
    assert len(set(outs)) == 4
    assert outs[0] == tuple(splits.splits(domain, 0, 0)["out"])


def test_a_published_training_split_gives_a_part_of_itself_to_validation() -> None:
    published = {"train": np.arange(5, 25), "test": np.array([3, 1])}
    parts = splits.splits(Domain("photo", array_rows(30), published), 0, 0)
    assert list(parts) == ["train", "val", "test"]
    assert parts["test"].tolist() == [3, 1]
    assert len(parts["val"]) == 4
    assert sorted([*parts["train"], *parts["val"]]) == list(range(5, 25))
    assert parts["val"].tolist() != splits.splits(Domain("photo", array_rows(30), published), 0, 1)["val"].tolist()


def test_published_validation_and_test_only_domains_are_left_alone() -> None:
    three = {"train": np.arange(6), "val": np.arange(6, 8), "test": np.arange(8, 10)}
    parts = splits.splits(Domain("a", array_rows(10), three), 0, 0)
    assert {name: rows.tolist() for name, rows in parts.items()} == {k: v.tolist() for k, v in three.items()}
    assert list(splits.splits(Domain("a", array_rows(10), {"test": np.arange(10)}), 0, 0)) == ["test"]


def test_splits_do_not_touch_the_global_generators() -> None:
    np.random.seed(0)
    before = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]  # the legacy tuple
    splits.splits(Domain("a", array_rows(10)), 0, 0)
    assert np.array_equal(np.random.get_state()[1], before)  # type: ignore[index]


def test_few_shot_by_hand() -> None:
    labels = np.array([0, 1, 0, 1, 0, 2, 2])
    order = np.array([6, 4, 3, 2, 1, 5, 0])
    assert splits.few_shot(labels, order, 1).tolist() == [6, 4, 3]
    assert splits.few_shot(labels, order, 2).tolist() == [6, 4, 3, 2, 1, 5]
    assert splits.few_shot(labels, order, None).tolist() == order.tolist()


def test_few_shot_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 7, 300)
    order = rng.permutation(300)[:200]
    counts: dict[int, int] = {}
    expected = []
    for row in order.tolist():
        counts[labels[row]] = counts.get(labels[row], 0) + 1
        if counts[labels[row]] <= 5:
            expected.append(row)
    assert splits.few_shot(labels, order, 5).tolist() == expected


def test_a_class_with_too_few_images_is_named_with_its_count() -> None:
    labels = np.array([0, 0, 0, 1, 2])
    with pytest.raises(DataError, match=r"^class 1 has 1 training image, fewer than 2 shots$"):
        splits.few_shot(labels, np.arange(5), 2)
    # a class that the domain has and the split lacks altogether
    with pytest.raises(DataError, match=r"^class 'cat' of domain 'art' has 0 training images, fewer than 1 shots$"):
        splits.few_shot(labels, np.array([0, 3]), 1, ["dog", "horse", "cat"], " of domain 'art'")


def test_picks_are_seeded_nested_and_blind_to_the_order_given() -> None:
    domain = Domain("art", array_rows(60, num_classes=3))
    classes, order = ["a", "b", "c"], np.arange(50)
    two, four = (splits.pick(domain, classes, order, shots, 0) for shots in (2, 4))
    assert np.bincount(domain.rows.labels[four]).tolist() == [4, 4, 4]
    assert set(two) < set(four) <= set(range(50))
    assert splits.pick(domain, classes, order[::-1], 4, 0).tolist() == four.tolist()
    assert splits.pick(domain, classes, order, 4, 1).tolist() != four.tolist()
    other = dataclasses.replace(domain, name="photo")
    assert splits.pick(other, classes, order, 4, 0).tolist() != four.tolist()
    assert splits.pick(domain, classes, order, None, 0).tolist() == order.tolist()


# Data sets


@pytest.mark.parametrize("size", [8, 13])
@pytest.mark.parametrize("kept", [True, False])
def test_images_come_preprocessed_whether_they_are_kept_or_not(
    size: int, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kept:
        monkeypatch.setattr("clipdg.data.datasets.IN_MEMORY", 0)
    rows = array_rows(9, size)
    dataset = datasets.ImageDataset(rows, [7, 2, 5], SPEC, 4)
    assert dataset.in_memory is kept
    batch = dataset.take([2, 0])
    assert torch.equal(batch.inputs, torch.stack([preprocessing.to_uint8(rows.image(i), SPEC) for i in (5, 7)]))
    assert batch.inputs.dtype == torch.uint8
    assert batch.labels.tolist() == [1, 1]
    assert batch.indices.tolist() == [5, 7]
    assert batch.domains.tolist() == [4, 4]
    one = dataset[-2]
    assert torch.equal(one.inputs, preprocessing.to_uint8(rows.image(2), SPEC))
    assert (int(one.labels), int(one.indices)) == (0, 2)
    assert len(list(dataset)) == 3  # type: ignore[call-overload]  # the old protocol: until IndexError


def test_features_are_those_of_the_chosen_rows() -> None:
    features = torch.arange(12.0).view(6, 2)
    dataset = datasets.FeatureDataset(features, np.array([0, 1, 2, 0, 1, 2]), np.array([4, 1]), 0)
    assert dataset.take([0, 1]).inputs.tolist() == [[8.0, 9.0], [2.0, 3.0]]
    assert dataset.labels.tolist() == [1, 1]


def test_concatenated_samples_keep_domain_row_and_input() -> None:
    parts = [
        datasets.FeatureDataset(torch.arange(10.0)[:, None] + 100 * d, np.arange(10), rows, d)
        for d, rows in enumerate(([3, 1], [7], [0, 9, 5]))
    ]
    joined = datasets.concatenate(parts)
    batch = joined.take([5, 0, 2, 3, 1])
    assert batch.inputs.squeeze(1).tolist() == [205, 3, 107, 200, 1]
    assert batch.domains.tolist() == [2, 0, 1, 2, 0]
    assert batch.indices.tolist() == batch.labels.tolist() == [5, 3, 7, 0, 1]
    assert len(joined) == 6
    assert datasets.concatenate(parts[:1]) is parts[0]


def test_with_splits_marks_a_copy() -> None:
    dataset = datasets.FeatureDataset(torch.zeros(4, 1), np.zeros(4, dtype=int), range(4), 0)
    marked = datasets.with_splits(dataset, np.array([0, 1, 1, 0]))
    assert marked.take([1, 3]).splits.tolist() == [1, 0]  # type: ignore[union-attr]
    assert dataset.splits.tolist() == [0, 0, 0, 0]


# Loaders


def order_of(loader: loaders_.Loader) -> list[int]:
    return [i for batch in loader for i in batch.indices.tolist()]


def test_a_loader_without_generator_keeps_the_order() -> None:
    loader = loaders_.loader(datasets.FeatureDataset(torch.zeros(10, 1), np.arange(10), range(10), 0), 4)
    assert order_of(loader) == list(range(10))
    assert [len(batch.labels) for batch in loader] == [4, 4, 2]
    assert len(loader) == 3
    assert isinstance(next(iter(loader)), datasets.Batch)


def test_drop_last_drops_what_fills_no_batch() -> None:
    dataset = datasets.FeatureDataset(torch.zeros(10, 1), np.arange(10), range(10), 0)
    assert [len(batch.labels) for batch in loaders_.loader(dataset, 4, drop_last=True)] == [4, 4]


def test_shuffling_follows_its_generator_and_leaves_the_global_one_alone() -> None:
    dataset = datasets.FeatureDataset(torch.zeros(50, 1), np.arange(50), range(50), 0)
    state = torch.get_rng_state()
    loaders = [loaders_.loader(dataset, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    orders = [[order_of(loader), order_of(loader)] for loader in loaders]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert orders[0][0] != orders[0][1]  # a new order on each pass
    assert all(sorted(order) == list(range(50)) for pair in orders for order in pair)
    assert torch.equal(torch.get_rng_state(), state)


def test_worker_processes_change_nothing(tmp_path: Path) -> None:
    dataset = datasets.ImageDataset(folder_rows(tmp_path / "a", 12), range(12), SPEC, 0)
    found = []
    for workers in (0, 2):
        loader = loaders_.loader(dataset, 5, generator=torch.Generator().manual_seed(0), workers=workers)
        assert loader.num_workers == workers
        found.append([batch for _ in range(2) for batch in loader])
    for here, there in zip(*found, strict=True):
        assert here.indices.tolist() == there.indices.tolist()
        assert torch.equal(here.inputs, there.inputs)


def test_what_lies_in_memory_needs_no_worker() -> None:
    assert loaders_.loader(datasets.ImageDataset(array_rows(4), range(4), SPEC, 0), 2, workers=2).num_workers == 0


def test_workers_are_started_where_they_are_of_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """(cores, on a GPU, images, loaders at once) -> processes: a GPU waits for images, a CPU for the encoder."""
    cases = {
        (8, False, 5000, 1): 1,
        (8, False, 500, 1): 0,
        (1, False, 5000, 1): 0,
        (2, False, 5000, 2): 0,
        (8, True, 5000, 1): 7,
        (8, True, 200, 1): 3,
        (64, True, 5000, 1): 16,
        (64, True, 5000, 8): 7,
        (1, True, 5000, 1): 1,
    }
    for (cores, gpu, num_images, sharing), expected in cases.items():
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        monkeypatch.setattr("torch.cuda.is_available", lambda gpu=gpu: gpu)
        assert loaders_.useful_workers(num_images, sharing) == expected


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_one_clear_sentence(tmp_path: Path, workers: int) -> None:
    rows = folder_rows(tmp_path / "sketch", 6)
    (tmp_path / "sketch" / "4.png").write_bytes(b"<html>")
    dataset = datasets.ImageDataset(rows, [0, 4], SPEC, 0, name="pacs, sketch")
    with pytest.raises(DataError) as error:
        list(loaders_.loader(dataset, 2, workers=workers))
    path = tmp_path / "sketch" / "4.png"
    assert str(error.value).startswith(f"pacs, sketch: image 4 ({path}) is an HTML page")
    assert "\n" not in str(error.value)


# The data module


def benchmark(**rows: Rows) -> Benchmark:
    domains = {name: Domain(name, found) for name, found in sorted(rows.items())}
    return Benchmark("b", ("cat", "dog"), domains)


def of(loader: loaders_.Loader) -> dict[int, list[int]]:
    """Domain -> its rows, sorted."""
    found: dict[int, list[int]] = {}
    for batch in loader:
        for domain, row in zip(batch.domains.tolist(), batch.indices.tolist(), strict=True):
            found.setdefault(domain, []).append(row)
    return {domain: sorted(rows) for domain, rows in sorted(found.items())}


def test_the_data_module_gives_sources_their_splits_and_targets_all_their_images() -> None:
    three = benchmark(art=array_rows(20, seed=1), photo=array_rows(30, seed=2), sketch=array_rows(10, seed=3))
    module = DataModule.of(three, Shift("sketch", ("art", "photo"), ("sketch",)), BACKBONE, batch_size=7)
    parts = [splits.splits(domain, i, 0) for i, domain in enumerate(three.domains.values())]
    assert of(module.train_dataloader()) == {i: sorted(parts[i]["in"].tolist()) for i in (0, 1)}
    held_out = {i: sorted(parts[i]["out"].tolist()) for i in (0, 1)}
    assert of(module.val_dataloader()) == held_out  # type: ignore[arg-type]
    assert module.test_names == ("art", "photo", "sketch")
    assert [of(loader) for loader in module.test_dataloader()] == [
        {0: held_out[0]}, {1: held_out[1]}, {2: list(range(10))},
    ]  # fmt: skip
    assert [t.splits for t in module.test_sets] == [("out",), ("out",), ("all",)]


def test_published_test_splits_are_what_is_tested() -> None:
    photo = Domain("photo", array_rows(20, seed=1), {"train": np.arange(15), "test": np.arange(15, 20)})
    sketch = Domain("sketch", array_rows(20, seed=2), {"train": np.arange(5), "test": np.arange(5, 20)})
    both = Benchmark("b", ("cat", "dog"), {"photo": photo, "sketch": sketch})
    module = DataModule.of(both, Shift("s", ("photo",), ("sketch",)), BACKBONE, shots=3)
    assert [of(loader) for loader in module.test_dataloader()] == [{0: [15, 16, 17, 18, 19]}, {1: list(range(5, 20))}]
    assert len(of(module.train_dataloader())[0]) == 6  # 3 of each of 2 classes
    assert of(module.train_dataloader())[0] == sorted(module.fit_rows["photo"].tolist())


def test_seeds_change_the_order_and_every_call_begins_it_again() -> None:
    one = benchmark(art=array_rows(40), photo=array_rows(4, seed=1))
    shift = Shift("photo", ("art",), ("photo",))
    module = DataModule.of(one, shift, BACKBONE)
    assert order_of(module.train_dataloader()) == order_of(module.train_dataloader())
    assert order_of(module.train_dataloader()) != order_of(
        DataModule.of(one, shift, BACKBONE, seed=1).train_dataloader()
    )


def test_few_shots_are_validated_on_as_many_images_of_each_class_and_four_at_most() -> None:
    two = benchmark(art=array_rows(60), photo=array_rows(4, seed=1))
    shift = Shift("p", ("art",), ("photo",))
    labels = two.domains["art"].rows.labels
    for shots, expected in ((2, [2, 2]), (9, [4, 4])):
        module = DataModule.of(two, shift, BACKBONE, shots=shots)
        assert np.bincount(labels[module.val_rows["art"]]).tolist() == expected
        assert set(module.val_rows["art"]) <= set(splits.splits(two.domains["art"], 0, 0)["out"])


def test_without_holdout_there_is_no_validation_loader() -> None:
    two = benchmark(art=array_rows(10), photo=array_rows(4, seed=1))
    module = DataModule.of(two, Shift("p", ("art",), ("photo",)), BACKBONE, holdout=0)
    assert module.val_dataloader() == []
    assert module.test_names == ("photo",)  # nothing of the source is left to test on


def test_what_a_shift_cannot_have_is_refused() -> None:
    only = Domain("photo", array_rows(20), {"test": np.arange(20)})
    two = Benchmark("b", ("cat", "dog"), {"art": Domain("art", array_rows(20)), "photo": only})
    with pytest.raises(ConfigError, match=r"^b has no training images in 'photo' \(only test\)"):
        DataModule.of(two, Shift("s", ("photo",), ("art",)), BACKBONE)
    with pytest.raises(ConfigError, match=r"^b has no domain 'foto'; it has art, photo$"):
        DataModule.of(two, Shift("s", ("foto",), ("art",)), BACKBONE)
    with pytest.raises(DataError, match=r"class 'cat' of domain 'art' has \d+ training images, fewer than 11 shots"):
        DataModule.of(two, Shift("s", ("art",), ("photo",)), BACKBONE, shots=11)


class Probe(lightning.LightningModule):
    """A user's own module, which knows nothing of clipdg's batches beyond their first two fields."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(3 * 8 * 8, 2)
        self.tested: list[tuple[int, int]] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        inputs, labels, *_ = batch
        logits = self.head(preprocessing.normalize(inputs, SPEC).flatten(1))
        self.log("loss", loss := torch.nn.functional.cross_entropy(logits, labels), on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        assert len(batch.inputs)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.tested.append((dataloader_idx, len(batch.labels)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def test_fitting_with_lightning_never_opens_the_target() -> None:
    two = benchmark(art=array_rows(20), sketch=Sealed(10))
    module = DataModule.of(two, Shift("sketch", ("art",), ("sketch",)), BACKBONE, batch_size=8)
    probe = Probe()
    with trainer.quiet():
        fitting = trainer.make("fit", max_epochs=2)
        fitting.fit(probe, datamodule=module)
        assert fitting.global_step == 4
        with pytest.raises(AssertionError, match="a target was read"):
            fitting.test(probe, datamodule=module, verbose=False)
    assert probe.tested == [(0, 4)]  # the source's held-out images came first


def test_images_from_files_and_from_memory_fit_alike(tmp_path: Path) -> None:
    files = folder_rows(tmp_path / "art", 20)
    memory = ArrayRows(np.stack([np.asarray(files.image(i)) for i in range(20)]), files.labels, files.ids)
    heads = []
    for rows in (files, memory):
        two = benchmark(art=rows, photo=array_rows(4, seed=1))
        module = DataModule.of(two, Shift("p", ("art",), ("photo",)), BACKBONE, batch_size=8)
        torch.manual_seed(0)
        probe = Probe()
        with trainer.quiet():
            trainer.make("fit", max_epochs=1).fit(probe, datamodule=module)
        heads.append(probe.head.weight.detach())
    assert torch.equal(*heads)
