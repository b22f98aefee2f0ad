"""What a configuration chooses, how it is fitted and on which shifts, and what does not go together."""

from __future__ import annotations

from typing import Any

import torch

from clipdg.core import plugins
from clipdg.core.benchmark import Benchmark, Shift, known_as, pairs
from clipdg.core.errors import ConfigError
from clipdg.core.fit import Fit
from clipdg.core.model import Backbone, ClipBackbone
from clipdg.records.identity import CAME_LATER
from clipdg.runs.config import RunSettings
from clipdg.weights import finetuned_tower, precision

Method = plugins.Method[Any, Any]


def fit_of(settings: RunSettings, method: Method) -> Fit | None:
    """How parameters are found by gradient descent; None if they are solved for, or if there are none."""
    found = method.fit_of(settings.method.own)
    return None if found is None else settings.fit.over(found)


def shifts_of(benchmark: Benchmark, name: str | None) -> tuple[Shift, ...]:
    """The shifts that a run's ``shift`` names; all of the benchmark's for None. Raises ConfigError if there is none."""
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


def check(settings: RunSettings, method: Method, backbone: Backbone) -> None:
    """Raises ConfigError for settings of which one makes no sense beside another."""
    if method.trains_backbone:
        precision.resolve(settings.backbone.precision, next(backbone.parameters()).device, training=True)  # type: ignore[attr-defined]
    check_text(settings.method.name, method, backbone)
    if settings.keep_weights and method.trains_backbone:
        finetuned_tower.library(backbone)
    fit = fit_of(settings, method)
    check_objective(settings.objective.name, settings.method.name, method, fit)
    _check_fit(settings, method, fit)


def check_text(name: str, method: Method, backbone: Backbone) -> None:
    """Raises ConfigError for a method that needs a text encoder, on a backbone without one."""
    if method.needs_text and not isinstance(backbone, ClipBackbone):
        raise ConfigError(
            f"{name} needs a text encoder and {backbone.name} has none; "
            "use linear_probe or erm with it, or a CLIP backbone"
        )


def check_objective(name: str, method_name: str, method: Method, fit: Fit | None) -> None:
    """Raises ConfigError for an objective that the method's fit cannot go down."""
    if name == "erm":
        return
    objective = plugins.objective(name)
    if fit is None:
        raise ConfigError(f"objective {name} is for what learns by gradient descent, and {method_name} does not")
    if fit.batch_size < objective.least:
        raise ConfigError(
            f"objective {name} needs at least {objective.least} images of each domain in a batch; set "
            f"method.batch_size={objective.least} or more"
        )
    if objective.needs == "features" and not method.trains_backbone and not method.represents:
        raise ConfigError(
            f"objective {name} acts on features, which {method_name} leaves as they are; it needs a backbone or an "
            "adapter that learns"
        )


def _check_fit(settings: RunSettings, method: Method, fit: Fit | None) -> None:
    name = settings.method.name
    if settings.fit.views and method.trains_backbone:
        raise ConfigError(
            f"fit.views is for features that are stored, and {name} trains the encoder; use method.augment"
        )
    changed = [f"fit.{k}" for k, v in settings.plain["fit"].items() if v != CAME_LATER[f"fit.{k}"]]
    if changed and fit is None:
        raise ConfigError(f"{changed[0]} is for what learns by gradient descent, and {name} does not")
    if settings.fit.average == "none" and "fit.average_from" in changed:
        raise ConfigError("fit.average_from is for weights that are averaged; give fit.average=swa or ema")
    if settings.fit.average != "ema" and "fit.ema_decay" in changed:
        raise ConfigError("fit.ema_decay is of a decaying average; give fit.average=ema")
    if fit is not None:  # what is solved for is solved by one process
        _check_devices(settings)
    if settings.fit.precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError("fit.precision=fp16 is for GPUs, a CPU has no fast arithmetic for it; use fp32 or bf16")


def _check_devices(settings: RunSettings) -> None:
    if settings.devices == 1:
        return
    there = torch.cuda.device_count()
    if there and settings.devices > there:
        raise ConfigError(f"devices is {settings.devices} and this machine has {there} GPU{'s' * (there > 1)}")
    if settings.objective.name != "erm":
        raise ConfigError(
            f"objective {settings.objective.name} is computed over whole batches, which several devices do not "
            "see; set devices=1"
        )
    if settings.strategy == "fsdp" and not there:
        raise ConfigError("strategy=fsdp is for GPUs; use ddp")
    if settings.strategy == "fsdp" and (settings.fit.checkpoint_every or settings.fit.average != "none"):
        raise ConfigError(
            "strategy=fsdp has no process that holds the whole model on the way of a fit, which "
            "fit.checkpoint_every and fit.average need; use ddp"
        )


def check_average(fit: Fit, num_updates: int) -> None:
    """Raises ConfigError for an average over the end of a fit that is shorter."""
    if fit.average != "none" and fit.average_from >= num_updates:
        raise ConfigError(
            f"fit.average_from is {fit.average_from:,} and the fit has {num_updates:,} updates, of which none would be "
            "averaged; give fewer"
        )
