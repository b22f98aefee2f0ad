"""The scripts of experiments/reliability, with fewer kills and records; the kills take minutes, so `make test-slow`."""

import subprocess
import sys
from pathlib import Path

import pytest

PLACE = Path(__file__).parents[2] / "experiments" / "reliability"
SCRIPT = PLACE / "kill.py"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", [("--kills", "10"), ("--processes", "8")], ids=["kills", "together"])
def test_nothing_is_lost_duplicated_or_different(how: tuple[str, str], tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, str(SCRIPT), *how, "--out", str(tmp_path)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.rstrip().endswith("0 lost, 0 duplicated, 0 different")


def test_many_records_are_written_scanned_and_made_tables_of(tmp_path: Path) -> None:
    call = [sys.executable, str(PLACE / "many.py"), "--records", "40", "--out", str(tmp_path / "many")]
    ran = subprocess.run(call, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert [line.partition(":")[0] for line in ran.stdout.splitlines()] == [
        "scan, first",
        "scan, again",
        "scan and tables",
    ]
    assert len(list((tmp_path / "many").glob("*.json"))) == 40
