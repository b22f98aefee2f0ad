"""The plan of the house: which room may import which, no circle anywhere, and nothing heavy at the door."""

from __future__ import annotations

import ast
import subprocess
import sys
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
