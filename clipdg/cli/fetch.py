"""clipdg fetch backbone, fetch benchmark."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from clipdg.cli.console import app, say
from clipdg.core.errors import ConfigError, NetworkError

if TYPE_CHECKING:
    from clipdg.core.download_source import Source


@app.command()
def fetch(
    what: Annotated[str, typer.Argument(metavar="backbone|benchmark")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Such as open_clip:ViT-B-32-quickgelu, or pacs.")],
    weights: Annotated[str | None, typer.Option("--weights", help="A backbone's tag, such as openai.")] = None,
) -> None:
    """Download what a later run needs, so that it runs offline."""
    from clipdg.core.plugins import nearest

    if what not in ("backbone", "benchmark"):
        raise ConfigError(
            f"no '{what}' to fetch.{nearest(what, ['backbone', 'benchmark'])} There are: backbone, benchmark."
        )
    if what == "benchmark":
        if weights is not None:
            raise ConfigError("--weights is for a backbone; a benchmark has none")
        _benchmark(name)
        return
    from clipdg.runs.fetch import fetch_backbone

    found = fetch_backbone(name, weights, say)
    for path in found:
        print(path)
    say(f"{name} is here" if found else f"{name} needs no download")


def _benchmark(name: str) -> None:
    """Terms and manual steps on standard output, what is downloaded on standard error; what needs a login comes last.

    A set that cannot be had keeps none of the others back.
    """
    from clipdg.runs.fetch import fetch_source, sources
    from clipdg.storage.hub import is_offline

    found = sources(name)
    refused: dict[str, ConfigError | NetworkError] = {}
    for source in sorted(found, key=lambda s: (s.gated, not s.hubs)):
        print(source.name)
        for text in filter(None, _texts(source)):
            print(textwrap.fill(text, 80, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False))
        try:
            fetch_source(source, say)
        except (ConfigError, NetworkError) as error:
            if len(found) == 1 or (isinstance(error, NetworkError) and not is_offline()):
                raise  # without a network nothing else arrives either
            say(f"{source.name}: {error}")
            refused[source.name] = error
    by_hand = [source.name for source in found if not source.hubs]
    here = [source.name for source in found if source.hubs and source.name not in refused]
    if refused:
        kind = next((type(e) for e in refused.values() if isinstance(e, NetworkError)), ConfigError)
        others = f"; here are {', '.join(here)}" if here else ""
        raise kind(f"{name}: could not be fetched, as said above: {', '.join(refused)}{others}")
    if not found:
        say(f"{name} needs no download")
    elif by_hand:
        say(f"{name}: {', '.join(by_hand)} must be fetched by hand, as said above")
    else:
        say(f"{name} is here; runs need no network now (HF_HUB_OFFLINE=1)")


def _texts(source: Source) -> tuple[str, ...]:
    if not source.hubs:
        return source.terms, source.steps, "Nothing is downloaded for you."
    if not source.gated:
        return (source.terms,)
    pages = ", ".join(f"https://huggingface.co/datasets/{hub.repository}" for hub in source.hubs)
    return source.terms, f"Needs a login: accept the terms at {pages} and set HF_TOKEN."
