"""Precision and placement: one setting, resolved before any work, for where and in what numbers a backbone computes.

Half precision means half-precision *weights*. Autocast on a CPU was 2.4 to 2.7 times slower than that for frozen
weights under inference mode (PERFORMANCE.md, b). What stays fp32: features as they come out, batch norm, the logit
scale and bias (in bf16 a scale of 100 would be 98.9), and all that is learnt, which is cast at the border.

In fp32 a backbone is not wrapped. Its convolutions get channels_last weights, 1.3 to 1.6 times faster on a CPU, which
adds in another order: features agree with the library's to fp32's rounding; transformers are untouched, bit by bit.

Legend: N images, C classes, D features, L tokens, W token width, S pixels a side.
"""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from clipdg.core.errors import ConfigError
from clipdg.core.model import Backbone, ClipBackbone, Preprocessing, TextTower, Weights
from clipdg.core.text_transformer import Transformer

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve(precision: str, device: torch.device | str, *, training: bool = False) -> torch.dtype:
    """The type of a backbone's weights. ``training``: its weights are to be trained.

    Raises ConfigError naming the device that cannot compute in this precision.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"no precision '{precision}'; there are: {', '.join(PRECISIONS)}")
    device = torch.device(device)
    dtype = PRECISIONS[precision]
    if dtype == torch.float32:
        return dtype
    if training:
        raise ConfigError(
            f"precision={precision} is for frozen backbones: steps of training are lost in its rounding; use fp32"
        )
    if device.type == "cpu" and dtype == torch.float16:
        raise ConfigError("precision=fp16 is for GPUs, a CPU has no fast arithmetic for it; use fp32 or bf16")
    if device.type == "cpu" and not cpu_has_bf16():
        raise ConfigError(f"precision=bf16: {cpu_name()} has no bf16 arithmetic, fp32 is faster; use fp32")
    if device.type == "cuda" and dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(False):
        raise ConfigError(f"precision=bf16: {torch.cuda.get_device_name(device)} has none; use fp32 or fp16")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"precision={precision} is not tried on a device of type '{device.type}'; use fp32")
    return dtype


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 itself; with AVX-512 alone, oneDNN emulates it and is slower than in fp32."""
    if platform.machine().lower() in ("x86_64", "amd64", "x86"):
        return torch.cpu._is_avx512_bf16_supported()  # each CPU with AMX has it too
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def gain_of_bf16(turns: int = 3) -> float:
    """How many times as fast as in fp32 this CPU multiplies in bf16, measured in some tenths of a second.

    That a CPU has the instructions does not say that the library's use of them is faster: below 1 it is slower.
    """
    seconds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    for turn in range(turns + 1):
        for dtype, spent in seconds.items():
            rows, weight = torch.ones(800, 768, dtype=dtype), torch.ones(3072, 768, dtype=dtype)  # a ViT-B's, 16 images
            started = time.process_time()
            F.linear(rows, weight)
            if turn:  # the first one is not counted
                spent.append(time.process_time() - started)
    return min(seconds[torch.float32]) / min(seconds[torch.bfloat16])


def cpu_name() -> str:
    """As people call it: "AMD EPYC 9654"."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def place(
    backbone: Backbone,
    precision: str,
    device: torch.device | str,
    compile: bool = False,
    features: str = "projected",
) -> Backbone:
    """``backbone`` on ``device``, computing in ``precision``. It is moved and cast itself and not copied.

    ``compile``: ``encode_image`` through torch.compile, from its first batch on; it pays off on GPUs.
    ``features``: "penultimate" for the image tower before its projection, see ``Penultimate``.

    Raises ConfigError before anything is moved.
    """
    dtype = resolve(precision, device)
    if compile:
        _check_compiler(torch.device(device))
    if features == "penultimate":
        backbone = Penultimate(backbone)
    kind = PlacedClip if isinstance(backbone, ClipBackbone) else Placed
    _check_protocol(backbone)
    assert isinstance(backbone, nn.Module)
    backbone.to(device)
    if dtype != torch.float32:
        _cast(backbone, dtype)
    _channels_last(backbone)
    if dtype == torch.float32 and not compile:
        return backbone
    return kind(backbone, precision, compile)


class Penultimate(nn.Module):
    """A CLIP's image tower before its projection into the space shared with texts: a Backbone, but no CLIP.

    It is where the CLIP paper's linear probes of ViTs are fitted (Radford et al. 2021, appendix A.3). A CLIP's ResNet
    has no such place: its attention pooling ends in the shared space, and the paper takes that.
    """

    point = "penultimate"  # a part of the name of its stored features

    def __init__(self, backbone: Any) -> None:
        """Raises ConfigError if the tower has no projection that can be left out."""
        super().__init__()
        width = getattr(backbone, "penultimate_dim", None)
        if width is None:
            raise ConfigError(
                f"backbone.features=penultimate: {backbone.name} has no projection after its features; use projected"
            )
        self.backbone = backbone
        self.name = f"{backbone.name}'s penultimate layer"
        self.weights: Weights = backbone.weights
        self.preprocessing: Preprocessing = backbone.preprocessing
        self.embed_dim: int = width

    def preprocess(self, image: Image.Image) -> Tensor:
        """One RGB image -> (3, S, S), normalised."""
        return self.backbone.preprocess(image)  # type: ignore[no-any-return]

    def encode_image(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) normalised -> (N, D) with the tower's own D, not of unit length."""
        return self.backbone.encode_penultimate(images)  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> Tensor:
        return self.encode_image(images)


class Placed(nn.Module):
    """A backbone in half precision or compiled: fp32 goes in and comes out. What it has beside, it has here too."""

    def __init__(self, backbone: Any, precision: str, compile: bool = False) -> None:
        super().__init__()
        self.backbone, self.precision = backbone, precision
        self.name: str = backbone.name
        self.weights: Weights = backbone.weights  # as loaded, before they were rounded
        self.embed_dim: int = backbone.embed_dim
        self.preprocessing: Preprocessing = backbone.preprocessing
        self.compiled = compile
        self._image = _ImageTower(backbone)
        if compile:
            self._image.compile()

    def __getattr__(self, name: str) -> Any:
        """nn.Module keeps its parts out of ``__dict__``; what is not one of them is the backbone's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or "backbone" not in self.__dict__.get("_modules", {}):
                raise
            return getattr(self.backbone, name)

    @property
    def dtype(self) -> torch.dtype:
        return PRECISIONS[self.precision]

    def preprocess(self, image: Image.Image) -> Tensor:
        """One RGB image -> (3, S, S) float32, normalised."""
        return self.backbone.preprocess(image)  # type: ignore[no-any-return]

    def encode_image(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) normalised -> (N, D) float32, not of unit length."""
        features: Tensor = self._image(images.to(self.dtype)).float()
        return features

    def classify(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, K) float32, where the backbone has a classifier of its own."""
        return self.backbone.classify(features.to(self.dtype)).float()  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> Tensor:
        return self.encode_image(images)

    def requires_grad_(self, requires_grad: bool = True) -> Placed:
        """Raises ConfigError if half-precision weights were to be trained."""
        if requires_grad:
            resolve(self.precision, next(self.backbone.parameters()).device, training=True)
        self.backbone.requires_grad_(requires_grad)
        return self


class PlacedClip(Placed):
    """The same of a CLIP."""

    @property
    def logit_scale(self) -> float:
        return self.backbone.logit_scale  # type: ignore[no-any-return]

    @property
    def text_tower(self) -> TextTower | None:
        tower = self.backbone.text_tower
        return None if tower is None else PlacedText(tower, self.dtype)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """C texts -> (C, L)."""
        return self.backbone.tokenize(texts)  # type: ignore[no-any-return]

    def encode_text(self, tokens: Tensor) -> Tensor:
        """(C, L) -> (C, D) float32, not of unit length."""
        return self.backbone.encode_text(tokens).float()  # type: ignore[no-any-return]

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]  # a CLIP takes texts too
        """-> logits_per_image (N, C), logits_per_text (C, N), of fp32 features."""
        image = F.normalize(self.encode_image(images), dim=1)
        text = F.normalize(self.encode_text(tokens), dim=1)
        logits = self.logit_scale * image @ text.T + (getattr(self.backbone, "logit_bias", None) or 0.0)
        return logits, logits.T


class PlacedText:
    """A text tower of half precision between fp32 embeddings and fp32 features (core.TextTower)."""

    def __init__(self, tower: TextTower, dtype: torch.dtype) -> None:
        self._tower, self._dtype = tower, dtype
        self.width, self.context_length = tower.width, tower.context_length
        self.num_prefix_tokens, self.causal = tower.num_prefix_tokens, tower.causal

    @property
    def description(self) -> Transformer | None:
        """The tower's own: it says where the weights lie, which are cast by now."""
        return self._tower.description

    def embed(self, tokens: Tensor) -> Tensor:
        """(C, L) -> (C, L, W) float32, without positions."""
        return self._tower.embed(tokens).float()

    def encode(self, embeddings: Tensor, tokens: Tensor) -> Tensor:
        """(C, L, W) embeddings of any type and the (C, L) tokens they stand for -> (C, D) float32."""
        return self._tower.encode(embeddings.to(self._dtype), tokens).float()


class _ImageTower(nn.Module):
    """``encode_image`` as a module, which torch.compile needs; a copy of it is not compiled."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self._backbone = (backbone,)  # in a tuple: its parameters are counted once

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self._backbone[0].encode_image(images)
        return features


def _check_protocol(backbone: object) -> None:
    """A plug-in of the user's own may return anything."""
    if not isinstance(backbone, nn.Module):
        raise ConfigError(f"a backbone is an nn.Module, and load returned a {type(backbone).__name__}")
    needed = ("name", "weights", "embed_dim", "preprocessing", "preprocess", "encode_image")  # Backbone
    missing = [part for part in needed if not hasattr(backbone, part)]
    if missing:
        raise ConfigError(
            f"the backbone {type(backbone).__name__} has no {', '.join(missing)}; see Backbone in clipdg/core/model.py"
        )


def _cast(backbone: nn.Module, dtype: torch.dtype) -> None:
    """All weights to ``dtype`` but those whose rounding or range would tell: batch norm, logit scale and bias."""
    norms = [m for m in backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [p for n, p in backbone.named_parameters() if n.rpartition(".")[2] == "logit_bias"]
    scale = getattr(backbone, "log_scale", None)
    if isinstance(scale, nn.Parameter):
        kept.append(scale)
    kept += [p for m in norms for p in m.parameters(recurse=False)]
    values = [p.data for p in kept]
    statistics = [dict(m.named_buffers(recurse=False)) for m in norms]
    backbone.to(dtype)
    for parameter, value in zip(kept, values, strict=True):
        parameter.data = value
    for norm, buffers in zip(norms, statistics, strict=True):
        for name, value in buffers.items():
            setattr(norm, name, value)


def _channels_last(backbone: nn.Module) -> None:
    """For convolutional towers; a transformer's only convolution cuts patches and gains nothing."""
    convolutions = [m for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    if len(convolutions) > 1:
        for module in convolutions:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # mypy knows only the tensor's


def _check_compiler(device: torch.device) -> None:
    if device.type == "cuda" and find_spec("triton") is None:
        raise ConfigError("backbone.compile needs the package triton on a GPU; install it or leave compile out")
    if device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise ConfigError("backbone.compile needs a C++ compiler on a CPU, and there is none; leave compile out")
