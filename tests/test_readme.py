"""What the README shows is what there is: its Python runs, its table is the committed records'."""

import re
from pathlib import Path

import pytest

from clipdg.records.folder import read_records
from clipdg.report import tables
from clipdg.report.numbers import format_mean

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.filterwarnings("ignore")  # a plain Trainer advises on workers
def test_its_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["directions"].shape == (20, 64)  # type: ignore[attr-defined]
    assert len(names["records"]) == 1  # type: ignore[arg-type]
    assert set(names["model"].results) == {(d, "test") for d in names["benchmark"].domains}  # type: ignore[attr-defined]


def test_its_table_is_that_of_the_committed_records() -> None:
    found, problems = read_records([ROOT / "results" / "miniatures"])
    assert not problems
    rows = {r.label: r.cells for r in tables.robustness(found).rows}
    shown = re.findall(r"^\| (.*?) \| (\d.*?) \| (.*?) \| (.*?) \|$", README, re.MULTILINE)
    assert len(shown) == 6
    for label, *cells in shown:
        row = rows[label]
        values = [format_mean(row[k].mean, row[k].error) for k in ("source", "shifted", "gap")]
        assert cells == values, label


def test_the_commands_it_names_exist() -> None:
    from clipdg.cli import app

    known = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback}
    used = set(re.findall(r"clipdg (demo|run|sweep|report|classify|pretrain|list|doctor|\w+) ", README))
    assert {u for u in used if u in known} >= {"run", "report", "classify", "sweep"}
    for target in re.findall(r"\]\((?!http)(.*?)\)", README):
        assert (ROOT / target).exists(), target
