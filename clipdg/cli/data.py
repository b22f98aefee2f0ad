"""clipdg data check."""

from __future__ import annotations

import textwrap
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipdg.cli.console import Progress, app, say
from clipdg.core.errors import DataError

if TYPE_CHECKING:
    from clipdg.data.audit import Found, Problem

SHOWN = 10  # images under a heading

data = typer.Typer(help="Look at a benchmark's data.", rich_markup_mode=None, no_args_is_help=True)
app.add_typer(data, name="data")


@data.callback()
def _group() -> None:
    """Look at a benchmark's data."""


@data.command()
def check(
    benchmark: Annotated[str, typer.Argument(metavar="BENCHMARK", help="Such as pacs.")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="key=value", help="Its settings.", show_default=False)
    ] = None,
    manifest: Annotated[Path | None, typer.Option("--manifest", help="Write every image's digest here.")] = None,
    against: Annotated[Path | None, typer.Option("--against", help="Compare with such a file.")] = None,
    skip_list: Annotated[
        Path | None, typer.Option("--skip-list", help="Write the unreadable images here, for skip=FILE.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Show all images under a heading.")] = False,
) -> None:
    """Read every image of a benchmark and say what is wrong; exit code 3 if anything is.

    Example: clipdg data check pacs root=DIR --manifest pacs.csv
    """
    from clipdg.runs import config

    overrides = [s if s.startswith("benchmark.") else f"benchmark.{s}" for s in settings or []]
    resolved = config.load(None, [f"benchmark={benchmark}", *overrides])
    from clipdg.data import audit as check_
    from clipdg.data.rows.folder import unlooked
    from clipdg.runs.session import open_benchmark
    from clipdg.storage.publish import publish

    known = check_.read_manifest(against) if against else None
    with Progress() as progress, unlooked():
        opened = open_benchmark(resolved.benchmark)
        found = check_.check(opened, progress)
    if known is not None:
        found.problems += check_.changes(known, found.lines)
    _print(opened.name, found, (*opened.notes, *found.remarks), None if everything else SHOWN)
    unreadable = [p for p in found.problems if p.kind == "cannot be read"]
    if skip_list is not None:
        lines = "".join(f"{p.image}\n" for p in unreadable)
        publish(skip_list, lines.encode())
        say(f"{len(unreadable):,} images in {skip_list}; leave them out with benchmark.skip={skip_list}")
    if manifest is not None and unreadable:
        raise DataError(f"no manifest was written: {len(unreadable):,} images cannot be read; mend or skip them first")
    if manifest is not None:
        publish(manifest, check_.manifest(found.lines))
        say(f"{len(found.lines):,} images in {manifest}; compare later: --against {manifest}")
    if found.problems:
        kinds = Counter(p.kind for p in found.problems)
        raise DataError(f"{opened.name} has problems: {'; '.join(f'{kind}: {n:,}' for kind, n in kinds.items())}")
    say(f"{len(found.lines):,} images, nothing wrong")


def _print(name: str, found: Found, remarks: tuple[str, ...], most: int | None) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(name), box=SIMPLE_HEAD, title_justify="left", title_style="")
    table.add_column("domain")
    for column in ("images", "classes", "sides in pixels"):
        table.add_column(column, justify="right")
    for domain, extent in found.domains.items():
        sides = f"{extent.smallest}" if extent.smallest == extent.largest else f"{extent.smallest} to {extent.largest}"
        table.add_row(escape(domain), f"{extent.images:,}", f"{extent.classes:,}", sides)
    console = Console(width=min(100, Console().width))
    console.print(table)
    width = console.width
    for remark in remarks:
        print(textwrap.fill(f"- {remark}", width, subsequent_indent="  "))
    by_kind: dict[str, list[Problem]] = {}
    for problem in found.problems:
        by_kind.setdefault(problem.kind, []).append(problem)
    for kind, problems in by_kind.items():
        print(f"\n{kind}: {len(problems):,}")
        for problem in problems[:most]:
            text = f"{problem.image} {problem.text}"
            print(textwrap.fill(text, width, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False))
        if most is not None and len(problems) > most:
            print(f"  … and {len(problems) - most:,} more; --all shows them")
