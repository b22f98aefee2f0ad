"""What a report says in sentences: captions, the summary, the disclosures. Each restates records and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from clipdg.records.statistics import paired_difference
from clipdg.report import figures
from clipdg.report.numbers import Metric, format_mean
from clipdg.report.tables import Row, Study, Table, describe_shifts

SPREAD = "Mean ± standard error over seeds (sample standard deviation / √n)"
BESIDE_CAPTION = (
    "Top-1 accuracy (%) beside what others published for the same exact weights, resolution, method and data set; "
    "differences in points. A verdict rests on the stated tolerance (0.2 points for zero-shot, 0.1 for supervised "
    "models, 1.0 for what is learnt or only quoted), or on the 95 % Wilson interval where fewer images were tested."
)


def caption(t: Table, whole: Table | None = None) -> str:
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
    if len(t.rows) > len(t.shown):
        parts.append(f"The first {len(t.shown)} of {len(t.rows):,} rows; tables/*.csv has all.")
    return " ".join(parts)


def figure_caption(t: Table, text: str) -> str:
    if len(t.rows) > figures.MAX_DRAWN:
        text += f" Drawn are the first {figures.MAX_DRAWN} of {len(t.rows):,} rows."
    ones = sum(len(r.seeds) == 1 for r in t.rows)
    if ones == len(t.rows):
        return f"{text} Hollow marks: one seed a row, so there is no spread over seeds to show{_images(t)}."
    bars = "Bars: ± one standard error over seeds, where they are wider than the mark"
    hollow = "; hollow: one seed, no bar" if ones else ""
    return f"{text} {bars}{hollow}; {_seeds(t, '')}{_images(t)}."


def others_caption(main: Table, others: Sequence[Table]) -> str:
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


def marked(t: Table, best: str, second: str) -> str:
    if not t.marks:
        return ""
    of = (
        "all rows"
        if len(t.compared) == len(t.rows)
        else f"the {len(t.compared)} rows that share their seeds and so their images"
    )
    return f"Best {best} and second best {second}, by the printed number, among {of}."


def summary(study: Study, t: Table) -> str:
    """One paragraph of sentences that each restate numbers of the table."""
    shift = study.shifts[0]
    num = len(t.rows)
    settings = "1 setting was" if num == 1 else f"{num} settings were"
    if len(study.shifts) == 1:
        how = (
            f"{join(shift.sources)} as source{_s(shift.sources)} and {join(shift.targets)} as target{_s(shift.targets)}"
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
        f"Averaged over the shifted domains, {join([quoted(r) for r in first])} "
        f"{'has' if len(first) == 1 else 'have'} {'the highest' if len(full) > 1 else 'a'} top-1 accuracy"
        f"{',' if len(full) > 1 else ' of'} {_percent(mean.mean, t.metric)}"
        + (f" ({_error(mean.error, t.metric, first[0])})." if len(first) == 1 else ".")
    )
    rest = [r for r in full if r not in first]
    if rest and len(first) == 1:
        second = _top(rest, "shifted", t.metric)[0]
        difference = paired_difference(mean.values, second.cells["shifted"].values)
        sentence = f"{quoted(second)} follows with {_percent(second.cells['shifted'].mean, t.metric)}"
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
        text.append(f"On the source, {join([quoted(r) for r in top])} {verb} highest with {number}.")
        least = min(source, key=lambda r: r.cells["gap"].mean or 0.0)
        most = max(source, key=lambda r: r.cells["gap"].mean or 0.0)
        a, b = (format_mean(r.cells["gap"].mean, None, t.metric) for r in (least, most))
        text.append(
            f"From source to shifted domains the loss is smallest for {quoted(least)} ({a} points) and largest for "
            f"{quoted(most)} ({b} points)."
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


def quoted(row: Row) -> str:
    return f"“{row.label}”"


def join(words: Sequence[str]) -> str:
    if not words:
        return "none"
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _s(words: Sequence[object]) -> str:
    return "" if len(words) == 1 else "s"


def notes(study: Study) -> list[str]:
    """The benchmark's own disclosures, then what the counts of these records disclose."""
    notes = list(dict.fromkeys(str(n) for r in study.records for n in r.data.notes))
    by_seeded: dict[tuple[str, ...], list[str]] = {}
    for row in study.rows:
        by_seeded.setdefault(tuple(row.records[0].seeded), []).append(row.label)
    for seeded, labels in by_seeded.items():
        who = "all rows" if len(by_seeded) == 1 else ", ".join(labels)
        may_follow = (("benchmark.seed", "the images"), ("backbone.weights", "the backbone's starting weights"))
        fixed = [name for key, name in may_follow if key not in seeded]
        same = f"; {join(fixed)} are the same for all seeds" if fixed else ""
        notes.append(f"What follows the seed ({who}): {', '.join(seeded) or 'nothing'}{same}.")
    by_seeds: dict[tuple[str, ...], list[str]] = {}
    for row in study.rows:
        by_seeds.setdefault(row.seeds, []).append(row.label)
    if len(by_seeds) > 1:
        most = max(by_seeds, key=lambda seeds: len(by_seeds[seeds]))
        rows = [f"{', '.join(f'“{x}”' for x in labels)}: {', '.join(seeds)}"
                for seeds, labels in by_seeds.items() if seeds != most]  # fmt: skip
        notes.append(f"Rows differ in their seeds. Most have {', '.join(most)}. {'; '.join(rows)}.")
    drawn = sum(any(r.settings.get("hparams_seed") is not None for r in row.records) for row in study.rows)
    if drawn > 1:
        notes.append(
            f"{drawn} rows are draws of a random search, and nothing has chosen among them: the best of many is high "
            "by chance too. clipdg report DIR --protocol domainbed chooses by DomainBed's three criteria."
        )
    random = [row.label for row in study.rows if row.records[0].weights.random]
    if random:
        notes.append(f"Started from random weights: {', '.join(random)}.")
    return notes
