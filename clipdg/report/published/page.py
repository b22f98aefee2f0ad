"""``clipdg report --published``: zero-shot CLIP beside supervised ResNets, from published numbers alone.

Nothing is run and nothing is downloaded. Every number is one of published/numbers.py's; every fit is
effective_robustness.py's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipdg.report import effective_robustness, figures, formats, html, scatter
from clipdg.report.effective_robustness import Line
from clipdg.report.published import numbers
from clipdg.storage.publish import publish

if TYPE_CHECKING:
    import pandas as pd

DATASETS = {
    "imagenet": "ImageNet",
    "imagenet-v2": "V2",
    "imagenet-sketch": "Sketch",
    "imagenet-a": "A",
    "imagenet-r": "R",
    "objectnet": "ObjectNet",
}
X_TITLES = {
    "imagenet": "ImageNet validation, top-1 (%)",
    "imagenet-a-clean": "ImageNet validation, the 200 classes of A, top-1 (%)",
    "imagenet-r-clean": "ImageNet validation, the 200 classes of R, top-1 (%)",
    "objectnet-clean": "ImageNet validation, ObjectNet's classes, top-1 (%)",
}
FLOOR = 0.5  # figures leave out models below it on the x axis: hardly trained ones, which squeeze all others
Y_TITLES = {
    "imagenet-v2": "ImageNet-V2, matched frequency",
    "imagenet-v2-format-val": "ImageNet-V2, matched frequency, re-encoded",
    "imagenet-sketch": "ImageNet-Sketch",
    "imagenet-a": "ImageNet-A",
    "imagenet-r": "ImageNet-R",
    "objectnet": "ObjectNet",
}
# The ResNets that papers mean, by their exact weights; the CLIP paper's "ResNet-101" is the testbed's cafferesnet101.
NAMED = {
    ("timm", "timm:resnet50.tv_in1k", 224): "ResNet-50, torchvision V1",
    ("timm", "timm:resnet101.tv_in1k", 224): "ResNet-101, torchvision V1",
    ("timm", "timm:resnet50.a1_in1k", 224): "ResNet-50, timm A1",
    ("timm", "timm:resnet101.a1_in1k", 224): "ResNet-101, timm A1",
    ("testbed", "testbed:resnet50", 0): "ResNet-50, torchvision V1",
    ("testbed", "testbed:resnet101", 0): "ResNet-101, torchvision V1",
    ("testbed", "testbed:cafferesnet101", 0): "“ResNet-101” of the CLIP paper",
}
NOTES = (
    "Zero-shot rows are open_clip's evaluation with 80 templates; CLIP_benchmark's of the same weights differs by up "
    "to 0.2 points, the CLIP paper's own by up to 0.8.",
    "A ResNet's row is one set of weights at one test resolution. Recipes of the same architecture differ by up to ten "
    "points under shift, so the claim “at the same ImageNet accuracy” depends on which one stands beside the CLIP: "
    "here it is the model that timm names resnet…, trained on ImageNet-1k alone, whose ImageNet accuracy is nearest.",
    "ImageNet-A was collected against ResNet-50, whose V1 weights therefore have 0 % there. timm's table leaves that "
    "cell out, and so does this one; the testbed has it, and its line for A is fitted without that model.",
    "The models differ in their training data. A CLIP of 400 million web images beside a ResNet of 1.28 million "
    "labelled ones is a comparison of published systems, not of a training objective.",
    "Effective robustness is measured on one axis of ImageNet accuracy, which is disputed for models of other training "
    "data (arXiv:2302.01381).",
    "V2 has two versions in the testbed's table, as released and re-encoded (format-val); the testbed's own plots are "
    "of the second.",
)


@dataclass(frozen=True)
class Grid:
    """A table of percentages: rows of (label, detail, kind) and a value, or none, for each column."""

    name: str  # of its files
    heads: tuple[str, ...]
    labels: tuple[tuple[str, str, str], ...]
    values: np.ndarray  # (rows, columns) fractions, NaN where there is none
    decimals: int = 2
    signed: tuple[str, ...] = ("difference",)  # kinds whose values are written with their sign

    def text(self, row: int, column: int) -> str:
        value = self.values[row, column]
        if np.isnan(value):
            return ""
        text = f"{100 * value:.{self.decimals}f}"
        sign = "+" if value > 0 and self.labels[row][2] in self.signed else ""
        return sign + text.replace("-", "−")


def write_published(out: Path) -> Path:
    """Write report.html, report.md, tables/ and figures/ below ``out``; the page's path."""
    frames = {name: numbers.wide(name) for name in ("open_clip", "timm", "testbed")}
    baselines: dict[effective_robustness.BaselineSet, pd.DataFrame] = {
        "testbed_standard": effective_robustness.baseline_models("testbed_standard"),
        "timm_in1k": effective_robustness.baseline_models("timm_in1k"),
    }
    lines = [
        effective_robustness.fit(frame, x, y, name)
        for name, frame in baselines.items()
        for y, x in effective_robustness.X_OF.items()
        if x in frame.columns and y in frame.columns
    ]
    one_axis = [
        effective_robustness.fit(baselines["testbed_standard"], "imagenet", y, "testbed_standard")
        for y in ("imagenet-a", "imagenet-r", "objectnet")
    ]
    testbed_lines = [line for line in lines if line.baseline == "testbed_standard"]
    pieces = effective_robustness.fit_pieces(
        baselines["testbed_standard"], "imagenet-a-clean", "imagenet-a", "testbed_standard"
    )
    assert pieces is not None, "torchvision's ResNet-50 has 0 % on A"
    grids = {
        "pairs": _pairs(frames),
        "rho": _rho(frames, testbed_lines, "effective-robustness"),
        "one_axis": _rho(frames, [*testbed_lines[:1], testbed_lines[2], *one_axis], "effective-robustness-one-axis"),
        "all": _all(frames),
    }
    fits = _fits([*lines, pieces.below, pieces.above, *one_axis], pieces)
    for grid in grids.values():
        publish(out / "tables" / f"{grid.name}.csv", _csv(grid).encode())
    for name in ("pairs", "rho"):
        grid = grids[name]
        publish(out / "tables" / f"{grid.name}.tex", _latex(grid, CAPTIONS[name]).encode())
    publish(out / "tables" / "fits.csv", formats.csv_text([FIT_HEADS, *fits]).encode())
    drawn = [
        _figure(line, frames, out)
        for line in (*(x for x in testbed_lines if x.y != "imagenet-v2-format-val"), *one_axis)
    ]
    context = {
        "title": "Zero-shot CLIP and supervised ResNets under the shifts of ImageNet",
        "grids": grids,
        "captions": CAPTIONS,
        "fit_heads": FIT_HEADS,
        "fits": fits,
        "figures": drawn,
        "notes": NOTES,
        "papers": _papers(),
        "sources": numbers.sources().to_dict("records"),
        "num_models": {name: len(frame) for name, frame in frames.items()},
    }
    publish(out / "report.md", _markdown(context).encode())
    publish(out / "report.html", html.render("published.html.jinja", context).encode())
    return out / "report.html"


CAPTIONS = {
    "pairs": "Top-1 accuracy (%) of OpenAI's nine CLIPs, zero-shot with 80 templates, each beside the supervised "
    "ResNet nearest to it in ImageNet accuracy; differences are CLIP − ResNet, in points. An empty cell has no "
    "published number.",
    "rho": "Effective robustness ρ in points: accuracy under shift less what the line of the testbed's standard models "
    "predicts from accuracy on ImageNet (of the same classes, for A, R and ObjectNet). open_clip's table has no "
    "accuracy on class subsets, so its rows are empty there.",
    "one_axis": "The same with ImageNet's accuracy on all 1,000 classes as the only axis: not the testbed's rule, but "
    "available for every model.",
    "all": "Every zero-shot model of open_clip's table and the named ResNets, top-1 accuracy in %.",
    "fits": "logit(accuracy under shift) = slope · logit(ImageNet accuracy) + intercept, least squares over the "
    "baseline set; in brackets the 95 % percentile bootstrap over its models (1,000 resamples).",
}
FIT_HEADS = ("baseline", "x", "y", "models", "slope", "intercept", "R²", "left out")


def _detail(model: str, weights: str, resolution: int) -> str:
    """``open_clip:RN50-quickgelu openai · 224``"""
    return f"{model}{f' {weights}' if weights else ''}{f' · {resolution}' if resolution else ''}"


def _name(model: str) -> str:
    """``RN50`` of OpenAI's; the rest as it is."""
    return model.partition(":")[2].removesuffix("-quickgelu")


def _values(row: pd.Series) -> list[float]:
    return [float(row.get(dataset, np.nan)) for dataset in DATASETS]


def _models(frame: pd.DataFrame) -> list[tuple[str, str, int, pd.Series]]:
    """(model, weights, resolution, its row) of each row."""
    return [(*key, frame.iloc[i]) for i, key in enumerate(_keys(frame))]


def _keys(frame: pd.DataFrame) -> list[tuple[str, str, int]]:
    """(model, weights, resolution) of each row."""
    levels = (frame.index.get_level_values(k) for k in ("model", "weights", "resolution"))
    return [(str(model), str(weights), int(size)) for model, weights, size in zip(*levels, strict=True)]


def _openai(frame: pd.DataFrame) -> pd.DataFrame:
    found = frame[frame.index.get_level_values("weights") == "openai"]
    return found.sort_values("imagenet")


def _resnets(frame: pd.DataFrame) -> pd.DataFrame:
    """timm's plain ResNets that were trained on ImageNet-1k alone."""
    names = frame.index.get_level_values("model")
    return frame[[bool(re.match(r"timm:resnet\d+\.", n)) and effective_robustness.in1k_alone(n) for n in names]]


def nearest_resnet(imagenet: float, resnets: pd.DataFrame) -> tuple[str, int, pd.Series]:
    """(model, resolution, row) of the nearest ImageNet accuracy; the first by name if two are equally near."""
    ordered = resnets.sort_index()
    place = int((ordered["imagenet"] - imagenet).abs().to_numpy().argmin())
    model, _, size, row = _models(ordered)[place]
    return model, size, row


def _pairs(frames: Mapping[str, pd.DataFrame]) -> Grid:
    labels: list[tuple[str, str, str]] = []
    values: list[list[float]] = []
    resnets = _resnets(frames["timm"])
    for model, weights, size, row in _models(_openai(frames["open_clip"])):
        other, other_size, beside = nearest_resnet(row["imagenet"], resnets)
        labels += [
            (f"CLIP {_name(model)}", _detail(model, weights, size), "clip"),
            (_name(other), _detail(other, "", other_size), "resnet"),
            ("CLIP − ResNet", "points", "difference"),
        ]
        one, two = _values(row), _values(beside)
        values += [one, two, [a - b for a, b in zip(one, two, strict=True)]]
    for where, title in NAMED.items():
        found = _named(frames, where)
        labels.append((title, _detail(where[1], "", where[2]), "resnet"))
        values.append(_values(found))
    return Grid("clip-and-resnet", tuple(DATASETS.values()), tuple(labels), np.array(values))


def _named(frames: Mapping[str, pd.DataFrame], where: tuple[str, str, int]) -> pd.Series:
    source, model, size = where
    return frames[source].xs((model, "", size), level=["model", "weights", "resolution"]).iloc[0]


def _rho(frames: Mapping[str, pd.DataFrame], lines: Sequence[Line], name: str) -> Grid:
    testbed = frames["testbed"]
    rows = [
        (f"CLIP {_name(m)}", _detail(m, w, s), "clip", row) for m, w, s, row in _models(_openai(frames["open_clip"]))
    ]
    for model, title in (("vit_b_32_clip_zeroshot", "CLIP ViT-B-32"), ("resnet50_clip_zeroshot", "CLIP RN50")):
        row = testbed.xs(f"testbed:{model}", level="model").iloc[0]
        rows.append((title, f"testbed:{model}, raw-mean ensemble", "clip", row))
    rows += [(title, _detail(w[1], "", w[2]), "resnet", _named(frames, w)) for w, title in NAMED.items()]
    values = [[line.rho(row.get(line.x, np.nan), row.get(line.y, np.nan)) for line in lines] for *_, row in rows]
    heads = tuple(Y_TITLES[line.y].replace("ImageNet-", "").replace(", matched frequency", "") for line in lines)
    return Grid(name, heads, tuple((a, b, c) for a, b, c, _ in rows), np.array(values), signed=("clip", "resnet"))


def _all(frames: Mapping[str, pd.DataFrame]) -> Grid:
    rows = [(_name(m), _detail(m, w, s), "clip", _values(row)) for m, w, s, row in _models(frames["open_clip"])]
    rows += [(title, _detail(w[1], "", w[2]), "resnet", _values(_named(frames, w))) for w, title in NAMED.items()]
    rows.sort(key=lambda r: -r[3][0])
    return Grid(
        "all-models", tuple(DATASETS.values()), tuple((a, b, c) for a, b, c, _ in rows), np.array([v for *_, v in rows])
    )


def _fits(lines: Sequence[Line], pieces: effective_robustness.Pieces) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for line in lines:
        (slope_low, slope_high), (low, high) = line.interval()
        side = {id(pieces.below): "below", id(pieces.above): "above"}.get(id(line))
        x = line.x + (f", {side} {100 * pieces.pivot:.2f} %" if side else "")
        found.append(
            (
                line.baseline,
                x,
                line.y,
                str(len(line.models)),
                f"{line.slope:.4f} [{slope_low:.3f}, {slope_high:.3f}]",
                f"{line.intercept:.4f} [{low:.3f}, {high:.3f}]".replace("-", "−"),
                f"{line.r2:.3f}",
                ", ".join(line.left_out),
            )
        )
    return found


def _figure(line: Line, frames: Mapping[str, pd.DataFrame], out: Path) -> dict[str, str]:
    """Publish the scatter of one variant; the drawing for the page and its caption."""
    series = _series(line, frames)
    axis = "" if line.x == effective_robustness.X_OF[line.y] else "-one-axis"
    name = f"{line.y}{axis}"
    figure = scatter.draw(series, line, X_TITLES[line.x], f"{Y_TITLES[line.y]}, top-1 (%)", name)
    svg = scatter.svg(figure, series)
    publish(out / "figures" / f"{name}.svg", svg)
    publish(out / "figures" / f"{name}.pdf", figures.render(figure, "pdf"))
    count = sum(len(s.names) for s in series)
    caption = (
        f"{Y_TITLES[line.y]} against ImageNet for {count:,} models and resolutions with at least {100 * FLOOR:.0f} % "
        "on the x axis, on logit axes; a model with 0 % has no place on them. Line: least squares "
        f"over the {len(line.models)} standard models of the testbed (R² {line.r2:.3f}), with its 95 % bootstrap band. "
        "Point at a mark for its name and numbers."
    )
    return {"name": name, "title": Y_TITLES[line.y], "svg": figures.for_page(svg, caption), "caption": caption}


def _series(line: Line, frames: Mapping[str, pd.DataFrame]) -> list[scatter.Series]:
    def chosen(
        frame: pd.DataFrame, keep: Sequence[bool], title: str, look: str, labelled: dict[str, str]
    ) -> scatter.Series:
        known = frame[np.asarray(keep)]
        known = known[[line.x, line.y]].dropna() if {line.x, line.y} <= set(known.columns) else known.iloc[:0]
        if len(known):
            known = known[known[line.x] >= FLOOR]
        names = tuple(_detail(m, w, s) for m, w, s in _keys(known))
        x, y = (known[c].to_numpy(float) if len(known) else np.empty(0) for c in (line.x, line.y))
        return scatter.Series(title, look, names, x, y, tuple(labelled.items()))

    testbed, timm, clips = frames["testbed"], frames["timm"], frames["open_clip"]
    names = testbed.index.get_level_values("model")
    methods = testbed.index.get_level_values("method")
    zero_shot = [m.startswith("zero_shot") for m in methods]
    openai = [w == "openai" for w in clips.index.get_level_values("weights")]
    resnets = {w[1] for w in NAMED}
    own = {_detail(m, w, s): _name(m) for m, w, s, _ in _models(clips[openai])}
    found = [
        chosen(timm, [True] * len(timm), "timm's supervised models", "other", {}),
        chosen(testbed, [n not in line.models and not z for n, z in zip(names, zero_shot, strict=True)],
               "other models of the testbed", "other", {}),
        chosen(testbed, [n in line.models for n in names], "standard models of the testbed (line)", "baseline", {}),
        chosen(clips, [not o for o in openai], "other zero-shot CLIPs (open_clip)", "other clip", {}),
        chosen(testbed, [n in resnets for n in names], "ResNet-50 and -101 (testbed)", "resnet", {}),
        chosen(testbed, zero_shot, "zero-shot CLIPs of the testbed", "clip",
               {"testbed:vit_b_32_clip_zeroshot": "ViT-B-32", "testbed:resnet50_clip_zeroshot": "RN50"}),
        chosen(clips, openai, "zero-shot CLIPs of OpenAI", "clip", own),
    ]  # fmt: skip
    if len(found[-1].names):  # the same two CLIPs, of another evaluation
        found.pop(-2)
    return [s for s in found if len(s.names)]


def _papers() -> list[dict[str, str]]:
    """What papers and their readers report, as rows of text."""
    found = numbers.table()
    known = found[~found["source"].isin(["timm", "open_clip", "clip_benchmark", "testbed"])]
    return [
        {
            "dataset": row["dataset"],
            "method": row["method"],
            "model": _detail(row["model"], row["weights"], 0),
            "value": f"{100 * row['value']:.2f}",
            "spread": "" if np.isnan(row["spread"]) else f"± {100 * row['spread']:.1f} ({row['spread_kind']})",
            "source": row["source"],
            "status": row["status"],
            "note": row["note"],
        }
        for row in known.sort_values(["dataset", "method", "source"], kind="stable").to_dict("records")
    ]


def _csv(grid: Grid) -> str:
    lines: list[list[object]] = [["model", "exact", *grid.heads]]
    for (label, detail, _), row in zip(grid.labels, grid.values, strict=True):
        lines.append([label, detail, *("" if np.isnan(v) else round(float(v), 6) for v in row)])
    return formats.csv_text(lines)


def _latex(grid: Grid, caption: str) -> str:
    escape = formats.escape_latex
    body = []
    for number, (label, detail, kind) in enumerate(grid.labels):
        cells = [escape(grid.text(number, c)) for c in range(len(grid.heads))]
        name = f"\\quad {escape(label)}" if kind == "difference" else f"{escape(label)} \\emph{{{escape(detail)}}}"
        body.append(f"{name} & {' & '.join(cells)} \\\\" + (" \\addlinespace" if kind == "difference" else ""))
    return formats.latex_table(f"l{'r' * len(grid.heads)}", ("model", *grid.heads), body, caption, grid.name)


def _markdown(context: Mapping[str, Any]) -> str:
    escape = formats.escape_markdown
    lines = [f"# {context['title']}", "", "Published numbers only; made by `clipdg report --published`.", ""]
    titles = {
        "pairs": "CLIP beside the nearest ResNet",
        "rho": "Effective robustness",
        "one_axis": "Effective robustness on one axis",
    }
    for name, title in titles.items():
        grid = context["grids"][name]
        lines += [f"## {title}", "", f"| model | exact | {' | '.join(grid.heads)} |"]
        lines.append("| :--- | :--- |" + " ---: |" * len(grid.heads))
        for number, (label, detail, _) in enumerate(grid.labels):
            cells = [grid.text(number, c) for c in range(len(grid.heads))]
            lines.append(f"| {escape(label)} | {escape(detail)} | {' | '.join(cells)} |")
        lines += ["", context["captions"][name], ""]
    lines += [
        "## Fits",
        "",
        f"| {' | '.join(FIT_HEADS)} |",
        "| :--- | :--- | :--- | ---: | ---: | ---: | ---: | :--- |",
    ]
    lines += [f"| {' | '.join(map(escape, row))} |" for row in context["fits"]]
    lines += ["", context["captions"]["fits"], ""]
    for figure in context["figures"]:
        lines += [f"![{figure['title']}](figures/{figure['name']}.svg)", "", figure["caption"], ""]
    lines += ["## Notes", "", *(f"- {escape(note)}" for note in NOTES), ""]
    lines += ["## Sources", ""]
    for s in context["sources"]:
        parts = [s["citation"], s["repository"], s["commit"] and f"commit {s['commit']}", s["licence"], s["about"]]
        lines.append(f"- `{s['source']}`: {escape('; '.join(p for p in parts if p))}")
    return "\n".join([*lines, ""])
