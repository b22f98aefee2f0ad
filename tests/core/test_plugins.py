import sys
from pathlib import Path

import pytest

from clipdg.core import plugins
from clipdg.core.errors import ConfigError


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_every_plugin_has_what_its_kind_promises(kind: str) -> None:
    wanted = {
        "backbones": {"load"},
        "benchmarks": {"Config", "build"},
        "methods": {"Config", "build", "TRAINS", "NEEDS_TEXT"},
        "objectives": {"Config", "build", "NEEDS"},
    }
    for name in plugins.names(kind):
        assert wanted[kind] <= set(vars(plugins.plugin(kind, name))), name
        assert plugins.summary(kind, name)


def test_private_modules_are_no_plugins() -> None:
    assert "_digits" not in plugins.names("benchmarks")


def test_a_dotted_path_is_a_users_own_module() -> None:
    assert plugins.plugin("methods", "clipdg.methods.coop") is plugins.plugin("methods", "coop")
    with pytest.raises(ConfigError, match=r"no module 'mine\.nothing'"):
        plugins.plugin("methods", "mine.nothing")


@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [
        ("backbones", "", "it has no load; those in clipdg/backbones/"),
        ("benchmarks", "def build(config, root): ...", "it has no Config; those"),
        ("methods", "", "it has no Config, build, NEEDS_TEXT, TRAINS; those"),
        ("backbones", "def load(model, weights): ...\nConfig = 3", "its Config is no dataclass"),
        ("methods", "x = 1\nif x", r"lacking\.part is no Python: .*part\.py, line 2: expected ':'"),
        ("backbones", "import nowhere_at_all", "No module named 'nowhere_at_all'; install it, or put its folder on"),
    ],
)
def test_a_module_that_lacks_a_part_of_a_plugin_is_refused_by_it(
    kind: str, code: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "lacking"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "part.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("lacking", "lacking.part"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ConfigError, match=message):
        plugins.plugin(kind, "lacking.part")
    for name in ("lacking", "lacking.part"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["", "../coop", "coop; import os", "a..b"])
def test_a_name_is_looked_up_and_never_run(name: str) -> None:
    with pytest.raises(ConfigError, match=r"There are: .*coop"):
        plugins.plugin("methods", name)
