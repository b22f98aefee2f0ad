"""clipdg report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipdg.cli.console import Out, app, check_folder, say
from clipdg.errors import RecordError


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders with records.")],
    out: Out = Path("report"),
) -> None:
    """Tables, figures and a page of all records in DIR."""
    check_folder(out)
    path = write_report(folders, out)
    say(f"Open {path} in a browser.")


def write_report(folders: list[Path], out: Path) -> Path:
    from clipdg.report.page import write_report

    written = write_report(folders, out)
    for problem in written.problems:
        say(f"clipdg: left out: {problem}")
    if written.problems:
        raise RecordError(f"{len(written.problems)} of the files are no records; {written.path} shows the rest")
    return written.path
