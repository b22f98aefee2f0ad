"""clipdg fetch backbone, fetch benchmark."""

from __future__ import annotations

import textwrap
from typing import Annotated

import typer

from clipdg.cli.console import app, say
from clipdg.errors import ConfigError


@app.command()
def fetch(
    what: Annotated[str, typer.Argument(metavar="backbone|benchmark")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Such as open_clip:ViT-B-32-quickgelu, or pacs.")],
    weights: Annotated[str | None, typer.Option("--weights", help="A backbone's tag, such as openai.")] = None,
) -> None:
    """Download what a later run needs, so that it runs offline."""
    from clipdg.catalog import nearest

    if what not in ("backbone", "benchmark"):
        raise ConfigError(
            f"no '{what}' to fetch.{nearest(what, ['backbone', 'benchmark'])} There are: backbone, benchmark."
        )
    if what == "benchmark":
        if weights is not None:
            raise ConfigError("--weights is for a backbone; a benchmark has none")
        _benchmark(name)
        return
    from clipdg.fetch import fetch_backbone

    found = fetch_backbone(name, weights, say)
    for path in found:
        print(path)
    say(f"{name} is here" if found else f"{name} needs no download")


def _benchmark(name: str) -> None:
    """Terms and manual steps on standard output, what is downloaded on standard error."""
    from clipdg.fetch import fetch_source, sources

    found = sources(name)
    for source in found:
        print(source.name)
        texts = [source.terms, source.steps if not source.hubs else ""]
        if not source.hubs:
            texts.append("Nothing is downloaded for you.")
        for text in filter(None, texts):
            print(textwrap.fill(text, 80, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False))
        fetch_source(source, say)
    missing = [source.name for source in found if not source.hubs]
    if not found:
        say(f"{name} needs no download")
    elif missing:
        say(f"{name}: {', '.join(missing)} must be fetched by hand, as said above")
    else:
        say(f"{name} is here; runs need no network now (HF_HUB_OFFLINE=1)")
