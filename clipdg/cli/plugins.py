"""clipdg check, new: plug-ins of one's own."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from clipdg.cli.console import app, say
from clipdg.core import plugins
from clipdg.core.errors import ConfigError

# What to do with a new file of each kind, as it is.
RUNS = {
    "benchmark": "clipdg run benchmark={name} backbone=tiny method=zero_shot",
    "backbone": "clipdg run benchmark=miniatures backbone={name} backbone.weights=random:0 method=linear_probe",
    "method": "clipdg run benchmark=rotated_digits backbone=tiny method={name} shift=75",
    "objective": "clipdg run benchmark=rotated_digits backbone=tiny method=clip_adapter objective={name} shift=75",
    "metric": "clipdg run benchmark=miniatures backbone=tiny method=zero_shot 'metrics=[{name}]'",
    "section": "clipdg report DIR --section {name}",
    "engine": "clipdg sweep FILE.yaml --engine {name}",
}


@app.command()
def check(
    what: Annotated[str, typer.Argument(metavar="plugin", help="What to check: plugin.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="my_package.my_method, or my_method in this folder.")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="key=value", help="Its settings; of a benchmark also root=DIR.")
    ] = None,
) -> None:
    """Hold a file against the contract of its kind: clipdg check plugin my_method.

    A line for each thing that is looked at, and a sentence for each problem.
    """
    from clipdg.runs.config import parse_override

    if what != "plugin":
        raise ConfigError(f"no '{what}' to check.{plugins.nearest(what, ['plugin'])} There is: plugin.")
    given = {key: value for text in settings or () for key, value in parse_override(text).items()}
    family = name.partition(":")[0]
    for kind in plugins.KINDS:
        plugins.admit(kind, family)
    from clipdg.testing.contracts import CONTRACTS, kinds_of

    num_problems = 0
    for kind in kinds_of(family):
        options = {key: given.pop(key) for key in ("root", "weights") if key in given}
        found = CONTRACTS[kind](name, **options, **({"settings": given} if given else {}))
        print(f"{name}, for {kind}")
        for each in found:
            print(f"  {'PROBLEM' if each.problems else 'ok' if each.looked else 'not looked at':13}  {each.says}")
            for problem in each.problems:
                print(f"                 {problem}")
                num_problems += 1
    if num_problems:
        raise ConfigError(f"{name} has {num_problems} problem{'s' * (num_problems > 1)}; see above")


@app.command()
def new(
    kind: Annotated[str, typer.Argument(metavar="KIND", help=f"One of {', '.join(RUNS)}.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the plug-in; its file is NAME.py.")],
) -> None:
    """Write a plug-in to begin with into this folder: clipdg new method my_method."""
    if kind not in RUNS:
        raise ConfigError(f"no kind '{kind}'.{plugins.nearest(kind, list(RUNS))} There are: {', '.join(RUNS)}.")
    file = Path(f"{name}.py")
    _check_name(name, f"{kind}s", file)
    from importlib.resources import files

    from clipdg.storage.publish import publish

    template = files("clipdg.testing").joinpath("templates", f"{kind}.py.txt").read_text(encoding="utf-8")
    publish(file, template.replace("NAME", name).encode())
    say(f"{file} works as it is. Check it, run it, then change it:")
    print(f"clipdg check plugin {name}")
    print(RUNS[kind].format(name=name))


def _check_name(name: str, kind: str, file: Path) -> None:
    """Raises ConfigError for a name that no file of one's own can have."""
    if not name.isidentifier() or name.startswith("_"):
        raise ConfigError(
            f"'{name}' is no name for a file that Python imports; use letters, digits and _, as my_method"
        )
    if file.exists():
        raise ConfigError(f"{file} is there already; take another name, or move it away")
    if name in plugins.names(kind):
        raise ConfigError(f"{name} is one of clipdg's {kind}, which no file of yours can replace; take another name")
    if importlib.util.find_spec(name) is not None:
        raise ConfigError(f"'{name}' is a module that Python finds elsewhere; take another name")
