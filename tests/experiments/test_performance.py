"""The measuring of experiments/performance: what is counted, what is scaled, what is said to be missed."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

PLACE = Path(__file__).parents[2] / "experiments" / "performance"


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PLACE))


def burn(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_a_part_counts_as_the_whole_and_sides_take_turns() -> None:
    import harness

    order: list[str] = []

    def side(name: str, seconds: float, scale: float = 1.0) -> harness.Side:
        def prepare(setting: harness.Setting) -> harness.Step:
            def step() -> str:
                order.append(name)
                burn(seconds)
                return name

            return step

        return harness.Side(name, prepare, scale=scale)

    case = harness.Case(
        "c", "q", (side("slow", 0.02, scale=0.5), side("fast", 0.01)), lambda found: {"n": len(found[0])}
    )
    row = harness.run_turns(case, harness.Setting(), turns=3)
    assert order == ["slow", "fast"] * 4  # one turn of each is not counted
    assert row["sides"]["slow"]["cpu_seconds"] == pytest.approx(0.04, rel=0.2)
    assert row["ratio"] == pytest.approx(4, rel=0.2)
    assert row["facts"] == {"n": 4}


def test_a_target_or_a_limit_that_is_missed_is_said(tmp_path: Path) -> None:
    import harness

    side = harness.Side("a", lambda setting: lambda: None)
    row = {"ratio": 3.0, "memory_ratio": 5.0, "facts": {"error": 1e-6}}
    for limits, ratio, memory, holds in (
        ({}, 2, 4, True),
        ({}, 4, 4, False),
        ({}, 2, 6, False),
        ({"error": 1e-7}, 2, 4, False),
        ({"error": 1e-5}, 2, None, True),
    ):
        case = harness.Case("c", "q", (side,), limits=limits, at_least=ratio, memory_at_least=memory)
        assert harness._holds(case, row) is holds


ALLOCATES = """
import harness

def prepare(setting):
    kept = bytearray(b"x" * 50 * harness.MIB)
    return lambda: len(bytearray(b"y" * 30 * harness.MIB)) + len(kept)

found = harness.run_memory(harness.Case("c", "q", (harness.Side("s", prepare),)), "s", harness.Setting())
print(found["peak_mib"])
"""


def test_memory_is_what_one_run_adds_at_most() -> None:
    # In a process of its own, as run.py measures: one that has freed memory before needs none from the system.
    command = [sys.executable, "-c", ALLOCATES]
    folder = Path(__file__).parents[2] / "experiments" / "performance"
    shown = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder)
    assert 55 < float(shown.stdout) < 70  # the literal and its copy


def test_every_case_has_a_name_of_its_own_and_sides_that_differ() -> None:
    import harness

    found = harness.cases()
    assert {"coop-65", "zero-shot-1000"} <= set(found)
    for case in found.values():
        assert len({side.name for side in case.sides}) == len(case.sides) > 1, case.name
    sys.modules.pop("cases", None)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_case_goes_through_with_tiny_towers() -> None:
    call = [sys.executable, str(PLACE / "run.py"), "--small", "--turns", "1"]
    ran = subprocess.run(call, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    assert "ended with" not in ran.stdout + ran.stderr
