"""``clipdg report``: one self-contained page, its Markdown twin, and the tables and figures as files.

The page asks for nothing outside itself. The same records make the same bytes: no dates, no paths, a fixed order.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipdg.errors import RecordError
from clipdg.records import NOT_IDENTITY, Record, flatten, publish, read_all
from clipdg.report import figures, html
from clipdg.report.beside import Beside, beside_published
from clipdg.report.formats import (
    METRICS,
    Metric,
    csv_text,
    escape_markdown,
    format_mean,
    singles_csv,
    to_csv,
    to_latex,
    to_markdown,
)
from clipdg.report.tables import (
    Column,
    Row,
    Setting,
    Single,
    Study,
    Table,
    describe_shifts,
    natural,
    reported,
    seed_name,
    singles,
    studies,
    table,
)
from clipdg.statistics import paired_difference

SPREAD = "Mean ± standard error over seeds (sample standard deviation / √n)"
BESIDE_CAPTION = (
    "Top-1 accuracy (%) beside what others published for the same exact weights, resolution, method and data set; "
    "differences in points. A verdict rests on the stated tolerance (0.2 points for zero-shot, 0.1 for supervised "
    "models, 1.0 for what is learnt or only quoted), or on the 95 % Wilson interval where fewer images were tested."
)
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Report:
    """Where the page is, how many records it shows, and which files could not be read: one sentence each."""

    path: Path
    num_records: int
    problems: tuple[str, ...]


def write_report(folders: Sequence[Path], out: Path) -> Report:
    """Write report.html, report.md, tables/ and figures/ below ``out`` from all records below ``folders``.

    Files that are no records are named on the page and in the result; the rest is reported. Raises RecordError if
    there is no record, or if one setting has the same seed twice.
    """
    records, errors = read_all(folders)
    problems = [_without(str(e), folders) for e in errors]
    if not records:
        where = ", ".join(map(str, folders))
        if problems:
            raise RecordError(f"no record in {where} can be read: {'; '.join(problems)}")
        raise RecordError(f"no record in {where}; `clipdg run … --out DIR` writes one")
    imported = [r for r in records if r.content["data"].get("imported")]
    records = [r for r in records if r not in imported]
    if not records:
        raise RecordError(
            f"{len(imported)} imported runs and none of clipdg's; give --protocol domainbed for their tables"
        )
    views = []
    for study in studies(records):
        sheet, problem = _contact_sheet(study, folders)
        problems += [problem] if problem else []
        views.append(_write_study(study, sheet, out))
    names = ", ".join(dict.fromkeys(v["name"] for v in views))
    context = {
        "title": f"{names}: accuracy under domain shift",
        "num_records": len(records),
        "studies": views,
        "problems": problems,
        "versions": _versions(records),
    }
    publish(out / "report.md", _markdown(context).encode())
    publish(out / "report.html", _html(context).encode())
    return Report(out / "report.html", len(records), tuple(problems))


def _write_study(study: Study, sheet: tuple[bytes, str] | None, out: Path) -> dict[str, Any]:
    """Publish the tables and figures of a study; what the page and its Markdown twin say about it."""
    by_metric = {m.name: table(study, m.name) for m in study.metrics}
    main = by_metric.get("top1") or table(study)
    domains, averages = _domain_view(main), main.only(("source", "shifted", "gap", "worst"))
    others = [by_metric[m.name] for m in study.metrics if m.name != "top1"]
    runs = singles(study)

    written = {
        f"{study.slug}-accuracy": (domains, _caption(domains)),
        f"{study.slug}-summary": (averages, _caption(averages, main)),
    }
    written |= {f"{study.slug}-{t.metric.name.replace('_', '-')}": (_domain_view(t), _caption(t)) for t in others}
    for name, (shown, caption) in written.items():
        marks = _marked(shown, "bold", "underlined")
        publish(out / "tables" / f"{name}.tex", to_latex(shown, f"{caption} {marks}", name).encode())
    for t in by_metric.values():
        name = "accuracy" if t.metric.name == "top1" else t.metric.name.replace("_", "-")
        publish(out / "tables" / f"{study.slug}-{name}.csv", to_csv(t).encode())
    publish(out / "tables" / f"{study.slug}-single-runs.csv", singles_csv(runs).encode())
    beside = beside_published(study)
    if beside:
        publish(out / "tables" / f"{study.slug}-beside-published.csv", csv_text(_beside_lines(beside)).encode())

    drawn = {}
    for name, draw in (("accuracy", figures.accuracy), ("source-vs-shift", figures.source_vs_shift)):
        wide = draw(main)
        svg = figures.render(wide, "svg")
        publish(out / "figures" / f"{study.slug}-{name}.svg", svg)
        publish(out / "figures" / f"{study.slug}-{name}.pdf", figures.render(wide, "pdf"))
        narrow = figures.render(draw(main, narrow=True), "svg")
        title = f"{name.replace('-', ' ')}, {study.title}"
        drawn[name] = (figures.for_page(svg, title), figures.for_page(narrow, title))
    if sheet:
        publish(out / "figures" / f"{study.slug}-domains.png", sheet[0])

    return {
        "study": study,
        "name": study.title,
        "slug": study.slug,
        "shifts": describe_shifts(study),
        "summary": _summary(study, main),
        "main": main,
        "domains": domains,
        "averages": averages,
        "others": others,
        "domains_caption": _caption(domains),
        "averages_caption": _caption(averages, main),
        "others_caption": _others_caption(main, others),
        "accuracy": drawn["accuracy"],
        "accuracy_caption": _figure_caption(
            main, "One panel per domain; each row is a method, in the order of the tables."
        ),
        "scatter": drawn["source-vs-shift"],
        "scatter_caption": _figure_caption(
            main,
            "Each point is a method: its accuracy on the source against its mean over the shifted domains. "
            "The vertical distance to the dashed line is the gap.",
        ),
        "sheet": _sheet_view(study, sheet),
        "singles": _singles_view(main, runs),
        "beside": beside,
        "notes": _notes(study),
        "incomplete": [(label, domain, cell.n, cell.expected) for label, domain, cell in main.incomplete],
        "rows": [_story(row) for row in study.rows],
    }


# ---------------------------------------------------------------------------------------------------------------------
# Words


def _caption(t: Table, whole: Table | None = None) -> str:
    """What is shown, over how many images and seeds, and what the spread is."""
    what = f"{t.metric.title[0].upper()}{t.metric.title[1:]} ({t.metric.unit})"
    keys = [c.key for c in t.columns]
    parts = [f"{what}{_images(whole or t)}.", f"{SPREAD}; {_seeds(t)}."]
    if "gap" in keys:
        parts.append(
            "Source: mean of the source domains. Shifted: mean of the target domains. Gap: source − shifted, paired by "
            "seed. Worst domain: the target with the "
            f"{'lowest' if t.metric.better == 'higher' else 'highest'} mean."
        )
    if any(r.cells[c.key].mean is None for r in t.rows for c in t.columns):
        parts.append(
            "2/3 in a cell: two of three seeds are there; such a cell has no mean and no average is made from it."
        )
    return " ".join(parts)


def _figure_caption(t: Table, text: str) -> str:
    ones = sum(len(r.seeds) == 1 for r in t.rows)
    if ones == len(t.rows):
        return f"{text} Hollow marks: one seed a row, so there is no spread over seeds to show{_images(t)}."
    bars = "Bars: ± one standard error over seeds, where they are wider than the mark"
    hollow = "; hollow: one seed, no bar" if ones else ""
    return f"{text} {bars}{hollow}; {_seeds(t, '')}{_images(t)}."


def _others_caption(main: Table, others: Sequence[Table]) -> str:
    directions = {"higher": "higher is better", "lower": "lower is better"}
    metrics = "; ".join(f"{t.metric.title} ({t.metric.unit}, {directions[t.metric.better]})" for t in others)
    return f"On the source and on the mean of the shifted domains: {metrics}. {SPREAD}; {_seeds(main)}{_images(main)}."


def _seeds(t: Table, one: str = "; a row with one seed has no ±") -> str:
    numbers = sorted({len(r.seeds) for r in t.rows})
    if numbers == [1]:
        return f"one seed a row{one.replace('; a row with one seed has', ', so there is')}"
    text = f"{numbers[0]} seeds a row" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]} seeds a row"
    return text + (one if numbers[0] == 1 else "")


def _images(t: Table) -> str:
    """How many images a number rests on; the sources' where they are averaged over shifts and have no column."""
    targets = {n for c in t.domains if c.role == "target" for n in c.num_images}
    sources = {n for c in t.columns if c.role == "source" or c.key == "source" for n in c.num_images}
    if not sources or sources == targets:
        return f", {_range(targets)} test images a domain and run" if targets else ""
    if not targets:
        return f", {_range(sources)} test images a domain and run"
    return f", {_range(targets)} test images a target and run, {_range(sources)} a source"


def _range(counts: set[int]) -> str:
    return f"{min(counts):,}" if len(counts) == 1 else f"{min(counts):,} to {max(counts):,}"


def _marked(t: Table, best: str, second: str) -> str:
    if not t.marks:
        return ""
    of = (
        "all rows"
        if len(t.compared) == len(t.rows)
        else f"the {len(t.compared)} rows that share their seeds and so their images"
    )
    return f"Best {best} and second best {second}, by the printed number, among {of}."


def _summary(study: Study, t: Table) -> str:
    """One paragraph of sentences that each restate numbers of the table."""
    shift = study.shifts[0]
    num = len(t.rows)
    settings = "1 setting was" if num == 1 else f"{num} settings were"
    if len(study.shifts) == 1:
        how = (
            f"{_join(shift['sources'])} as source{_s(shift['sources'])} and "
            f"{_join(shift['targets'])} as target{_s(shift['targets'])}"
        )
    else:
        how = f"these shifts: {describe_shifts(study)}"
    text = [f"On {study.title}, {settings} evaluated with {how}."]
    full = [r for r in t.rows if r.label in t.compared and r.cells["shifted"].mean is not None]
    if len(t.compared) < num:
        text.append(
            f"The comparisons below are among the {len(t.compared)} that share their seeds and so their images."
        )
    if not full:
        return " ".join([*text, "No setting has all its runs yet, so there is nothing to compare."])

    first = _top(full, "shifted", t.metric)
    mean = first[0].cells["shifted"]
    text.append(
        f"Averaged over the shifted domains, {_join([_quoted(r) for r in first])} "
        f"{'has' if len(first) == 1 else 'have'} {'the highest' if len(full) > 1 else 'a'} top-1 accuracy"
        f"{',' if len(full) > 1 else ' of'} {_percent(mean.mean, t.metric)}"
        + (f" ({_error(mean.error, t.metric, first[0])})." if len(first) == 1 else ".")
    )
    rest = [r for r in full if r not in first]
    if rest and len(first) == 1:
        second = _top(rest, "shifted", t.metric)[0]
        difference = paired_difference(mean.values, second.cells["shifted"].values)
        sentence = f"{_quoted(second)} follows with {_percent(second.cells['shifted'].mean, t.metric)}"
        if difference and difference[1] is not None:
            points, error, seeds = difference
            sentence += (
                f"; the difference, paired over the {len(seeds)} seeds that both have, is "
                f"{format_mean(points, error, t.metric)} points"
            )
        text.append(sentence + ".")
    source = [r for r in full if r.cells["source"].mean is not None]
    if len(source) > 1:
        top = _top(source, "source", t.metric)
        number = _percent(top[0].cells["source"].mean, t.metric)
        verb = "is" if len(top) == 1 else "are"
        text.append(f"On the source, {_join([_quoted(r) for r in top])} {verb} highest with {number}.")
        least = min(source, key=lambda r: r.cells["gap"].mean or 0.0)
        most = max(source, key=lambda r: r.cells["gap"].mean or 0.0)
        a, b = (format_mean(r.cells["gap"].mean, None, t.metric) for r in (least, most))
        text.append(
            f"From source to shifted domains the loss is smallest for {_quoted(least)} ({a} points) and largest for "
            f"{_quoted(most)} ({b} points)."
        )
    elif source:
        gap = format_mean(source[0].cells["gap"].mean, None, t.metric)
        text.append(
            f"On the source it has {_percent(source[0].cells['source'].mean, t.metric)}: a gap of {gap} points."
        )
    worst = [r.cells["worst"].note for r in t.rows if r.cells["worst"].note]
    if len(t.domains) > 2 and len(worst) > 1:
        name = max(dict.fromkeys(worst), key=worst.count)
        text.append(f"The lowest domain is {name} for {worst.count(name)} of {len(worst)}.")
    left = num - sum(r.cells["shifted"].mean is not None for r in t.rows)
    if left:
        lack = "lacks runs and is" if left == 1 else "lack runs and are"
        text.append(f"{left} of the settings {lack} not compared.")
    text.append("These sentences restate the tables; they hold for these runs and say nothing about causes.")
    return " ".join(text)


def _top(rows: Sequence[Row], key: str, metric: Metric) -> list[Row]:
    """The rows whose number, as printed, is the highest."""

    def printed(row: Row) -> float:
        return round((row.cells[key].mean or 0.0) * metric.scale, metric.decimals)

    highest = max(map(printed, rows))
    return [r for r in rows if printed(r) == highest]


def _percent(mean: float | None, metric: Metric) -> str:
    return f"{format_mean(mean, None, metric)} {metric.unit}"


def _error(error: float | None, metric: Metric, row: Row) -> str:
    if error is None:
        return "one seed"
    return f"standard error {format_mean(error, None, metric)} over {len(row.seeds)} seeds"


def _quoted(row: Row) -> str:
    return f"“{row.label}”"


def _join(words: Sequence[str]) -> str:
    if not words:
        return "none"
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _s(words: Sequence[object]) -> str:
    return "" if len(words) == 1 else "s"


def _notes(study: Study) -> list[str]:
    """The benchmark's own disclosures, then what the counts of these records disclose."""
    notes = list(dict.fromkeys(str(n) for r in study.records for n in r.content["data"]["notes"]))
    by_seeded: dict[tuple[str, ...], list[str]] = {}
    for row in study.rows:
        by_seeded.setdefault(tuple(row.records[0].content["seeded"]), []).append(row.label)
    for seeded, labels in by_seeded.items():
        who = "all rows" if len(by_seeded) == 1 else ", ".join(labels)
        may_follow = (("benchmark.seed", "the images"), ("backbone.weights", "the backbone's starting weights"))
        fixed = [name for key, name in may_follow if key not in seeded]
        same = f"; {_join(fixed)} are the same for all seeds" if fixed else ""
        notes.append(f"What follows the seed ({who}): {', '.join(seeded) or 'nothing'}{same}.")
    by_seeds: dict[tuple[str, ...], list[str]] = {}
    for row in study.rows:
        by_seeds.setdefault(row.seeds, []).append(row.label)
    if len(by_seeds) > 1:
        most = max(by_seeds, key=lambda seeds: len(by_seeds[seeds]))
        rows = [f"{', '.join(f'“{x}”' for x in labels)}: {', '.join(seeds)}"
                for seeds, labels in by_seeds.items() if seeds != most]  # fmt: skip
        notes.append(f"Rows differ in their seeds. Most have {', '.join(most)}. {'; '.join(rows)}.")
    random = [row.label for row in study.rows if row.records[0].content["weights"]["random"]]
    if random:
        notes.append(f"Started from random weights: {', '.join(random)}.")
    return notes


# ---------------------------------------------------------------------------------------------------------------------
# What the page needs


def _domain_view(t: Table) -> Table:
    return t.only([*(c.key for c in t.domains), "shifted"])


def _singles_view(t: Table, runs: Sequence[Single]) -> list[tuple[str, str, list[str]]]:
    """(label, seed, "82.3 [80.1, 84.4]" per domain column) for every run, over shifts."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for s in runs:
        low, high = (format_mean(x, None, METRICS["top1"]) for x in (s.low, s.high))
        text = f"{format_mean(s.top1, None, METRICS['top1'])} [{low}, {high}]"
        found.setdefault((s.label, s.seed), {})[f"{s.shift}/{s.domain}"] = text
    return [(label, seed, [cells.get(c.key, "") for c in t.domains]) for (label, seed), cells in found.items()]


def _beside_lines(beside: Sequence[Beside]) -> list[list[object]]:
    """Fractions; the causes of a difference, the commonest first."""
    head: list[object] = ["method", "dataset", "own", "seeds", "num_images", "published", "difference", "tolerance",
                          "verdict", "source", "published_method", "status", "causes"]  # fmt: skip
    lines = [
        [b.label, b.dataset, round(b.own, 8), b.num_seeds, b.num_images, b.published, round(b.difference, 8),
         b.tolerance, b.verdict, b.source, b.method, b.status, "; ".join(b.causes)]
        for b in beside
    ]  # fmt: skip
    return [head, *lines]


def _contact_sheet(study: Study, folders: Sequence[Path]) -> tuple[tuple[bytes, str] | None, str | None]:
    """The sheet that a run left beside its record, of the lowest seed that has one, and that seed."""
    for record in sorted(study.records, key=lambda r: (natural(seed_name(r)), r.run_id)):
        name = f"contact-{record.content['data']['fingerprint'][:12]}.png"
        for folder in folders:
            for path in sorted(folder.rglob(name)):
                content = path.read_bytes()
                if not content.startswith(PNG) or len(content) < 24:
                    return None, f"{_without(str(path), folders)} is no PNG; delete it and run again"
                return (content, seed_name(record)), None
    return None, None


def _sheet_view(study: Study, sheet: tuple[bytes, str] | None) -> dict[str, Any] | None:
    if sheet is None:
        return None
    content, seed = sheet
    width, height = struct.unpack(">II", content[16:24])
    data = study.records[0].content["data"]
    several = len({r.content["data"]["fingerprint"] for r in study.records}) > 1
    return {
        "url": "data:image/png;base64," + base64.b64encode(content).decode(),
        "width": width,
        "height": height,
        "domains": list(data["num_images"]),
        "caption": f"One row of images per domain, columns are classes{f', seed {seed}' if several else ''}.",
    }


def _story(row: Setting) -> dict[str, Any]:
    """How a row's numbers were made."""
    first = row.records[0].content
    flat = flatten(first["config"])
    hidden = (*first["seeded"], *NOT_IDENTITY, "shift")
    provenance = list(dict.fromkeys(_json(p) for r in row.records if (p := r.content["weights"]["provenance"])))
    templates = list(dict.fromkeys(x for r in row.records for x in r.content["data"]["templates"] or ()))
    return {
        "label": row.label,
        "seeds": row.seeds,
        "settings": [(k, _json(v) if not isinstance(v, str) else v) for k, v in flat.items() if k not in hidden],
        "templates": templates,
        "provenance": provenance,
        "runs": [_run(r) for r in row.records],
    }


def _run(record: Record) -> dict[str, Any]:
    content = record.content
    tested = {d: e for s in ("sources", "targets") for d in content["shift"][s] if (e := reported(record, d))}
    steps = sorted({e["step"] for e in tested.values() if e["step"] is not None})
    return {
        "run_id": record.run_id,
        "seed": seed_name(record),
        "shift": content["shift"]["name"],
        "num_fit": content["data"]["num_fit"],
        "step": "/".join(map(str, steps)),
        "backbone": content["weights"]["backbone"],
        "weights": content["weights"]["tag"],
        "fingerprint": content["weights"]["fingerprint"],
        "data": content["data"]["fingerprint"],
        "tested": ", ".join(f"{d}/{e['split']} {e['num_images']:,}" for d, e in tested.items()),
    }


def _versions(records: Sequence[Record]) -> list[tuple[str, str]]:
    """(package, its versions) over all records."""
    found: dict[str, set[str]] = {}
    for record in records:
        for package, version in record.content["versions"].items():
            found.setdefault(package, set()).add(str(version))
    return [(p, ", ".join(sorted(v, key=natural))) for p, v in sorted(found.items())]


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _without(text: str, folders: Sequence[Path]) -> str:
    """A message without the folders' own place, so that a report says the same wherever it is made."""
    for folder in folders:
        text = text.replace(f"{folder}/", "")
    return text


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def _html(context: Mapping[str, Any]) -> str:
    return html.render(
        "page.html.jinja",
        dict(context),
        cell=_cell,
        points=_points,
        beside_caption=BESIDE_CAPTION,
        head=_head,
        marked=_marked,
        domain_view=_domain_view,
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
        "note": cell.note,
        "missing": cell.mean is None,
        "sort": "" if cell.mean is None else f"{cell.mean:.8f}",
        "n": cell.n,
    }


def _error_width(*tables: Table) -> int:
    """Characters of the longest error, so that numbers with and without one keep their decimals in line.

    -2 if there is none: the two of its sign are not kept free either.
    """
    return max(len(t.text(r, c).partition(" ± ")[2]) for t in tables for r in t.rows for c in t.columns) or -2


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
                (f"{t.metric.title[0].upper()}{t.metric.title[1:]}", _domain_view(t), _caption(t))
                for t in view["others"]
            ),
        ]
        pictures = {
            "Source and shifted domains": (f"figures/{slug}-source-vs-shift.svg", view["scatter_caption"]),
            "Accuracy per domain": (f"figures/{slug}-accuracy.svg", view["accuracy_caption"]),
        }
        for title, shown, caption in sections:
            text = f"{caption} {_marked(shown, 'bold', 'in italics')}".strip()
            lines += [f"### {title}", "", to_markdown(shown), escape_markdown(text), ""]
            if title in pictures:
                path, under = pictures[title]
                lines += [f"![{title}]({path})", "", escape_markdown(under), ""]
        if view["beside"]:
            lines += ["### Beside published numbers", ""]
            lines += ["| method | data set | own | published | difference | verdict | source |"]
            lines += ["| :--- | :--- | ---: | ---: | ---: | :--- | :--- |"]
            for b in view["beside"]:
                numbers = " | ".join(_points(x) for x in (b.own, b.published, b.difference))
                why = f" ({escape_markdown('; '.join(b.causes))})" if b.causes else ""
                where = f"{b.source}, {b.status}"
                lines.append(f"| {escape_markdown(b.label)} | {b.dataset} | {numbers} | {b.verdict}{why} | {where} |")
            lines += ["", BESIDE_CAPTION, ""]
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
