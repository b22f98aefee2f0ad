"""A trained image tower and its classifier as files, which ``keep_weights=true`` leaves beside a record.

RUN_ID.backbone.safetensors   all weights of the backbone, with the text tower of a CLIP, in the family's own format;
                              ``backbone.weights=FILE`` takes it, for any method
RUN_ID.head.safetensors       the classifier, for ``method=head``: weight (C, D), bias (C,), and this header:

    schema      1
    head        {method, unit: whether features are brought to unit length first}
    classes     those it was fitted on, in order
    backbone    {spec, fingerprint}: of the tower whose features it reads
    made        {run_id, benchmark, data, shift, seed, versions, …}: where the file comes from
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from clipdg.core.errors import ConfigError, DataError
from clipdg.core.model import Backbone, Preprocessing
from clipdg.storage.publish import hash_bytes
from clipdg.weights import files

SCHEMA = 1


@dataclass(frozen=True)
class HeadFile:
    """The content of a file with a classifier; ``digest`` is the SHA-256 of its bytes."""

    path: Path
    weight: Tensor  # (C, D)
    bias: Tensor  # (C,)
    unit: bool
    method: str
    classes: tuple[str, ...]
    backbone: Mapping[str, str]
    made: Mapping[str, Any]
    digest: str


def contents(
    backbone: Backbone,
    spec: Preprocessing,
    head: nn.Module,
    method: str,
    classes: Sequence[str],
    made: Mapping[str, Any],
) -> tuple[bytes, bytes]:
    """The bytes of the two files, backbone and head.

    ``spec``: the preprocessing that the tower was trained with. ``head``: a linear classifier.
    """
    tower: Any = library(backbone)
    spec = dataclasses.replace(spec, interpolation=spec.interpolation.removesuffix("_fast"))  # type: ignore[arg-type]  # one that there is
    tensors = tower.tensors()
    fingerprint = files.fingerprint(tensors, tower.architecture, spec)
    header = {
        "architecture": tower.architecture,
        "preprocessing": dataclasses.asdict(spec),
        "provenance": {"start": backbone.weights.fingerprint, "method": method, **made},
    }
    own = {
        "schema": SCHEMA,
        "head": {"method": method, "unit": not isinstance(head, nn.Linear)},
        "classes": list(classes),
        "backbone": {"spec": backbone.weights.backbone, "fingerprint": fingerprint},
        "made": dict(made),
    }
    parts = {name: tensor for name, tensor in head.state_dict().items() if name in ("weight", "bias")}
    return files.pack(tensors, header), files.pack(parts, own)


def library(backbone: Any) -> Any:
    """The backbone that says what a file of its weights holds, inside the wrappers of weights/precision.py.

    Raises ConfigError for a backbone of a user's own that does not say it.
    """
    name = backbone.name
    while not hasattr(backbone, "tensors"):
        backbone = getattr(backbone, "backbone", None)
        if backbone is None:
            raise ConfigError(
                f"keep_weights: {name} does not say what a file of its weights holds; give it tensors() and an "
                "architecture"
            )
    return backbone


def read(path: Path) -> HeadFile:
    """Read a classifier.

    Raises ConfigError if there is no such file, DataError if it holds no classifier.
    """
    if not path.is_file():
        raise ConfigError(
            f"no classifier {path}; a run of erm, lora or wise_ft with keep_weights=true leaves one beside its record, "
            "<run id>.head.safetensors"
        )
    tensors, header = files.read(path)
    if header.get("schema") != SCHEMA or "head" not in header or set(tensors) != {"weight", "bias"}:
        raise DataError(f"{path} is no classifier of a trained tower, <run id>.head.safetensors")
    return HeadFile(
        path,
        tensors["weight"],
        tensors["bias"],
        header["head"]["unit"],
        header["head"]["method"],
        tuple(header["classes"]),
        header["backbone"],
        header["made"],
        hash_bytes(path.read_bytes()),
    )
