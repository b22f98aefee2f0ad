"""clipdg report, import, export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from clipdg.cli.console import Out, app, check_folder, say
from clipdg.core.errors import ConfigError, RecordError


@app.command()
def report(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="DIR...", help="Folders with records.", show_default=False)
    ] = None,
    out: Out = Path("report"),
    published: Annotated[
        bool, typer.Option("--published", help="The published robustness tables; needs no DIR, run or download.")
    ] = False,
    protocol: Annotated[
        str | None, typer.Option("--protocol", help="domainbed: its tables, by its three selection criteria.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option("--baseline", help="The row that others are compared with; by default the highest.")
    ] = None,
    section: Annotated[
        list[str] | None, typer.Option("--section", help="A section of your own, my_package.my_section; repeatable.")
    ] = None,
    incomplete: Annotated[
        bool, typer.Option("--incomplete", help="With --protocol: means over the runs that are there.")
    ] = False,
) -> None:
    """Tables, figures and a page of all records in DIR.

    With --published and no DIR: zero-shot CLIP beside ResNets on ImageNet's variants, from published numbers.
    """
    if not folders and not published:
        raise ConfigError("give report a folder with records (clipdg report DIR), or --published")
    if protocol not in (None, "domainbed"):
        raise ConfigError(f"no protocol '{protocol}'; there is: domainbed")
    if protocol and not folders:
        raise ConfigError("give --protocol a folder with records (clipdg report DIR --protocol domainbed)")
    check_folder(out)
    if folders and protocol:
        _write_protocol(folders, out, incomplete)
    elif folders:
        say(f"Open {write_report(folders, out, baseline, section or [])} in a browser.")
    if published:
        from clipdg.report.published.page import write_published

        say(f"Open {write_published(out / 'published' if folders else out)} in a browser.")


def write_report(folders: list[Path], out: Path, baseline: str | None = None, sections: Sequence[str] = ()) -> Path:
    from clipdg.report.page import write_report

    written = write_report(folders, out, baseline, sections)
    for problem in written.problems:
        say(f"clipdg: left out: {problem}")
    if written.problems:
        raise RecordError(f"{len(written.problems)} of the files are no records; {written.path} shows the rest")
    return written.path


def _write_protocol(folders: list[Path], out: Path, incomplete: bool) -> None:
    from clipdg.records.folder import read_records
    from clipdg.report.protocol import write_protocol

    records, errors = read_records(folders)
    if not records:
        raise RecordError(f"no record in {', '.join(map(str, folders))}")
    found = write_protocol(records, out, incomplete)
    print(found.text)
    for error in errors:
        say(f"clipdg: left out: {error}")
    for missing in found.missing:
        say(f"clipdg: missing: {missing}")
    say(f"Open {out / 'report.html'} in a browser.")
    if errors:
        raise RecordError(f"{len(errors)} of the files are no records")


@app.command("import")
def import_(
    what: Annotated[str, typer.Argument(metavar="domainbed")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What DomainBed's sweep had as output_dir.")],
    out: Out = Path("results/imported"),
) -> None:
    """Make records of DomainBed's own results (DIR/*/results.jsonl)."""
    from clipdg.core.plugins import nearest

    if what != "domainbed":
        raise ConfigError(f"no '{what}' to import.{nearest(what, ['domainbed'])} There is: domainbed.")
    from clipdg.records.domainbed_import import read_sweep

    check_folder(out)
    records, errors = read_sweep(folder)
    new = sum(record.publish(out) for record in records)
    say(f"{len(records)} runs, {new} of them new in {out}; now: clipdg report {out} --protocol domainbed")
    for error in errors:
        say(f"clipdg: left out: {error}")
    if errors:
        raise RecordError(f"{len(errors)} lines are no results of DomainBed's; the rest is in {out}")


@app.command()
def pack(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with records.", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", help="The archive; DIR/records.tar.xz if not given.")] = None,
) -> None:
    """Put the records in DIR and their predictions into one archive.

    clipdg report reads it as it reads the folder: the evidence of a paper in one file. What was learnt is not in it.
    """
    from clipdg.records.folder import ARCHIVE
    from clipdg.records.folder import pack as pack_

    file = out or folder / ARCHIVE
    num = pack_(folder, file)
    say(f"{num:,} record{'' if num == 1 else 's'} in {file}; now: clipdg report {file} --out report")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RECORD", help="RUN_ID.json of a run that learnt something.")],
    out: Out = Path("export"),
    licence: Annotated[
        str | None, typer.Option("--license", help="Of what was learnt, as the hub writes it: mit, apache-2.0, …")
    ] = None,
) -> None:
    """Write a learnt prompt, probe or adapter with a model card for the Hugging Face hub. Nothing is pushed."""
    from clipdg.report.card import export

    check_folder(out)
    found = export(run, out, licence)
    for file in found.files:
        print(file)
    for remark in found.remarks:
        say(f"clipdg: {remark}")
    say(f"Nothing was pushed. Read {out / 'README.md'}, then: hf upload YOU/NAME {out}")
