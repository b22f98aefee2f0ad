"""The command line; the only module that prints.

Results go to standard output, progress and remarks to standard error. A mistake of the user's is one sentence and the
exit code of its kind (errors.py); a bug of ours is its traceback and exit code 1.
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipdg import __version__
from clipdg.errors import ClipdgError, ConfigError, RecordError, StorageError

if TYPE_CHECKING:
    from clipdg.records import Record

app = typer.Typer(
    name="clipdg",
    help="Does a classifier keep its accuracy on domains it was not trained on?",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
INTERRUPTED = "interrupted; what was finished is kept, run the same command again to go on"
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FILE.yaml|key=value",
        help="A file of settings first, if any; then single settings.",
        show_default=False,
    ),
]
Out = Annotated[Path, typer.Option("--out", help="Folder that results are written to.")]


def main() -> None:
    """Entry point of the ``clipdg`` command."""
    try:
        code = app(standalone_mode=False)
        if code == 130:  # what typer makes of a KeyboardInterrupt
            _complain(INTERRUPTED, code)
    except ClipdgError as error:
        code = _complain(str(error), error.exit_code)
    except KeyboardInterrupt:
        code = _complain(INTERRUPTED, 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        if not hasattr(error, "format_message"):  # click's own, of which typer keeps a copy under another name
            raise
        code = _complain(f"{error.format_message()} Try 'clipdg --help'.", 2)
    sys.exit(code if isinstance(code, int) else 0)


def _complain(message: str, code: int) -> int:
    print(f"clipdg: {message}", file=sys.stderr)
    return code


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


class _Progress:
    """Called with (stage, done, total): a bar with an estimate on a terminal, a line every few seconds elsewhere."""

    INTERVAL = 5.0  # seconds between lines

    def __init__(self) -> None:
        self.bar: Any = None
        self.stage = ""
        self.task: Any = None
        self.started = self.last = 0.0
        self.first = 0

    def __enter__(self) -> _Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description:24.24}"),
                BarColumn(24),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self.stage:
            self.stage, self.started, self.last, self.first = stage, now, now, done
            if self.bar is not None:
                if self.task is not None:
                    self.bar.remove_task(self.task)
                self.task = self.bar.add_task(stage, total=total)
        if self.bar is not None:
            self.bar.update(self.task, completed=done, total=total)
        elif now - self.last >= self.INTERVAL and done < total:
            self.last = now
            estimate = ""
            if done > self.first:  # from the first call on, before which libraries are imported
                left = (now - self.started) / (done - self.first) * (total - done)
                estimate = f", about {_duration(left)} left"
            _say(f"  {stage}: {done:,} of {total:,}{estimate}")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


def _split(arguments: list[str] | None) -> tuple[Path | None, list[str]]:
    """The settings file, if the first argument is one, and the overrides."""
    arguments = arguments or []
    if arguments and "=" not in arguments[0]:
        return Path(arguments[0]), arguments[1:]
    return None, arguments


def _check_folder(out: Path) -> None:
    there = next(p for p in (out.absolute(), *out.absolute().parents) if os.path.lexists(p))
    if not there.is_dir():
        raise ConfigError(f"{there.name} is a file; give --out a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise StorageError(f"cannot write {out}: no permission in {there}")


@app.command()
def demo(out: Out = Path("results/demo")) -> None:
    """Pre-train, benchmark and report, without a download.

    A small CLIP is pre-trained from scratch on drawn images and compared with supervised ResNets: a few minutes.
    """
    from clipdg import demo as demo_

    _check_folder(out)
    started = time.monotonic()
    _say("A small CLIP is pre-trained on drawn images with captions, then compared with supervised ResNets.")
    with _Progress() as progress:
        outcome = demo_.run(out, progress, lambda n, total, r: _say(f"run {n + 1} of {total}: {_name(r)}"))
    if outcome.failed:
        raise outcome.failed[0][1]
    path = _write_report([out], out / "report")
    _say(f"{_duration(time.monotonic() - started)} in all. Open {path} in a browser.")


def _name(resolved: Any) -> str:
    values = resolved.values
    return f"{values['label'] or values['method']['name']}, seed {values['seed']}"


@app.command()
def run(
    arguments: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder that the record is written to.")] = None,
) -> None:
    """Fit on the sources, evaluate every domain, keep the record.

    Example: clipdg run benchmark=folder benchmark.root=DIR method=linear_probe --out results/mine
    """
    from clipdg import config

    file, overrides = _split(arguments)
    resolved = config.load(file, overrides)
    if out is not None:
        _check_folder(out)
    from clipdg.runner import Session
    from clipdg.runner import run as run_

    with _Progress() as progress:
        records = run_(resolved, out, Session(progress=progress))
    _print_records(records)
    if out is not None:
        noun = "record" if len(records) == 1 else "records"
        _say(f"{len(records)} {noun} in {out}; now: clipdg report {out} --out {out}/report")
    else:
        _say("Nothing was kept; give --out DIR to keep the record.")


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE.yaml")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="key=value", show_default=False)] = None,
    out: Out = Path("results/sweep"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs and stop.")] = False,
) -> None:
    """Every run of a sweep file that has no record yet."""
    from clipdg import sweep as sweep_

    planned = sweep_.plan(file, overrides or [])
    if dry_run:
        for resolved in planned:
            print(_name(resolved))
        print(f"{len(planned)} configurations")
        return
    _check_folder(out)
    with _Progress() as progress:
        outcome = sweep_.execute(planned, out, progress, lambda n, t, r: _say(f"run {n + 1} of {t}: {_name(r)}"))
    for resolved, error in outcome.failed:
        _say(f"failed: {_name(resolved)}: {error}")
    if outcome.failed:
        raise RecordError(f"{len(outcome.failed)} of {len(planned)} configurations failed; {outcome.done} are in {out}")
    _say(f"{outcome.done} configurations done; now: clipdg report {out} --out {out}/report")


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders with records.")],
    out: Out = Path("report"),
) -> None:
    """Tables, figures and a page of all records in DIR."""
    _check_folder(out)
    path = _write_report(folders, out)
    _say(f"Open {path} in a browser.")


def _write_report(folders: list[Path], out: Path) -> Path:
    from clipdg.report.page import write_report

    written = write_report(folders, out)
    for problem in written.problems:
        _say(f"clipdg: left out: {problem}")
    if written.problems:
        raise RecordError(f"{len(written.problems)} of the files are no records; {written.path} shows the rest")
    return written.path


@app.command()
def classify(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...")],
    labels: Annotated[
        str, typer.Option("--labels", help="Comma-separated labels, in any language the backbone knows.")
    ],
    template: Annotated[
        list[str] | None, typer.Option("--template", help="A prompt with {} for the label; several are averaged.")
    ] = None,
    backbone: Annotated[str, typer.Option("--backbone", help="Such as open_clip:ViT-B-32-quickgelu.")] = "tiny",
    weights: Annotated[str | None, typer.Option("--weights", help="Tag, repository or file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object an image.")] = False,
) -> None:
    """Rank labels for images, zero-shot.

    Example: clipdg classify cat.jpg --labels "dog,cat,person" --template "a photo of a {}, a type of pet."
    """
    from clipdg.classify import classify as classify_
    from clipdg.classify import parse_labels

    names = parse_labels(labels)
    result = classify_(images, names, template or ["a photo of a {}"], backbone, weights)
    for remark in result.remarks:
        _say(f"clipdg: {remark}")
    for path, ranked in result.ranked:
        if as_json:
            print(json.dumps({"image": str(path), "labels": [{"label": k, "probability": p} for k, p in ranked]},
                             ensure_ascii=False))  # fmt: skip
            continue
        print(path)
        width = max(len(label) for label, _ in ranked)
        for label, probability in ranked:
            print(f"  {100 * probability:5.1f} %  {label:{width}}")


@app.command()
def pretrain(arguments: Overrides = None, out: Out = Path("results/pretrain")) -> None:
    """Train a CLIP on image-caption pairs.

    Pairs are data=miniatures (drawn), or data=folder|datasets|webdataset at root=PLACE.
    """
    from clipdg import config

    file, overrides = _split(arguments)
    given = config.settings_of(file, overrides)
    _check_folder(out)
    from clipdg.pretrain import PretrainConfig
    from clipdg.pretrain import pretrain as pretrain_

    settings = PretrainConfig(**config.check(PretrainConfig, given).values)
    with _Progress() as progress:
        path = pretrain_(settings, out, progress)
    _say(f"Weights in {path}; use them with backbone.weights={path}")


@app.command()
def fetch(
    what: Annotated[str, typer.Argument(metavar="backbone")],
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="Such as open_clip:ViT-B-32-quickgelu.")],
    weights: Annotated[str | None, typer.Option("--weights", help="Tag, such as openai.")] = None,
) -> None:
    """Download what a later run needs, so that it runs offline."""
    from clipdg.catalog import nearest

    if what != "backbone":
        raise ConfigError(f"no '{what}' to fetch.{nearest(what, ['backbone'])} There is: backbone.")
    from clipdg.fetch import fetch_backbone

    found = fetch_backbone(spec, weights, _say)
    for path in found:
        print(path)
    _say(f"{spec} is here" if found else f"{spec} needs no download")


@app.command("list")
def list_(
    kind: Annotated[str, typer.Argument(metavar="backbones|benchmarks|methods")] = "",
    pattern: Annotated[str | None, typer.Option("--filter", help="Models that contain this.")] = None,
) -> None:
    """The plug-ins there are; with --filter, the models of the backbones."""
    from clipdg import catalog

    if kind and kind not in catalog.KINDS:
        raise ConfigError(
            f"no kind '{kind}'.{catalog.nearest(kind, catalog.KINDS)} There are: {', '.join(catalog.KINDS)}."
        )
    if pattern is not None:
        if kind != "backbones":
            raise ConfigError("--filter is for models: clipdg list backbones --filter ViT-B")
        _print_models(pattern)
        return
    for each in [kind] if kind else catalog.KINDS:
        print(each)
        for name in catalog.names(each):
            about = catalog.summary(each, name).removeprefix(f"{name}: ").replace("`", "")
            print(f"  {name:16} {textwrap.shorten(about, 61, placeholder=' …')}")
    if kind == "backbones":
        _say("Models, tags and sizes of a family: clipdg list backbones --filter TEXT, '' for all")


def _print_models(pattern: str) -> None:
    """One model a line: name, input size, features, whether its prompts can be learnt, then its tags."""
    from clipdg import catalog

    rows = [
        row
        for family in catalog.names("backbones")
        for row in getattr(catalog.plugin("backbones", family), "catalogue", list)()
        if pattern.lower() in row["name"].lower()
    ]
    if not rows:
        raise ConfigError(f"no listed model contains '{pattern}'; hf:ORG/REPO takes any repository and is not listed")
    width = max(len(row["name"]) for row in rows)
    print(f"{'model':{width}}  {'px':>4} {'dim':>5}  prompts  weights")
    for row in rows:
        tags = textwrap.wrap(", ".join(row["tags"]) or "none listed", max(24, 100 - width - 22))
        can = "yes" if row["can_prompt"] else "no"
        print(f"{row['name']:{width}}  {row['size']:>4} {row['embed_dim'] or '':>5}  {can:7}  {tags[0]}")
        for more in tags[1:]:
            print(" " * (width + 22) + more)


@app.command()
def doctor() -> None:
    """Versions, devices and caches, for a bug report."""
    from clipdg import cache, torchvision_guard

    print(f"clipdg {__version__}, Python {sys.version.split()[0]}")
    for name in ("torch", "torchvision", "lightning", "torchmetrics", "timm", "transformers", "datasets",
                 "open_clip_torch", "omegaconf", "numpy", "pillow", "safetensors"):  # fmt: skip
        try:
            print(f"  {name:16} {version(name)}")
        except PackageNotFoundError:
            print(f"  {name:16} not installed")
    import torch
    import torchvision  # noqa: F401

    from clipdg import placement

    print(f"devices: {_devices(torch)}")
    print(f"precision: {', '.join(_precisions(placement, torch))}")
    if torchvision_guard.acted():
        print("torchvision is of another build than torch; its compiled operators are missing, and clipdg needs none.")
    folder = cache.folder()
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) if folder.is_dir() else 0
    print(f"cache: {folder}, {size / 2**20:,.1f} MiB (another place: CLIPDG_CACHE)")


def _precisions(placement: Any, torch: Any) -> list[str]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = []
    for name in placement.PRECISIONS:
        try:
            placement.resolve(name, device)
        except ConfigError:
            continue
        found.append(name)
    return found


def _devices(torch: Any) -> str:
    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return f"CPU, {torch.get_num_threads()} threads"


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if show_version:
        print(f"clipdg {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def _print_records(records: list[Record]) -> None:
    """What a run found, a line per domain; the reported split first named in tables."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from clipdg.report.tables import reported

    for record in records:
        content = record.content
        sources = ", ".join(content["shift"]["sources"])
        values = content["config"]
        title = f"{values['label'] or values['method']['name']} on {content['data']['benchmark']}, fitted on {sources}"
        if not content["data"]["num_fit"]:
            title = f"{values['label'] or values['method']['name']} on {content['data']['benchmark']}, nothing fitted"
        table = Table(
            title=f"{escape(title)}, seed {values['seed']}", box=SIMPLE_HEAD, title_justify="left", title_style=""
        )
        for name in ("domain", "role", "split"):
            table.add_column(name)
        for name in ("images", "top-1", "per class", "worst", "ECE"):
            table.add_column(name, justify="right")
        for role in ("sources", "targets"):
            for domain in content["shift"][role]:
                e = reported(record, domain)
                if e is None:  # a source of which nothing was held out
                    table.add_row(escape(domain), role[:-1], "none", "0", "", "", "", "")
                    continue
                m = e["metrics"]
                cells = [_percent(m[k]) for k in ("top1", "mean_per_class", "worst_class", "ece")]
                table.add_row(escape(domain), role[:-1], e["split"], f"{e['num_images']:,}", *cells)
        Console(width=min(100, Console().width)).print(table)
        if content["timing"].get("converged") is False:
            _say("clipdg: the solver stopped before it converged; raise method.max_iterations")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
