"""What is kept in results/ cannot drift: its answers are what ``clipdg report`` makes of its records now."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from clipdg.records.folder import ARCHIVE, pack, read_records
from clipdg.report import figures, section, tables
from clipdg.report.formats import escape_markdown
from clipdg.report.numbers import format_mean
from clipdg.report.page import write_report
from clipdg.report.protocol import write_protocol

RESULTS = Path(__file__).parents[2] / "results"
KEPT = sorted(p.parent.name for p in RESULTS.glob(f"*/{ARCHIVE}"))
SMALLEST = "methods-rotated-digits"
# SHA-256 over (run id, row, group) of every record, as they were before records were typed and packed.
IDENTITIES = "0ec3d881f96670b2dce90bbf13f91b71be9188dfee48145e6119e5a5c29f7da0"


@pytest.fixture(autouse=True)
def no_pdf(monkeypatch: pytest.MonkeyPatch) -> None:
    """PDFs are the SVGs' figures again and take half of the time."""
    render = figures.render
    monkeypatch.setattr(figures, "render", lambda figure, form: b"" if form == "pdf" else render(figure, form))
    assert section.figures is figures


def assert_is_what_is_made(name: str, out: Path) -> None:
    """The committed report.md and every figure that it shows are the ones made of the records."""
    folder = RESULTS / name
    text = (folder / "report.md").read_text()
    if text.startswith("# DomainBed's tables"):
        write_protocol(read_records([folder])[0], out, False)
        command = f"clipdg report results/{name} --protocol domainbed --out report"
    else:
        write_report([folder], out)
        command = f"clipdg report results/{name} --out report"
    assert (out / "report.md").read_text() == text, command
    shown = set(re.findall(r"\]\((figures/[^)]+)\)", text))
    assert {f"figures/{p.name}" for p in (folder / "figures").glob("*")} == shown
    for figure in sorted(shown):
        assert (out / figure).read_bytes() == (folder / figure).read_bytes(), f"{figure}: {command}"


def test_the_smallest_report_is_the_one_that_is_made(tmp_path: Path) -> None:
    assert_is_what_is_made(SMALLEST, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in KEPT if n != SMALLEST])
def test_every_report_is_the_one_that_is_made(name: str, tmp_path: Path) -> None:
    assert_is_what_is_made(name, tmp_path)


@pytest.mark.parametrize("name", KEPT)
def test_a_committed_answer_has_the_numbers_of_its_records(name: str) -> None:
    found, errors = read_records([RESULTS / name])
    assert not errors
    text = (RESULTS / name / "report.md").read_text()
    if text.startswith("# DomainBed's tables"):
        return  # each number of it is looked at by the slow test, which takes two seconds
    for study in tables.studies(found):
        for row in tables.table(study).rows:
            cell = row.cells["shifted"]
            if cell.mean is not None:
                line = (
                    rf"^\| {re.escape(escape_markdown(row.label))} \|.*{re.escape(format_mean(cell.mean, cell.error))}"
                )
                assert re.search(line, text, re.MULTILINE), f"{study.title}: {row.label}"


def test_no_run_has_lost_its_name() -> None:
    found = set()
    for name in KEPT:
        records, _ = read_records([RESULTS / name])
        found |= {(r.run_id, r.row, r.group) for r in records}
    assert hashlib.sha256(json.dumps(sorted(found)).encode()).hexdigest() == IDENTITIES


def test_results_hold_answers_and_evidence_and_nothing_else() -> None:
    allowed = {".md", ".svg", ".png", ".xz", ".csv", ".json"}
    for file in (p for p in RESULTS.rglob("*") if p.is_file()):
        name, *inside = file.relative_to(RESULTS).parts
        if name in KEPT:
            assert inside in (["report.md"], [ARCHIVE]) or inside[0] == "figures", file
        elif name in ("published", "performance"):
            assert file.suffix in allowed, file


def test_a_record_that_is_read_and_written_again_has_the_same_bytes(tmp_path: Path) -> None:
    folder = RESULTS / SMALLEST
    records, _ = read_records([folder])
    for record in records:
        record.publish(tmp_path)
    again, errors = read_records([tmp_path])
    assert not errors
    assert {r.bytes() for r in again} == {r.bytes() for r in records}


def test_an_archive_is_packed_to_the_same_bytes(tmp_path: Path) -> None:
    for number in ("one", "two"):
        assert pack(RESULTS / SMALLEST, tmp_path / f"{number}.tar.xz") == 16
    assert (tmp_path / "one.tar.xz").read_bytes() == (tmp_path / "two.tar.xz").read_bytes()
