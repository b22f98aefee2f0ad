"""Towers of ViT-B/32's size with random weights, and class names and templates that open_clip ships."""

from __future__ import annotations

from typing import Any

from harness import Setting

import clipdg


def backbone(setting: Setting, precision: str = "fp32") -> Any:
    """open_clip's ViT-B-32-quickgelu; small: its smallest."""
    import torch

    name = "ViT-S-32-alt" if setting.small else "ViT-B-32-quickgelu"
    if setting.device == "cpu" and torch.cuda.is_available():
        raise SystemExit("clipdg takes a GPU where there is one; for the CPU's numbers hide it: CUDA_VISIBLE_DEVICES=")
    return clipdg.load_backbone(f"open_clip:{name}", f"random:{setting.seed}", precision=precision)


def imagenet_classes(count: int) -> list[str]:
    """``count`` of ImageNet's 1,000 class names, evenly spaced: longer than Office-Home's or DomainNet's."""
    from open_clip import IMAGENET_CLASSNAMES

    return [IMAGENET_CLASSNAMES[i * 1000 // count] for i in range(count)]


def imagenet_templates() -> list[str]:
    """OpenAI's 80."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]


PACS = ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"]
