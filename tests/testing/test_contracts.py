"""The contracts find nothing in what is built in, and each deliberately broken plug-in has its problem found."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import clipdg
from clipdg.core import plugins
from clipdg.core.errors import ConfigError
from clipdg.testing import assert_contract, kinds_of
from clipdg.testing.contracts import CONTRACTS
from clipdg.testing.problem import Check, problems_in

_spec = importlib.util.spec_from_file_location("broken_plugins", Path(__file__).with_name("broken.py"))
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
BROKEN: list[tuple[str, str, str]] = _module.BROKEN
HEADS: dict[str, str] = _module.HEADS

# Methods that need a file of another run get one below; engines that need a cluster are slow.
NEED_FILES = [name for name in plugins.names("methods") if plugins.method(name).needs_file]
SLOW = ("ray", "slurm")
BACKBONES = ("tiny", "tiny:vit", "tiny:resnet")  # the others need weights or libraries' configurations: tests/backbones
BENCHMARKS = ("miniatures", "rotated_digits", "colored_digits")  # the others need images: tests/benchmarks


def assert_all_looked_at(checks: list[Check]) -> None:
    assert not problems_in(checks), "\n".join(map(str, problems_in(checks)))
    assert all(check.looked for check in checks)
    assert len(checks) > 2


@pytest.mark.parametrize("name", [name for name in plugins.names("methods") if name not in NEED_FILES])
def test_built_in_methods(name: str) -> None:
    assert_all_looked_at(CONTRACTS["methods"](name))


@pytest.mark.parametrize("name", plugins.names("objectives"))
def test_built_in_objectives(name: str) -> None:
    assert_all_looked_at(CONTRACTS["objectives"](name))


@pytest.mark.parametrize("name", plugins.names("metrics"))
def test_built_in_metrics(name: str) -> None:
    assert_all_looked_at(CONTRACTS["metrics"](name))


@pytest.mark.parametrize("name", plugins.names("sections"))
def test_built_in_sections(name: str) -> None:
    assert_all_looked_at(CONTRACTS["sections"](name))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_built_in_benchmarks(name: str) -> None:
    assert_all_looked_at(CONTRACTS["benchmarks"](name))


@pytest.mark.parametrize("name", [*BACKBONES, "clipdg.testing.tiny_with_head"])
def test_built_in_backbones(name: str) -> None:
    assert_all_looked_at(CONTRACTS["backbones"](name))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in plugins.names("engines")]
)
def test_built_in_engines(name: str) -> None:
    assert_all_looked_at(CONTRACTS["engines"](name))


def test_methods_that_go_on_from_another_run(tmp_path: Path) -> None:
    values = {
        "benchmark": "clipdg.testing.coloured_squares",
        "backbone": {"name": "tiny", "weights": "random:0"},
        "shift": "dark",
    }
    [learnt] = clipdg.run({**values, "method": {"name": "coop", "epochs": 1}}, out=tmp_path)
    given: dict[str, dict[str, Any]] = {
        "context": {"settings": {"file": str(tmp_path / f"{learnt.run_id}.safetensors")}}
    }
    how = {"method": {"name": "erm", "epochs": 1}, "keep_weights": True}
    [trained] = clipdg.run({**values, **how}, out=tmp_path)
    given["head"] = {
        "settings": {"file": str(tmp_path / f"{trained.run_id}.head.safetensors")},
        "backbone": "tiny",
        "weights": str(tmp_path / f"{trained.run_id}.backbone.safetensors"),
    }
    assert set(given) == set(NEED_FILES)
    for name, options in given.items():
        assert_all_looked_at(CONTRACTS["methods"](name, **options))
        assert_contract(name)  # without its file: that it asks for it


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on Python's path whose modules are forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


@pytest.mark.parametrize(("kind", "told", "code"), BROKEN, ids=[f"{k}-{i}" for i, (k, _, _) in enumerate(BROKEN)])
def test_a_broken_plug_in_is_found(kind: str, told: str, code: str, folder: Path) -> None:
    package = folder / f"broken_{abs(hash(code)) % 10**9}"
    package.mkdir()
    (package / "__init__.py").touch()
    name = f"{package.name}.mine"
    head = HEADS[kind]
    (package / "mine.py").write_text((head.format(name=name) if kind == "backbones" else head) + code)
    found = [str(problem) for problem in problems_in(CONTRACTS[kind](name))]
    assert any(re.search(told, problem) for problem in found), "\n".join(found) or "no problem found"


def test_every_kind_has_a_contract_and_something_broken() -> None:
    assert set(CONTRACTS) == set(plugins.KINDS)
    assert {kind for kind, _, _ in BROKEN} == set(plugins.KINDS)


def test_a_problem_says_what_where_and_what_to_do(folder: Path) -> None:
    [(kind, _, code)] = [b for b in BROKEN if "labels=(0, 1, 2)" in b[2]]
    (folder / "mine_of_a_user.py").write_text(HEADS[kind] + code)
    with pytest.raises(AssertionError) as raised:
        assert_contract("mine_of_a_user")
    line = (HEADS[kind] + code).splitlines().index("def build(config, root):") + 1
    assert str(raised.value).splitlines()[0] == (
        f"mine_of_a_user.py, line {line}, build: labels of a go from 0 to 2 and there are 2 classes; "
        "give numbers from 0 to 1"
    )


def test_the_kinds_of_a_file_are_told_by_its_values(folder: Path) -> None:
    assert kinds_of("clipdg.testing.coloured_squares") == ["benchmarks"]
    assert set(kinds_of("erm")) == {"methods", "objectives"}
    (folder / "no_plugin_at_all.py").write_text("x = 1\n")
    with pytest.raises(ConfigError, match=r"no_plugin_at_all is no plug-in: a plug-in ends with one of BENCHMARK = "):
        kinds_of("no_plugin_at_all")
