"""The script of experiments/reliability, with fewer kills; minutes, so `make test-slow`."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "reliability" / "kill.py"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", [("--kills", "10"), ("--processes", "8")], ids=["kills", "together"])
def test_nothing_is_lost_duplicated_or_different(how: tuple[str, str], tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, str(SCRIPT), *how, "--out", str(tmp_path)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.rstrip().endswith("0 lost, 0 duplicated, 0 different")
