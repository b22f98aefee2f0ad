"""The identity of a run: which settings can change its numbers, and the hash of them that names its record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Settings that cannot change a number. The weights and the data count by their fingerprints, not by where they lie.
NOT_IDENTITY = ("label", "hparams_seed", "workers", "devices", "strategy", "keep_weights", "benchmark.root",
                "benchmark.skip", "benchmark.streaming", "benchmark.places", "backbone.weights",
                "method.memory_mib")  # fmt: skip
# Settings that came after records were made, with the value that those records had: at it, they are left out, so that a
# run keeps its identity and its row.
CAME_LATER: Mapping[str, object] = {
    "objective.name": "erm",
    "benchmark.leave_one_out": False,
    "method.position": "end",
    "benchmark.half": "all",
    "backbone.pixels": "exact",
    "backbone.features": "projected",
    "method.descriptions": None,
    "method.dropout": 0.0,
    "method.resize": "own",
    "method.val_transform": "clean",
    "fit.steps": None,
    "fit.per_domain": False,
    "fit.checkpoint_every": None,
    "fit.precision": "fp32",
    "fit.accumulate": 1,
    "fit.clip_norm": None,
    "fit.average": "none",
    "fit.average_from": 0,
    "fit.ema_decay": 0.999,
    "fit.views": 0,
    "metrics": [],
}
CAME_LATER_IN: Mapping[str, Mapping[str, object]] = {  # the same of one method, where others had such a setting before
    "linear_probe": {"method.sweep": False, "method.refit": True, "method.start": "zeros", "method.solver": "lbfgs",
                     "method.epochs": 10, "method.lr": 0.1, "method.batch_size": 256, "method.weight_decay": 0.0},
}  # fmt: skip


def called(config: Mapping[str, Any]) -> str:
    """A run's name among others: its label, else its method and what it minimises, if that is not ERM's loss."""
    if config.get("label"):
        return str(config["label"])
    method, objective = config["method"]["name"], (config.get("objective") or {"name": "erm"})["name"]
    if objective == "erm":
        return str(method)
    return str(objective) if method == "erm" else f"{method} + {objective}"


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` -> ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        # The common kinds first: to ask whether an int is a Mapping takes as long as all the rest.
        if value is None or isinstance(value, str | int | float):
            flat[f"{prefix}{key}"] = value
        elif isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Flat settings that can change a number."""
    return identity_of_flat(flatten(config))


def identity_of_flat(flat: Mapping[str, Any]) -> dict[str, Any]:
    later = {**CAME_LATER, **CAME_LATER_IN.get(str(flat.get("method.name")), {})}
    return {k: v for k, v in flat.items() if k not in NOT_IDENTITY and (k not in later or v != later[k])}


def part_name(config: Mapping[str, Any], key: str) -> str:
    """The name of a part of a configuration, which may be written as a bare name."""
    value = config.get(key)
    return str(value["name"] if isinstance(value, Mapping) else value)
