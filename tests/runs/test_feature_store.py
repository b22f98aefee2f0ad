"""The feature store: right, made once, resumed to the bit, never stale."""

import copy
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from clipdg.core.benchmark import Benchmark, Domain
from clipdg.core.errors import DataError, DivergedError, StorageError
from clipdg.core.model import ClipBackbone, Preprocessing
from clipdg.data.rows import ArrayRows, TableRows, open_table
from clipdg.runs import feature_store
from clipdg.runs.feature_store import FeatureStore
from clipdg.storage import sharded_array
from clipdg.weights import files
from clipdg.weights import precision as precision_

fork = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four images a batch and eight a shard: 36 images make five shards, the last one half full."""
    monkeypatch.setitem(feature_store.BATCH_SIZE, "cpu", 4)
    monkeypatch.setattr(feature_store, "BATCHES_PER_SHARD", 2)


@pytest.fixture
def domain(squares: Benchmark) -> Domain:
    return squares.domains["bright"]


class Watched(nn.Module):
    """A backbone that counts its batches, and does something before one of them."""

    def __init__(self, clip: ClipBackbone, before: int = -1, act: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.clip, self.before, self.act, self.batches = clip, before, act, 0
        for name in ("name", "weights", "embed_dim", "preprocessing"):
            setattr(self, name, getattr(clip, name))

    def preprocess(self, image: Image.Image) -> Tensor:
        return self.clip.preprocess(image)

    def encode_image(self, inputs: Tensor) -> Tensor:
        if self.batches == self.before:
            self.act()
        self.batches += 1
        return self.clip.encode_image(inputs)


def in_another_process(work: Callable[[], Any]) -> Any:
    """What ``work`` returns there; -9 if the process was killed."""
    answers = fork.Queue()
    process = fork.Process(target=lambda: answers.put(work()))
    process.start()
    answer = answers.get(timeout=60) if process.pid and not _killed(process) else process.exitcode
    process.join(60)
    return answer


def _killed(process: Any) -> bool:
    process.join(60)
    return bool(process.exitcode)


def test_features_are_the_encoders_own(clip: ClipBackbone, domain: Domain, tmp_path: Path) -> None:
    found = FeatureStore(tmp_path).encode(clip, domain)
    inputs = torch.stack([clip.preprocess(domain.rows.image(i)) for i in range(36)])
    with torch.inference_mode():
        expected = clip.encode_image(inputs)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_a_feature_does_not_depend_on_the_images_beside_it(clip: ClipBackbone, domain: Domain, tmp_path: Path) -> None:
    """To the bit, since a batch that is not full is filled up: 1 image, 3 images, 36 images."""
    rows = domain.rows
    assert isinstance(rows, ArrayRows)
    whole = FeatureStore(tmp_path).encode(clip, domain)
    for count in (1, 3):
        part = ArrayRows(rows.array[:count], rows.labels[:count], rows.ids[:count])
        assert torch.equal(FeatureStore(tmp_path).encode(clip, Domain("part", part)), whole[:count])


def test_other_labels_and_another_name_need_no_new_features(clip: ClipBackbone, domain: Domain, tmp_path: Path) -> None:
    rows = domain.rows
    assert isinstance(rows, ArrayRows)
    store = FeatureStore(tmp_path)
    store.encode(clip, domain)
    store.encode(clip, Domain("other", ArrayRows(rows.array, np.zeros(36), [f"x{i}" for i in range(36)])))
    assert store.num_encoded == 36


class Counting:
    """Rows that count the images that are decoded."""

    def __init__(self, rows: ArrayRows) -> None:
        self.rows, self.decoded = rows, 0
        self.labels, self.ids = rows.labels, rows.ids

    def __len__(self) -> int:
        return len(self.rows)

    def digests(self) -> tuple[str, ...]:
        return self.rows.digests()

    def image(self, index: int) -> Image.Image:
        self.decoded += 1
        return self.rows.image(index)


def test_a_second_use_decodes_and_encodes_nothing(clip: ClipBackbone, domain: Domain, tmp_path: Path) -> None:
    assert isinstance(domain.rows, ArrayRows)
    rows, watched = Counting(domain.rows), Watched(clip)
    first = FeatureStore(tmp_path).encode(watched, Domain("bright", rows))
    assert (rows.decoded, watched.batches) == (36, 9)
    again = FeatureStore(tmp_path)
    assert torch.equal(again.encode(watched, Domain("bright", rows)), first)
    assert (rows.decoded, watched.batches, again.num_encoded) == (36, 9, 0)


def test_an_extraction_that_was_killed_goes_on_to_the_same_bits(
    clip: ClipBackbone, domain: Domain, tmp_path: Path
) -> None:
    """Killed before its sixth batch of nine: two shards of eight images are stored, the third is half done."""
    whole = FeatureStore(tmp_path / "whole").encode(clip, domain)
    store = FeatureStore(tmp_path / "killed")

    def work() -> None:
        FeatureStore(store.folder).encode(Watched(clip, 5, lambda: os.kill(os.getpid(), signal.SIGKILL)), domain)

    assert in_another_process(work) == -signal.SIGKILL
    assert torch.equal(store.encode(clip, domain), whole)
    assert store.num_encoded == 36 - 16


def test_two_processes_share_the_work_of_one(clip: ClipBackbone, domain: Domain, tmp_path: Path) -> None:
    """The second waits for the first, which is why each image is encoded once."""
    begun, counts = fork.Event(), fork.Queue()

    def work(first: bool) -> None:
        store = FeatureStore(tmp_path)
        if not first:
            begun.wait(30)
        found = store.encode(Watched(clip, 2, begun.set) if first else clip, domain)
        counts.put((store.num_encoded, found.sum().item()))

    processes = [fork.Process(target=work, args=(first,)) for first in (True, False)]
    for process in processes:
        process.start()
    answers = [counts.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    assert sorted(count for count, _ in answers) == [0, 36]
    assert answers[0][1] == answers[1][1]


def test_without_locks_work_is_done_twice_and_kept_once(
    clip: ClipBackbone, domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system without locks, and another process that makes everything while this one is at its third batch."""

    def no_locks(*_: object) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr("fcntl.flock", no_locks)
    whole = FeatureStore(tmp_path / "whole").encode(clip, domain)
    other = FeatureStore(tmp_path / "shared")
    slow = Watched(clip, 2, lambda: assert_equal(other.encode(clip, domain), whole))
    mine = FeatureStore(tmp_path / "shared")
    assert torch.equal(mine.encode(slow, domain), whole)
    assert other.num_encoded == 36 - 8  # one shard stood there already
    again = FeatureStore(tmp_path / "shared")
    assert torch.equal(again.encode(clip, domain), whole)
    assert again.num_encoded == 0


def assert_equal(one: Tensor, other: Tensor) -> None:
    assert torch.equal(one, other)


@pytest.mark.parametrize("damage", ["a bit", "cut", "no manifest", "a cut manifest"])
def test_what_the_disk_lost_is_encoded_again_and_nothing_else(
    damage: str, clip: ClipBackbone, domain: Domain, tmp_path: Path
) -> None:
    whole = FeatureStore(tmp_path).encode(clip, domain).clone()
    [array] = tmp_path.glob("*/array")
    manifest = array.with_name("manifest.json")
    content = bytearray(array.read_bytes())
    if damage == "a bit":
        content[9 * 4 * 64] ^= 1  # of row 9, in the second shard
        array.write_bytes(content)
    elif damage == "cut":
        array.write_bytes(content[:-1])
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_bytes(manifest.read_bytes()[:-9])
    store = FeatureStore(tmp_path)
    assert torch.equal(store.encode(clip, domain), whole)
    assert store.num_encoded == (8 if damage == "a bit" else 36)
    assert sharded_array.is_sound(array.parent)


def test_a_part_that_rotted_before_the_array_was_whole_is_made_again(
    clip: ClipBackbone, domain: Domain, tmp_path: Path
) -> None:
    whole = FeatureStore(tmp_path / "whole").encode(clip, domain)

    def stop() -> None:
        raise DataError("enough")

    with pytest.raises(DataError, match="enough"):
        FeatureStore(tmp_path / "part").encode(Watched(clip, 5, stop), domain)
    part = next((tmp_path / "part").glob("*/part-00001"))
    content = bytearray(part.read_bytes())
    content[100] ^= 1
    part.write_bytes(content)
    store = FeatureStore(tmp_path / "part")
    assert torch.equal(store.encode(clip, domain), whole)
    assert store.num_encoded == 36 - 8


def test_a_part_that_cannot_be_read_is_one_sentence(clip: ClipBackbone, domain: Domain, tmp_path: Path) -> None:
    FeatureStore(tmp_path).encode(clip, domain)
    [array] = tmp_path.iterdir()
    (array / "manifest.json").unlink()
    (array / "part-00001").mkdir()
    with pytest.raises(StorageError, match=r"cannot read .*part-00001: Is a directory"):
        FeatureStore(tmp_path).encode(clip, domain)


def test_writing_into_features_changes_nobody_elses(clip: ClipBackbone, domain: Domain, tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    first = store.encode(clip, domain)
    kept = first.clone()
    first.zero_()
    assert torch.equal(store.encode(clip, domain), kept)
    assert torch.equal(FeatureStore(tmp_path).encode(clip, domain), kept)


@dataclass
class Unhashable(ArrayRows):
    """A user's own rows, which Python will not hash."""

    array: np.ndarray
    labels: np.ndarray  # type: ignore[assignment]
    ids: tuple[str, ...]


def test_the_name_changes_with_all_that_can_change_a_feature(
    clip: ClipBackbone, domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = domain.rows
    assert isinstance(rows, ArrayRows)

    class Other(Watched):
        precision = "bf16"

    def like(**changes: Any) -> Watched:
        other = Watched(clip)
        for name, value in changes.items():
            setattr(other, name, value)
        return other

    def with_images(array: np.ndarray) -> str:
        return feature_store.key(
            clip, Domain("bright", ArrayRows(array, rows.labels[: len(array)], rows.ids[: len(array)]))
        )

    other_pixel = rows.array.copy()
    other_pixel[7, 3, 3, 0] ^= 1
    spec: Preprocessing = clip.preprocessing
    names = [
        feature_store.key(clip, domain),
        feature_store.key(like(weights=replace(clip.weights, fingerprint="f" * 64)), domain),
        feature_store.key(like(preprocessing=replace(spec, crop_fraction=0.9)), domain),
        feature_store.key(like(precision="bf16"), domain),
        feature_store.key(like(compiled=True), domain),
        with_images(other_pixel),
        with_images(rows.array[::-1].copy()),
        with_images(rows.array[:35].copy()),
    ]
    for name, value in (("clipdg.data.decode.POLICY", "0"), ("clipdg.runs.feature_store.SCHEMA", 0)):
        with monkeypatch.context() as patch:
            patch.setattr(name, value)
            names.append(feature_store.key(clip, domain))
    for name in ("torch.backends.cpu.get_cpu_capability", "PIL.features.version", "clipdg.weights.files.version"):
        with monkeypatch.context() as patch:
            patch.setattr(name, lambda *_: "other")
            names.append(feature_store.key(clip, domain))
    with monkeypatch.context() as patch:
        patch.setitem(feature_store.BATCH_SIZE, "cpu", 8)
        names.append(feature_store.key(clip, domain))
    assert len(set(names)) == len(names)
    same = Unhashable(rows.array.copy(), rows.labels, rows.ids)
    assert feature_store.key(clip, Domain("else", same)) == names[0]


def test_a_library_belongs_to_the_name_of_its_own_family_only(
    clip: ClipBackbone, domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Watched(clip)
    other.weights = replace(clip.weights, backbone="timm:resnet50")  # type: ignore[assignment]
    before = feature_store.key(clip, domain), feature_store.key(other, domain)
    known = files.version
    monkeypatch.setattr("clipdg.weights.files.version", lambda name: "9" if name == "timm" else known(name))
    assert feature_store.key(clip, domain) == before[0]
    assert feature_store.key(other, domain) != before[1]


def in_folder(place: Path) -> TableRows:
    table = open_table(place)
    return TableRows(table, range(len(table)), np.zeros(len(table), dtype=np.int64), table.column("path"))


def test_an_image_that_cannot_be_read_is_named_and_what_was_made_is_kept(
    clip: ClipBackbone, tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    for i in range(12):
        (tmp_path / f"{i:02}.jpg").write_bytes(jpeg((20 * i, 90, 90))[: 300 if i == 9 else None])
    store = FeatureStore(tmp_path / "store")
    with pytest.raises(DataError, match=r"photo: image 9 \(.*09\.jpg\)"):
        store.encode(clip, Domain("photo", in_folder(tmp_path)))
    assert len(list((tmp_path / "store").glob("*/part-*"))) == 1
    (tmp_path / "09.jpg").write_bytes(jpeg((1, 2, 3)))
    assert store.encode(clip, Domain("photo", in_folder(tmp_path))).shape == (12, 64)


def test_a_feature_that_is_not_finite_is_refused_with_its_image(
    clip: ClipBackbone, domain: Domain, tmp_path: Path
) -> None:
    class Broken(Watched):
        def encode_image(self, inputs: Tensor) -> Tensor:
            found = super().encode_image(inputs)
            found[1, 2] = torch.nan if self.batches == 3 else found[1, 2]
            return found

    with pytest.raises(DivergedError, match=r"bright image 9 \(bright/9\) is not finite"):
        FeatureStore(tmp_path).encode(Broken(clip), domain)
    assert not list(tmp_path.glob("*/part-00001"))


def test_a_store_that_cannot_be_written_is_one_sentence(clip: ClipBackbone, domain: Domain, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        FeatureStore(tmp_path / "file").encode(clip, domain)


def test_progress_begins_where_the_last_extraction_ended(clip: ClipBackbone, domain: Domain, tmp_path: Path) -> None:
    def stop() -> None:
        raise DataError("enough")

    with pytest.raises(DataError):
        FeatureStore(tmp_path).encode(Watched(clip, 5, stop), domain)
    calls: list[tuple[str, int, int]] = []
    FeatureStore(tmp_path).encode(clip, domain, lambda *call: calls.append(call))
    assert calls == [("encode bright", done, 36) for done in (16, 20, 24, 28, 32, 36)]


def test_a_domain_without_images_has_no_features(clip: ClipBackbone, tmp_path: Path) -> None:
    none = ArrayRows(np.empty((0, 32, 32, 3), dtype=np.uint8), np.empty(0), ())
    assert FeatureStore(tmp_path).encode(clip, Domain("none", none)).shape == (0, 64)


@pytest.mark.skipif(not precision_.cpu_has_bf16(), reason="this CPU has no bf16 arithmetic")
def test_bf16_features_are_stored_beside_those_of_fp32(domain: Domain, tmp_path: Path) -> None:
    from dataclasses import replace

    from clipdg.runs.config import BackboneSettings
    from clipdg.runs.session import open_backbone

    settings = BackboneSettings("tiny", "random:0")
    store = FeatureStore(tmp_path)
    exact, rounded = (
        store.encode(open_backbone(replace(settings, precision=precision)), domain) for precision in ("fp32", "bf16")
    )
    assert store.num_encoded == 72
    assert rounded.dtype == torch.float32
    assert torch.cosine_similarity(exact, rounded).min() > 0.999
    assert not torch.equal(exact, rounded)


@pytest.mark.skipif(not precision_.cpu_has_bf16(), reason="this CPU has no bf16 arithmetic")
def test_bf16_is_that_of_the_weights_and_never_autocasts(
    clip: ClipBackbone, domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under autocast, frozen weights are cast anew for each batch: measured 2.4 to 2.7 times slower on a CPU."""
    seen: set[tuple[torch.dtype, torch.dtype, bool]] = set()
    linear = nn.functional.linear

    def watched(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        seen.add((inputs.dtype, weight.dtype, torch.is_autocast_enabled("cpu")))
        return linear(inputs, weight, bias)

    backbone = precision_.place(copy.deepcopy(clip), "bf16", "cpu")
    monkeypatch.setattr(nn.functional, "linear", watched)
    FeatureStore(tmp_path).encode(backbone, domain)
    assert seen == {(torch.bfloat16, torch.bfloat16, False)}


@pytest.mark.gpu
def test_a_gpus_features_are_a_cpus(clip: ClipBackbone, domain: Domain, tmp_path: Path) -> None:
    assert isinstance(clip, nn.Module)
    store = FeatureStore(tmp_path)
    found = store.encode(copy.deepcopy(clip).cuda(), domain)
    with torch.inference_mode():
        expected = clip.encode_image(torch.stack([clip.preprocess(domain.rows.image(i)) for i in range(36)]))
    assert (found.device.type, store.num_encoded) == ("cpu", 36)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.gpu
def test_a_gpu_goes_on_where_it_was_interrupted_to_the_same_bits(
    clip: ClipBackbone, domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(feature_store.BATCH_SIZE, "cuda", 4)
    assert isinstance(clip, nn.Module)
    moved = copy.deepcopy(clip).cuda()
    assert isinstance(moved, ClipBackbone)
    whole = FeatureStore(tmp_path / "whole").encode(moved, domain)

    def stop() -> None:
        raise DataError("enough")

    store = FeatureStore(tmp_path / "part", 1)
    with pytest.raises(DataError, match="enough"):
        store.encode(Watched(moved, 5, stop), domain)
    assert torch.equal(store.encode(moved, domain), whole)
    assert store.num_encoded == 36 - 16


SEVERAL = """
import sys
import clipdg
import numpy as np
from pathlib import Path
from clipdg.core.benchmark import Domain
from clipdg.core.errors import DataError
from clipdg.data.rows import ArrayRows, TableRows, open_table
from clipdg.runs import feature_store

def encode(root, devices):
    array = np.random.default_rng(0).integers(0, 255, (700, 32, 32, 3)).astype(np.uint8)
    rows = ArrayRows(array, np.zeros(700, dtype=np.int64), [str(i) for i in range(700)])
    store = feature_store.FeatureStore(root / f"store-{devices}", devices)
    feature_store.BATCH_SIZE["cpu"], feature_store.BATCHES_PER_SHARD = 32, 4  # cut in this process
    told = []
    tell = lambda *step: told.append(step)
    found = store.encode(clipdg.load_backbone("tiny", "random:0"), Domain("noise", rows), tell).numpy()
    assert store.num_encoded == 700
    assert told[0] == ("encode noise", 0, 700)
    assert len(told) > 1
    files = TableRows(open_table(root / "files"), [0] * 200, np.zeros(200, dtype=np.int64), ["no.jpg"] * 200)
    try:
        store.encode(clipdg.load_backbone("tiny", "random:0"), Domain("broken", files))
    except DataError as error:
        return found, str(error)

if __name__ == "__main__":
    found, said = encode(Path(sys.argv[1]), 2)
    np.save(Path(sys.argv[1]) / "2.npy", found)
    print(said)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)  # five processes that each import torch and Lightning
def test_two_processes_with_gloo_store_the_same_bits_as_one(tmp_path: Path, jpeg: Callable[..., bytes]) -> None:
    (tmp_path / "several.py").write_text(SEVERAL)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "no.jpg").write_bytes(jpeg((1, 2, 3))[:300])
    alone: dict[str, Any] = {"__name__": "several"}
    exec(SEVERAL, alone)
    one, sentence = alone["encode"](tmp_path, 1)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # as many threads as here
    call = [sys.executable, tmp_path / "several.py", tmp_path]
    ended = subprocess.run(call, check=True, capture_output=True, text=True, env=environment)
    said = ended.stdout
    assert "lightning" not in ended.stderr.lower()  # its advice is not for people who encode images
    two = np.load(tmp_path / "2.npy")
    assert one.shape == (700, 64)
    assert np.array_equal(one, two)
    assert sentence.startswith("broken: image 0 (")
    other = said.strip().splitlines()[-1]  # of the process that was first to find the file broken
    assert other.replace("image 128 (", "image 0 (") == sentence


def test_fast_pixels_have_features_and_records_of_their_own(clip: ClipBackbone, domain: Domain) -> None:
    from clipdg.runs import config
    from clipdg.runs.session import open_backbone

    keys, identities = [], []
    weights = clip.weights.fingerprint
    for override in ([], ["backbone.pixels=exact"], ["backbone.pixels=fast"]):
        resolved = config.load(overrides=["backbone=tiny", "backbone.weights=random:0", *override])
        backbone = open_backbone(resolved.backbone)
        keys.append(feature_store.key(backbone, domain))
        identities.append(resolved.identity())
        assert backbone.weights.fingerprint == weights
    assert keys[0] == keys[1] != keys[2]
    assert identities[0] == identities[1] != identities[2]
    assert "backbone.pixels" not in identities[0]  # records that were made before the setting keep their names
