"""What a configuration chooses, how it is fitted and on which shifts, and what does not go together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch

from clipdg.core import plugins
from clipdg.core.benchmark import Benchmark, Shift, known_as, pairs
from clipdg.core.errors import ConfigError
from clipdg.core.fit import Fit
from clipdg.core.model import Backbone, ClipBackbone
from clipdg.records.identity import CAME_LATER
from clipdg.runs import config
from clipdg.weights import finetuned_tower, precision


def how_of(values: Mapping[str, Any], method: ModuleType) -> Fit | None:
    """How parameters are found by gradient descent; None if they are solved for, or if there are none."""
    if not hasattr(method, "fit"):
        return None
    found: Fit | None = method.fit(config.plugin_config("method", values["method"]))
    if found is None:
        return None
    given = {k: v for k, v in values["fit"].items() if v is not None}
    return dataclasses.replace(found, **given)


def shifts_of(benchmark: Benchmark, name: str | None) -> tuple[Shift, ...]:
    if name is None:
        return benchmark.shifts
    two = pairs(benchmark)
    if name == "pairs" and two:
        return two
    chosen = tuple(s for s in (*benchmark.shifts, *two) if s.name in (name, known_as(benchmark, name)))
    if not chosen:
        names = [s.name for s in benchmark.shifts]
        raise ConfigError(
            f"{benchmark.name} has no shift '{name}'.{plugins.nearest(name, names)} There are: {', '.join(names)}"
            f"{', or two of them as a+b, or pairs for all such' if two else ''}."
        )
    return chosen


def check(values: Mapping[str, Any], method: ModuleType, backbone: Backbone) -> None:
    """Raises ConfigError for settings of which one makes no sense beside another."""
    if method.TRAINS == "everything":
        precision.resolve(values["backbone"]["precision"], next(backbone.parameters()).device, training=True)  # type: ignore[attr-defined]
    if method.NEEDS_TEXT and not isinstance(backbone, ClipBackbone):
        raise ConfigError(
            f"{values['method']['name']} needs a text encoder and {backbone.name} has none; "
            "use linear_probe or erm with it, or a CLIP backbone"
        )
    if values["keep_weights"] and method.TRAINS == "everything":
        finetuned_tower.library(backbone)
    _check_objective(values, method)
    _check_fit(values, method)


def _check_objective(values: Mapping[str, Any], method: ModuleType) -> None:
    name, method_name = values["objective"]["name"], values["method"]["name"]
    if name == "erm":
        return
    objective = plugins.plugin("objectives", name)
    how, least = how_of(values, method), getattr(objective, "LEAST", 1)
    if how is None:
        raise ConfigError(f"objective {name} is for what learns by gradient descent, and {method_name} does not")
    if how.batch_size < least:
        raise ConfigError(
            f"objective {name} needs at least {least} images of each domain in a batch; set method.batch_size={least} "
            "or more"
        )
    if objective.NEEDS == "features" and method.TRAINS != "everything" and not getattr(method, "REPRESENTS", False):
        raise ConfigError(
            f"objective {name} acts on features, which {method_name} leaves as they are; it needs a backbone or an "
            "adapter that learns"
        )


def _check_fit(values: Mapping[str, Any], method: ModuleType) -> None:
    if values["fit"]["views"] and method.TRAINS == "everything":
        raise ConfigError(
            f"fit.views is for features that are stored, and {values['method']['name']} trains the encoder; "
            "use method.augment"
        )
    changed = [f"fit.{k}" for k, v in values["fit"].items() if v != CAME_LATER[f"fit.{k}"]]
    if changed and how_of(values, method) is None:
        name = values["method"]["name"]
        raise ConfigError(f"{changed[0]} is for what learns by gradient descent, and {name} does not")
    average = values["fit"]["average"]
    if average == "none" and "fit.average_from" in changed:
        raise ConfigError("fit.average_from is for weights that are averaged; give fit.average=swa or ema")
    if average != "ema" and "fit.ema_decay" in changed:
        raise ConfigError("fit.ema_decay is of a decaying average; give fit.average=ema")
    _check_devices(values, method)
    if values["fit"]["precision"] == "fp16" and not torch.cuda.is_available():
        raise ConfigError("fit.precision=fp16 is for GPUs, a CPU has no fast arithmetic for it; use fp32 or bf16")


def _check_devices(values: Mapping[str, Any], method: ModuleType) -> None:
    num, strategy = values["devices"], values["strategy"]
    if num == 1 or how_of(values, method) is None:  # what is solved for is solved by one process
        return
    there = torch.cuda.device_count()
    if there and num > there:
        raise ConfigError(f"devices is {num} and this machine has {there} GPU{'s' * (there > 1)}")
    if values["objective"]["name"] != "erm":
        raise ConfigError(
            f"objective {values['objective']['name']} is computed over whole batches, which several devices do not "
            "see; set devices=1"
        )
    if strategy == "fsdp" and not there:
        raise ConfigError("strategy=fsdp is for GPUs; use ddp")
    if strategy == "fsdp" and (values["fit"]["checkpoint_every"] or values["fit"]["average"] != "none"):
        raise ConfigError(
            "strategy=fsdp has no process that holds the whole model on the way of a fit, which "
            "fit.checkpoint_every and fit.average need; use ddp"
        )


def check_average(how: Fit, num_updates: int) -> None:
    if how.average != "none" and how.average_from >= num_updates:
        raise ConfigError(
            f"fit.average_from is {how.average_from:,} and the fit has {num_updates:,} updates, of which none would be "
            "averaged; give fewer"
        )
