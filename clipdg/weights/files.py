"""Weights: read without running code, loaded exactly or not at all, and named by what they are.

A file of ours is one ``.safetensors``; its header carries one JSON object (architecture, preprocessing, provenance).
Checkpoints of other makers are read as safetensors, or as ``.pt`` through torch's weights-only unpickler. There is no
way to random weights but ``random:SEED``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from clipdg.core import plugins
from clipdg.core.errors import ConfigError, DataError, UnsafeError
from clipdg.core.model import Preprocessing, Weights
from clipdg.core.versions import version
from clipdg.storage.publish import canonical

PICKLES = (".pt", ".pth", ".bin", ".ckpt")
# Where training checkpoints keep their weights: open_clip and Lightning, DeiT and DINO, timm's moving averages.
NESTED = ("state_dict", "model", "state_dict_ema", "model_ema")
HEADER = "clipdg"  # one key only: safetensors writes several in an order that differs from process to process

Module = TypeVar("Module", bound=nn.Module)


def seed_of(weights: str | None) -> int | None:
    """The SEED of ``random:SEED``; None if other weights are meant. Raises ConfigError if SEED is no seed."""
    if weights is None or not weights.startswith("random"):
        return None
    seed = weights.removeprefix("random:")
    if not (seed.isascii() and seed.isdigit() and int(seed) < 2**63):
        raise ConfigError(f"weights '{weights}': random weights are 'random:SEED' with a whole number, e.g. 'random:0'")
    return int(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Initialise modules on the CPU from ``seed``; torch's global generator is as it was afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def frozen(module: Module) -> Module:
    """``module`` in evaluation mode, fp32, without gradients."""
    module.float().eval().requires_grad_(False)
    return module


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """The state dict on the CPU, in row-major memory (a file and a hash must not depend on channels_last)."""
    return {name: t.detach().cpu().contiguous() for name, t in module.state_dict().items()}


def fingerprint(tensors: Mapping[str, Tensor], architecture: object, preprocessing: Preprocessing) -> str:
    """SHA-256 over the architecture, the preprocessing and, by name, each tensor's type, shape and bytes."""
    sha = hashlib.sha256(canonical([architecture, dataclasses.asdict(preprocessing)]))
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(canonical([name, str(tensor.dtype), list(tensor.shape)]))
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def identify(
    backbone: str,
    tag: str,
    module: nn.Module,
    architecture: object,
    preprocessing: Preprocessing,
    *,
    random: bool = False,
    provenance: Mapping[str, object] | None = None,
) -> Weights:
    """The record of the weights that ``module`` holds now."""
    print_ = fingerprint(module.state_dict(), architecture, preprocessing)
    return Weights(backbone, tag, print_, random, dict(provenance or {}))


def libraries(weights: Weights) -> dict[str, str]:
    """The versions of torch and of the libraries that the family of these weights declares: what computes with them.

    They are part of the name under which features are stored. Torch stands alone for weights of no family, as those of
    a backbone that a script made.

    Raises ConfigError if a library that the family declares is not installed.
    """
    family = weights.backbone.partition(":")[0]
    try:
        declared = plugins.backbone(family).libraries
    except ConfigError:  # no such family: one that loaded these weights can be found
        declared = ()
    return {"torch": version("torch"), **{name: _installed(name, family) for name in declared}}


def _installed(library: str, family: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError as error:
        raise ConfigError(
            f"the backbones of {family} declare the library '{library}', and no package of this name is installed: "
            f"install it, or correct BackboneFamily.libraries, which are names as in `pip install open_clip_torch`"
        ) from error


def pack(tensors: Mapping[str, Tensor], header: Mapping[str, object]) -> bytes:
    """A .safetensors file's content; the same bytes for the same tensors and header."""
    contiguous = {name: t.detach().cpu().contiguous() for name, t in sorted(tensors.items())}
    return save(contiguous, metadata={HEADER: canonical(dict(header)).decode()})


def preprocessing_in(header: Mapping[str, Any]) -> Preprocessing:
    """The spec in a file's header; JSON has no tuples. Raises KeyError or TypeError if there is none."""
    card = header["preprocessing"]
    return Preprocessing(**{**card, "mean": tuple(card["mean"]), "std": tuple(card["std"])})


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A checkpoint's tensors, and our header ({} if another maker wrote it).

    Raises ConfigError if there is no such file, DataError if it is damaged or holds other things than tensors,
    UnsafeError if opening it could run code.
    """
    if not path.is_file():
        raise ConfigError(f"no weights file {path}")
    if path.suffix == ".safetensors":
        tensors, header = _read_safetensors(path)
    elif path.suffix in PICKLES or path.name.endswith(".pth.tar"):
        tensors, header = _read_pickle(path), {}
    else:
        raise ConfigError(f"{path}: weights are read from .safetensors (or {', '.join(PICKLES)}), not '{path.suffix}'")
    odd = [n for n, t in tensors.items() if t.layout != torch.strided or t.is_quantized or t.is_meta or t.is_complex()]
    if odd:
        raise DataError(
            f"{path} holds tensors that are not plain real numbers (sparse, quantised, complex, or without content): "
            f"{some(odd)}; save dense floating-point weights"
        )
    return tensors, header


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
            header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
    except (SafetensorError, ValueError, OSError) as error:
        raise DataError(f"{path} is not a whole .safetensors file: {error}") from error
    if not isinstance(header, dict):
        raise DataError(f"{path}: its '{HEADER}' header is not a JSON object")
    return tensors, header


def _read_pickle(path: Path) -> dict[str, Tensor]:
    convert = (
        "it would run code when opened; where you trust it, load it there and save its state dict with "
        "safetensors.torch.save_file"
    )
    with path.open("rb") as file:
        head = file.read(64)
    if not head or head.lstrip().startswith((b"<", b"version https://git-lfs")):
        what = "is empty" if not head else "is a web page" if head.lstrip().startswith(b"<") else "is a Git LFS pointer"
        raise DataError(f"{path} {what} and no checkpoint; fetch the file itself")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any("/code/" in name or name.endswith("/constants.pkl") for name in archive.namelist()):
                raise UnsafeError(f"{path} is a TorchScript program and not weights: {convert}")
    try:
        with warnings.catch_warnings():  # of pickle protocols; what it cannot read it refuses anyway
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UnsafeError(f"{path} holds Python objects beside tensors: {convert}") from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise DataError(f"{path} is not a whole checkpoint: {first_line(error)}") from error
    inside = [key for key in NESTED if isinstance(content, dict) and isinstance(content.get(key), dict)]
    if len(inside) > 1:
        raise DataError(
            f"{path} holds several sets of weights ({', '.join(inside)}); save the one that is meant as a file of its "
            "own with safetensors.torch.save_file"
        )
    if inside:
        content = content[inside[0]]
    named = isinstance(content, dict) and all(isinstance(k, str) and isinstance(t, Tensor) for k, t in content.items())
    if not named:
        raise DataError(f"{path} is not a state dict: a checkpoint must map names to tensors")
    if content and all(name.startswith("module.") for name in content):  # saved from DistributedDataParallel
        content = {name.removeprefix("module."): t for name, t in content.items()}
    return content  # type: ignore[no-any-return]  # checked above


def load_exactly(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy ``tensors`` into ``module``. Raises DataError listing what is missing, left over or of another shape."""
    own = module.state_dict()
    both = sorted(own.keys() & tensors.keys())
    wrong = {
        "missing": sorted(own.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - own.keys()),
        "of another shape": [
            f"{n} {tuple(tensors[n].shape)} for {tuple(own[n].shape)}" for n in both if own[n].shape != tensors[n].shape
        ],
        # Integers in the place of floats are quantised weights, whose scale is not among them.
        "of another type": [
            f"{n} {tensors[n].dtype}" for n in both if own[n].is_floating_point() != tensors[n].is_floating_point()
        ],
        "not finite": not_finite(tensors),
    }
    if any(wrong.values()):
        listed = "; ".join(f"{kind}: {some(names)}" for kind, names in wrong.items() if names)
        raise DataError(f"{source} does not fit this architecture: {listed}")
    module.load_state_dict(dict(tensors), strict=True)


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors with a NaN or an infinity. ``isfinite`` does not know float8, which ``float`` does."""
    return [n for n, t in sorted(tensors.items()) if t.is_floating_point() and not torch.isfinite(t.float()).all()]


def some(names: list[str], most: int = 6) -> str:
    """The first of many, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def first_line(error: BaseException) -> str:
    """What a library's error says, without the advice below it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines or isinstance(error, KeyError):  # whose text is the bare key
        return repr(error)
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
