"""What a contract finds: a line for each thing that it looks at, and a problem for each thing that is not so."""

from __future__ import annotations

import inspect
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from clipdg.core.errors import ClipdgError

S = TypeVar("S")


@dataclass(frozen=True)
class Problem:
    """One thing that a plug-in does not hold: what is wrong, where, and what to do."""

    wrong: str
    where: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.wrong}; {self.remedy}"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. ``looked``: False if it could not be, because of a problem told before."""

    says: str
    problems: tuple[Problem, ...] = ()
    looked: bool = True


class NotPossible(Exception):
    """Raised where a check needs what an earlier check found to be broken, which is told already."""


def look(checks: Iterable[Callable[[S], Iterator[Problem]]], subject: S, name: str) -> list[Check]:
    """Hold each check against ``subject``; the first line of a check's docstring is what it says.

    Whatever a check raises is a problem, so that it hides no other.
    """
    found = []
    for check in checks:
        says = (inspect.getdoc(check) or "").partition("\n")[0].rstrip(".")
        problems: list[Problem] = []
        looked = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                problems.extend(check(subject))
            except NotPossible:
                looked = False
            except Exception as error:
                problems.append(raised(error, name))
        found.append(Check(says, tuple(problems), looked))
    return found


def raised(error: Exception, name: str) -> Problem:
    """The problem that an exception is, at the last line of the plug-in's own file that it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if Path(f.filename).stem == name.rpartition(".")[2]]
    frame = own[-1] if own else frames[-1]
    said = (str(error).strip() or "no message").splitlines()[0]
    wrong = said if isinstance(error, ClipdgError) else f"it raised {type(error).__name__}: {said}"
    return Problem(wrong, f"{Path(frame.filename).name}, line {frame.lineno}", "mend this and check again")


def place(what: Any) -> str:
    """Where a function or a class stands, as messages call it: ``mine.py, line 12, Mine.forward``."""
    try:
        file, line = inspect.getsourcefile(what), inspect.getsourcelines(what)[1]
    except (TypeError, OSError):
        return str(getattr(what, "__qualname__", what))
    return f"{Path(file or '?').name}, line {line}, {what.__qualname__}"


def problems_in(checks: Sequence[Check]) -> list[Problem]:
    """All problems, in the order in which they were found."""
    return [problem for check in checks for problem in check.problems]
