"""Settings of a run: YAML and ``key=value`` -> a typed, checked value.

The schema of ``benchmark``, ``backbone``, ``method`` and ``objective`` is their plug-in's ``Config`` dataclass beside
the fields below, so a key that there is not, a value of the wrong type and a number out of range are refused before
anything is loaded.
``benchmark=folder`` is short for ``benchmark.name=folder``, and ``benchmark=FILE.yaml`` for the settings in that file.
YAML is 1.2: ``no`` is a word and 010 is ten. A setting may follow the seed, ``backbone.weights=random:${seed}``; such
settings are remembered, since a mean over seeds may differ in them and in nothing else. Environment variables are not
read.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipdg.core import plugins
from clipdg.core.errors import ConfigError
from clipdg.core.fit import Fit
from clipdg.core.plugins import NoSettings
from clipdg.records.identity import flatten, identity

KIND_OF = {"benchmark": "benchmarks", "backbone": "backbones", "method": "methods", "objective": "objectives"}


@dataclass(frozen=True)
class BenchmarkSettings:
    """``root``: a local folder in the place of the benchmark's own source. ``skip``: a list of images to leave out.

    ``half``: base or new classes alone, see data/base_to_new.py. ``own``: the settings of the benchmark's plug-in.
    """

    name: str = "miniatures"
    root: str | None = None
    skip: str | None = None
    half: typing.Literal["all", "base", "new"] = "all"
    own: Any = field(default_factory=NoSettings)


@dataclass(frozen=True)
class BackboneSettings:
    """``name``: "tiny", "open_clip:ViT-B-32-quickgelu". ``weights``: a tag, repository, file or "random:SEED".

    ``precision``: of the frozen weights; what is learnt is fp32. ``compile``: the image tower, by torch.compile.
    ``pixels``: resized exactly as the weights' own library does, or in half the time a level of 255 off here and there,
    two at most; what torch does not do so well stays exact.
    ``features``: of a CLIP, after its projection or before it, where only methods without texts can be.
    ``own``: the settings of the family's plug-in.
    """

    name: str = "tiny"
    weights: str | None = None
    precision: typing.Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    pixels: typing.Literal["exact", "fast"] = "exact"
    features: typing.Literal["projected", "penultimate"] = "projected"
    own: Any = field(default_factory=NoSettings)


@dataclass(frozen=True)
class MethodSettings:
    """``own``: the settings of the method's plug-in, a value of its ``config`` type."""

    name: str = "zero_shot"
    own: Any = field(default_factory=NoSettings)


@dataclass(frozen=True)
class ObjectiveSettings:
    """``own``: the settings of the objective's plug-in."""

    name: str = "erm"
    own: Any = field(default_factory=NoSettings)


@dataclass(frozen=True)
class FitSettings:
    """Settings of any fit by gradient descent, whatever its method; see core/fit.py. None: as the method has it.

    ``checkpoint_every``: every domain is evaluated after the first update and then every so many, as DomainBed does,
    and these evaluations stand in the record beside the last one. ``views``: of each image, so many random crops and
    flips (CoOp's) go through the encoder once and are stored; each step of a fit on features draws one of them.
    """

    steps: int | None = field(default=None, metadata={"min": 1})
    per_domain: bool = False
    checkpoint_every: int | None = field(default=None, metadata={"min": 1})
    precision: typing.Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulate: int = field(default=1, metadata={"min": 1})
    clip_norm: float | None = field(default=None, metadata={"min": 1e-12})
    average: typing.Literal["none", "swa", "ema"] = "none"
    average_from: int = field(default=0, metadata={"min": 0})  # updates
    ema_decay: float = field(default=0.999, metadata={"min": 0.0, "max": 1.0})
    views: int = field(default=0, metadata={"min": 0, "max": 1000})

    def over(self, fit: Fit) -> Fit:
        """``fit`` with what is set here in place of what the method has."""
        given = {f.name: value for f in dataclasses.fields(self) if (value := getattr(self, f.name)) is not None}
        return dataclasses.replace(fit, **given)


@dataclass(frozen=True)
class RunSettings:
    """One run. ``shift``: None for every shift of the benchmark, one record each; "pairs" for every two domains that it
    may leave out together ("a+b"). ``shots``: None for all images.

    ``picks``: a list of the images to fit on, or the record of a run that was fitted on them, in the place of a draw.
    ``keep_weights``: of a trained image tower, as files beside the record; what is learnt on a frozen one always is.
    ``devices``: GPUs, or processes on a CPU, that share a fit by gradient descent. They change it by rounding, and by
    what each draws itself (dropout, light augmentation). ``strategy``: each holds the whole model, or (fsdp) a part.
    ``metrics``: metrics of one's own, dotted paths, beside the built-in ones.

    ``plain``: the same as plain containers, which a record and other processes get. ``seeded``: its keys that follow
    the seed.
    """

    benchmark: BenchmarkSettings = field(default_factory=BenchmarkSettings)
    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    method: MethodSettings = field(default_factory=MethodSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    fit: FitSettings = field(default_factory=FitSettings)
    shift: str | None = None
    shots: int | None = field(default=None, metadata={"min": 1})
    picks: str | None = None
    holdout: float = field(default=0.2, metadata={"min": 0.0, "max": 0.9})  # DomainBed
    seed: int = field(default=0, metadata={"min": 0, "max": 2**31 - 1})
    label: str | None = None  # how tables call it
    hparams_seed: int | None = field(default=None, metadata={"min": 0})  # which draw of a random search; 0: no draw
    workers: int | None = field(default=None, metadata={"min": 0, "max": 256})  # None: as many as are of use
    keep_weights: bool = False
    devices: int = field(default=1, metadata={"min": 1, "max": 64})
    strategy: typing.Literal["ddp", "fsdp"] = "ddp"
    metrics: tuple[str, ...] = ()
    plain: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    seeded: tuple[str, ...] = ("seed",)

    def identity(self) -> dict[str, Any]:
        """Flat settings that can change a number."""
        return identity(self.plain)

    def changed(self, **values: Any) -> RunSettings:
        """The same settings with some of the plain ones replaced."""
        return from_plain({**self.plain, **values}, self.seeded)


PARTS: Mapping[str, Any] = {
    "benchmark": BenchmarkSettings,
    "backbone": BackboneSettings,
    "method": MethodSettings,
    "objective": ObjectiveSettings,
}
_NOT_GIVEN = ("plain", "seeded")  # fields of RunSettings that no file may set


@dataclass(frozen=True)
class Checked:
    """Settings of any schema, checked: ``values`` as plain containers, and the keys in it that follow the seed."""

    values: dict[str, Any]
    seeded: tuple[str, ...]


def settings_of(file: Path | None, overrides: Sequence[str], values: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The file, then ``values``, then ``key=value`` overrides, not yet checked.

    ``method=NAME`` goes before ``method.key=value`` wherever it stands: a name that came later would drop the setting.
    """
    parts = sorted((parse_override(text) for text in overrides), key=_names_no_part)
    return merged(read_yaml(file) if file is not None else {}, values or {}, *parts)


def load(
    file: Path | None = None, overrides: Sequence[str] = (), values: Mapping[str, Any] | None = None
) -> RunSettings:
    """Defaults, then the file, then ``values``, then ``key=value`` overrides.

    Raises ConfigError naming the key or value that cannot be meant, where it stands and the nearest one that can.
    """
    given = settings_of(file, overrides, values)
    if values is None:
        admit(given)
    return resolve(given, f"{file}" if file else "the settings")


def admit(settings: Mapping[str, Any]) -> None:
    """Let the plug-ins that a person named in these settings be files of the current folder, see ``plugins.admit``."""
    for kind, plural in KIND_OF.items():
        node = settings.get(kind)
        name = node.get("name") if isinstance(node, Mapping) else node
        if isinstance(name, str):
            plugins.admit(plural, plugin_name(kind, name))
    metrics = settings.get("metrics")
    for name in metrics if isinstance(metrics, list | tuple) else ():
        plugins.admit("metrics", str(name))


def merged(*settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings over settings; another benchmark, backbone or method by name starts from its own defaults."""
    result: dict[str, Any] = {}
    for part in settings:
        _merge(result, _with_file(copy.deepcopy(dict(part))))
    return result


def _with_file(settings: dict[str, Any]) -> dict[str, Any]:
    """``benchmark=birds.yaml`` is short for the settings in that file, whose ``root`` is relative to it."""
    given = settings.get("benchmark")
    name = given.get("name") if isinstance(given, Mapping) else given
    if not isinstance(name, str) or not name.endswith((".yaml", ".yml")):
        return settings
    file = Path(name).expanduser()
    content = {"name": "table", **read_yaml(file)}
    if isinstance(content.get("root"), str):
        content["root"] = str(file.parent / Path(content["root"]).expanduser())
    rest = {k: v for k, v in given.items() if k != "name" and v is not None} if isinstance(given, Mapping) else {}
    return {**settings, "benchmark": {**content, **rest}}


def resolve(given: dict[str, Any], where: str = "the settings") -> RunSettings:
    """Check plain settings against the schema that their plug-ins give."""
    given = {k: {"name": v} if k in KIND_OF and isinstance(v, str) else v for k, v in given.items()}
    checked = check(_schema(given), given, where)
    return from_plain(checked.values, checked.seeded)


def from_plain(values: Mapping[str, Any], seeded: tuple[str, ...]) -> RunSettings:
    """Typed settings from plain containers that were checked before, here or by another process."""
    admit(values)  # in a worker process nobody has yet
    typed: dict[str, Any] = {}
    for f in dataclasses.fields(RunSettings):
        if f.name in _NOT_GIVEN or f.name not in values:
            continue
        value = values[f.name]
        if f.name in PARTS:
            value = _part_of(f.name, value)
        elif f.name == "fit":
            value = FitSettings(**value)
        typed[f.name] = tuple(value) if isinstance(value, list) else value
    return RunSettings(**typed, plain=dict(values), seeded=seeded)


def _part_of(kind: str, settings: Mapping[str, Any]) -> Any:
    """A named part of a run with its plug-in's settings as a value of the plug-in's own type."""
    base = PARTS[kind]
    kit = {f.name for f in dataclasses.fields(base)} - {"own"}
    own = _config_type(kind, settings["name"])(**{k: v for k, v in settings.items() if k not in kit})
    return base(**{k: v for k, v in settings.items() if k in kit}, own=own)


def _config_type(kind: str, name: str) -> Any:
    """The type of the settings of the plug-in that ``name`` names. Raises ConfigError if there is none."""
    definition = plugins.load(KIND_OF[kind], plugin_name(kind, name))
    return getattr(definition, "config")  # noqa: B009  # each of these four kinds has it


def check(schema: Any, given: Mapping[str, Any], where: str = "the settings") -> Checked:
    """Defaults of the dataclass type ``schema`` with ``given`` over them, types and ranges checked."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    _check_keys(given, dataclasses.asdict(schema()), where)
    raw = flatten(given)
    for key, value in raw.items():
        follows = isinstance(value, str) and "${" in value
        if follows and (key == "seed" or "${" in value.replace("${seed}", "")):
            raise ConfigError(f"{key} is '{value}'; ${{seed}} is the only interpolation that there is")
    try:
        values: Any = OmegaConf.to_container(OmegaConf.merge(OmegaConf.structured(schema), given), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or '?'} in {where}: {str(error).splitlines()[0]}") from error
    metadata = _metadata(schema)
    for key, value in flatten(values).items():
        _check_value(key, value, metadata.get(key, {}))
    follow = (k for k, v in raw.items() if isinstance(v, str) and "${seed}" in v)
    return Checked(values, ("seed", *sorted(follow)))


def plugin_name(kind: str, name: str) -> str:
    """A backbone is named ``family:model``, and its family is the plug-in."""
    return name.partition(":")[0] if kind == "backbone" else name


def _schema(given: Mapping[str, Any]) -> Any:
    """RunSettings as a dataclass type in which each named part has its plug-in's own settings beside the kit's."""
    fields: list[tuple[str, Any, Any]] = []
    hints = typing.get_type_hints(RunSettings)
    for f in dataclasses.fields(RunSettings):
        if f.name in _NOT_GIVEN:
            continue
        if f.name in KIND_OF:
            node = given.get(f.name, {})
            if not isinstance(node, Mapping):
                raise ConfigError(f"{f.name} is {node!r}; give a name ({f.name}=NAME) or settings ({f.name}.key=value)")
            part = _part_schema(f.name, node)
            fields.append((f.name, part, field(default_factory=part)))
        elif f.name == "fit":
            part = _open(FitSettings, "fit")
            fields.append((f.name, part, field(default_factory=part)))
        elif f.name == "metrics":
            fields.append((f.name, list[str], field(default_factory=list)))
        else:
            fields.append((f.name, hints[f.name], _like(f)))
    return dataclasses.make_dataclass("RunSettings", fields)


def _part_schema(kind: str, node: Mapping[str, Any]) -> Any:
    base = PARTS[kind]
    name = str(node.get("name", base().name))
    return _open(base, kind, _config_type(kind, name))


def _open(base: Any, name: str, own: Any = NoSettings) -> Any:
    """A dataclass type that can be filled in, with the fields of ``base`` but "own", and those of ``own``."""
    fields = [
        (f.name, typing.get_type_hints(part)[f.name], _like(f))
        for part in (base, own)
        for f in dataclasses.fields(part)
        if f.name != "own" or part is own
    ]
    return dataclasses.make_dataclass(name, fields)


def _like(f: dataclasses.Field[Any]) -> Any:
    """A new field with the same default and range."""
    if f.default_factory is not dataclasses.MISSING:
        return field(default_factory=f.default_factory, metadata=f.metadata)
    assert f.default is not dataclasses.MISSING, f"{f.name} needs a default"
    return field(default=f.default, metadata=f.metadata)


def _metadata(schema: Any, prefix: str = "") -> dict[str, Mapping[str, Any]]:
    """The ranges of each flat key."""
    found: dict[str, Mapping[str, Any]] = {}
    for f in dataclasses.fields(schema):
        if dataclasses.is_dataclass(f.type) and not prefix:
            found |= _metadata(f.type, f"{f.name}.")
        else:
            found[prefix + f.name] = f.metadata
    return found


def _check_keys(given: Mapping[str, Any], schema: Mapping[str, Any], where: str, prefix: str = "") -> None:
    for key, value in given.items():
        if key not in schema:
            keys = [str(k) for k in schema]
            of = f" of {prefix[:-1]} {given.get('name', schema['name'])}" if prefix and "name" in schema else ""
            hint = plugins.nearest(str(key), keys)
            raise ConfigError(f"no setting '{prefix}{key}' in {where}.{hint} Settings{of}: {', '.join(keys)}.")
        if isinstance(value, Mapping) and isinstance(schema[key], Mapping) and not prefix:
            _check_keys(value, schema[key], where, f"{key}.")


def _check_value(key: str, value: Any, metadata: Mapping[str, Any]) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key} is {value}; it must be a finite number")
    if isinstance(value, str) and any(ord(c) < 32 or ord(c) == 127 for c in value):
        raise ConfigError(f"{key} holds a control character: {value!r}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, high = metadata.get("min", -math.inf), metadata.get("max", math.inf)
        if not low <= value <= high:
            allowed = f"at least {low}" if high == math.inf else f"between {low} and {high}"
            raise ConfigError(f"{key} is {value}; it must be {allowed}")


def _names_no_part(override: Mapping[str, Any]) -> bool:
    return not any(k in KIND_OF and isinstance(v, str) for k, v in override.items())


def _merge(into: dict[str, Any], new: Mapping[str, Any]) -> None:
    for key, value in new.items():
        old = into.get(key)
        if key in KIND_OF and isinstance(old, str) and isinstance(value, Mapping):
            old = {"name": old}
        if key in KIND_OF and isinstance(old, dict) and isinstance(value, str):
            value = {"name": value}
        if isinstance(value, Mapping) and isinstance(old, dict):
            if key in KIND_OF and value.get("name", old.get("name")) != old.get("name"):
                into[key] = dict(value)
            else:
                into[key] = old
                _merge(old, value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def read_yaml(file: Path) -> dict[str, Any]:
    """A mapping from a YAML 1.2 file. Raises ConfigError naming the file, and the line if it is not YAML."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from error
    value = _yaml(text, str(file))
    if value is None:
        raise ConfigError(f"{file} is empty")
    if not isinstance(value, dict):
        raise ConfigError(f"{file} holds {value!r:.60}, not settings (key: value)")
    return value


def parse_override(text: str) -> dict[str, Any]:
    """``"method.lr=0.1"`` -> ``{"method": {"lr": 0.1}}``. Raises ConfigError for what is no ``key=value``."""
    key, equals, value = text.partition("=")
    parts = key.split(".")
    if not equals or not all(part.isidentifier() for part in parts):
        raise ConfigError(f"'{text}' is not key=value (such as seed=1 or method.lr=0.01)")
    word = "${" in value or value.endswith(":")  # "hf:" is a name without its end and no mapping
    return nested(key, value if word else _yaml(value, f"'{text}'"))


def nested(key: str, value: Any) -> dict[str, Any]:
    """``("method.lr", 0.1)`` -> ``{"method": {"lr": 0.1}}``."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value  # type: ignore[no-any-return]


def _yaml(text: str, where: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).load(io.StringIO(text))
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{where}{line} is not YAML: {problem}") from error
