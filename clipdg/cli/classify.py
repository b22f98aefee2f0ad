"""clipdg classify."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from clipdg.cli.console import app, say
from clipdg.core.errors import ConfigError


@app.command()
def classify(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...")],
    labels: Annotated[
        str, typer.Option("--labels", help="Comma-separated labels, in any language the backbone knows.")
    ],
    template: Annotated[
        list[str] | None, typer.Option("--template", help="A prompt with {} for the label; several are averaged.")
    ] = None,
    templates: Annotated[
        str | None, typer.Option("--templates", help="imagenet_1, imagenet_7, imagenet_80, or a file of templates.")
    ] = None,
    descriptions: Annotated[
        str | None, typer.Option("--descriptions", help="A JSON file with sentences for each label.")
    ] = None,
    context: Annotated[
        Path | None, typer.Option("--context", help="A learnt context, RUN_ID.safetensors beside a record.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option("--backbone", help="Such as open_clip:ViT-B-32-quickgelu; a context knows its own.")
    ] = None,
    weights: Annotated[str | None, typer.Option("--weights", help="Tag, repository or file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object an image.")] = False,
) -> None:
    """Rank labels for images, zero-shot or by a learnt context.

    Example: clipdg classify cat.jpg --labels "dog,cat,person" --template "a photo of a {}, a type of pet."
    """
    from clipdg.runs.classify import classify as classify_
    from clipdg.runs.classify import parse_labels

    names = parse_labels(labels)
    if template and templates:
        raise ConfigError("--template and --templates both say what the prompts are; give one of them")
    if context and (template or templates or descriptions):
        raise ConfigError("--context stands in the place of templates and descriptions; give one or the other")
    given = templates or template or ([] if descriptions else ["a photo of a {}"])
    spec, tag = _backbone(context, backbone, weights)
    result = classify_(images, names, given, spec, tag, descriptions, context)
    for remark in result.remarks:
        say(f"clipdg: {remark}")
    for path, ranked in result.ranked:
        if as_json:
            print(json.dumps({"image": str(path), "labels": [{"label": k, "probability": p} for k, p in ranked]},
                             ensure_ascii=False))  # fmt: skip
            continue
        print(path)
        width = max(len(label) for label, _ in ranked)
        for label, probability in ranked:
            print(f"  {100 * probability:5.1f} %  {label:{width}}")


@app.command()
def words(
    context: Annotated[Path, typer.Argument(metavar="CONTEXT", help="RUN_ID.safetensors beside a record.")],
    count: Annotated[int, typer.Option("--count", min=1, help="Words for each vector.")] = 5,
    backbone: Annotated[str | None, typer.Option("--backbone", help="The context knows its own.")] = None,
    weights: Annotated[str | None, typer.Option("--weights", help="Tag, repository or file.")] = None,
) -> None:
    """The words nearest to each vector of a learnt context, with their Euclidean distance.

    Example: clipdg words results/mine/0123456789abcdef.safetensors
    """
    from clipdg.api import load_backbone
    from clipdg.weights.learned_method import nearest_words, read

    learnt = read(context)
    found = nearest_words(learnt, load_backbone(*_backbone(context, backbone, weights)), count)
    width = max(len(name) for name, _ in found)
    for name, near in found:
        print(f"{name:>{width}}  " + "  ".join(f"{word} {distance:.4f}" for word, distance in near))


def _backbone(context: Path | None, backbone: str | None, weights: str | None) -> tuple[str, str | None]:
    """Spec and weights: those given, else the context's own, else tiny."""
    if backbone is not None or weights is not None or context is None:
        return backbone or "tiny", weights
    from clipdg.weights.learned_method import read

    own = read(context).backbone
    return own["spec"], None if own["tag"] == "shipped" else own["tag"]
