"""Any images, any labels: classification of files, zero-shot or by a learnt context."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from clipdg.core.benchmark import Benchmark
from clipdg.core.errors import ConfigError, DataError
from clipdg.core.model import ClipBackbone
from clipdg.data import decode as decode_
from clipdg.methods.zero_shot import ZeroShot
from clipdg.runs import config
from clipdg.runs.session import open_backbone
from clipdg.text import prompts
from clipdg.text.templates import Prompted, texts_of
from clipdg.weights import learned_method


@dataclass
class Ranking:
    """For each image its labels with their probabilities, the likeliest first; and what a reader should know."""

    ranked: list[tuple[Path, list[tuple[str, float]]]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def parse_labels(text: str) -> list[str]:
    """Labels between commas of any script. Raises ConfigError if there are fewer than two, or one twice."""
    labels = [label.strip() for label in re.split("[,，、]", text)]
    if "" in labels:
        raise ConfigError(f"--labels '{text}' has an empty label; separate labels by single commas")
    if len(labels) < 2:
        raise ConfigError(f"--labels '{text}' is one label; give at least two, separated by commas")
    twice = [label for label in labels if labels.count(label) > 1]
    if twice:
        raise ConfigError(f"label '{twice[0]}' is there twice")
    return labels


def classify(
    paths: Sequence[Path],
    labels: Sequence[str],
    templates: Sequence[str] | str,
    spec: str = "tiny",
    weights: str | None = None,
    descriptions: str | None = None,
    context: Path | None = None,
) -> Ranking:
    """Probabilities ``softmax(scale * cosine)`` over ``labels``; all prompts of a label are ensembled.

    ``templates``: some, a set's name or a file; ``descriptions``: a file of sentences; see templates.py. With
    descriptions there may be no template. ``context``: a learnt one in their place, see weights/learned_method.py.

    Raises ConfigError for a backbone without a text encoder, DataError naming a label that its tokenizer cannot
    represent or a file that is no image.
    """
    opened = [_open(path) for path in paths]  # all of them before the slow part
    benchmark = Benchmark("labels", tuple(labels))
    settings = Prompted(list(templates) if not isinstance(templates, str) else templates, descriptions)
    if descriptions is not None and not templates:
        settings = replace(settings, templates=None)
    texts = texts_of(settings, benchmark) if context is None else None
    learnt = learned_method.read(context) if context is not None else None
    backbone = open_backbone(config.load(values={"backbone": {"name": spec, "weights": weights}}).backbone)
    if not isinstance(backbone, ClipBackbone):
        raise ConfigError(f"classify needs a text encoder and {backbone.name} has none; use a CLIP backbone")
    for label in labels:
        _check_label(backbone, label)
    head: nn.Module
    if learnt is not None:
        head = learned_method.before(learnt, backbone, benchmark)
    else:
        assert texts is not None
        head = ZeroShot(prompts.prompt_directions(backbone, texts.prompts(labels)), backbone.logit_scale)
    device = next(backbone.parameters()).device  # type: ignore[attr-defined]  # every backbone is an nn.Module
    result = Ranking(remarks=_remarks(backbone, labels))
    for path, image in zip(paths, opened, strict=True):
        with torch.inference_mode():
            features = backbone.encode_image(backbone.preprocess(image)[None].to(device)).float()
            probabilities = head(features)[0].double().softmax(dim=0)  # (C,)
        order = probabilities.argsort(descending=True, stable=True).tolist()
        result.ranked.append((path, [(labels[i], float(probabilities[i])) for i in order]))
    return result


def _open(path: Path) -> Image.Image:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    return decode_.decode(data, str(path))


def _check_label(backbone: ClipBackbone, label: str) -> None:
    try:
        backbone.tokenize([label])
    except DataError as error:
        named = f"label {error}" if f"'{label}'" in str(error) else f"label '{label}': {error}"
        raise DataError(named) from error


def _remarks(backbone: ClipBackbone, labels: Sequence[str]) -> list[str]:
    unknown = getattr(backbone, "unknown_words", None)
    words = unknown(labels) if unknown else []
    if not words:
        return []
    return [
        f"{backbone.name} never saw {', '.join(words)} in pre-training and only spells such words; its ranking "
        "of these means nothing. For real images use a real CLIP, such as --backbone open_clip:ViT-B-32-quickgelu "
        "--weights openai"
    ]
