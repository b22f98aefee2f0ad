"""``clipdg new KIND NAME`` in an empty folder: what it writes holds its contract and runs from there, as it is.

Commands run as the installed ``clipdg`` does, without the current folder on Python's path (``-P``).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clipdg.cli import main
from clipdg.cli.plugins import RUNS
from clipdg.core import plugins
from clipdg.core.errors import ConfigError
from clipdg.records.folder import read_records
from clipdg.runs import config
from clipdg.testing import assert_contract

SMALL = "benchmark=clipdg.testing.coloured_squares backbone.name=tiny backbone.weights=random:0 shift=dark"
SWEEP = """base:
  benchmark: clipdg.testing.coloured_squares
  backbone: {name: tiny, weights: "random:0"}
  shift: dark
seeds: [0, 1]
runs: [{method: METHOD}]
"""


Done = Callable[[str], str]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What commands encode is encoded once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def done(empty: Path, cache: Path) -> Done:
    """``done(COMMAND)``: what ``clipdg COMMAND`` printed in the empty folder; it must go well."""
    environment = {**os.environ, "CLIPDG_CACHE": str(cache), "OMP_NUM_THREADS": "1"}

    def run(command: str) -> str:
        arguments = [sys.executable, "-P", "-m", "clipdg", *command.split()]
        found = subprocess.run(arguments, cwd=empty, env=environment, capture_output=True, text=True)
        assert found.returncode == 0, found.stderr
        return found.stdout

    return run


def new(kind: str, name: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that ``clipdg new`` prints."""
    code, out, _ = told(f"new {kind} {name}", capsys)
    assert code == 0
    return out.splitlines()


def told(command: str, capsys: pytest.CaptureFixture[str]) -> tuple[object, str, str]:
    """The exit code of ``clipdg COMMAND`` in this process, and what it printed on either stream."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["clipdg", *command.split()])
        with pytest.raises(SystemExit) as ended:
            main()
    return ended.value.code, *capsys.readouterr()


def contents(folder: Path) -> list[dict[str, Any]]:
    """The records in a folder, as they are written."""
    records, errors = read_records([folder])
    assert not errors
    return [json.loads(record.bytes()) for record in records]


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder, which is the current one; its modules are forgotten afterwards."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(plugins, "_own", {})
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.parametrize("kind", RUNS)
def test_a_template_holds_its_contract_and_runs(kind: str, empty: Path, done: Done) -> None:
    check, command = done(f"new {kind} my_own").splitlines()
    assert check == "clipdg check plugin my_own"
    assert os.listdir(empty) == ["my_own.py"]
    text = (empty / "my_own.py").read_text()
    assert len(text.splitlines()) <= 62
    assert "NAME" not in text
    assert max(map(len, text.splitlines())) <= 120
    assert_contract("my_own", kind)
    (empty / "FILE.yaml").write_text(SWEEP.replace("METHOD", "zero_shot"))
    if kind == "section":
        done(f"run {SMALL} method=zero_shot --out DIR")
    printed = command.removeprefix("clipdg ") + " --out out"
    if kind == "section":
        done(printed)
        assert "own-my-own" in (empty / "out" / "report.html").read_text()
        return
    done(printed)
    found = contents(empty / "out")
    assert len(found) == (2 if kind in ("engine", "benchmark") else 1)
    for content in found:
        if kind == "metric":
            assert all(0 < e["metrics"]["my_own"] <= 1 for e in content["evaluations"])
        elif kind != "engine":
            assert content["config"][kind]["name"] == "my_own"


def test_workers_find_a_file_of_the_current_folder(empty: Path, done: Done, capsys: pytest.CaptureFixture[str]) -> None:
    new("method", "my_own", capsys)
    (empty / "FILE.yaml").write_text(SWEEP.replace("METHOD", "{name: my_own, epochs: 1}"))
    done("sweep FILE.yaml --jobs 2 --out out")
    assert [content["config"]["method"]["name"] for content in contents(empty / "out")] == ["my_own"] * 2


@pytest.mark.slow
def test_processes_that_share_a_fit_find_it(empty: Path, done: Done, capsys: pytest.CaptureFixture[str]) -> None:
    new("method", "my_own", capsys)
    done(f"run {SMALL} method=my_own method.epochs=1 devices=2 --out out")
    assert len(contents(empty / "out")) == 1


def test_a_package_in_the_current_folder_is_found(empty: Path, done: Done, capsys: pytest.CaptureFixture[str]) -> None:
    new("method", "my_own", capsys)
    (empty / "mine").mkdir()
    (empty / "my_own.py").rename(empty / "mine" / "way.py")
    done(f"run {SMALL} method=mine.way method.epochs=1 --out out")
    assert contents(empty / "out")[0]["config"]["method"]["name"] == "mine.way"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("new method my-method", "'my-method' is no name for a file that Python imports"),
        ("new method coop", "coop is one of clipdg's methods, which no file of yours can replace"),
        ("new metric json", "'json' is a module that Python finds elsewhere"),
        ("new method there", "there.py is there already"),
        ("new methode mine", "no kind 'methode'. Did you mean 'method'?"),
        ("check plugins there", "no 'plugins' to check. Did you mean 'plugin'? There is: plugin."),
        ("check plugin nowhere", "no module 'nowhere' for plug-ins"),
        ("check plugin there", "there: Method has no field 'regularised'. Did you mean 'regularize'?"),
        ("check plugin top1 root=x", "plug-ins for metrics have no settings; leave root out"),
    ],
)
def test_what_cannot_be_meant_is_told_in_a_sentence(
    command: str, message: str, empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (empty / "there.py").write_text(
        "from clipdg.core.plugins import Method, NoSettings\n"
        "METHOD = Method(config=NoSettings, build=print, trains='nothing', regularised=print)\n"
    )
    code, _, error = told(command, capsys)
    assert code == 2
    assert message in error
    assert len(error.splitlines()) == 1
    assert sorted(p.name for p in empty.iterdir() if p.name != "__pycache__") == ["there.py"]


def test_check_prints_a_line_for_each_check_and_a_sentence_for_each_problem(
    empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new("metric", "my_own", capsys)
    code, out, _ = told("check plugin my_own", capsys)
    assert code == 0
    assert "PROBLEM" not in out
    file = empty / "my_own.py"
    file.write_text(file.read_text().replace("if count else None", "if count else 0.0"))
    del sys.modules["my_own"]
    code, out, error = told("check plugin my_own", capsys)
    assert code == 2
    assert "  PROBLEM        it is None of no image\n" in out
    assert "of no image it is 0.0; return None there" in out
    assert error == "clipdg: my_own has 1 problem; see above\n"


def test_a_built_in_name_is_never_a_file_of_the_current_folder(empty: Path) -> None:
    (empty / "zero_shot.py").write_text("raise RuntimeError('not this one')\n")
    assert config.load(overrides=["method=zero_shot"]).method.name == "zero_shot"


def test_a_name_that_nobody_wrote_runs_no_file_of_the_current_folder(empty: Path) -> None:
    """Settings that come from a record or a file of weights are given as values."""
    (empty / "my_own.py").write_text("raise RuntimeError('this file was run')\n")
    with pytest.raises(ConfigError, match="no 'my_own' in clipdg/methods/"):
        config.load(values={"method": "my_own"})
    with pytest.raises(RuntimeError, match="this file was run"):
        config.load(overrides=["method=my_own"])


def test_a_file_in_a_yaml_that_a_person_named(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new("method", "my_own", capsys)
    (empty / "run.yaml").write_text("method: {name: my_own, lr: 0.5}\n")
    assert config.load(empty / "run.yaml").method.own.lr == 0.5


def test_a_name_that_is_nowhere_is_told_the_nearest_and_how_to_make_a_file(empty: Path) -> None:
    with pytest.raises(ConfigError, match=r"no 'co_op' .* Did you mean 'coop'\?.*`clipdg new method co_op` writes one"):
        config.load(overrides=["method=co_op"])


def test_a_file_that_a_library_hides_is_told(empty: Path) -> None:
    (empty / "json.py").write_text("raise RuntimeError('not this one')\n")
    with pytest.raises(ConfigError, match=r"json\.py is hidden by the module 'json' of .*; give it another name"):
        config.load(overrides=["method=json"])
