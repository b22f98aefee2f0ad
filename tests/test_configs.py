"""Every YAML that the repository ships is one that its command accepts."""

from pathlib import Path

import pytest

from clipdg import config, sweep
from clipdg.demo import RUNS

ROOT = Path(__file__).parents[1]
SWEEPS = [
    *sorted((ROOT / "configs" / "sweeps").glob("*.yaml")),
    *sorted((ROOT / "experiments").rglob("sweep*.yaml")),
    RUNS,
]


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_a_config_is_accepted_and_opens_with_its_command(file: Path) -> None:
    assert f"clipdg run configs/{file.name}" in file.read_text().splitlines()[0]
    assert config.load(file).values["method"]["name"]


@pytest.mark.parametrize("file", SWEEPS, ids=lambda p: p.name)
def test_a_sweep_is_accepted_and_its_rows_have_names_of_their_own(file: Path) -> None:
    planned = sweep.plan(file)
    rows = {(r.values["label"], r.values["seed"]) for r in planned}
    assert len(rows) == len(planned)
    assert all(label for label, _ in rows)


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "benchmarks").glob("*.yaml")), ids=lambda p: p.name)
def test_a_benchmark_is_accepted_and_opens_with_its_command(file: Path) -> None:
    assert f"clipdg run benchmark=configs/benchmarks/{file.name}" in file.read_text().splitlines()[0]
    assert config.load(overrides=[f"benchmark={file}"]).values["benchmark"]["name"] == "table"
