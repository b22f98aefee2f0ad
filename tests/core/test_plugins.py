"""The registry finds a plug-in by the name of its file, and tells of a file that is no plug-in what it lacks."""

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


@pytest.mark.parametrize("kind", ["benchmarks", "backbones", "methods", "objectives"])
def test_clipdg_list_shows_a_first_line_whole(kind: str) -> None:
    for name in plugins.names(kind):
        shown = plugins.summary(kind, name).removeprefix(f"{name}: ")
        assert len(shown) <= 61, name  # of 80 columns, less those of the name
        assert shown.endswith("."), name


def test_private_modules_are_no_plugins() -> None:
    assert "_digits" not in plugins.names("benchmarks")


def test_a_dotted_path_is_a_users_own_module() -> None:
    assert plugins.method("clipdg.methods.coop") is plugins.method("coop")
    with pytest.raises(ConfigError, match=r"no module 'mine\.nothing'"):
        plugins.method("mine.nothing")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a package ``lacking``; a test writes its file ``part``."""
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
from clipdg.core.plugins import BackboneFamily, BenchmarkSource, Engine, Method, Metric, NoSettings, Objective, Section

@dataclass(frozen=True)
class Config:
    lr: float = 0.1

def build(*arguments): ...
def fit(config): ...
"""
FIELDS = {  # the fields of each kind that have no default
    "benchmarks": ["build=build", "config=Config"],
    "backbones": ["load=build", "config=Config"],
    "methods": ["build=build", "config=Config", "trains='nothing'"],
    "objectives": ["build=build", "config=Config", "needs='images'"],
    "metrics": ["title='x'", "sums=()", "value=build"],
    "sections": ["make=build"],
    "engines": ["make=build"],
}
METHOD = "METHOD = Method(config=Config, build=build, "


def ending(kind: str, fields: list[str]) -> str:
    """The code of a file that ends with the value of a kind."""
    where = plugins.KINDS[kind]
    return f"{HEAD}{where.constant} = {where.type.__name__}({', '.join(fields)})\n"


def refused(kind: str, code: str, message: str, package: Path) -> None:
    """Assert that a file with this code is refused, and that the error names the file."""
    (package / "part.py").write_text(code)
    with pytest.raises(ConfigError, match=message) as caught:
        plugins.load(kind, "lacking.part")
    assert "lacking.part" in str(caught.value)


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_a_file_that_ends_with_its_kinds_value_is_a_plug_in(kind: str, package: Path) -> None:
    (package / "part.py").write_text(ending(kind, FIELDS[kind]))
    assert type(plugins.load(kind, "lacking.part")) is plugins.KINDS[kind].type


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_a_file_without_its_kinds_value_is_told_what_it_ends_with(kind: str, package: Path) -> None:
    where = plugins.KINDS[kind]
    constant, one = f"{where.constant} = {where.type.__name__}", kind.removesuffix("s")
    refused(kind, HEAD, rf"it has no {constant}\(…\); `clipdg new {one} NAME` writes", package)


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_a_value_of_another_kind_is_named(kind: str, package: Path) -> None:
    other = "engines" if kind != "engines" else "sections"
    refused(kind, ending(other, FIELDS[other]), f"is no plug-in for {kind}; it is one for {other}", package)


@pytest.mark.parametrize(("kind", "at"), [(kind, at) for kind, fields in FIELDS.items() for at in range(len(fields))])
def test_a_field_that_is_missing_is_named(kind: str, at: int, package: Path) -> None:
    fields = FIELDS[kind]
    name = fields[at].partition("=")[0]
    code = ending(kind, fields[:at] + fields[at + 1 :])
    refused(kind, code, f"{plugins.KINDS[kind].type.__name__} lacks '{name}'", package)


@pytest.mark.parametrize(
    ("kind", "field", "near"),
    [
        ("benchmarks", "source", "sources"),
        ("backbones", "library", "libraries"),
        ("methods", "regularised", "regularize"),
        ("objectives", "restart_optimizer", "restarts_optimizer"),
        ("metrics", "decimal", "decimals"),
        ("sections", "oder", "order"),
        ("engines", "take_resources", "takes_resources"),
    ],
)
def test_a_misspelt_field_is_told_the_nearest_one_at_import(kind: str, field: str, near: str, package: Path) -> None:
    definition = plugins.KINDS[kind].type
    first = dataclasses.fields(definition)[0].name
    message = rf"{definition.__name__} has no field '{field}'\. Did you mean '{near}'\? There are: {first}"
    refused(kind, ending(kind, [*FIELDS[kind], f"{field}=build"]), message, package)


@pytest.mark.parametrize("kind", [kind for kind, fields in FIELDS.items() if "config=Config" in fields])
@pytest.mark.parametrize(
    ("config", "message"),
    [("3", "config is 3; it is a dataclass of settings"), ("Bare", "the setting 'lr' has no default")],
)
def test_settings_are_a_dataclass_with_defaults(kind: str, config: str, message: str, package: Path) -> None:
    fields = [f"config={config}" if field == "config=Config" else field for field in FIELDS[kind]]
    bare = "@dataclass\nclass Bare:\n    lr: float\n\ndef fit"
    refused(kind, ending(kind, fields).replace("def fit", bare), message, package)


@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [
        ("methods", "x = 1\nif x", r"lacking\.part is no Python: .*part\.py, line \d+: expected ':'"),
        ("backbones", "import nowhere_at_all", "No module named 'nowhere_at_all'; install it, or put its folder on"),
        # Values that a field cannot have, and fields that do not go together.
        ("methods", METHOD + "trains='all')", "Method.trains is 'all'; it is one of nothing, method"),
        ("methods", METHOD + "trains='method')", r"a Method that trains='method' needs fit\(config\)"),
        ("methods", METHOD + "trains='nothing', solve=print)", "trains='nothing' has neither fit nor solve"),
        ("methods", METHOD + "trains='solver')", "goes with trains='solver', and it with solve"),
        ("methods", METHOD + "trains='nothing', represent=print)", "represent and classify go together"),
        ("methods", METHOD + "trains='nothing', begin_domain=print)", "of a method that adapts=True at test time"),
        ("methods", METHOD + "trains='nothing', alphas=(0.5,))", "alphas are of a method that interpolates"),
        ("objectives", "OBJECTIVE = Objective(config=Config, build=build, needs='all')", "Objective.needs is 'all'"),
        ("backbones", "BACKBONE = BackboneFamily(config=Config, load=build, libraries='timm')", "it is a tuple"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_plug_in_says_why(kind: str, code: str, message: str, package: Path) -> None:
    refused(kind, f"{HEAD}{code}\n", message, package)


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
    """A stranger writes plug-ins by the docstring, so it names each field."""
    definition = plugins.KINDS[kind].type
    missing = [f.name for f in dataclasses.fields(definition) if f.name not in (definition.__doc__ or "")]
    assert set(missing) <= {"config"}
