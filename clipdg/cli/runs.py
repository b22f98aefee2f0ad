"""clipdg demo, run, sweep."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipdg.cli.console import Out, Overrides, Progress, app, check_folder, duration, say, split
from clipdg.cli.reports import write_report
from clipdg.errors import RecordError

if TYPE_CHECKING:
    from clipdg.records import Record


@app.command()
def demo(out: Out = Path("results/demo")) -> None:
    """Pre-train, benchmark and report, without a download.

    A small CLIP is pre-trained from scratch on drawn images and compared with supervised ResNets: a few minutes.
    """
    from clipdg import demo as demo_

    check_folder(out)
    started = time.monotonic()
    say("A small CLIP is pre-trained on drawn images with captions, then compared with supervised ResNets.")
    with Progress() as progress:
        outcome = demo_.run(out, progress, lambda n, total, r: say(f"run {n + 1} of {total}: {_name(r)}"))
    if outcome.failed:
        raise outcome.failed[0][1]
    path = write_report([out], out / "report")
    say(f"{duration(time.monotonic() - started)} in all. Open {path} in a browser.")


def _name(resolved: Any) -> str:
    values = resolved.values
    return f"{values['label'] or values['method']['name']}, seed {values['seed']}"


@app.command()
def run(
    arguments: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder that the record is written to.")] = None,
) -> None:
    """Fit on the sources, evaluate every domain, keep the record.

    Example: clipdg run benchmark=folder benchmark.root=DIR method=linear_probe --out results/mine
    """
    from clipdg import config

    file, overrides = split(arguments)
    resolved = config.load(file, overrides)
    if out is not None:
        check_folder(out)
    from clipdg.runner import Session
    from clipdg.runner import run as run_

    with Progress() as progress:
        records = run_(resolved, out, Session(progress=progress))
    _print_records(records)
    if out is not None:
        noun = "record" if len(records) == 1 else "records"
        say(f"{len(records)} {noun} in {out}; now: clipdg report {out} --out {out}/report")
    else:
        say("Nothing was kept; give --out DIR to keep the record.")


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE.yaml")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="key=value", show_default=False)] = None,
    out: Out = Path("results/sweep"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs and stop.")] = False,
) -> None:
    """Every run of a sweep file that has no record yet."""
    from clipdg import sweep as sweep_

    planned = sweep_.plan(file, overrides or [])
    if dry_run:
        for resolved in planned:
            print(_name(resolved))
        print(f"{len(planned)} configurations")
        return
    check_folder(out)
    with Progress() as progress:
        outcome = sweep_.execute(planned, out, progress, lambda n, t, r: say(f"run {n + 1} of {t}: {_name(r)}"))
    for resolved, error in outcome.failed:
        say(f"failed: {_name(resolved)}: {error}")
    if outcome.failed:
        raise RecordError(f"{len(outcome.failed)} of {len(planned)} configurations failed; {outcome.done} are in {out}")
    say(f"{outcome.done} configurations done; now: clipdg report {out} --out {out}/report")


def _print_records(records: list[Record]) -> None:
    """What a run found, a line per domain; the reported split first named in tables."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from clipdg.report.tables import reported

    for record in records:
        content = record.content
        sources = ", ".join(content["shift"]["sources"])
        values = content["config"]
        title = f"{values['label'] or values['method']['name']} on {content['data']['benchmark']}, fitted on {sources}"
        if not content["data"]["num_fit"]:
            title = f"{values['label'] or values['method']['name']} on {content['data']['benchmark']}, nothing fitted"
        table = Table(
            title=f"{escape(title)}, seed {values['seed']}", box=SIMPLE_HEAD, title_justify="left", title_style=""
        )
        for name in ("domain", "role", "split"):
            table.add_column(name)
        for name in ("images", "top-1", "per class", "worst", "ECE"):
            table.add_column(name, justify="right")
        for role in ("sources", "targets"):
            for domain in content["shift"][role]:
                e = reported(record, domain)
                if e is None:  # a source of which nothing was held out
                    table.add_row(escape(domain), role[:-1], "none", "0", "", "", "", "")
                    continue
                m = e["metrics"]
                cells = [_percent(m[k]) for k in ("top1", "mean_per_class", "worst_class", "ece")]
                table.add_row(escape(domain), role[:-1], e["split"], f"{e['num_images']:,}", *cells)
        Console(width=min(100, Console().width)).print(table)
        if content["timing"].get("converged") is False:
            say("clipdg: the solver stopped before it converged; raise method.max_iterations")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
