"""Every YAML that the repository ships is one that its command accepts."""

import csv
from pathlib import Path

import pytest

from clipdg.runs import config, sweep_file
from clipdg.runs.demo import RUNS

ROOT = Path(__file__).parents[2]
SWEEPS = [
    *sorted((ROOT / "configs" / "sweeps").glob("*.yaml")),
    *sorted((ROOT / "experiments").rglob("sweep*.yaml")),
    *sorted((ROOT / "experiments").rglob("builtin.yaml")),
    RUNS,
]


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_a_config_is_accepted_and_opens_with_its_command(file: Path) -> None:
    assert f"clipdg run configs/{file.name}" in file.read_text().splitlines()[0]
    assert config.load(file).plain["method"]["name"]


PUBLISHED = [
    (file, *line.removeprefix("# published: ").split(" ", 3))
    for file in sorted((ROOT / "configs").glob("*.yaml"))
    for line in file.read_text().splitlines()
    if line.startswith("# published: ")
]


@pytest.mark.parametrize(("file", "source", "model", "method", "numbers"), PUBLISHED)
def test_published_numbers_in_a_config_are_those_of_the_table(
    file: Path, source: str, model: str, method: str, numbers: str
) -> None:
    with open(ROOT / "clipdg" / "report" / "published" / "papers.csv") as lines:
        rows = [r for r in csv.DictReader(lines) if (r["source"], r["model"], r["method"]) == (source, model, method)]
    known = {r["dataset"]: float(r["value"]) for r in rows}
    for dataset, value in (pair.split() for pair in numbers.split(", ")):
        assert known[dataset] == pytest.approx(float(value) / 100, abs=1e-9), f"{file.name}: {dataset}"
    assert config.load(file).plain["backbone"]["name"] == model


def test_draws_of_the_domainbed_sweep_are_domainbeds() -> None:
    planned = sweep_file.plan(ROOT / "configs" / "sweeps" / "domainbed_erm_resnet50_2020.yaml")
    assert len(planned) == 60
    [second] = [r.plain for r in planned if (r.plain["hparams_seed"], r.plain["seed"]) == (2, 0)]
    # hparams_registry.random_hparams("ERM", "PACS", seed_hash(2, 0)), run once
    assert second["method"]["lr"] == pytest.approx(5.6841898471e-05, rel=1e-10)
    assert second["method"]["weight_decay"] == pytest.approx(5.1002235340e-03, rel=1e-10)
    assert (second["method"]["batch_size"], second["method"]["dropout"]) == (25, 0.5)
    [default] = [r.plain for r in planned if (r.plain["hparams_seed"], r.plain["seed"]) == (0, 1)]
    assert [default["method"][k] for k in ("lr", "batch_size", "weight_decay", "dropout")] == [5e-5, 32, 0.0, 0.0]


@pytest.mark.parametrize("file", SWEEPS, ids=lambda p: p.name)
def test_a_sweep_is_accepted_and_its_rows_have_names_of_their_own(file: Path) -> None:
    planned = sweep_file.plan(file)
    rows = {(r.plain["label"], r.plain["benchmark"]["name"], r.plain["hparams_seed"], r.plain["seed"]) for r in planned}
    assert len(rows) == len(planned)
    assert all(label for label, *_ in rows)


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "benchmarks").glob("*.yaml")), ids=lambda p: p.name)
def test_a_benchmark_is_accepted_and_opens_with_its_command(file: Path) -> None:
    assert f"clipdg run benchmark=configs/benchmarks/{file.name}" in file.read_text().splitlines()[0]
    assert config.load(overrides=[f"benchmark={file}"]).plain["benchmark"]["name"] == "table"
