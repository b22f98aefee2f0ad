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
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from clipdg.core import Preprocessing, Weights
from clipdg.errors import ConfigError, DataError, UnsafeError
from clipdg.records import canonical

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


def pack(tensors: Mapping[str, Tensor], header: Mapping[str, object]) -> bytes:
    """A .safetensors file's content; the same bytes for the same tensors and header."""
    contiguous = {name: t.detach().cpu().contiguous() for name, t in sorted(tensors.items())}
    return save(contiguous, metadata={HEADER: canonical(dict(header)).decode()})


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A checkpoint's tensors, and our header ({} if another maker wrote it).

    Raises ConfigError if there is no such file, DataError if it is damaged or holds other things than tensors,
    UnsafeError if opening it could run code.
    """
    if not path.is_file():
        raise ConfigError(f"no weights file {path}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        return _read_pickle(path), {}
    raise ConfigError(f"{path}: weights are read from .safetensors (or .pt, .pth, .bin, .ckpt), not '{path.suffix}'")


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
        raise DataError(f"{path} is not a whole checkpoint: {str(error).splitlines()[0]}") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]  # a training checkpoint of open_clip or Lightning
    if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
        raise DataError(f"{path} is not a state dict: a checkpoint must map names to tensors")
    if content and all(name.startswith("module.") for name in content):  # saved from DistributedDataParallel
        content = {name.removeprefix("module."): t for name, t in content.items()}
    return content


def load_exactly(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy ``tensors`` into ``module``. Raises DataError listing what is missing, left over or of another shape."""
    own = module.state_dict()
    wrong = {
        "missing": sorted(own.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - own.keys()),
        "of another shape": [
            f"{n} {tuple(tensors[n].shape)} for {tuple(own[n].shape)}"
            for n in sorted(own.keys() & tensors.keys())
            if own[n].shape != tensors[n].shape
        ],
        "not finite": [n for n in sorted(tensors) if not torch.isfinite(tensors[n]).all()],
    }
    if any(wrong.values()):
        listed = "; ".join(f"{kind}: {_some(names)}" for kind, names in wrong.items() if names)
        raise DataError(f"{source} does not fit this architecture: {listed}")
    module.load_state_dict(dict(tensors), strict=True)


def _some(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
