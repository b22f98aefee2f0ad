"""clipdg: does a classifier keep its accuracy on domains it was not trained on?

The names below load what they need when they are first used, so that importing clipdg costs nothing.
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
    "run",
    "save_context",
    "zero_shot",
]

torchvision_guard.install()


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'clipdg' has no attribute '{name}'")
    return getattr(import_module("clipdg.report.frame" if name == "load_records" else "clipdg.api"), name)
