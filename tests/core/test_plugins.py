"""The registry: what is a file is found by its name, and a file that is no plug-in says what it lacks."""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipdg.core import plugins
from clipdg.core.errors import ConfigError


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_every_built_in_file_ends_with_the_value_of_its_kind(kind: str) -> None:
    where = plugins.KINDS[kind]
    assert plugins.names(kind)
    for name in plugins.names(kind):
        assert type(plugins.load(kind, name)) is where.type, name
        assert plugins.summary(kind, name)


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_every_file_of_a_room_is_a_plug_in_or_private(kind: str) -> None:
    import importlib
    import pkgutil

    package = importlib.import_module(plugins.KINDS[kind].package)
    files = {m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")}
    assert files == set(plugins.names(kind))


def test_private_modules_are_no_plugins() -> None:
    assert "_digits" not in plugins.names("benchmarks")


def test_a_dotted_path_is_a_users_own_module() -> None:
    assert plugins.method("clipdg.methods.coop") is plugins.method("coop")
    with pytest.raises(ConfigError, match=r"no module 'mine\.nothing'"):
        plugins.method("mine.nothing")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a package ``lacking``, whose file ``part`` a test writes."""
    folder = tmp_path / "lacking"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("lacking", "lacking.part"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield folder
    for name in ("lacking", "lacking.part"):
        sys.modules.pop(name, None)


HEAD = """
from dataclasses import dataclass
from clipdg.core.plugins import *
from clipdg.core.plugins import Method, Objective, BenchmarkSource, BackboneFamily, Metric, Section, Engine, NoSettings

@dataclass(frozen=True)
class Config:
    lr: float = 0.1

def build(*arguments): ...
def fit(config): ...
"""
METHOD = "METHOD = Method(config=Config, build=build, "


@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [
        ("methods", "", r"it has no METHOD = Method\(…\); `clipdg new method NAME`"),
        ("sections", "", r"it has no SECTION = Section\(…\); `clipdg new section NAME`"),
        ("methods", "x = 1\nif x", r"lacking\.part is no Python: .*part\.py, line \d+: expected ':'"),
        ("backbones", "import nowhere_at_all", "No module named 'nowhere_at_all'; install it, or put its folder on"),
        # A misspelt field is told at import, with the nearest one.
        (
            "methods",
            METHOD + "trains='method', fit=fit, regularised=print)",
            r"Method has no field 'regularised'\. Did you mean 'regularize'\? There are: build, config, trains",
        ),
        ("objectives", "OBJECTIVE = Objective(config=Config, build=build, need='images')", "Did you mean 'needs'"),
        ("benchmarks", "BENCHMARK = BenchmarkSource(config=Config, build=build, source=())", "Did you mean 'sources'"),
        ("backbones", "BACKBONE = BackboneFamily(config=Config, load=build, library=())", "Did you mean 'libraries'"),
        ("metrics", "METRIC = Metric(title='x', sums=(), value=build, decimal=2)", "Did you mean 'decimals'"),
        ("sections", "SECTION = Section(make=build, oder=3)", "Did you mean 'order'"),
        ("engines", "ENGINE = Engine(make=build, take_resources=True)", "Did you mean 'takes_resources'"),
        # What is missing, and what does not go together.
        ("methods", "METHOD = Method(config=Config, build=build)", "lacking.part: Method lacks 'trains'"),
        ("methods", METHOD + "trains='all')", "Method.trains is 'all'; it is one of nothing, method"),
        ("methods", METHOD + "trains='method')", r"a Method that trains='method' needs fit\(config\)"),
        ("methods", METHOD + "trains='nothing', solve=print)", "trains='nothing' has neither fit nor solve"),
        ("methods", METHOD + "trains='solver')", "goes with trains='solver', and it with solve"),
        ("methods", METHOD + "trains='nothing', represent=print)", "represent and classify go together"),
        ("methods", METHOD + "trains='nothing', begin_domain=print)", "of a method that adapts=True at test time"),
        ("methods", METHOD + "trains='nothing', alphas=(0.5,))", "alphas are of a method that interpolates"),
        ("methods", "METHOD = Method(config=3, build=build, trains='nothing')", "config is 3; it is a dataclass"),
        ("objectives", "OBJECTIVE = Objective(config=Config, build=build, needs='all')", "Objective.needs is 'all'"),
        ("backbones", "BACKBONE = BackboneFamily(config=Config, load=build, libraries='timm')", "it is a tuple"),
        (
            "methods",
            "@dataclass\nclass Other:\n    lr: float\nMETHOD = Method(config=Other, build=build, trains='nothing')",
            "the setting 'lr' has no default",
        ),
        ("backbones", METHOD + "trains='nothing')", "is no plug-in for backbones; it is one for methods"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_plug_in_says_why(kind: str, code: str, message: str, package: Path) -> None:
    (package / "part.py").write_text(HEAD + code + "\n")
    with pytest.raises(ConfigError, match=message):
        plugins.load(kind, "lacking.part")


def test_an_error_of_the_file_itself_is_not_hidden(package: Path) -> None:
    (package / "part.py").write_text("len(3)\n")
    with pytest.raises(TypeError, match="has no len"):
        plugins.method("lacking.part")


def test_one_file_may_be_several_plug_ins(package: Path) -> None:
    both = METHOD + "trains='nothing')\nBENCHMARK = BenchmarkSource(config=Config, build=build)\n"
    (package / "part.py").write_text(HEAD + both)
    assert isinstance(plugins.method("lacking.part"), plugins.Method)
    assert isinstance(plugins.benchmark("lacking.part"), plugins.BenchmarkSource)


@pytest.mark.parametrize("name", ["", "../coop", "coop; import os", "a..b", "_context"])
def test_a_name_is_looked_up_and_never_run(name: str) -> None:
    with pytest.raises(ConfigError, match=r"There are: .*coop"):
        plugins.method(name)


def test_a_misspelt_name_is_told_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"no 'co_op' in clipdg/methods/\. Did you mean 'coop'\? There are:"):
        plugins.method("co_op")


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_every_field_of_a_definition_has_a_line_in_its_docstring(kind: str) -> None:
    """A stranger writes against the docstring: each field stands in it by name."""
    definition = plugins.KINDS[kind].type
    missing = [f.name for f in dataclasses.fields(definition) if f.name not in (definition.__doc__ or "")]
    assert set(missing) <= {"config"}
