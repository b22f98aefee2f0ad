"""``clipdg report``: one self-contained page, its Markdown twin, and the tables and figures as files.

The page asks for nothing outside itself. The same records make the same bytes: no dates, no paths, a fixed order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipdg.core import plugins
from clipdg.core.errors import RecordError
from clipdg.records.folder import read_records
from clipdg.report import comparisons, figures, html, views, words
from clipdg.report.formats import csv_text, escape_markdown, singles_csv, to_csv, to_latex, to_markdown
from clipdg.report.numbers import Metric, format_mean
from clipdg.report.published.beside import beside_published
from clipdg.report.samples import Samples
from clipdg.report.section import Panel, Studied, Written, write
from clipdg.report.tables import MAX_SHOWN, Cell, Column, Row, Study, Table, describe_shifts, singles, studies, table


@dataclass(frozen=True)
class Report:
    """Where the page is, how many records it shows, and which files could not be read: one sentence each."""

    path: Path
    num_records: int
    problems: tuple[str, ...]


def write_report(
    folders: Sequence[Path], out: Path, baseline: str | None = None, sections: Sequence[str] = ()
) -> Report:
    """Write report.html, report.md, tables/ and figures/ below ``out`` from all records below ``folders``.

    Files that are no records are named on the page and in the result; the rest is reported. Raises RecordError if
    there is no record, if one setting has the same seed twice, or if no row is called ``baseline``, with which the
    others are compared image by image (by default the highest).
    """
    records, errors = read_records(folders)
    problems = [views.without(str(e), folders) for e in errors]
    if not records:
        where = ", ".join(map(str, folders))
        if problems:
            raise RecordError(f"no record in {where} can be read: {'; '.join(problems)}")
        raise RecordError(f"no record in {where}; `clipdg run … --out DIR` writes one")
    imported = [r for r in records if r.data.imported]
    records = [r for r in records if r not in imported]
    if not records:
        raise RecordError(
            f"{len(imported)} imported runs and none of clipdg's; give --protocol domainbed for their tables"
        )
    written = Written(out)
    written.clear()
    shown = []
    samples = Samples(folders)
    for study in studies(records):
        sheet, problem = views.contact_sheet(study, folders)
        problems += [problem] if problem else []
        shown.append(_write_study(study, sheet, samples, baseline, written, sections))
    problems += [views.without(p, folders) for p in samples.problems]
    names = ", ".join(dict.fromkeys(v["name"] for v in shown))
    context = {
        "title": f"{names}: accuracy under domain shift",
        "num_records": len(records),
        "studies": shown,
        "problems": problems,
        "versions": views.versions(records),
    }
    written.publish("report.md", _markdown(context).encode())
    written.publish("report.html", _html(context).encode())
    written.finish()
    return Report(out / "report.html", len(records), tuple(problems))


def _write_study(
    study: Study,
    sheet: tuple[bytes, str] | None,
    samples: Samples,
    baseline: str | None,
    written: Written,
    own: Sequence[str],
) -> dict[str, Any]:
    """Publish the tables and figures of a study; what the page and its Markdown twin say about it."""
    by_metric = {m.name: table(study, m.name) for m in study.metrics}
    main = by_metric.get("top1") or table(study)
    compared = comparisons.comparisons(study, main, samples, baseline)
    main = comparisons.mark(main, compared)
    explained = comparisons.explain(compared)
    domains, averages = views.domain_view(main), main.only(("source", "shifted", "gap", "worst"))
    others = [by_metric[m.name] for m in study.metrics if m.name != "top1"]
    runs = singles(study)

    tables = {
        f"{study.slug}-accuracy": (domains, f"{words.caption(domains)} {explained}".strip()),
        f"{study.slug}-summary": (averages, words.caption(averages, main)),
    }
    tables |= {
        f"{study.slug}-{t.metric.name.replace('_', '-')}": (views.domain_view(t), words.caption(t)) for t in others
    }
    for name, (shown, caption) in tables.items():
        marks = words.marked(shown, "bold", "underlined")
        written.publish(f"tables/{name}.tex", to_latex(shown, f"{caption} {marks}", name).encode())
    for t in by_metric.values():
        name = "accuracy" if t.metric.name == "top1" else t.metric.name.replace("_", "-")
        written.publish(f"tables/{study.slug}-{name}.csv", to_csv(t).encode())
    written.publish(f"tables/{study.slug}-single-runs.csv", singles_csv(runs).encode())
    beside = beside_published(study)
    if beside:
        written.publish(f"tables/{study.slug}-beside-published.csv", csv_text(views.beside_lines(beside)).encode())

    drawn = {}
    for name, draw in (("accuracy", figures.accuracy), ("source-vs-shift", figures.source_vs_shift)):
        drawn_rows = main.first(figures.MAX_DRAWN)
        wide = draw(drawn_rows)
        svg = figures.render(wide, "svg")
        written.publish(f"figures/{study.slug}-{name}.svg", svg)
        written.publish(f"figures/{study.slug}-{name}.pdf", figures.render(wide, "pdf"))
        narrow = figures.render(draw(drawn_rows, narrow=True), "svg")
        title = f"{name.replace('-', ' ')}, {study.title}"
        drawn[name] = (figures.for_page(svg, title), figures.for_page(narrow, title))
    if sheet:
        written.publish(f"figures/{study.slug}-domains.png", sheet[0])

    reference = comparisons.reference_row(study, main, baseline)
    studied = Studied(study, main, reference, tuple(compared), samples, baseline)
    pieces = [write(panel, study.slug, written) for panel in _panels(studied, own)]
    return {
        "sections": pieces,
        "study": study,
        "name": study.title,
        "slug": study.slug,
        "shifts": describe_shifts(study),
        "summary": words.summary(study, main),
        "main": main,
        "domains": domains,
        "averages": averages,
        "others": others,
        "domains_caption": f"{words.caption(domains)} {explained}".strip(),
        "averages_caption": words.caption(averages, main),
        "others_caption": words.others_caption(main, others),
        "accuracy": drawn["accuracy"],
        "accuracy_caption": words.figure_caption(
            main, "One panel per domain; each row is a method, in the order of the tables."
        ),
        "scatter": drawn["source-vs-shift"],
        "scatter_caption": words.figure_caption(
            main,
            "Each point is a method: its accuracy on the source against its mean over the shifted domains. "
            "The vertical distance to the dashed line is the gap.",
        ),
        "sheet": views.sheet_view(study, sheet),
        "singles": views.singles_view(main, [s for s in runs if s.label in {r.label for r in main.shown}]),
        "beside": beside,
        "notes": words.notes(study),
        "incomplete": [(label, domain, cell.n, cell.expected) for label, domain, cell in main.incomplete],
        "rows": [views.story(row) for row in study.rows[:MAX_SHOWN]],
    }


def _panels(studied: Studied, own: Sequence[str]) -> list[Panel]:
    """What the sections have to say of a study, built-in ones and a user's ``own``, in their order."""
    known = [(plugins.section(name), name) for name in (*plugins.names("sections"), *own)]
    return [
        panel
        for section, _ in sorted(known, key=lambda found: (found[0].order, found[1]))
        for panel in section.make(studied)
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def _html(context: Mapping[str, Any]) -> str:
    return html.render(
        "page.html.jinja",
        dict(context),
        cell=_cell,
        points=_points,
        beside_caption=words.BESIDE_CAPTION,
        head=_head,
        marked=words.marked,
        domain_view=views.domain_view,
        error_width=_error_width,
    )


def _points(fraction: float) -> str:
    return f"{100 * fraction:.2f}".replace("-", "−")


def _head(column: Column) -> tuple[str, str]:
    """A column's name and the line under it."""
    counts = column.num_images
    if column.role == "average":
        return column.head, {"shifted": "mean", "source": "mean", "gap": "points"}.get(column.key, "")
    under = "" if not counts else f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,}–{counts[-1]:,}"
    under += " images" if under else ""
    return column.head, f"source · {under}" if column.role == "source" else under


def _cell(t: Table, row: Row, column: Column) -> dict[str, Any]:
    """One table cell as the page shows it: the same text as everywhere, in its parts."""
    cell = row.cells[column.key]
    mean, _, error = t.text(row, column).partition(" ± ")
    return {
        "mean": mean,
        "error": error,
        "mark": t.marks.get((row.label, column.key), ""),
        "differs": (row.label, column.key) in t.differs,
        "interval": _interval(cell, t.metric),
        "note": cell.note,
        "missing": cell.mean is None,
        "sort": "" if cell.mean is None else f"{cell.mean:.8f}",
        "n": cell.n,
    }


def _interval(cell: Cell, metric: Metric) -> str:
    """What a cell says under the pointer."""
    if cell.interval is None:
        return "one seed" if cell.n == 1 and cell.mean is not None else ""
    low, high = (format_mean(x, None, metric) for x in cell.interval)
    return f"Student's 95 % interval over {cell.n} seeds: {low} to {high}"


def _error_width(*tables: Table) -> int:
    """Characters of the longest error, so that numbers with and without one keep their decimals in line.

    -2 if there is none: the two of its sign are not kept free either.
    """
    return max(len(t.text(r, c).partition(" ± ")[2]) for t in tables for r in t.shown for c in t.columns) or -2


def _markdown(context: Mapping[str, Any]) -> str:
    lines = [f"# {escape_markdown(context['title'])}", ""]
    lines += [f"{context['num_records']} record{'' if context['num_records'] == 1 else 's'}.", ""]
    if context["problems"]:
        lines += ["**Left out, because they could not be read:**", ""]
        lines += [f"- {escape_markdown(p)}" for p in context["problems"]] + [""]
    for view in context["studies"]:
        slug = view["slug"]
        lines += [f"## {escape_markdown(view['name'])}", "", escape_markdown(view["summary"]), ""]
        sections = [
            ("Source and shifted domains", view["averages"], view["averages_caption"]),
            ("Accuracy per domain", view["domains"], view["domains_caption"]),
            *(
                (f"{t.metric.title[0].upper()}{t.metric.title[1:]}", views.domain_view(t), words.caption(t))
                for t in view["others"]
            ),
        ]
        pictures = {
            "Source and shifted domains": (f"figures/{slug}-source-vs-shift.svg", view["scatter_caption"]),
            "Accuracy per domain": (f"figures/{slug}-accuracy.svg", view["accuracy_caption"]),
        }
        for title, shown, caption in sections:
            text = f"{caption} {words.marked(shown, 'bold', 'in italics')}".strip()
            lines += [f"### {title}", "", to_markdown(shown), escape_markdown(text), ""]
            if title in pictures:
                path, under = pictures[title]
                lines += [f"![{title}]({path})", "", escape_markdown(under), ""]
        for piece in view["sections"]:
            section = piece["section"]
            if section.fold and not section.in_markdown and piece["drawn"] is None:
                continue
            lines += [f"### {section.title}", ""]
            if section.sheet is not None and section.in_markdown:
                lines += [section.sheet.markdown]
            if piece["drawn"]:
                lines += [f"![{section.title}](figures/{piece['name']}.svg)", ""]
            lines += [escape_markdown(section.caption), ""]
        if view["beside"]:
            lines += ["### Beside published numbers", ""]
            lines += ["| method | data set | own | published | difference | verdict | source |"]
            lines += ["| :--- | :--- | ---: | ---: | ---: | :--- | :--- |"]
            for b in view["beside"]:
                numbers = " | ".join(_points(x) for x in (b.own, b.published, b.difference))
                why = f" ({escape_markdown('; '.join(b.causes))})" if b.causes else ""
                where = f"{b.source}, {b.status}"
                lines.append(f"| {escape_markdown(b.label)} | {b.dataset} | {numbers} | {b.verdict}{why} | {where} |")
            lines += ["", words.BESIDE_CAPTION, ""]
        if view["sheet"]:
            domains = escape_markdown(", ".join(view["sheet"]["domains"]))
            lines += [
                f"![The domains](figures/{slug}-domains.png)",
                "",
                f"{view['sheet']['caption']} Rows: {domains}.",
                "",
            ]
        lines += ["### Notes", "", *(f"- {escape_markdown(n)}" for n in view["notes"]), ""]
        lines += ["### Runs", ""]
        for row in view["rows"]:
            runs = ", ".join(f"`{r['run_id']}`" for r in row["runs"])
            tags = ", ".join(dict.fromkeys(f"{r['backbone']} {r['weights']}" for r in row["runs"]))
            lines.append(
                f"- {escape_markdown(row['label'])}: {escape_markdown(tags)}; seeds {', '.join(row['seeds'])}; {runs}"
            )
        lines.append("")
    lines += ["Versions: " + "; ".join(f"{p} {v}" for p, v in context["versions"]) + ".", ""]
    return "\n".join(lines)
