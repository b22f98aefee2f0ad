"""Zero-shot classifiers of 80 templates: against open_clip's builder, which encodes 77 tokens of every prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from harness import Case, Setting, Side, Step

from cases._towers import backbone, imagenet_classes, imagenet_templates
from clipdg.text import prompts

Directions = dict[int, torch.Tensor]  # by the number of the class


def names(setting: Setting, count: int) -> list[str]:
    return imagenet_classes(min(count, 20) if setting.small else count)


def theirs(count: int, part: float = 1.0, autocast: bool = False) -> Any:
    """open_clip.build_zero_shot_classifier on every 1/part-th class: it pads to 77 tokens, so classes cost the same."""

    def prepare(setting: Setting) -> Step:
        import open_clip

        clip = backbone(setting)
        tokenizer = open_clip.get_tokenizer(clip.name.removeprefix("open_clip:"))
        if autocast:  # the fast one of autocast's two speeds: parameters that ask for gradients
            clip.model.requires_grad_(True)
        classes, templates = names(setting, count), imagenet_templates()
        chosen = range(0, len(classes), round(1 / part))
        given = [t.replace("{}", "{0}") for t in templates]

        def step() -> Directions:
            device = setting.device
            with torch.autocast(device, torch.bfloat16, enabled=autocast):
                built = open_clip.build_zero_shot_classifier(
                    clip.model, tokenizer, [classes[i] for i in chosen], given, device=device
                )
            return dict(zip(chosen, built.T.float(), strict=True))

        return step

    return prepare


def ours(count: int, precision: str = "fp32") -> Any:
    def prepare(setting: Setting) -> Step:
        clip = backbone(setting, precision)
        classes, templates = names(setting, count), imagenet_templates()
        return lambda: dict(enumerate(prompts.class_directions(clip, classes, templates)))

    return prepare


def largest_difference(outcomes: Sequence[Directions]) -> dict[str, float]:
    first, last = outcomes[0], outcomes[-1]
    return {"largest difference": max(float((first[i] - last[i]).abs().max()) for i in first)}


def lowest_cosine(outcomes: Sequence[Directions]) -> dict[str, float]:
    first, last = outcomes[0], outcomes[-1]
    return {"1 - lowest cosine": 1 - min(float(first[i] @ last[i] / first[i].norm()) for i in first)}


def no_bf16(setting: Setting) -> str | None:
    from clipdg.core.errors import ConfigError
    from clipdg.weights.precision import resolve

    try:
        resolve("bf16", setting.device)
    except ConfigError as error:
        return str(error)
    return None


CASES = (
    Case(
        "zero-shot-50",
        "a classifier of 80 templates and 50 classes",
        (
            Side("open_clip.build_zero_shot_classifier", theirs(50, 0.2), scale=0.2, turns=1),
            Side("clipdg", ours(50)),
        ),
        largest_difference,
        {"largest difference": 1e-5},
        at_least=20,
    ),
    Case(
        "zero-shot-1000",
        "a classifier of 80 templates and 1,000 classes",
        (
            Side("open_clip.build_zero_shot_classifier", theirs(1000, 0.01), scale=0.01, turns=1, memory=False),
            Side("clipdg", ours(1000), turns=1, memory=False),
        ),
        largest_difference,
        {"largest difference": 1e-5},
        at_least=20,
    ),
    Case(
        "zero-shot-50-bf16",
        "the same of 50 classes in bf16: their autocast, our bf16 weights",
        (
            Side("open_clip.build_zero_shot_classifier, autocast", theirs(50, 0.2, autocast=True), scale=0.2, turns=1),
            Side("clipdg", ours(50, "bf16")),
        ),
        lowest_cosine,
        {"1 - lowest cosine": 1e-3},
        at_least=7,
        available=no_bf16,
    ),
)
