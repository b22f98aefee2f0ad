"""clipdg demo, run, sweep."""

from __future__ import annotations

import textwrap
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipdg.cli.console import Out, Overrides, Progress, app, check_folder, duration, say, split
from clipdg.cli.reports import write_report
from clipdg.core.errors import ConfigError, RecordError
from clipdg.core.signals import stoppable

if TYPE_CHECKING:
    from clipdg.records.record import Record
    from clipdg.runs.sweep import Outcome, Step, Survey

MOST_TOLD = 20  # failures
LAST_LINES = 5  # of each


@app.command()
def demo(out: Out = Path("results/demo")) -> None:
    """Pre-train, benchmark and report, without a download.

    A small CLIP is pre-trained from scratch on drawn images and compared with supervised ResNets: a few minutes.
    """
    from clipdg.runs import demo as demo_

    check_folder(out)
    started = time.monotonic()
    say("A small CLIP is pre-trained on drawn images with captions, then compared with supervised ResNets.")
    with Progress() as progress:
        outcome = demo_.run(out, progress, _say_run)
    _raise_failures(outcome, out)
    path = write_report([out], out / "report")
    say(f"{duration(time.monotonic() - started)} in all. Open {path} in a browser.")


@app.command()
def run(
    arguments: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder that the record is written to.")] = None,
) -> None:
    """Fit on the sources, evaluate every domain, keep the record.

    Example: clipdg run benchmark=folder benchmark.root=DIR method=linear_probe --out results/mine
    """
    from clipdg.runs import config

    file, overrides = split(arguments)
    resolved = config.load(file, overrides)
    if out is not None:
        check_folder(out)
    from clipdg.runs.run import run as run_
    from clipdg.runs.session import Session

    with Progress() as progress, stoppable():
        records = run_(resolved, out, Session(progress=progress))
    _print_records(records)
    if out is not None:
        noun = "record" if len(records) == 1 else "records"
        say(f"{len(records)} {noun} of this run in {out}; now: clipdg report {out} --out {out}/report")
    else:
        say("Nothing was kept; give --out DIR to keep the record.")


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE.yaml")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="key=value", show_default=False)] = None,
    out: Out = Path("results/sweep"),
    engine: Annotated[str, typer.Option("--engine", help="local, ray, slurm, or a dotted path of your own.")] = "local",
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Runs at a time.")] = 1,
    cpus: Annotated[float | None, typer.Option("--cpus", min=0.0, help="ray: cores a run, 1 if not given.")] = None,
    gpus: Annotated[
        float | None, typer.Option("--gpus", min=0.0, help="ray: GPUs a run, 1 where there are any; 0.5 shares one.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is to do and stop.")] = False,
) -> None:
    """Every run of a sweep file that has no record yet.

    Features that runs share are encoded first. What fails is told at the end and stops no other run.
    """
    from clipdg.core import plugins
    from clipdg.runs import sweep as sweep_
    from clipdg.runs import sweep_file

    plugins.admit("engines", engine)
    planned = sweep_file.plan(file, overrides or [])
    if not dry_run:
        check_folder(out)
    from clipdg.runs.session import Session
    from clipdg.runs.task import EngineOptions, choose

    with Progress() as progress, stoppable():
        session = Session(progress=progress)
        chosen = choose(engine, EngineOptions(jobs, session, cpus, gpus))
        surveyed = sweep_.survey(planned, out, session)
        for problem in surveyed.corrupt:
            say(f"clipdg: not counted: {problem}")
        if dry_run:
            _print_survey(surveyed, jobs)
            if surveyed.failed:
                raise ConfigError(f"{len(surveyed.failed):,} of {surveyed.total:,} runs cannot be run; see above")
            return
        say(f"{surveyed.total:,} runs: {len(surveyed.done):,} done before, {len(surveyed.tasks):,} to do")
        on_step = _say_run if engine == "local" and jobs == 1 else _Steps(progress)
        outcome = sweep_.complete(surveyed, out, chosen, on_step)
    _raise_failures(outcome, out)
    say(f"{outcome.done:,} runs are done; now: clipdg report {out} --out {out}/report")


def _say_run(step: Step) -> None:
    """With one run at a time: what begins. Its stages have the progress bar."""
    if step.begins:
        left = f" (about {duration(step.left)} left)" if step.left is not None else ""
        say(f"run {step.done + step.failed + 1:,} of {step.total:,}: {step.name}{left}")


class _Steps:
    """With several at a time: how many have ended."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def __call__(self, step: Step) -> None:
        failed = f", {step.failed:,} failed" if step.failed else ""
        self.progress(f"runs{failed}", step.done + step.failed, step.total)


def _raise_failures(outcome: Outcome, out: Path) -> None:
    """Tell each failure with the last lines of it. Raises RecordError if there are any."""
    for failure in outcome.failed[:MOST_TOLD]:
        say(f"{failure.ended.state}: {failure.name}: {failure.ended.message}")
        for line in failure.ended.lines[-LAST_LINES:]:
            say(f"    {line}")
    if len(outcome.failed) > MOST_TOLD:
        say(f"... and {len(outcome.failed) - MOST_TOLD:,} more; {out}/.runs/*.status has all")
    if outcome.failed:
        total = outcome.done + len(outcome.failed)
        raise RecordError(
            f"{len(outcome.failed):,} of {total:,} runs have no record; {outcome.done:,} are in {out}. "
            "Run the same command again for the rest"
        )


def _print_survey(surveyed: Survey, jobs: int) -> None:
    from clipdg.records.identity import called
    from clipdg.runs.sweep import cost

    counts = Counter(called(task.values) for task in surveyed.tasks)
    for label, count in counts.items():
        print(f"{count:>7,}  {label}")
    same: dict[str, list[str]] = {}
    for failure in surveyed.failed:
        same.setdefault(failure.ended.message, []).append(failure.name)
    for message, names in same.items():
        more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
        print(f"cannot run: {names[0]}{more}: {message}")
    print(f"{surveyed.total:,} runs: {len(surveyed.done):,} done, {len(surveyed.tasks):,} to do")
    if not surveyed.tasks:
        return
    estimate = cost(surveyed)
    if estimate.known:
        each = f" in one process, {duration(estimate.seconds / jobs)} in {jobs}" if jobs > 1 else ""
        print(f"about {duration(estimate.seconds)}{each} for {estimate.known:,} of them, by the records that are there")
    if estimate.unknown:
        print(f"time not known for {estimate.unknown:,}: no record yet of such a benchmark, backbone and method")
    print("Not counted: encoding images, which happens once, and starting up.")


def _print_records(records: list[Record]) -> None:
    """What a run found, a line per domain; the reported split first named in tables."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from clipdg.records.evaluations import class_subsets, reported
    from clipdg.records.statistics import (
        ALEXNET_ERRORS,
        corruption_accuracies,
        mean_corruption_accuracy,
        mean_corruption_error,
    )

    for record in records:
        title = f"{record.name} on {record.data.benchmark}, fitted on {', '.join(record.shift.sources)}"
        if not record.data.num_fit:
            title = f"{record.name} on {record.data.benchmark}, nothing fitted"
        table = Table(
            title=f"{escape(title)}, seed {record.config['seed']}",
            box=SIMPLE_HEAD,
            title_justify="left",
            title_style="",
            collapse_padding=True,
        )
        table.add_column("domain", no_wrap=True)
        for name in ("role", "split"):
            table.add_column(name)
        for name in ("images", "top-1", "per class", "worst", "ECE"):
            table.add_column(name, justify="right")
        for role in ("source", "target"):
            for domain in record.shift.sources if role == "source" else record.shift.targets:
                e = reported(record, domain)
                if e is None:  # a source of which nothing was held out
                    table.add_row(escape(domain), role, "none", "0", "", "", "", "")
                    continue
                for one in (e, *class_subsets(record, domain)):
                    m = one.metrics
                    cells = [_percent(m[k]) for k in ("top1", "mean_per_class", "worst_class", "ece")]
                    table.add_row(escape(domain), role, one.split, f"{one.num_images:,}", *cells)
        console = Console(width=min(100, Console().width))
        console.print(table)
        corrupted = corruption_accuracies(
            {e.domain: e.top1 for e in record.evaluations if e.split == "test" and e.top1 is not None}
        )
        if len(corrupted) == len(ALEXNET_ERRORS):
            mean, mce = mean_corruption_accuracy(corrupted), mean_corruption_error(corrupted)
            console.print(f"ImageNet-C: mean top-1 {_percent(mean)}, mCE {_percent(mce)} (AlexNet: 100)")
        if record.timing.converged is False:
            say("clipdg: the solver stopped before it converged; raise method.max_iterations")
    for note in dict.fromkeys(note for record in records for note in record.data.notes):
        say(textwrap.fill(f"- {note}", 80, subsequent_indent="  ", break_on_hyphens=False))


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
