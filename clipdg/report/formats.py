"""How a number is written, and a table as Markdown, LaTeX (booktabs) or CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clipdg.report.tables import Column, Single, Table


LATEX_ROWS = 40  # more do not fit on a page with their caption


def singles_csv(found: Sequence[Single]) -> str:
    """Fractions; ``wilson_low`` and ``wilson_high`` are the 95 % interval over the images of that one run."""
    head = ["method", "seed", "run_id", "shift", "domain", "role", "split", "step", "num_images", "top1",
            "wilson_low", "wilson_high"]  # fmt: skip
    lines = [
        [s.label, s.seed, s.run_id, s.shift, s.domain, s.role, s.split, "" if s.step is None else s.step, s.num_images,
         s.top1, round(s.low, 6), round(s.high, 6)]
        for s in found
    ]  # fmt: skip
    return csv_text([head, *lines])


# ---------------------------------------------------------------------------------------------------------------------


def to_csv(t: Table) -> str:
    """Full precision, fractions (nll in nats): for each column the mean, ``_se`` over seeds, Student's 95 % interval
    over seeds ``_t95_low`` and ``_t95_high``, and ``_n`` seeds of it.
    """
    head = ["method", "seeds"]
    for c in t.columns:
        head += [c.head, *(f"{c.head}_{x}" for x in ("se", "t95_low", "t95_high", "n"))] + (
            [f"{c.head}_name"] if c.key == "worst" else []
        )
    lines = []
    for row in t.rows:
        line: list[object] = [row.label, len(row.seeds)]
        for c in t.columns:
            cell = row.cells[c.key]
            low, high = cell.interval or (None, None)
            line += ["" if x is None else round(x, 10) for x in (*cell.summary, low, high)] + [cell.n]
            line += [cell.note] if c.key == "worst" else []
        lines.append(line)
    return csv_text([head, *lines])


def to_markdown(t: Table) -> str:
    """A pipe table; best bold, second best in italics."""
    lines = ["| method | seeds |" + "".join(f" {escape_markdown(_head(c))} |" for c in t.columns)]
    lines.append("| :--- | ---: |" + " ---: |" * len(t.columns))
    for row in t.shown:
        cells = []
        for c in t.columns:
            text, mark = t.text(row, c), t.marks.get((row.label, c.key))
            text = f"**{text}**" if mark == "best" else f"*{text}*" if mark == "second" else text
            text += " †" if (row.label, c.key) in t.differs else ""
            note = row.cells[c.key].note
            cells.append(f"{text} ({escape_markdown(note)})" if note else text)
        lines.append(f"| {escape_markdown(row.label)} | {len(row.seeds)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def to_latex(t: Table, caption: str, label: str) -> str:
    """``latex_table`` of it; best bold, second best underlined; decimals aligned by phantoms."""
    errors = [t.text(r, c).partition(" ± ")[2] for r in t.shown for c in t.columns if r.cells[c.key].mean is not None]
    width = max(map(len, errors), default=0)
    lines = []
    for row in t.shown:
        cells = []
        for c in t.columns:
            mean, _, error = t.text(row, c).partition(" ± ")
            mark = t.marks.get((row.label, c.key))
            mean = escape_latex(mean)
            mean = f"\\textbf{{{mean}}}" if mark == "best" else f"\\underline{{{mean}}}" if mark == "second" else mean
            if any(key == c.key for _, key in t.differs) and mean:
                dagger = "$^{\\dagger}$"
                mean += dagger if (row.label, c.key) in t.differs else f"\\phantom{{{dagger}}}"
            if width and mean:
                zeros = "0" * (width - len(error))
                pad = f"\\phantom{{{zeros}}}" if zeros else ""
                mean += f" $\\pm$ {pad}{error}" if error else f"\\phantom{{ $\\pm$ {'0' * width}}}"
            note = row.cells[c.key].note
            cells.append(f"{mean} {escape_latex(note)}" if note else mean)
        lines.append(f"{escape_latex(row.label)} & {len(row.seeds)} & " + " & ".join(cells) + " \\\\")
    heads = ["method", "seeds", *(_head(c) for c in t.columns)]
    return latex_table("lr" + "r" * len(t.columns), heads, lines, caption, label)


def latex_table(columns: str, heads: Sequence[str], body: Sequence[str], caption: str, label: str) -> str:
    """A ``table`` with booktabs, made smaller where it is wider than the text; a ``longtable`` where it fits no page.

    ``columns`` opens with an ``l``, the rows' names, which wrap in a long table. ``heads`` and ``caption`` are text as
    it is; ``body`` is lines of LaTeX.
    """
    head = ["\\toprule", " & ".join(map(escape_latex, heads)) + " \\\\", "\\midrule"]
    caption, label = f"\\caption{{{escape_latex(caption)}}}", f"\\label{{tab:{label}}}"
    if len(body) > LATEX_ROWS:
        lines = [
            "% needs \\usepackage{booktabs,longtable}",
            "{\\scriptsize\\setlength{\\tabcolsep}{2pt}",
            f"\\begin{{longtable}}{{p{{0.18\\linewidth}}{columns[1:]}}}",
            f"{caption}{label} \\\\",
            *(*head, "\\endfirsthead", *head, "\\endhead", "\\bottomrule", "\\endfoot"),
            *body,
            "\\end{longtable}}",
        ]
    else:
        lines = [
            "% needs \\usepackage{booktabs,graphicx}",
            "\\begin{table}",
            "\\centering\\small\\setlength{\\tabcolsep}{4pt}",
            caption,
            label,
            "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%",
            f"\\begin{{tabular}}{{{columns}}}",
            *head,
            *body,
            "\\bottomrule",
            "\\end{tabular}}",
            "\\end{table}",
        ]
    return "\n".join(lines) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "±": r"$\pm$", "−": r"$-$", "→": r"$\to$", "√": r"$\surd$", "†": r"$\dagger$",
    "×": r"$\times$", "·": r"$\cdot$", "…": r"\dots{}", "–": "--", "—": "---", "“": "``", "”": "''", "’": "'",
    "ρ": r"$\rho$", "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "λ": r"$\lambda$", "σ": r"$\sigma$",
    "τ": r"$\tau$", "μ": r"$\mu$", "²": "$^2$",
}  # fmt: skip


def escape_latex(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in " ".join(text.split()))


def escape_markdown(text: str) -> str:
    """Text that a Markdown table shows as it is; an underscore inside a word needs no escape."""
    text = re.sub(r"([\\|*`<>\[\]])", r"\\\1", " ".join(text.split()))
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)


def _head(column: Column) -> str:
    return f"{column.head} (source)" if column.role == "source" else column.head


def csv_text(lines: Iterable[Sequence[object]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    return out.getvalue()
