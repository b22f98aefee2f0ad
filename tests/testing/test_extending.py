"""docs/extending.md: its Python is written and runs, its commands go well, and its table is the registry."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from clipdg.cli import main
from clipdg.core import plugins

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]

pytestmark = pytest.mark.filterwarnings("ignore")


def clipdg(command: str) -> object:
    """The exit code of a command, in this process."""
    program, *arguments = shlex.split(command)
    assert program == "clipdg"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [program, *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    return ended.value.code


def test_all_of_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(plugins, "_own", {})
    method, adapting, test = PYTHON
    (tmp_path / "reweighted.py").write_text(method)
    for command in COMMANDS:
        assert clipdg(command) == 0, command
    assert len(list((tmp_path / "results" / "mine").glob("*.json"))) == 1
    (tmp_path / "adapting.py").write_text(method + "\n\n" + adapting)
    assert clipdg("clipdg check plugin adapting") == 0
    names: dict[str, object] = {}
    exec(compile(test, "extending.md", "exec"), names)
    names["test_mine"]()  # type: ignore[operator]  # a function of the page
    for name in ("my_method", "reweighted", "adapting"):
        sys.modules.pop(name, None)


def test_its_table_is_the_registry() -> None:
    rows = re.findall(r"^\| (\w+) \| `(\w+) = (\w+)\(.*?\)` \| `(.*?)/` \|$", PAGE, re.MULTILINE)
    assert rows == [
        (kind.removesuffix("s"), k.constant, k.type.__name__, k.folder) for kind, k in plugins.KINDS.items()
    ]


def test_it_is_two_pages_at_most() -> None:
    assert len(PAGE.split()) <= 1100
