"""clipdg: does a classifier keep its accuracy on domains it was not trained on?

The names below load what they need when they are first used, so that importing clipdg costs nothing. Every method is a
function too: ``clipdg.tip_adapter(backbone, data)`` is ``clipdg.method("tip_adapter", backbone, data)``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from clipdg.core import torchvision_guard

if TYPE_CHECKING:
    from clipdg.api import (
        class_directions,
        coop,
        datamodule,
        linear_probe,
        load_backbone,
        load_benchmark,
        load_context,
        method,
        run,
        save_context,
        zero_shot,
    )
    from clipdg.report.frame import load_records

__version__ = "0.1.0"
__all__ = [
    "class_directions",
    "coop",
    "datamodule",
    "linear_probe",
    "load_backbone",
    "load_benchmark",
    "load_context",
    "load_records",
    "method",
    "run",
    "save_context",
    "zero_shot",
]

torchvision_guard.install()


def __getattr__(name: str) -> object:
    if name == "load_records":
        return import_module("clipdg.report.frame").load_records
    if name in __all__:
        return getattr(import_module("clipdg.api"), name)
    if not name.startswith("_") and name in import_module("clipdg.core.plugins").names("methods"):
        return import_module("clipdg.api").maker(name)
    raise AttributeError(f"module 'clipdg' has no attribute '{name}'")
