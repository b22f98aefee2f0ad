"""The plan of the house: which room may import which, no circle anywhere, and nothing heavy at the door."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import clipdg

ROOT = Path(clipdg.__file__).parent
# From the ground up. A room imports from rooms below it and from itself, and from nowhere else; rooms on one line do
# not import each other. Imports inside functions and those for type checkers count as all others do.
FLOORS = (
    ("core",),
    ("storage",),
    ("weights", "records"),
    ("text", "data"),
    ("benchmarks", "backbones", "methods", "objectives"),
    ("evaluation",),
    ("training",),
    ("runs", "report"),
    ("api",),
    ("testing",),
    ("cli",),
    ("__main__",),
)
PLUGIN_ROOMS = ("benchmarks", "backbones", "methods", "objectives")
FACADE = "clipdg"  # clipdg/__init__.py lends the names of api and report to scripts, and nothing inside imports it


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports_of(module: str) -> Iterator[str]:
    """Modules of clipdg that a file imports: at its top, inside functions and for type checkers."""
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == "clipdg":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in FILES else str(node.module)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "clipdg")
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{module} imports by dots; write it out"


GRAPH = {module: {name for name in imports_of(module) if name != module} for module in FILES}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else FACADE


def floor_of(room: str) -> int:
    found = [i for i, rooms in enumerate(FLOORS) if room in rooms]
    assert len(found) == 1, f"{room} has no floor in this test's table"
    return found[0]


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """Some circle of imports, or nothing."""
    done: set[str] = set()
    path: list[str] = []

    def visit(module: str) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        path.append(module)
        for other in sorted(graph.get(module, ())):
            if found := visit(other):
                return found
        path.pop()
        done.add(module)
        return []

    return next((found for module in sorted(graph) if (found := visit(module))), [])


OUTSIDE = sorted(
    file
    for folder in ("experiments", "tests")
    for file in (ROOT.parent / folder).rglob("*.py")
    if file != Path(__file__)
)
# Whatever says where something stands.
SAYING = [*FILES.values(), ROOT.parent / "README.md", *sorted((ROOT.parent / "docs").glob("*.md"))]


def exists(path: str) -> bool:
    """Whether ``clipdg.room.file.name`` is a module, or something in one."""
    if path == FACADE:
        return True
    parent, _, name = path.rpartition(".")
    if not exists(parent):
        return False
    try:
        module = importlib.import_module(parent)
    except ModuleNotFoundError:
        return False  # something in a module has no further parts here
    return hasattr(module, name) or (hasattr(module, "__path__") and importlib.util.find_spec(path) is not None)


def missing_names(code: str) -> list[str]:
    """Modules of clipdg that a program imports, and names that it takes from them, which there are not.

    Of text that is no program: nothing.
    """
    try:
        tree = ast.parse(textwrap.dedent(code)) if "clipdg" in code and "import" in code else ast.Module([], [])
    except SyntaxError:
        return []
    wanted: list[str] = []
    modules: dict[str, str] = {}  # by the name that the program calls them by
    others: set[str] = set()  # names that mean something else too
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "clipdg":
            for alias in node.names:
                path = f"{node.module}.{alias.name}"
                wanted.append(path)
                if path in FILES:
                    modules[alias.asname or alias.name] = path
        elif isinstance(node, ast.Import):
            wanted += [alias.name for alias in node.names if alias.name.split(".")[0] == "clipdg"]
            others |= {alias.asname or alias.name for alias in node.names}
    stored = others | {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    stored |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = node.value.id
            wanted += [f"{modules[name]}.{node.attr}"] if name in modules and name not in stored else []
    return [path for path in dict.fromkeys(wanted) if not exists(path)]


def test_a_circle_is_seen() -> None:
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c", "b"]
    assert circle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_file_imports_itself_in_a_circle() -> None:
    assert circle_in(GRAPH) == []


@pytest.mark.parametrize("module", [m for m in FILES if m != FACADE])
def test_rooms_import_downwards(module: str) -> None:
    room = room_of(module)
    for name in GRAPH[module]:
        assert name != FACADE, f"{module} imports the front door; name the room"
        other = room_of(name)
        assert room == other or floor_of(other) < floor_of(room), f"{module} imports {name}"


@pytest.mark.parametrize("module", [m for m in FILES if room_of(m) in PLUGIN_ROOMS])
def test_plug_ins_do_not_import_each_other(module: str) -> None:
    room, *rest = module.split(".")[1:]
    for name in GRAPH[module]:
        other, *their = name.split(".")[1:]
        if other == room and their and rest:
            assert their[0].startswith("_") or their[0] == rest[0], f"plug-in {module} imports plug-in {name}"


def test_every_floor_is_built() -> None:
    rooms = {room_of(module) for module in FILES} - {FACADE}
    assert rooms == {room for floor in FLOORS for room in floor}


def loaded_by(code: str) -> set[str]:
    script = f"{code}\nimport sys; print('\\n'.join(sys.modules))"
    return set(
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    )


@pytest.mark.parametrize(
    "module",
    [
        "clipdg",
        "clipdg.cli",
        "clipdg.runs.config",
        "clipdg.report.page",
        "clipdg.report.figures",
        *(m for m in FILES if room_of(m) in ("core", "storage", "records") and m != "clipdg.core.text_transformer"),
    ],
)
def test_starts_without_torch(module: str) -> None:
    assert not {"torch", "lightning", "transformers", "datasets"} & loaded_by(f"import {module}")


def test_only_the_command_line_prints() -> None:
    printing = {
        module
        for module, path in FILES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert {room_of(module) for module in printing} == {"cli"}


def test_a_name_that_is_not_there_is_seen() -> None:
    wrong = "from clipdg.runs import config, nowhere\nimport clipdg.runner\nconfig.load()\nconfig.no_such()\n"
    assert missing_names(wrong) == ["clipdg.runs.nowhere", "clipdg.runner", "clipdg.runs.config.no_such"]


@pytest.mark.parametrize("file", OUTSIDE, ids=[str(file.relative_to(ROOT.parent)) for file in OUTSIDE])
def test_experiments_and_tests_name_what_there_is(file: Path) -> None:
    """Also in the code that stands in their strings and is run by another process, where no import at the top tells."""
    text = file.read_text()
    texts = [n.value for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    assert [name for code in (text, *texts) for name in missing_names(code)] == []


@pytest.mark.parametrize("file", SAYING, ids=[str(file.relative_to(ROOT.parent)) for file in SAYING])
def test_a_file_that_a_text_names_by_its_room_is_there(file: Path) -> None:
    rooms = "|".join(sorted({room_of(module) for module in FILES} - {FACADE}))
    named = re.findall(rf"(?<![\w/.])(?:clipdg/)?((?:{rooms})/[\w/]+\.py)\b", file.read_text())
    assert [name for name in dict.fromkeys(named) if not (ROOT / name).is_file()] == []
