"""clipdg classify."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from clipdg.cli.console import app, say
from clipdg.errors import ConfigError


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
    backbone: Annotated[str, typer.Option("--backbone", help="Such as open_clip:ViT-B-32-quickgelu.")] = "tiny",
    weights: Annotated[str | None, typer.Option("--weights", help="Tag, repository or file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object an image.")] = False,
) -> None:
    """Rank labels for images, zero-shot.

    Example: clipdg classify cat.jpg --labels "dog,cat,person" --template "a photo of a {}, a type of pet."
    """
    from clipdg.classify import classify as classify_
    from clipdg.classify import parse_labels

    names = parse_labels(labels)
    if template and templates:
        raise ConfigError("--template and --templates both say what the prompts are; give one of them")
    given = templates or template or ([] if descriptions else ["a photo of a {}"])
    result = classify_(images, names, given, backbone, weights, descriptions)
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
