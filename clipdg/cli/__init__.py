"""The command line; the only package that prints. One file for each group of commands, ``console`` for what they share.

Results go to standard output, progress and remarks to standard error. A mistake of the user's is one sentence and the
exit code of its kind (errors.py); a bug of ours is its traceback and exit code 1.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

# Each adds its commands to app.
from clipdg.cli import about, cache, classify, data, fetch, plugins, pretrain, reports, runs  # noqa: F401
from clipdg.cli.console import INTERRUPTED, app, complain
from clipdg.core.errors import ClipdgError
from clipdg.core.signals import EXIT_CODE, Stopped
from clipdg.core.versions import version


def main() -> None:
    """Entry point of the ``clipdg`` command."""
    try:
        code = app(standalone_mode=False)
        if code == 130:  # what typer makes of a KeyboardInterrupt
            complain(INTERRUPTED, code)
    except ClipdgError as error:
        code = complain(str(error), error.exit_code)
    except KeyboardInterrupt:
        code = complain(INTERRUPTED, 130)
    except Stopped as stopped:
        code = complain(f"stopped by {stopped}; {INTERRUPTED.partition('; ')[2]}", EXIT_CODE)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        if not hasattr(error, "format_message"):  # click's own, of which typer keeps a copy under another name
            raise
        code = complain(f"{error.format_message()} Try 'clipdg --help'.", 2)
    sys.exit(code if isinstance(code, int) else 0)


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if show_version:
        print(f"clipdg {version('clipdg')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
