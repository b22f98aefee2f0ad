"""The feature store: each image is encoded once per (weights, preprocessing, decode policy, precision).

A stored array is found by one name only, a hash of everything that can change it, and its bytes are checked when it is
opened. It is made shard by shard (storage/sharded_array.py): a killed extraction goes on where it was, to the same
bits, because the batches are cut at fixed rows and the last one is filled up. Labels are no part of it: other labels
for the same images need no new features.

Two things can change the last digits of a feature and are not in its name, for then moving to a cluster would encode
everything again: the number of CPU threads, and the model of a CPU within its instruction set. What was stored first
is what every later run reads.

Legend: N images, D features, S pixels a side.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from weakref import ReferenceType, ref

import lightning
import numpy as np
import PIL.features
import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessRaisedException

from clipdg.core import errors
from clipdg.core.benchmark import Domain, Rows
from clipdg.core.errors import DivergedError
from clipdg.core.model import Backbone
from clipdg.core.progress import Progress
from clipdg.data import datasets, decode, loaders, preprocessing
from clipdg.data.augmentation import View
from clipdg.data.rows.joined import JoinedRows
from clipdg.storage import cache_folder
from clipdg.storage.publish import digest
from clipdg.storage.sharded_array import StoredArray
from clipdg.training import trainer
from clipdg.weights.files import libraries

SCHEMA = 3
# Fixed, with the last batch filled up: features depend on the batch's shape in their last digits.
BATCH_SIZE = {"cpu": 32, "cuda": 256}
LOOK_EVERY = 1.0  # seconds between looks at what several processes have stored
BATCHES_PER_SHARD = 16  # about a minute of a ViT-B/32 on one core: what a kill can cost

_digests: dict[int, tuple[ReferenceType[Rows], str]] = {}  # by id, since rows of one's own need not be hashable


def device_of_runs() -> str:
    """Where features are made: on the accelerator, if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def key(backbone: Backbone, domain: Domain, view: View | None = None) -> str:
    """The name of a domain's features, or of a view of its images: SHA-256 over all that can change them."""
    return digest(_story(backbone, domain, view))


def _story(backbone: Backbone, domain: Domain, view: View | None) -> dict[str, object]:
    device = device_of_runs()
    story: dict[str, object] = {
        "schema": SCHEMA,
        "weights": backbone.weights.fingerprint,  # of the tensors' bytes, the architecture and the preprocessing
        "preprocessing": asdict(
            datasets.preprocessing_for(domain, backbone.preprocessing)
        ),  # again, for it may be another than the weights' own
        "decode": decode.POLICY,
        "decoders": {name: PIL.features.version(name) for name in ("pil", "libjpeg_turbo", "zlib", "webp", "libtiff")},
        "images": _digest(domain.rows),
        "num_images": len(domain.rows),
        "precision": getattr(backbone, "precision", "fp32"),  # of precision.Placed
        "compiled": getattr(backbone, "compiled", False),
        "batch": BATCH_SIZE[device],
        "device": _device_class(device),
        "libraries": libraries(backbone.weights),
    }
    if hasattr(backbone, "point"):  # of precision.Penultimate
        story["point"] = backbone.point
    if view is not None:
        story["view"] = view.story(backbone.preprocessing)
    return story


def _digest(rows: Rows) -> str:
    """SHA-256 over the images' digests in order, computed once for each rows."""
    known = _digests.get(id(rows))
    if known is None or known[0]() is not rows:
        known = _digests[id(rows)] = ref(rows), digest(list(rows.digests()))
    return known[1]


def _device_class(device: str) -> list[str | bool]:
    """What computes, as far as it decides on the arithmetic."""
    if device == "cpu":
        return ["cpu", torch.backends.cpu.get_cpu_capability()]
    name = torch.cuda.get_device_name()
    return [name, torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32]


class FeatureStore:
    """Features on disk under ``folder``; ``num_encoded`` counts the images that really went through an encoder here.

    ``devices``: how many GPUs, or processes on CPUs, share the work; each shard is made by exactly one of them. None
    for all GPUs there are, or one process. The features do not depend on it.
    """

    def __init__(self, folder: Path | None = None, devices: int | None = None) -> None:
        self.folder = folder or cache_folder.folder("features")
        self.devices = devices or max(1, torch.cuda.device_count())
        self.num_encoded = 0

    def encode(
        self,
        backbone: Backbone,
        domain: Domain,
        progress: Progress | None = None,
        *,
        view: View | None = None,
        workers: int | None = None,
    ) -> Tensor:
        """Features (N, D) in fp32 on the CPU, aligned with the domain's rows; not of unit length.

        They are mapped from the file and not copied; writing into them changes this tensor only. ``view``: of
        a random view of each image in its place. ``workers``: processes that read images ahead, see ``data.loader``.

        Raises DataError naming an image that cannot be read, DivergedError if a feature is not finite, StorageError if
        the store cannot be written.
        """
        if not len(domain.rows):
            return torch.empty(0, backbone.embed_dim)
        if isinstance(domain.rows, JoinedRows):  # each part is stored by itself, since runs share some
            parts = [replace(domain, rows=part) for part in domain.rows.parts]
            return torch.cat([self.encode(backbone, part, progress, view=view, workers=workers) for part in parts])
        story = _story(backbone, domain, view)
        if view is not None:
            domain = replace(domain, name=f"{domain.name}, view {view.number + 1}")
        batch = BATCH_SIZE[device_of_runs()]
        about = {**story, "domain": domain.name, "backbone": backbone.weights.backbone, "tag": backbone.weights.tag}
        shards = StoredArray(
            self.folder / digest(story), len(domain.rows), backbone.embed_dim, batch * BATCHES_PER_SHARD, about
        )
        array = shards.open()
        if array is None:
            array = self._make(shards, backbone, domain, view, progress, workers)
        return torch.from_numpy(array)

    def _make(
        self,
        shards: StoredArray,
        backbone: Backbone,
        domain: Domain,
        view: View | None,
        progress: Progress | None,
        workers: int | None,
    ) -> np.ndarray:
        def waiting(done: int) -> None:
            if progress:
                progress(f"encode {domain.name} (by another process)", done, shards.num_rows)

        with shards.lease(waiting):
            while (array := shards.open()) is None:
                shards.begin()
                missing = shards.missing()
                if missing:
                    self._encode(shards, missing, backbone, domain, view, progress, workers)
                    self.num_encoded += sum(len(shards.ranges[i]) for i in missing)
                shards.join()
        return array

    def _encode(
        self,
        shards: StoredArray,
        missing: list[int],
        backbone: Backbone,
        domain: Domain,
        view: View | None,
        progress: Progress | None,
        workers: int | None,
    ) -> None:
        several = min(self.devices, len(missing))
        # Processes are started anew and not forked: neither CUDA nor OpenMP threads outlive a fork.
        strategy = "ddp_spawn" if several > 1 else "auto"
        one, all_ = (None, progress) if several > 1 else (progress, None)  # who tells how far it is
        extraction = _Extraction(shards, missing, backbone, domain, view, one, workers)
        with trainer.quiet(), _errors_of_processes(), _told_of_parts(shards, domain, all_):
            predicting = trainer.make(
                "encode", devices=several, strategy=strategy, use_distributed_sampler=False, inference_mode=True
            )
            predicting.predict(extraction, return_predictions=False)


class _Extraction(lightning.LightningModule):
    """Encodes the missing shards, each process every so many-th of them, and stores each when it is whole."""

    def __init__(
        self,
        shards: StoredArray,
        missing: Sequence[int],
        backbone: Backbone,
        domain: Domain,
        view: View | None,
        progress: Progress | None,
        workers: int | None,
    ) -> None:
        super().__init__()
        # In a tuple it is no part of this module: Lightning leaves what it has used on the CPU.
        self._backbone = (backbone,)
        self.shards, self.missing, self.domain = shards, list(missing), domain
        self.view, self.progress, self.workers = view, progress, workers
        self.batch_size = shards.size // BATCHES_PER_SHARD
        self.done = shards.num_rows - sum(len(shards.ranges[i]) for i in missing)
        self._mine: list[int] = []
        self._features: list[Tensor] = []

    def setup(self, stage: str) -> None:
        if self.trainer.world_size > 1:  # a process of its own, begun outside of the parent's trainer.quiet
            trainer.hush()

    def predict_dataloader(self) -> loaders.Loader:
        self._mine = self.missing[self.trainer.global_rank :: self.trainer.world_size]
        rows = [row for index in self._mine for row in self.shards.ranges[index]]
        spec = datasets.preprocessing_for(self.domain, self._backbone[0].preprocessing)
        dataset = datasets.ImageDataset(self.domain.rows, rows, spec, 0, name=self.domain.name, view=self.view)
        workers = self.workers
        if workers is None:
            workers = loaders.useful_workers(len(rows), sharing=self.trainer.world_size)
        return loaders.loader(dataset, self.batch_size, workers=workers)

    def on_predict_start(self) -> None:
        [backbone] = self._backbone
        assert isinstance(backbone, nn.Module)
        backbone.to(self.device).eval()
        if self.progress:
            self.progress(f"encode {self.domain.name}", self.done, self.shards.num_rows)

    def predict_step(self, batch: Any, batch_idx: int) -> None:
        [backbone] = self._backbone
        inputs = preprocessing.normalize(batch.inputs, backbone.preprocessing)
        count = len(inputs)
        if count < self.batch_size:
            inputs = torch.cat([inputs, inputs[:1].expand(self.batch_size - count, -1, -1, -1)])
        self._features.append(backbone.encode_image(inputs)[:count].float())
        self.done += count
        if sum(map(len, self._features)) == len(self.shards.ranges[self._mine[0]]):
            self._store(self._mine.pop(0))
        if self.progress:
            self.progress(f"encode {self.domain.name}", self.done, self.shards.num_rows)

    def _store(self, index: int) -> None:
        features = torch.cat(self._features).cpu()  # one wait for the GPU a shard
        self._features.clear()
        if not torch.isfinite(features).all():
            place = int((~torch.isfinite(features)).any(dim=1).nonzero()[0])
            row = self.shards.ranges[index][place]
            raise DivergedError(
                f"the feature of {self.domain.name} image {row} ({self.domain.rows.ids[row]}) is not finite"
            )
        self.shards.write(index, features.numpy())


@contextmanager
def _told_of_parts(shards: StoredArray, domain: Domain, progress: Progress | None) -> Iterator[None]:
    """While several processes encode: what they have stored so far is told, by a thread that looks for it."""
    if progress is None:
        yield
        return
    over = threading.Event()

    def look() -> None:
        while not over.wait(LOOK_EVERY):
            progress(f"encode {domain.name}", shards.num_stored(), shards.num_rows)

    progress(f"encode {domain.name}", shards.num_stored(), shards.num_rows)
    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        yield
    finally:
        over.set()
        looking.join()


@contextmanager
def _errors_of_processes() -> Iterator[None]:
    """An error of ours that ended one of several processes arrives as its traceback; raise it as itself again."""
    try:
        yield
    except ProcessRaisedException as error:
        kind, _, message = str(error).strip().rpartition("clipdg.core.errors.")[2].partition(": ")
        found = getattr(errors, kind, None)
        if isinstance(found, type) and issubclass(found, errors.ClipdgError):
            raise found(message) from error
        raise
