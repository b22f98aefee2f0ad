"""DomainBed's tables from DomainBed's own files, with its rounding."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clipdg.core.errors import RecordError
from clipdg.records.domainbed_import import read_sweep
from clipdg.report.page import write_report
from clipdg.report.protocol import Cell, protocol, write_protocol

NUM_ENVS = 4  # PACS


def write_job(root: Path, name: str, targets: list[int], trial: int, draw: int, lines: list[dict[str, float]]) -> None:
    (root / name).mkdir(parents=True)
    args = {"dataset": "PACS", "algorithm": "ERM", "test_envs": targets, "hparams_seed": draw, "trial_seed": trial}
    rows = [json.dumps({"args": args, "hparams": {"lr": 5e-5}, "step": 300 * i, "loss": 1.0, **line})
            for i, line in enumerate(lines)]  # fmt: skip
    (root / name / "results.jsonl").write_text("".join(f"{row}\n" for row in rows))


def accuracies(inside: float, out: float) -> dict[str, float]:
    return {f"env{i}_{s}_acc": a for i in range(NUM_ENVS) for s, a in (("in", inside), ("out", out))}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """ERM on PACS: three trials of each single test environment, two checkpoints each."""
    root = tmp_path / "sweep"
    for trial in range(3):
        for env in range(NUM_ENVS):
            best = accuracies(0.1 * (trial + 1), 0.9)  # what training-domain validation chooses
            last = accuracies(0.5, 0.2)
            write_job(root, f"{trial}{env}", [env], trial, 0, [best, last])
    return root


def test_format_of_a_cell_is_domainbeds() -> None:
    # format_mean([.1, .2, .3]) there: mean 20, error 100 * std(ddof=0) / sqrt(3) = 4.71
    assert Cell({0: 0.1, 1: 0.2, 2: 0.3}, 3).text == "20.0 +/- 4.7"
    assert Cell({}, 3).text == "X"
    assert Cell({0: 0.1, 2: 0.3}, 3).text == "20.0 +/- 7.1 (2/3)"


def test_the_tables_of_a_sweep_by_hand(sweep: Path) -> None:
    records, errors = read_sweep(sweep)
    assert not errors
    found = {(t.criterion, t.title): t.lines for t in protocol(records).tables}
    # training-domain validation takes step 0 (0.1, 0.2, 0.3 over the trials); the oracle the last step (0.5)
    cell = "20.0 +/- 4.7"
    assert found["training", "PACS"] == [
        ["Algorithm", "A", "C", "P", "S", "Avg"],
        ["ERM", cell, cell, cell, cell, "20.0"],
    ]
    assert found["oracle", "PACS"][1] == ["ERM", *["50.0 +/- 0.0"] * 4, "50.0"]
    assert found["training", "Averages"] == [["Algorithm", "PACS", "Avg"], ["ERM", "20.0 +/- 4.7", "20.0"]]
    assert not any(criterion == "loo" for criterion, _ in found)  # needs pairs, which this sweep has not


def test_half_a_sweep_is_refused_and_counted_if_asked_for(sweep: Path) -> None:
    (sweep / "21" / "results.jsonl").unlink()
    records, _ = read_sweep(sweep)
    with pytest.raises(RecordError, match=r"ERM on PACS, trial 2: 1 of 4 runs .*draw 0 without C"):
        protocol(records)
    found = protocol(records, incomplete=True)
    assert found.tables[0].lines[1][2] == "15.0 +/- 3.5 (2/3)"
    assert len(found.missing) == 1


def test_a_torn_line_is_named_and_the_rest_is_read(sweep: Path) -> None:
    file = sweep / "00" / "results.jsonl"
    file.write_text(file.read_text() + '{"args": {"data')
    records, errors = read_sweep(sweep)
    assert len(records) == 12
    assert [str(e) for e in errors] == [f"{file}, line 3 is cut or no result of DomainBed's"]


def test_an_accuracy_that_is_no_fraction_is_no_result(sweep: Path) -> None:
    file = sweep / "00" / "results.jsonl"
    file.write_text(file.read_text().replace('"env0_in_acc": 0.1', '"env0_in_acc": NaN', 1))
    _, errors = read_sweep(sweep)
    assert len(errors) == 1


def test_an_appended_second_run_of_a_job_counts_once(sweep: Path) -> None:
    file = sweep / "00" / "results.jsonl"
    file.write_text(file.read_text() * 2)
    records, _ = read_sweep(sweep)
    assert len(protocol(records).tables) == 4


def test_a_folder_without_results_says_what_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"no \*/results.jsonl"):
        read_sweep(tmp_path)


def test_imported_runs_stand_in_no_other_table(sweep: Path, tmp_path: Path) -> None:
    for record in read_sweep(sweep)[0]:
        record.publish(tmp_path / "records")
    with pytest.raises(RecordError, match="--protocol domainbed"):
        write_report([tmp_path / "records"], tmp_path / "out")


def test_the_command_prints_the_tables(sweep: Path, tmp_path: Path) -> None:
    def clipdg(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "clipdg", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    assert clipdg("import", "domainbed", str(sweep), "--out", "records").returncode == 0
    shown = clipdg("report", "records", "--protocol", "domainbed", "--out", "out")
    assert shown.returncode == 0, shown.stderr
    assert "ERM        20.0 +/- 4.7  20.0 +/- 4.7  20.0 +/- 4.7  20.0 +/- 4.7  20.0" in shown.stdout
    again = clipdg("import", "domainbed", str(sweep), "--out", "records")
    assert "12 runs, 0 of them new" in again.stderr
    assert (tmp_path / "out" / "tables" / "domainbed-training-pacs.tex").exists()


def test_a_page_has_every_table(sweep: Path, tmp_path: Path) -> None:
    found = write_protocol(read_sweep(sweep)[0], tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<table") == len(found.tables)
    assert "20.0 ± 4.7" in page


def test_averages_take_each_trials_mean_first(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = rng.random((3, NUM_ENVS))
    for trial in range(3):
        for env in range(NUM_ENVS):
            write_job(tmp_path, f"{trial}{env}", [env], trial, 0, [accuracies(table[trial, env], 0.5)])
    [average] = [
        t for t in protocol(read_sweep(tmp_path)[0]).tables if (t.criterion, t.title) == ("training", "Averages")
    ]
    means = table.mean(axis=1)
    assert average.rows["ERM"]["PACS"].text == f"{100 * means.mean():.1f} +/- {100 * means.std() / np.sqrt(3):.1f}"
