"""What the commands share: the application, how they speak, progress, and the arguments that several take."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from clipdg.core.errors import ConfigError, StorageError

# The order of a study, which --help keeps.
COMMANDS = ("demo", "run", "sweep", "report", "classify", "words", "pretrain", "list", "check", "new", "data", "fetch",
            "cache", "pack", "import", "export", "doctor")  # fmt: skip


class _InOrder(typer.core.TyperGroup):
    def list_commands(self, context: Any) -> list[str]:
        return sorted(super().list_commands(context), key=COMMANDS.index)


app = typer.Typer(
    name="clipdg",
    cls=_InOrder,
    help="Does a classifier keep its accuracy on domains it was not trained on?",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
INTERRUPTED = "interrupted; what was finished is kept, run the same command again to go on"
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FILE.yaml|key=value",
        help="A file of settings first, if any; then single settings.",
        show_default=False,
    ),
]
Out = Annotated[Path, typer.Option("--out", help="Folder that results are written to.")]


def complain(message: str, code: int) -> int:
    print(f"clipdg: {message}", file=sys.stderr)
    return code


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


class Progress:
    """Called with (stage, done, total): a bar with an estimate on a terminal, a line every few seconds elsewhere."""

    INTERVAL = 5.0  # seconds between lines

    def __init__(self) -> None:
        self.bar: Any = None
        self.stage = ""
        self.task: Any = None
        self.started = self.last = 0.0
        self.first = 0

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description:24.24}"),
                BarColumn(18),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self.stage:
            self.stage, self.started, self.last, self.first = stage, now, now, done
            if self.bar is not None:
                if self.task is not None:
                    self.bar.remove_task(self.task)
                self.task = self.bar.add_task(stage, total=total, rate="")
        if self.bar is not None:
            self.bar.update(
                self.task, completed=done, total=total, rate=per_second(done - self.first, now - self.started)
            )
        elif now - self.last >= self.INTERVAL and done < total:
            self.last = now
            estimate = ""
            if done > self.first:  # from the first call on, before which libraries are imported
                spent = now - self.started
                left = spent / (done - self.first) * (total - done)
                estimate = f", {per_second(done - self.first, spent)}, about {duration(left)} left"
            say(f"  {stage}: {done:,} of {total:,}{estimate}")


def per_second(count: int, seconds: float) -> str:
    """ "8.4/s", "1,250/s"; nothing while there is nothing to tell."""
    if count <= 0 or seconds <= 0:
        return ""
    rate = count / seconds
    return f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.1f}/s"


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


def split(arguments: list[str] | None) -> tuple[Path | None, list[str]]:
    """The settings file, if the first argument is one, and the overrides."""
    arguments = arguments or []
    if arguments and "=" not in arguments[0]:
        return Path(arguments[0]), arguments[1:]
    return None, arguments


def check_folder(out: Path) -> None:
    there = next(p for p in (out.absolute(), *out.absolute().parents) if os.path.lexists(p))
    if not there.is_dir():
        raise ConfigError(f"{there.name} is a file; give --out a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise StorageError(f"cannot write {out}: no permission in {there}")
