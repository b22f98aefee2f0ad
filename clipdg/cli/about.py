"""clipdg list, doctor: what there is to run, and what it would run on."""

from __future__ import annotations

import sys
import textwrap
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

from clipdg.cli.console import app, say
from clipdg.core.errors import ConfigError, StorageError

COLUMNS = 80


@app.command("list")
def list_(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="Such as backbones or methods; all if left out.")] = "",
    pattern: Annotated[str | None, typer.Option("--filter", help="Models that contain this.")] = None,
) -> None:
    """List the plug-ins; with --filter, the models of the backbones."""
    from clipdg.core import plugins

    if kind and kind not in plugins.KINDS:
        raise ConfigError(
            f"no kind '{kind}'.{plugins.nearest(kind, tuple(plugins.KINDS))} There are: {', '.join(plugins.KINDS)}."
        )
    if pattern is not None:
        if kind != "backbones":
            raise ConfigError("--filter is for models: clipdg list backbones --filter ViT-B")
        _print_models(pattern)
        return
    for each in [kind] if kind else plugins.KINDS:
        print(each)
        found = plugins.names(each)
        width = max(16, *map(len, found)) if found else 0
        for name in found:
            about = plugins.summary(each, name).removeprefix(f"{name}: ").replace("`", "")
            print(f"  {name:{width}} {textwrap.shorten(about, COLUMNS - width - 3, placeholder=' …')}")
    if kind == "backbones":
        say("Models, tags and sizes of a family: clipdg list backbones --filter TEXT, '' for all")


def _print_models(pattern: str) -> None:
    """Print a line for each model: name, input size, features, whether its prompts can be learnt, and its tags.

    Tags that do not fit there stand on the lines beneath.
    """
    from clipdg.core import plugins

    rows = [
        row
        for family in plugins.names("backbones")
        if (catalogue := plugins.backbone(family).catalogue) is not None
        for row in catalogue()
        if pattern.lower() in row["name"].lower()
    ]
    if not rows:
        raise ConfigError(f"no listed model contains '{pattern}'; hf:ORG/REPO takes any repository and is not listed")
    width = max(len(row["name"]) for row in rows)
    print(f"{'model':{width}}  {'px':>4} {'dim':>5}  prompts  weights")
    for row in rows:
        tags = ", ".join(row["tags"]) or "none listed"
        can = "yes" if row["can_prompt"] else "no"
        line = f"{row['name']:{width}}  {row['size']:>4} {row['embed_dim'] or '':>5}  {can:7}"
        if len(line) + 2 + len(tags) <= COLUMNS:
            print(f"{line}  {tags}")
        else:
            print(line.rstrip())
            print(textwrap.fill(tags, COLUMNS, initial_indent="    ", subsequent_indent="    ",
                                break_long_words=False, break_on_hyphens=False))  # fmt: skip


@app.command()
def doctor() -> None:
    """Versions, devices and caches, for a bug report."""
    from clipdg.core import torchvision_guard
    from clipdg.storage import cache_folder

    print(f"clipdg {version('clipdg')}, Python {sys.version.split()[0]}")
    for name in ("torch", "torchvision", "lightning", "torchmetrics", "timm", "transformers", "datasets",
                 "open_clip_torch", "omegaconf", "numpy", "pillow", "safetensors"):  # fmt: skip
        try:
            print(f"  {name:16} {version(name)}")
        except PackageNotFoundError:
            print(f"  {name:16} not installed")
    import torch
    import torchvision  # noqa: F401

    print(f"devices: {_devices(torch)}")
    print(f"precision: {', '.join(_precisions(torch))}")
    if torchvision_guard.acted():
        print("torchvision is of another build than torch; its compiled operators are missing, and clipdg needs none.")
    try:
        folder = cache_folder.folder()
    except StorageError as error:
        print(error)
    else:
        print(f"cache: {folder}, {_mebibytes(folder)} (another place: CLIPDG_CACHE)")
    from huggingface_hub import constants

    offline = ", and HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else ""
    hub = Path(constants.HF_HUB_CACHE)
    print(f"weights from the hub: {hub}, {_mebibytes(hub)} (another place: HF_HOME){offline}")


def _mebibytes(folder: Path) -> str:
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file() and not f.is_symlink())
    return f"{size / 2**20:,.1f} MiB"


def _precisions(torch: Any) -> list[str]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    from clipdg.weights import precision

    found = []
    for name in precision.PRECISIONS:
        try:
            precision.resolve(name, device)
        except ConfigError:
            continue
        slow = name == "bf16" and device == "cpu" and (gain := precision.gain_of_bf16()) < 1
        found.append(f"{name} (slower here: {gain:.2f} times the speed of fp32)" if slow else name)
    return found


def _devices(torch: Any) -> str:
    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return f"CPU, {torch.get_num_threads()} threads"
