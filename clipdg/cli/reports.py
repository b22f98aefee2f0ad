"""clipdg report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipdg.cli.console import Out, app, check_folder, say
from clipdg.errors import ConfigError, RecordError


@app.command()
def report(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="DIR...", help="Folders with records.", show_default=False)
    ] = None,
    out: Out = Path("report"),
    published: Annotated[
        bool, typer.Option("--published", help="The published robustness tables; needs no DIR, run or download.")
    ] = False,
) -> None:
    """Tables, figures and a page of all records in DIR.

    With --published and no DIR: zero-shot CLIP beside ResNets on ImageNet's variants, from published numbers.
    """
    if not folders and not published:
        raise ConfigError("give report a folder with records (clipdg report DIR), or --published")
    check_folder(out)
    if folders:
        say(f"Open {write_report(folders, out)} in a browser.")
    if published:
        from clipdg.report.published_page import write_published

        say(f"Open {write_published(out / 'published' if folders else out)} in a browser.")


def write_report(folders: list[Path], out: Path) -> Path:
    from clipdg.report.page import write_report

    written = write_report(folders, out)
    for problem in written.problems:
        say(f"clipdg: left out: {problem}")
    if written.problems:
        raise RecordError(f"{len(written.problems)} of the files are no records; {written.path} shows the rest")
    return written.path
