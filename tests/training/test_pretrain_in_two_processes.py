"""Two processes that train one model see the losses of one process, and end in its weights."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "helpers" / "fit_in_processes.py"


@pytest.mark.slow
@pytest.mark.parametrize("per_domain", [False, True])
def test_two_processes_have_the_losses_and_the_weights_of_one(per_domain: bool, tmp_path: Path) -> None:
    found = []
    for devices in (1, 2):
        out = tmp_path / f"{devices}.json"
        command = [sys.executable, str(SCRIPT), str(devices), str(per_domain), str(out)]
        subprocess.run(command, check=True, timeout=280, capture_output=True, cwd=tmp_path)
        found.append(json.loads(out.read_text()))
    one, two = found
    assert len(one["losses"]) == (10 if per_domain else 20)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert two["weights"] == pytest.approx(
        one["weights"], rel=1e-3, abs=1e-3
    )  # sums; gradients add up in another order
