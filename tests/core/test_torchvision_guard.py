"""In processes of their own: what is imported once cannot be imported again."""

import subprocess
import sys
from pathlib import Path


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_torchvision_imports_whatever_is_imported_first() -> None:
    assert run("import clipdg, torchvision; print(torchvision.__name__)") == "torchvision"
    assert run("import clipdg.cli, timm, lightning; print('fine')") == "fine"


def test_it_acts_only_where_the_compiled_operators_do_not_load() -> None:
    code = """
import clipdg, torch, torchvision
from clipdg import torchvision_guard
loads = torchvision.extension._has_ops()
print(torchvision_guard.acted() != loads)
"""
    assert run(code) == "True"


def test_an_operator_that_was_only_declared_still_raises(tmp_path: Path) -> None:
    code = f"""
import torch
from pathlib import Path
from clipdg import torchvision_guard
assert torchvision_guard.declare_missing_operators(Path({str(tmp_path)!r}))
try:
    torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
except NotImplementedError:
    print("raises")
"""
    assert run(code) == "raises"


def test_importing_clipdg_does_not_import_torch() -> None:
    assert run("import clipdg, sys; print('torch' in sys.modules)") == "False"
