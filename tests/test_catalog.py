import pytest

from clipdg import catalog
from clipdg.errors import ConfigError


@pytest.mark.parametrize("kind", catalog.KINDS)
def test_every_plugin_has_what_its_kind_promises(kind: str) -> None:
    wanted = {
        "backbones": {"load"},
        "benchmarks": {"Config", "build"},
        "methods": {"Config", "build", "TRAINS", "NEEDS_TEXT"},
        "objectives": {"Config", "build", "NEEDS"},
    }
    for name in catalog.names(kind):
        assert wanted[kind] <= set(vars(catalog.plugin(kind, name))), name
        assert catalog.summary(kind, name)


def test_private_modules_are_no_plugins() -> None:
    assert "_digits" not in catalog.names("benchmarks")


def test_a_dotted_path_is_a_users_own_module() -> None:
    assert catalog.plugin("methods", "clipdg.methods.coop") is catalog.plugin("methods", "coop")
    with pytest.raises(ConfigError, match=r"no module 'mine\.nothing'"):
        catalog.plugin("methods", "mine.nothing")


@pytest.mark.parametrize("name", ["", "../coop", "coop; import os", "a..b"])
def test_a_name_is_looked_up_and_never_run(name: str) -> None:
    with pytest.raises(ConfigError, match="There are: coop"):
        catalog.plugin("methods", name)
