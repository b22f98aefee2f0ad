"""Imports point one way, and what should start at once imports nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import clipdg

ROOT = Path(clipdg.__file__).parent
# A module may import those of its own layer and of the layers before it.
LAYERS = (
    ("errors", "core", "cache", "packages", "torchvision_guard"),
    (
        "catalog",
        "records",
        "record_index",
        "images",
        "augmentation",
        "weights",
        "patience",
        "rows",
        "sources",
        "prompts",
        "templates",
        "statistics",
        "draws",
        "stored",
        "states",
        "checkpoints",
        "upkeep",
        "packing",
        "text",
        "ranks",
        "contexts",
        "kept",
    ),
    ("backbones", "benchmarks", "methods", "objectives"),
    (
        "data",
        "pairs",
        "placement",
        "config",
        "trainer",
        "processes",
        "averaging",
        "interpolation",
        "waypoints",
        "cost",
        "interruption",
        "contact",
        "selection",
        "domainbed",
        "report",
        "picks",
        "skipping",
        "halves",
    ),
    ("classifier", "features", "check", "choices"),
    ("pretrain", "fetch"),
    ("session", "outcome"),
    ("inputs",),
    ("runner",),
    ("engines",),
    ("classify", "sweep_file", "sweep", "api"),
    ("demo",),
    ("cli", "__main__"),
)
PLUGINS = ("backbones", "benchmarks", "methods", "objectives")


def layer_of(module: str) -> int:
    [layer] = [i for i, names in enumerate(LAYERS) if module in names]
    return layer


def imports(path: Path) -> set[str]:
    """Dotted names under clipdg that a file imports anywhere, those for type checkers aside."""
    found = set()
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "clipdg":
            rest = node.module.split(".")[1:]
            found |= {".".join(rest) if rest else alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {a.name.removeprefix("clipdg.") for a in node.names if a.name.startswith("clipdg.")}
    return found


MODULES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    for name in imports(path):
        if name.startswith("__"):  # clipdg.__version__
            continue
        other = name.split(".")
        assert layer_of(other[0]) <= layer_of(parts[0]), f"{'.'.join(parts)} imports {name}"
        if parts[0] in PLUGINS and other[0] in PLUGINS and len(other) > 1:
            private = other[1].startswith("_") and other[0] == parts[0]
            assert private or other[:2] == list(parts[:2]), f"plug-in {'.'.join(parts)} imports plug-in {name}"


def loaded_by(code: str) -> set[str]:
    script = f"{code}\nimport sys; print('\\n'.join(sys.modules))"
    return set(
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    )


@pytest.mark.parametrize(
    "module", ["clipdg", "clipdg.cli", "clipdg.records", "clipdg.config", "clipdg.report.page", "clipdg.report.figures"]
)
def test_starts_without_torch(module: str) -> None:
    assert not {"torch", "lightning", "transformers", "datasets"} & loaded_by(f"import {module}")


def test_only_the_command_line_prints() -> None:
    printing = [
        str(path.relative_to(ROOT))
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert all(path.startswith("cli/") for path in printing)


def test_only_publish_opens_files_for_writing() -> None:
    """RELIABILITY.md, one writer: no other module writes bytes or text, or renames."""
    writing = {
        (str(path.relative_to(ROOT)), node.func.attr)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in {"write_text", "write_bytes", "save_file", "savefig", "to_csv", "to_latex", "savez"}
        and not (node.func.attr.startswith("to_") and not node.args)
    }
    assert {w for w in writing if w[1] != "savefig"} == set()
