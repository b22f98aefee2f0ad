"""Learnt parameters as files, and learnt contexts read from them and put before any class names.

A file is one ``.safetensors`` with the learnt tensors (a context of 16 vectors has some 32 KB) and this header:

    schema      1
    method      {name, its settings}
    learns      "context" if it can stand before other class names, else "parameters"
    classes     those it was fitted on, in order
    backbone    {spec, tag, fingerprint, precision}
    made        {run_id, benchmark, data, shift, seed, versions, …}: where the file comes from
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipdg.core import plugins
from clipdg.core.benchmark import Benchmark
from clipdg.core.errors import ConfigError, DataError
from clipdg.core.model import Backbone, ClipBackbone
from clipdg.storage.publish import hash_bytes
from clipdg.weights import files

SCHEMA = 1


@dataclass(frozen=True)
class Learnt:
    """The content of a file with a learnt context; ``digest`` is the SHA-256 of its bytes."""

    path: Path
    tensors: Mapping[str, Tensor]
    method: Mapping[str, Any]
    classes: tuple[str, ...]
    backbone: Mapping[str, str]
    made: Mapping[str, Any]
    digest: str

    @property
    def vectors(self) -> Tensor:
        """(M, W), or (C, M, W) with one context for each class."""
        return self.tensors["context"]


def content(
    method: nn.Module,
    settings: Mapping[str, Any],
    classes: Sequence[str],
    backbone: Backbone,
    made: Mapping[str, Any],
) -> bytes:
    """The bytes of a file with what ``method`` learnt. ``settings``: the method's, with its name."""
    definition = plugins.method(settings["name"])
    learnt = definition.learnt
    tensors = dict(method.named_parameters()) if learnt is None else learnt(method)
    header = {
        "schema": SCHEMA,
        "method": dict(settings),
        "learns": "context" if definition.learns_context else "parameters",
        "classes": list(classes),
        "backbone": {
            "spec": backbone.weights.backbone,
            "tag": backbone.weights.tag,
            "fingerprint": backbone.weights.fingerprint,
            "precision": getattr(backbone, "precision", "fp32"),  # of precision.Placed
        },
        "made": dict(made),
    }
    return files.pack(tensors, header)


def read(path: Path) -> Learnt:
    """Read a learnt context. Raises ConfigError if there is no such file, DataError if it holds none."""
    if not path.is_file():
        raise ConfigError(f"no context {path}; a run of coop leaves one beside its record, <run id>.safetensors")
    tensors, header = files.read(path)
    if header.get("schema") != SCHEMA or "learns" not in header:
        raise DataError(f"{path} is not a learnt context; a run of coop leaves one beside its record")
    if header["learns"] != "context" or "context" not in tensors:
        raise DataError(f"{path} was learnt by {header['method']['name']}, which has no context for other class names")
    digest = hash_bytes(path.read_bytes())
    return Learnt(path, tensors, header["method"], tuple(header["classes"]), header["backbone"], header["made"], digest)


def _require_its_backbone(learnt: Learnt, backbone: Backbone) -> None:
    """Raises ConfigError if the backbone has other weights than those with which the context was learnt."""
    own, theirs = learnt.backbone, backbone.weights
    if own["fingerprint"] != theirs.fingerprint:
        raise ConfigError(
            f"{learnt.path.name} was learnt with {own['spec']}, weights '{own['tag']}' ({own['fingerprint'][:12]}), "
            f"and this is {theirs.backbone}, weights '{theirs.tag}' ({theirs.fingerprint[:12]}); use the former"
        )


def before(learnt: Learnt, backbone: Backbone, benchmark: Benchmark) -> nn.Module:
    """Put a learnt context before the classes of ``benchmark``: a module from features (N, D) to logits (N, C).

    Raises ConfigError for another backbone, and for other classes if each class has a context of its own.
    """
    _require_its_backbone(learnt, backbone)
    settings = dict(learnt.method)
    name = settings.pop("name")
    if settings.get("class_specific") and tuple(benchmark.classes) != learnt.classes:
        raise ConfigError(
            f"{learnt.path.name} has a context for each of {_some(learnt.classes)}, which are not the "
            f"{len(benchmark.classes)} classes here; learn one with method.class_specific=false for other classes"
        )
    definition = plugins.method(name)
    fields = {f.name for f in dataclasses.fields(definition.config)}
    unknown = sorted(settings.keys() - fields)
    if unknown:
        raise DataError(f"{learnt.path.name} has settings of {name} that this version does not know: {unknown[0]}")
    # Written prompts matter in a fit only, and may be in a file that is not here.
    kept = {k: v for k, v in settings.items() if k not in ("templates", "descriptions")}
    with torch.random.fork_rng(devices=[]):  # build draws what a fit would start from; the file's tensors replace it
        method: nn.Module = definition.build(definition.config(**kept), backbone, benchmark)
    files.load_exactly(method, learnt.tensors, learnt.path.name)
    return method.eval()


def nearest_words(learnt: Learnt, backbone: Backbone, count: int = 5) -> list[tuple[str, list[tuple[str, float]]]]:
    """Find for each vector the ``count`` tokens whose embeddings lie nearest, with their Euclidean distances.

    This is how CoOp's authors read their contexts (section 4.4). A vector's name is its number from 1, and in front of
    it the class's name if each class has a context of its own.

    Raises ConfigError for another backbone, or one that does not show its token embeddings.
    """
    _require_its_backbone(learnt, backbone)
    assert isinstance(backbone, ClipBackbone)
    description = backbone.text_tower.description if backbone.text_tower is not None else None
    decode = getattr(backbone, "decode", None)
    if description is None or decode is None:
        raise ConfigError(f"{backbone.name} does not show its token embeddings; its vectors cannot be put into words")
    vocabulary = description.tokens.detach().float().cpu()  # (V, W)
    vectors = learnt.vectors.float()
    numbers = [str(i + 1) for i in range(vectors.shape[-2])]
    names = numbers if vectors.ndim == 2 else [f"{c} {i}" for c in learnt.classes for i in numbers]
    distances = torch.cdist(vectors.flatten(0, -2), vocabulary, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distances.topk(min(count, len(vocabulary)), dim=1, largest=False)
    return [
        (name, list(zip(decode(ids.tolist()), found.tolist(), strict=True)))
        for name, ids, found in zip(names, nearest.indices, nearest.values, strict=True)
    ]


def _some(classes: Sequence[str]) -> str:
    return f"{', '.join(classes[:3])}{f' and {len(classes) - 3} more' if len(classes) > 3 else ''}"
