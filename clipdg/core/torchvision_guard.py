"""Lets ``import torchvision`` succeed beside a torch of another build.

PyPI's torchvision beside a CPU torch cannot load its compiled operators; its Python code then fails at import with
``operator torchvision::nms does not exist``, and with it timm, open_clip, lightning and torchmetrics
(pytorch/vision#9077). clipdg needs none of those operators. Importing clipdg puts a finder in front of Python's; it
acts once, when torchvision is first looked for: if the compiled operators cannot be loaded, the two that torchvision's
Python code refers to are declared without an implementation, so that calling one still raises.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

_libraries: list[object] = []  # a torch.library.Library undoes its definitions when it is collected


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            spec = importlib.util.find_spec("torchvision")
            if spec is not None and spec.origin is not None:
                declare_missing_operators(Path(spec.origin).parent)
        return None


def install() -> None:
    """Watch for the first import of torchvision."""
    if "torchvision" not in sys.modules and not any(isinstance(f, _Finder) for f in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def declare_missing_operators(package: Path) -> bool:
    """Declare torchvision's operators if its compiled ones, in ``package``, do not load; True if that was needed."""
    import torch

    try:
        for compiled in sorted(package.glob("_C*.so")):
            torch.ops.load_library(str(compiled))  # type: ignore[no-untyped-call]
        if hasattr(torch.ops.torchvision, "nms"):
            return False
    except OSError:
        pass
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    _libraries.append(library)
    return True


def acted() -> bool:
    """Whether operators had to be declared in this process."""
    return bool(_libraries)
