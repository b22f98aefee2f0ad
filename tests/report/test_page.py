from __future__ import annotations

import base64
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_records import evaluation, leave_one_out, make_record, miniatures

from clipdg.core.errors import RecordError
from clipdg.records.record import Record
from clipdg.report.page import write_report
from clipdg.storage.publish import digest

Publish = Callable[..., Path]
# 1 x 1 pixel, so that its place in the page can be told by its bytes
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII=")


class Outline(HTMLParser):
    """The tables of a page as rows of texts, and whether every element is closed in its order."""

    VOID = ("meta", "img", "link", "br", "path", "use")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.attributes: list[tuple[str, str, str]] = []
        self.rows: list[list[str]] | None = None
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, k, v or "") for k, v in attrs]
        if tag == "table":
            self.rows = self.tables.setdefault(dict(attrs).get("id") or f"table {len(self.tables)}", [])
        if tag == "tr" and self.rows is not None:
            self.rows.append([])
        if tag in ("td", "th") and self.rows is not None:
            self.rows[-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag
        if tag == "table":
            self.rows = None

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, k, v or "") for k, v in attrs]

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1] and data.strip():
            self.rows[-1][-1] = f"{self.rows[-1][-1]} {data.strip()}".strip()


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_page_shows_the_numbers_of_the_table(publish: Publish, tmp_path: Path) -> None:
    report = write_report([publish(leave_one_out())], tmp_path / "out")
    assert (report.path, report.num_records, report.problems) == (tmp_path / "out" / "report.html", 24, ())
    tables = Outline(report.path.read_text()).tables
    assert tables["pacs-accuracy"][1] == [
        "coop", "3", "51.0 ± 0.6", "61.0 ± 0.6", "71.0 ± 0.6", "81.0 ± 0.6", "66.0 ± 0.6",
    ]  # fmt: skip
    assert tables["pacs-summary"][1] == ["coop", "3", "91.0 ± 0.6", "66.0 ± 0.6", "51.0 ± 0.6 art", "25.0 ± 0.0"]
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| coop | 3 | 51.0 ± 0.6 | 61.0 ± 0.6 | 71.0 ± 0.6 | 81.0 ± 0.6 | 66.0 ± 0.6 |" in text


def test_the_files_of_a_report(publish: Publish, tmp_path: Path) -> None:
    folder = publish(miniatures())
    (folder / f"contact-{digest(0)[:12]}.png").write_bytes(PNG)
    write_report([folder], tmp_path / "out")
    metrics = ["accuracy", "ece", "mean-per-class", "nll", "top5", "worst-class"]
    assert set(files(tmp_path / "out")) == {
        ".report.json",  # which files these are, so that the next report takes them away
        "report.html",
        "report.md",
        "figures/miniatures-domains.png",
        *(f"figures/miniatures-{f}.{x}" for f in ("accuracy", "source-vs-shift") for x in ("svg", "pdf")),
        *(f"tables/miniatures-{m}.{x}" for m in metrics for x in ("csv", "tex")),
        "tables/miniatures-summary.tex",
        "tables/miniatures-single-runs.csv",
        *(f"tables/miniatures-costs.{x}" for x in ("csv", "tex")),
    }
    assert files(tmp_path / "out")["figures/miniatures-domains.png"] == PNG
    assert f"data:image/png;base64,{base64.b64encode(PNG).decode()}" in (tmp_path / "out" / "report.html").read_text()


def test_the_same_records_make_the_same_report_wherever_they_lie(publish: Publish, tmp_path: Path) -> None:
    for name, made in (("a", leave_one_out()), ("b/c", list(reversed(leave_one_out())))):
        folder = publish(made, name)
        (folder / ("ab" * 8 + ".json")).write_text("{")
        write_report([folder], tmp_path / f"out-{name}")
    assert files(tmp_path / "out-a") == files(tmp_path / "out-b/c")


def test_the_page_asks_for_nothing_outside_itself(publish: Publish, tmp_path: Path) -> None:
    folder = publish([*miniatures(), *leave_one_out()])
    page = write_report([folder], tmp_path / "out").path.read_text()
    outline = Outline(page)
    for tag, name, value in outline.attributes:
        if name in ("src", "href", "xlink:href", "data", "action", "poster", "srcset"):
            assert value.startswith(("#", "data:")), (tag, name, value[:80])
    assert not [tag for tag, *_ in outline.attributes if tag in ("link", "iframe", "object", "embed")]
    assert not re.search(r"@import|url\((?!#|[\"']?data:)|\bfetch\(|XMLHttpRequest|https?:", page)


def test_names_from_records_are_text_and_never_markup(publish: Publish, tmp_path: Path) -> None:
    evil = '<script>alert(1)</script>"&'
    record = make_record(
        [evaluation("photo", "test", 0.9), evaluation(evil, "all", 0.5)],
        targets=(evil,), label=evil, benchmark=evil, notes=(evil,), weights={"tag": evil, "provenance": {"by": evil}},
    )  # fmt: skip
    page = write_report([publish([record])], tmp_path / "out").path.read_text()
    assert "<script>alert" not in page
    Outline(page)
    assert "<script>alert" not in (tmp_path / "out" / "report.md").read_text().replace("\\<", "&lt;")


def test_a_corrupt_file_is_named_and_the_rest_is_reported(publish: Publish, tmp_path: Path) -> None:
    folder = publish(leave_one_out())
    (folder / ("ab" * 8 + ".json")).write_text('{"schema": 1, "run')
    report = write_report([folder], tmp_path / "out")
    assert report.num_records == 24
    assert len(report.problems) == 1
    assert report.problems[0].startswith("abababababababab.json is not a record")
    for name in ("report.html", "report.md"):
        text = (tmp_path / "out" / name).read_text()
        assert "abababababababab.json is not a record" in text
        assert str(tmp_path) not in text


def test_no_record_at_all_is_an_error_and_nothing_is_written(publish: Publish, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with pytest.raises(RecordError, match="no record in"):
        write_report([tmp_path / "runs"], tmp_path / "out")
    (tmp_path / "runs" / ("ab" * 8 + ".json")).write_text("{")
    with pytest.raises(RecordError, match=r"can be read: abababababababab\.json is not a record"):
        write_report([tmp_path / "runs"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_broken_contact_sheet_is_named(publish: Publish, tmp_path: Path) -> None:
    folder = publish(leave_one_out())
    (folder / f"contact-{'d' * 12}.png").write_bytes(b"<html>")
    report = write_report([folder], tmp_path / "out")
    assert report.problems == ("contact-dddddddddddd.png is no PNG; delete it and run again",)


def test_missing_runs_are_listed_and_leave_no_average(publish: Publish, tmp_path: Path) -> None:
    report = write_report([publish(leave_one_out()[:-1])], tmp_path / "out")
    page = report.path.read_text()
    assert "<li>coop, sketch: 2 of 3 seeds</li>" in page
    rows = {row[0]: row for row in Outline(page).tables["pacs-accuracy"]}
    assert rows["coop"] == ["coop", "3", "51.0 ± 0.6", "61.0 ± 0.6", "71.0 ± 0.6", "2/3", ""]
    assert "1 of the settings lacks runs and is not compared." in page


def test_the_summary_restates_the_table(publish: Publish, tmp_path: Path) -> None:
    def made(label: str, shots: int, by_seed: list[tuple[float, float]]) -> list[Record]:
        return [
            make_record(
                [evaluation("photo", "test", a), evaluation("sketch", "all", b)], label=label, shots=shots, seed=s
            )
            for s, (a, b) in enumerate(by_seed)
        ]

    # shifted: A .5 .6 (mean .55, error .05), B .4 .4; paired difference .1 .2: .15 ± .05; gaps A .3, B .5
    records = made("A", 1, [(0.8, 0.5), (0.9, 0.6)]) + made("B", 2, [(0.9, 0.4), (0.9, 0.4)])
    page = write_report([publish(records)], tmp_path / "out").path.read_text()
    match = re.search(r'<p class="lead">(.*?)</p>', page, re.S)
    assert match
    assert match[1] == (
        "On toy, 2 settings were evaluated with photo as source and sketch as target. Averaged over the shifted "
        "domains, “A” has the highest top-1 accuracy, 55.0 % (standard error 5.0 over 2 seeds). “B” follows with "
        "40.0 %; the difference, paired over the 2 seeds that both have, is 15.0 ± 5.0 points. On the source, “B” is "
        "highest with 90.0 %. From source to shifted domains the loss is smallest for “A” (30.0 points) and largest "
        "for “B” (50.0 points). These sentences restate the tables; they hold for these runs and say "
        "nothing about causes."
    )


def test_every_caption_says_what_the_spread_is_and_how_many_seeds(publish: Publish, tmp_path: Path) -> None:
    page = write_report([publish(miniatures())], tmp_path / "out").path.read_text()
    captions = re.findall(r'<p class="caption">(.*?)</p>|<figcaption>(.*?)</figcaption>', page, re.S)
    texts = [a or b for a, b in captions]
    assert len(texts) == 7  # three tables, two figures, the costs, the single runs
    assert texts[5].startswith("Median over a row&#39;s runs, [lowest, highest]")
    for text in texts[:-2]:
        assert "standard error" in text
        assert "1 to 3 seeds a row" in text
        assert "600 test images" in text
    assert "95 % Wilson score interval" in texts[-1]
    tex = (tmp_path / "out" / "tables" / "miniatures-accuracy.tex").read_text()
    assert "standard error over seeds" in tex


def test_how_a_number_was_made_stands_beside_it(publish: Publish, tmp_path: Path) -> None:
    records = miniatures()
    page = write_report([publish(records)], tmp_path / "out").path.read_text()
    for record in records:
        assert record.run_id in page
    assert "Painting and mosaic were redesigned" in page
    assert "What follows the seed (all rows): seed, benchmark.seed" in page
    assert "clipdg pretrain seed=2" in page
    assert "a drawing of a {}." in page
    assert "torch 2.13.0" in page


def test_reading_results_never_imports_torch(publish: Publish, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from clipdg.records import statistics\n"
        "from clipdg.report import figures, frame, page\n"
        "page.write_report([Path(sys.argv[1])], Path(sys.argv[2]))\n"
        "frame.load_records(sys.argv[1])\n"
        "print([m for m in ('torch', 'lightning', 'transformers', 'matplotlib.pyplot') if m in sys.modules])"
    )
    folder = publish(leave_one_out(seeds=(0,)))
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(tmp_path / "out")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_importing_the_tables_costs_neither_pandas_nor_matplotlib() -> None:
    heavy = ("pandas", "matplotlib", "jinja2", "torch")
    code = f"import sys, clipdg.report.page; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_a_study_of_many_rows_is_shown_in_part_and_says_so(publish: Publish, tmp_path: Path) -> None:
    records = [
        make_record([evaluation("photo", "test", 0.9), evaluation("sketch", "all", 0.5 + n / 1000)],
                    targets=("sketch",), seed=0, label=f"row {n}", shots=n + 1)
        for n in range(101)
    ]  # fmt: skip
    write_report([publish(records)], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    table = page[page.index('-accuracy"') :]
    shown = re.findall(r'<th scope="row">(row [0-9]+)</th>', table[: table.index("</table>")])
    assert shown == [f"row {n}" for n in range(100, 0, -1)]  # the highest first, without the lowest
    assert "The first 100 of 101 rows; tables/*.csv has all." in page
    assert "Drawn are the first 40 of 101 rows." in page
    (whole,) = (tmp_path / "out" / "tables").glob("*-accuracy.csv")
    assert len(whole.read_text().splitlines()) == 102


@pytest.mark.slow
def test_no_table_of_an_older_report_stays_beside_a_new_one(publish: Publish, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_report([publish(miniatures(), "first")], out)
    (out / "tables" / "my-own.csv").write_text("a,b\n")
    second = publish(leave_one_out(), "second")
    write_report([second], out)
    write_report([second], tmp_path / "fresh")
    assert set(files(out)) == {*files(tmp_path / "fresh"), "tables/my-own.csv"}
