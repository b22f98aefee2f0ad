"""Committed reports are what ``clipdg report`` makes of the committed records now: none of them can drift."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipdg.records.folder import read_records
from clipdg.report import figures, section
from clipdg.report.page import write_report
from clipdg.report.protocol import write_protocol

RESULTS = Path(__file__).parents[2] / "results"
REPORTS = sorted(p.parent.relative_to(RESULTS) for p in RESULTS.glob("*/report/report.md"))
PROTOCOLS = sorted(p.parent.relative_to(RESULTS) for p in RESULTS.glob("*/protocol/report.md"))


@pytest.fixture(autouse=True)
def no_pdf(monkeypatch: pytest.MonkeyPatch) -> None:
    """PDFs are the SVGs' figures again and take half of the time."""
    render = figures.render
    monkeypatch.setattr(figures, "render", lambda figure, form: b"" if form == "pdf" else render(figure, form))
    assert section.figures is figures


def text(path: Path) -> str:
    """A page from its body on: its style is the style sheet's business."""
    content = path.read_text()
    return content.partition("<body>")[2].partition("<script>")[0] if path.suffix == ".html" else content


def assert_same(made: Path, committed: Path, command: str) -> None:
    kinds = (".csv", ".tex", ".md", ".html")
    names = [{str(p.relative_to(f)) for p in f.rglob("*") if p.suffix in kinds} for f in (made, committed)]
    assert names[0]
    assert names[0] == names[1], command
    for name in sorted(names[0]):
        assert text(made / name) == text(committed / name), f"{name}: {command}"


@pytest.mark.parametrize("report", REPORTS, ids=str)
def test_a_committed_report_is_the_one_that_is_made(report: Path, tmp_path: Path) -> None:
    folder = RESULTS / report.parent
    write_report([folder], tmp_path)
    assert_same(tmp_path, RESULTS / report, f"clipdg report results/{report.parent} --out results/{report}")


@pytest.mark.parametrize("report", PROTOCOLS, ids=str)
def test_a_committed_protocol_is_the_one_that_is_made(report: Path, tmp_path: Path) -> None:
    records, errors = read_records([RESULTS / report.parent])
    assert not errors
    write_protocol(records, tmp_path, False)
    command = f"clipdg report results/{report.parent} --protocol domainbed --out results/{report}"
    assert_same(tmp_path, RESULTS / report, command)
