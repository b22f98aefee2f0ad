"""clipdg fetch."""

from __future__ import annotations

from typing import Annotated

import typer

from clipdg.cli.console import app, say
from clipdg.errors import ConfigError


@app.command()
def fetch(
    what: Annotated[str, typer.Argument(metavar="backbone")],
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="Such as open_clip:ViT-B-32-quickgelu.")],
    weights: Annotated[str | None, typer.Option("--weights", help="Tag, such as openai.")] = None,
) -> None:
    """Download what a later run needs, so that it runs offline."""
    from clipdg.catalog import nearest

    if what != "backbone":
        raise ConfigError(f"no '{what}' to fetch.{nearest(what, ['backbone'])} There is: backbone.")
    from clipdg.fetch import fetch_backbone

    found = fetch_backbone(spec, weights, say)
    for path in found:
        print(path)
    say(f"{spec} is here" if found else f"{spec} needs no download")
