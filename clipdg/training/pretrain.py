"""Contrastive pre-training on image-text pairs: the symmetric cross-entropy over the batch (ITC loss).

Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021, arXiv:2103.00020, section
2.3: each image is to find its text among the batch's and each text its image; the temperature is learnt as a logarithm
and keeps the logits' scale below 100; AdamW without decay on gains and biases; linear warm-up, then a cosine.

The defaults are the recipe of ``tiny``. Pairs come from the built-in web mix, a folder, a Hugging Face dataset or
webdataset shards. On one machine, with one number of threads, the same settings give the same weights.

Legend: N images of this process, B of all processes, D features, L tokens, S pixels a side.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, cast, runtime_checkable

import lightning
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from clipdg.core import plugins
from clipdg.core.errors import ConfigError, DataError, DivergedError
from clipdg.core.model import Backbone, ClipBackbone
from clipdg.core.progress import Progress
from clipdg.core.versions import version
from clipdg.data.captioned_images import ImageTextPairs, Source, from_datasets, from_folder, from_webdataset
from clipdg.data.preprocessing import augment_light, normalize
from clipdg.storage.publish import digest, publish
from clipdg.training.schedules import decay_groups, warmup_cosine
from clipdg.training.trainer import make, quiet
from clipdg.weights.files import fingerprint, frozen, pack

MAX_SCALE = 100.0


@dataclass
class PretrainConfig:
    """What decides the weights. ``data``: miniatures (the web mix), folder, datasets or webdataset, the last three at
    ``root``: a folder, the id of a dataset on the hub, or a .tar file. ``weights``: where training starts; None is
    a fresh ``tiny``, for another family its default weights. ``size``: pixels a side, for a fresh ``tiny`` only.
    """

    data: str = "miniatures"
    root: str | None = None
    num_pairs: int = field(default=13_500, metadata={"min": 2})  # of the web mix; elsewhere all there are
    styles: dict[str, float] | None = None  # the web mix's shares; {photo: 1} is the photo-only control
    backbone: str = "tiny"
    weights: str | None = None
    size: int = field(default=32, metadata={"min": 8})
    seed: int = field(default=0, metadata={"min": 0, "max": 2**31 - 1})
    epochs: int = field(default=10, metadata={"min": 1})
    batch_size: int = field(default=96, metadata={"min": 2})
    lr: float = field(default=3e-3, metadata={"min": 0.0})
    weight_decay: float = field(default=0.05, metadata={"min": 0.0})
    beta1: float = field(default=0.9, metadata={"min": 0.0, "max": 1.0})
    beta2: float = field(default=0.98, metadata={"min": 0.0, "max": 1.0})  # CLIP's for ViTs
    warmup: float = field(default=0.05, metadata={"min": 0.0, "max": 1.0})  # share of the steps
    augment: Literal["light", "none"] = "light"
    name: str | None = None  # of the file; None: the backbone and the seed


@runtime_checkable
class Trainable(ClipBackbone, Protocol):
    """A CLIP backbone that can be trained and stored."""

    @property
    def log_scale(self) -> nn.Parameter:
        """What training learns; ``logit_scale`` is its exponential."""

    @property
    def architecture(self) -> Mapping[str, Any]:
        """What, beside the tensors and the preprocessing, makes this function."""

    def tensors(self) -> dict[str, Tensor]:
        """What a file of these weights holds."""


class _Gather(torch.autograd.Function):
    """All processes' features in the order of their ranks, with gradients back to where they came from."""

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        ctx.num = len(features)
        parts = [torch.empty_like(features) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, features.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Every process's loss depends on these features, so their gradients add up.
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total[dist.get_rank() * ctx.num :][: ctx.num]


def gather(features: Tensor) -> Tensor:
    """(N, D) of each process -> (B, D) on all of them; ``features`` itself where there is one process."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return features
    gathered: Tensor = _Gather.apply(features)  # type: ignore[no-untyped-call]  # torch has no hints for apply
    return gathered


def itc_loss(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """(N, D) features of N pairs -> the mean over images and over texts of the cross-entropy among all B.

    Each process scores its own N rows against all B columns. Averaged over processes, as DistributedDataParallel
    averages gradients, this is the loss of the joined batch; all processes must have the same N.
    """
    image, text = F.normalize(image, dim=1), F.normalize(text, dim=1)
    all_image, all_text = gather(image), gather(text)
    first = dist.get_rank() * len(image) if len(all_image) > len(image) else 0
    own = torch.arange(first, first + len(image), device=image.device)
    per_image = scale * image @ all_text.T  # (N, B)
    per_text = scale * text @ all_image.T  # (N, B)
    return (F.cross_entropy(per_image, own) + F.cross_entropy(per_text, own)) / 2


class ContrastivePretraining(lightning.LightningModule):
    """Trains every parameter of a CLIP backbone on batches of (images (N, 3, S, S), tokens (N, L)).

    uint8 images are augmented and normalised here, on the device; images of another type are taken as they are.
    """

    def __init__(
        self,
        backbone: Backbone,
        lr: float = 3e-3,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.98),
        warmup: float = 0.05,
        augment: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(backbone, Trainable) or not isinstance(backbone, nn.Module):
            raise ConfigError(f"{backbone.name} cannot be pre-trained on texts: it is not a CLIP with both encoders")
        self.backbone = backbone
        self.backbone.requires_grad_(True).train()
        self.lr, self.weight_decay, self.betas, self.warmup = lr, weight_decay, betas, warmup
        self.augment, self.seed = augment, seed
        self.loss = math.nan  # of the step before
        self._generator: torch.Generator | None = None

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """-> the ITC loss of these pairs."""
        backbone = self.backbone
        scale = backbone.log_scale.clamp(max=math.log(MAX_SCALE)).exp()
        return itc_loss(backbone.encode_image(images), backbone.encode_text(tokens), scale)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images, tokens = batch
        loss = self(self.prepare(images), tokens)
        self.loss = loss.item()
        if not math.isfinite(self.loss):
            raise DivergedError(
                f"the loss is {self.loss} at step {self.global_step}: pre-training diverged; lower lr ({self.lr:g})"
            )
        return cast(Tensor, loss)

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 -> augmented and normalised."""
        if images.dtype != torch.uint8:
            return images
        if self.augment:
            images = augment_light(images, self.generator)
        return normalize(images, self.backbone.preprocessing)

    @property
    def generator(self) -> torch.Generator:
        """Of the augmentation: another one in each process."""
        if self._generator is None:
            self._generator = generator(self.seed, 1, dist.get_rank() if dist.is_initialized() else 0)
        return self._generator

    def on_train_batch_end(self, *_: Any) -> None:
        with torch.no_grad():
            self.backbone.log_scale.clamp_(max=math.log(MAX_SCALE))

    def configure_optimizers(self) -> Any:
        groups = decay_groups(list(self.parameters()), self.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, fused=True)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(step, steps, int(self.warmup * steps))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def generator(*words: int) -> torch.Generator:
    """A CPU generator for these numbers (seed, purpose, ...)."""
    state = np.random.SeedSequence(words).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def open_source(config: PretrainConfig, size: int, progress: Progress | None = None) -> Source:
    """The pairs that a configuration names. Raises ConfigError or DataError naming what is missing."""
    if config.data == "miniatures":
        from clipdg.benchmarks.miniatures import web

        drawn = (lambda done, total: progress("drawing the pairs", done, total)) if progress else None
        pixels, captions = web(config.seed, config.num_pairs, size, config.styles, drawn)
        return Source(captions, pixels=pixels)
    if config.styles is not None:
        raise ConfigError(f"styles are shares of the built-in web mix, which data={config.data} is not")
    openers = {"folder": from_folder, "datasets": from_datasets, "webdataset": from_webdataset}
    if config.data not in openers:
        known = ["miniatures", *openers]
        raise ConfigError(
            f"no pairs '{config.data}'.{plugins.nearest(config.data, known)} There are: {', '.join(known)}."
        )
    if config.root is None:
        raise ConfigError(f"data={config.data} needs root=…, the place where the images and their captions lie")
    source = openers[config.data](config.root)
    if not source.captions:
        raise DataError(f"{config.root} has no images with captions")
    return source


class Batches:
    """Batches of (uint8 images, tokens), shuffled anew each epoch; the last, smaller one is left out.

    A batch has ``batch_size`` pairs over all processes; each takes every ``world``-th of them.
    """

    def __init__(self, pairs: ImageTextPairs, tokens: Tensor, batch_size: int, seed: int) -> None:
        self.pairs, self.tokens, self.batch_size, self.seed = pairs, tokens, batch_size, seed
        self.epoch = 0
        if len(pairs) < batch_size:
            raise ConfigError(f"batch_size={batch_size} is more than the {len(pairs)} pairs that there are")

    def __len__(self) -> int:
        return len(self.pairs) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.pairs), generator=generator(self.seed, 0, self.epoch))
        self.epoch += 1
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if self.batch_size % world:
            raise ConfigError(f"batch_size={self.batch_size} cannot be split evenly over {world} processes")
        for batch in order[: len(self) * self.batch_size].view(-1, self.batch_size):
            own = batch[rank::world]
            yield self.pairs.images(own), self.tokens[own]


# ---- one pre-training, top to bottom ----


def pretrain(config: PretrainConfig, out: Path, progress: Progress | None = None) -> Path:
    """Train and write ``out/<name>.safetensors``, which ``weights=PATH`` loads; the path is returned.

    Raises DivergedError if a loss or a weight is not finite. Nothing is written before the end.
    """
    path = out / f"{file_name(config)}.safetensors"
    family, _, model = config.backbone.partition(":")
    plugin = plugins.backbone(family)
    initialise = plugin.initialise if config.weights is None else None
    if config.size != 32 and initialise is None:
        raise ConfigError(f"size={config.size} is for a fresh tiny; {config.backbone} has the size of its weights")
    if initialise is not None:
        source = open_source(config, config.size, progress)
        opened = initialise(model or None, config.seed, source.captions, config.size)
    else:
        opened = plugin.load(model or None, config.weights, plugin.config())
        source = open_source(config, opened.preprocessing.size, progress)
    start = "random" if opened.weights.random else opened.weights.fingerprint
    module = ContrastivePretraining(
        opened,
        config.lr,
        config.weight_decay,
        (config.beta1, config.beta2),
        config.warmup,
        config.augment == "light",
        config.seed,
    )
    backbone = module.backbone  # the same one, which can be trained and stored
    pairs = source.pairs(backbone.preprocessing)
    with torch.no_grad():
        tokens = backbone.tokenize(pairs.captions)
    fit(
        module,
        Batches(pairs, tokens, config.batch_size, config.seed),
        config.epochs,
        progress,
        exactly=family == "tiny",
    )

    frozen(backbone.cpu())
    tensors = backbone.tensors()
    broken = [name for name, t in tensors.items() if not torch.isfinite(t).all()]
    if broken:
        raise DivergedError(f"after pre-training {broken[0]} is not finite; lower lr ({config.lr:g})")
    header = {
        "architecture": backbone.architecture,
        "preprocessing": dataclasses.asdict(backbone.preprocessing),
        "provenance": {
            "command": command(config),
            "config": settings(config),
            "seed": config.seed,
            "recipe": recipe(config, start, pairs.digest),
            "loss": module.loss,
            "pairs": len(pairs),
            "data": pairs.digest,
            "start": start,
            "fingerprint": fingerprint(tensors, backbone.architecture, backbone.preprocessing),
            "threads": torch.get_num_threads(),
            "versions": {name: version(name) for name in ("torch", "lightning", "numpy")},
        },
    }
    publish(path, pack(tensors, header))
    return path


def fit(
    module: ContrastivePretraining,
    batches: Batches,
    epochs: int,
    progress: Progress | None = None,
    *,
    exactly: bool = False,
) -> None:
    """Train with a quiet Lightning trainer on one device.

    ``exactly``: on a GPU, an operation that is not deterministic raises; otherwise torch warns of it.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    # On the CPU all operations used are deterministic anyway.
    options: dict[str, Any] = {"deterministic": exactly or "warn"} if torch.cuda.is_available() else {}
    try:
        with quiet():
            make("pre-training", progress, max_epochs=epochs, **options).fit(module, train_dataloaders=batches)
    finally:
        torch.use_deterministic_algorithms(deterministic)


def settings(config: PretrainConfig) -> dict[str, Any]:
    """The configuration as plain values, without the folders of this machine."""
    values = dataclasses.asdict(config)
    for key in ("root", "weights"):
        place = values[key]
        if place is not None and Path(place).expanduser().exists():
            values[key] = Path(place).name
    return values


def command(config: PretrainConfig) -> str:
    """The command line for a configuration: what differs from the defaults, and the seed."""
    defaults = dataclasses.asdict(PretrainConfig())
    given = {k: v for k, v in settings(config).items() if v != defaults[k] or k == "seed"}
    return " ".join(["clipdg pretrain", *(f"{k}={v}" for k, v in given.items())])


def recipe(config: PretrainConfig, start: str, data: str) -> str:
    """A digest of all that two pre-trainings share which differ in the seed only."""
    free = ("seed", "name", "root", "weights")
    kept = {k: v for k, v in dataclasses.asdict(config).items() if k not in free}
    return digest([kept, start, None if config.data == "miniatures" else data])


def file_name(config: PretrainConfig) -> str:
    name = config.name or f"{re.sub('[^A-Za-z0-9_.-]+', '-', config.backbone)}-{config.seed}"
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", name):
        raise ConfigError(f"name '{name}': a file name of letters, digits, '_', '-' and '.' without folders")
    return name
