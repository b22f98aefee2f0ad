"""A sweep file -> every configuration in it, checked.

    base: {benchmark: pacs, backbone: tiny}            # what all runs share
    seeds: [0, 1, 2]
    runs:                                              # a list: each row changes some settings
      - {label: Zero-shot, method: zero_shot, seeds: [0]}
      - {label: CoOp, method: coop, grid: {shots: [1, 4, 16]}}
    grid: {method.lr: [0.002, 0.02]}                   # every combination, for each row
    random:                                            # or draws
      num: 20
      seed: ${seed}
      settings:
        method.lr: {log10_uniform: [-5, -3.5]}
        method.batch_size: {int_pow2: [3, 5.5]}
        method.dropout: {choice: [0, 0.1, 0.5], name: resnet_dropout}

Runs are in the order of the file: rows, then grid points, then draws, then seeds. ``grid`` and ``random`` of a row
replace those of the file, axis by axis.

Draws are DomainBed's (runs/search_space.py): draw 0 is the settings as they stand, draw h comes from
``seed_hash(h, seed)``, and each setting from a stream of its own, named by the last part of its key or by ``name``.
With ``seed: ${seed}``, the default, each run seed has its own draws, as DomainBed's trials have; a number gives all run
seeds the same. The number of the draw is kept as ``hparams_seed``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipdg.core.errors import ConfigError
from clipdg.core.plugins import nearest
from clipdg.core.seeding import seed_hash
from clipdg.records.identity import flatten
from clipdg.runs import config, search_space
from clipdg.storage.publish import digest

KEYS = ("base", "seeds", "runs", "grid", "random")
RANDOM = ("num", "seed", "settings")
FOLLOWS = "${seed}"
MAX_RUNS = 1_000_000
_NO_OTHER_RUN = ("label", "workers", "devices", "strategy", "hparams_seed")  # two runs that differ in these are one


@dataclass(frozen=True)
class _Random:
    num: int
    seed: int | str
    settings: Mapping[str, tuple[str, Mapping[str, Any]]]  # key -> the name of its stream, distribution

    def values(self, number: int, seed: int) -> dict[str, search_space.Value]:
        if number == 0:
            return {}
        drawn = seed_hash(number, seed if self.seed == FOLLOWS else self.seed)
        return {key: search_space.draw(how, drawn, name) for key, (name, how) in self.settings.items()}


def plan(file: Path, overrides: Sequence[str] = ()) -> list[config.RunSettings]:
    """Every configuration of a sweep file, checked, in its order; ``overrides`` apply to each.

    ``seed=5`` among the overrides takes the place of all seeds; what an override makes the same is planned once.

    Raises ConfigError naming the file, the row and what cannot be meant.
    """
    content = config.read_yaml(file)
    _known(content, KEYS, str(file))
    base = content.get("base") or {}
    if not isinstance(base, dict):
        raise ConfigError(f"{file}: base is {base!r:.60}, not settings (key: value)")
    _no_seed(base, f"{file}: base")
    runs = content.get("runs", [{}])
    if not isinstance(runs, list) or not runs or not all(isinstance(r, dict) for r in runs):
        raise ConfigError(f"{file}: runs is a list of settings, one for each row of the table")
    fixed = config.settings_of(None, overrides)
    planned: list[config.RunSettings] = []
    first: dict[str, tuple[str, str | None]] = {}
    for number, row in enumerate(runs):
        where = f"{file}, run {number + 1}" + (f" ({row['label']})" if row.get("label") else "")
        for settings in _expand(content, row, fixed, where):
            try:
                given = config.merged(base, settings, fixed)
                config.admit(given)
                resolved = config.resolve(given)
            except ConfigError as error:
                raise ConfigError(f"{where}: {error}") from error
            label, key = resolved.label, _key(resolved)
            if key not in first:
                first[key] = where, label
                planned.append(resolved)
            elif first[key][0] != where and first[key][1] != label:
                raise ConfigError(f"{where} has the settings of {first[key][0].removeprefix(f'{file}, ')}; drop one")
            if len(planned) > MAX_RUNS:
                raise ConfigError(f"{file} means more than {MAX_RUNS:,} runs; make its grid smaller")
    return planned


def _expand(
    content: Mapping[str, Any], row: Mapping[str, Any], fixed: Mapping[str, Any], where: str
) -> Iterator[dict[str, Any]]:
    """The settings of a row, once for each grid point, draw and seed."""
    own = {k: v for k, v in row.items() if k not in ("seeds", "grid", "random")}
    _no_seed(own, where)
    seeds = [fixed["seed"]] if "seed" in fixed else row.get("seeds", content.get("seeds", [0]))
    if not isinstance(seeds, list) or not seeds or not all(type(s) is int for s in seeds):
        raise ConfigError(f"{where}: seeds is {seeds!r:.60}; give a list such as [0, 1, 2]")
    grid = _grid(content.get("grid"), where) | _grid(row.get("grid"), where)
    search = _random(_layered(content.get("random"), row.get("random"), where), where)
    if search and (both := sorted(set(search.settings) & set(grid))):
        raise ConfigError(f"{where}: {both[0]} is in grid and in random; keep one")
    for point in itertools.product(*grid.values()):
        for number in range(search.num if search else 1):
            for seed in seeds:
                drawn = search.values(number, seed) if search else {}
                chosen = dict(zip(grid, point, strict=True)) | drawn
                # A name first: one that came later would drop the settings of its part.
                parts = [config.nested(k, v) for k, v in sorted(chosen.items(), key=lambda kv: "." in kv[0])]
                yield config.merged(own, *parts, {"seed": seed}, {"hparams_seed": number} if search else {})


def _grid(given: object, where: str) -> dict[str, list[Any]]:
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(isinstance(v, list) and v for v in given.values()):
        raise ConfigError(f"{where}: grid is {given!r:.60}; give each setting a list, such as {{shots: [1, 16]}}")
    _no_seed(given, f"{where}: grid")
    return given


def _layered(shared: object, own: object, where: str) -> dict[str, Any] | None:
    """The file's ``random`` with a row's over it."""
    for given in (shared, own):
        if given is not None and not isinstance(given, dict):
            raise ConfigError(f"{where}: random is {given!r:.60}; give num and settings")
    if shared is None and own is None:
        return None
    merged: dict[str, Any] = {}
    for given in (shared, own):
        assert given is None or isinstance(given, dict)
        settings = (given or {}).get("settings")
        if settings is not None and not isinstance(settings, dict):
            raise ConfigError(f"{where}: settings of random is {settings!r:.60}; give each setting a distribution")
        merged = {**merged, **(given or {}), "settings": {**merged.get("settings", {}), **(settings or {})}}
    return merged


def _random(given: Mapping[str, Any] | None, where: str) -> _Random | None:
    if given is None:
        return None
    _known(given, RANDOM, f"{where}: random")
    num, seed = given.get("num"), given.get("seed", FOLLOWS)
    if type(num) is not int or num < 1:
        raise ConfigError(f"{where}: num of random is {num!r}; give the number of draws, of which draw 0 is none")
    if type(seed) is not int and seed != FOLLOWS:
        raise ConfigError(f"{where}: seed of random is {seed!r}; give a number, or '{FOLLOWS}' as DomainBed's trials")
    if not given["settings"]:
        raise ConfigError(f"{where}: random draws nothing; give settings, each with a distribution")
    settings: dict[str, tuple[str, Mapping[str, Any]]] = {}
    _no_seed(given["settings"], f"{where}: random")
    for key, how in given["settings"].items():
        name = how.get("name", key) if isinstance(how, dict) else key
        how = {k: v for k, v in how.items() if k != "name"} if isinstance(how, dict) else how
        search_space.check(f"{where}: {key}", how)
        settings[key] = str(name).rpartition(".")[2], how
    names = [name for name, _ in settings.values()]
    twice = [n for n in names if names.count(n) > 1]
    if twice:
        raise ConfigError(
            f"{where}: two settings draw from the stream '{twice[0]}'; give one of them a name: of its own"
        )
    return _Random(num, seed, settings)


def _known(given: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    unknown = [str(k) for k in given if k not in keys]
    if unknown:
        raise ConfigError(f"{where} has '{unknown[0]}';{nearest(unknown[0], list(keys))} it may have {', '.join(keys)}")


def _no_seed(given: Mapping[str, Any], where: str) -> None:
    if "seed" in given:
        raise ConfigError(f"{where} has 'seed'; give seeds: [0, 1, 2]")


def _key(resolved: config.RunSettings) -> str:
    """The same for two configurations exactly if they are one run."""
    flat = {k: v for k, v in flatten(resolved.plain).items() if k not in _NO_OTHER_RUN}
    return digest([flat, resolved.seeded])
