"""clipdg cache info, verify, gc."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from clipdg.cli.console import app, say
from clipdg.core.errors import ConfigError, RecordError

if TYPE_CHECKING:
    from clipdg.storage.cache_upkeep import Kept

cache_app = typer.Typer(help="What was encoded and kept: look at it, check it, make room.", rich_markup_mode=None)
app.add_typer(cache_app, name="cache")
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@cache_app.command()
def info() -> None:
    """What is kept, how large, when last used."""
    from clipdg.storage import cache_folder, cache_upkeep

    store = cache_folder.folder("features")
    arrays = cache_upkeep.kept(store)
    _print(arrays[::-1])
    print(f"features: {len(arrays)} arrays, {_mib(sum(one.num_bytes for one in arrays))} MiB")
    if others := cache_upkeep.strangers(store):
        say(f"left alone, for it is no part of the store: {_printable(', '.join(others[:3]))}"
            + (f" and {len(others) - 3} more" if len(others) > 3 else ""))  # fmt: skip
    place = cache_folder.folder()
    for folder in sorted(place.iterdir()) if place.is_dir() else ():
        if folder.is_dir() and folder.name != "features":
            print(f"{folder.name}: {_mib(cache_upkeep.size_of(folder.rglob('*')))} MiB")
    say(f"in {place} (another place: CLIPDG_CACHE)")


@cache_app.command()
def verify() -> None:
    """Read every stored byte and compare digests."""
    from clipdg.storage import cache_folder, cache_upkeep, sharded_array

    arrays = cache_upkeep.kept(cache_folder.folder("features"))
    damaged = unfinished = 0
    for one in arrays:
        if not (one.folder / "manifest.json").exists():
            unfinished += 1
        elif not sharded_array.is_sound(one.folder):
            damaged += 1
            print(f"damaged: {one.folder.name[:12]}, {_name(one)}")
    print(f"{len(arrays) - damaged - unfinished} sound, {damaged} damaged, {unfinished} unfinished")
    if damaged:
        raise RecordError(f"{damaged} of {len(arrays)} stored arrays are damaged; what they lost is encoded again when "
                          "it is next needed")  # fmt: skip


@cache_app.command()
def gc(
    older_than: Annotated[
        float | None, typer.Option("--older-than", metavar="DAYS", help="Unused for so long.")
    ] = None,
    max_size: Annotated[
        str | None, typer.Option("--max-size", metavar="SIZE", help="Keep the last used, so much: 20G.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go and stop.")] = False,
) -> None:
    """Make room: remove features by age or size.

    They can be encoded again. What interrupted writing left behind goes in any case.
    Example: clipdg cache gc --older-than 30 --max-size 20G --dry-run
    """
    from clipdg.storage import cache_folder, cache_upkeep, sharded_array

    if older_than is not None and not older_than >= 0:
        raise ConfigError(f"--older-than is {older_than}; give days, 0 or more")
    store = cache_folder.folder("features")
    files = cache_upkeep.leftovers(store)
    arrays = cache_upkeep.surplus(
        cache_upkeep.kept(store),
        None if older_than is None else older_than * 86400,
        None if max_size is None else parse_size(max_size),
    )
    num_bytes = cache_upkeep.size_of(files)
    gone = 0
    _print(arrays)
    for one in arrays:
        if dry_run or sharded_array.remove(one.folder):
            gone += 1
            num_bytes += one.num_bytes
        else:
            say(f"kept {_name(one)}: a process is making it now")
    for file in files if not dry_run else ():
        cache_upkeep.remove_file(file)
    verb = "would go" if dry_run else "removed"
    print(f"{verb}: {gone} arrays, {len(files)} leftover files, {_mib(num_bytes)} MiB")
    if older_than is None and max_size is None:
        say("Arrays go by --older-than DAYS or --max-size SIZE; without them only leftovers do.")


def parse_size(text: str) -> int:
    """``20G``, ``1.5 GiB``, ``500MB`` -> bytes, in powers of 1024. Raises ConfigError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if found is None:
        raise ConfigError(f"--max-size is '{text}'; give a number with K, M, G or T, such as 500M or 20G")
    return int(float(found[1]) * UNITS[found[2].upper()])


def _print(arrays: Sequence[Kept]) -> None:
    """A line an array, those of the same backbone and precision together."""
    groups: dict[str, list[Kept]] = {}
    for one in arrays:
        groups.setdefault(_backbone(one), []).append(one)
    for name, group in groups.items():
        print(name)
        for one in group:
            images = one.about.get("num_images")
            count = f"{images:,} images" if isinstance(images, int) else ""  # prompts say in their name how many
            state = "" if one.is_whole else "  unfinished"
            size = f"{_mib(one.num_bytes):>9} MiB"
            print(f"  {_name(one)[:24]:24} {count:>16} {size}  {_ago(one.used):>8}{state}")


def _name(one: Kept) -> str:
    return _printable(one.about.get("domain", one.folder.name[:12]))


def _backbone(one: Kept) -> str:
    parts = (str(one.about.get(k) or "") for k in ("backbone", "tag", "precision"))
    return _printable(" ".join(filter(None, parts)) or "of an unknown backbone")


def _printable(text: object) -> str:
    """Names come from data sets and files of others; on a terminal control characters are commands."""
    return "".join(c if c.isprintable() else "?" for c in str(text))


def _ago(when: float) -> str:
    seconds = max(0.0, time.time() - when)
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "min")):
        if seconds >= size:
            number = int(seconds // size)
            return f"{number} {unit}{'s' if number > 1 and unit != 'min' else ''}"
    return "now"


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f}"
