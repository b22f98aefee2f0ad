"""Plug-ins: what is one file. Each kind is a typed value that the file ends with, and every optional part is a field.

    room                    the file ends with
    benchmarks/             BENCHMARK = BenchmarkSource(config=Config, build=build)
    backbones/              BACKBONE = BackboneFamily(config=Config, load=load, libraries=("timm",))
    methods/                METHOD = Method(config=Config, build=build, trains="nothing")
    objectives/             OBJECTIVE = Objective(config=Config, build=build, needs="images")
    evaluation/metrics/     METRIC = Metric(title="top-1 accuracy", sums=(per_class,), value=value)
    report/sections/        SECTION = Section(order=50, make=make)
    runs/engines/           ENGINE = Engine(make=make)

A plug-in is found by the name of its file, or, if it is a user's own, by its dotted path (``method=my_package.mine``),
or by the name of its file in the current folder (``method=mine``), see ``admit``. No file of one's own shadows a
built-in one.
A field that there is not is an error when the file is imported, with the nearest one that there is. ``clipdg new KIND
NAME`` writes a file to begin with, and ``clipdg check plugin my_package.mine`` runs the contract of its kind.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib
import importlib.util
import pkgutil
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, get_args

from clipdg.core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from clipdg.core.benchmark import Benchmark
    from clipdg.core.download_source import Source
    from clipdg.core.fit import Fit
    from clipdg.core.model import Backbone

C = TypeVar("C")  # the plug-in's own settings, a dataclass in which every field has a default
M = TypeVar("M")  # the module that it builds
Trains = Literal["nothing", "method", "solver", "everything"]
Needs = Literal["images", "domains", "features"]


@dataclass(frozen=True)
class NoSettings:
    """The settings of a plug-in that has none."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkSource(Generic[C]):
    """Where a benchmark comes from: ``build(config, root)`` opens it, ``root`` being a local folder or None.

    ``sources``: what it consists of and where each part is downloaded, for ``clipdg fetch benchmark``.
    """

    build: Callable[[C, str | None], Benchmark]
    config: type[C]
    sources: tuple[Source, ...] = ()

    def __post_init__(self) -> None:
        _check_settings(self.config)


@dataclass(frozen=True, kw_only=True)
class BackboneFamily(Generic[C]):
    """A family of backbones: ``load(model, weights, config)`` opens the one that ``family:model`` names.

    ``libraries``: the installed packages beside torch that compute its features. Their versions are part of the name
    under which features are stored. ``downloads(hub, model, weights)``: the files that loading reads, each brought here
    through ``hub`` (storage/hub.py), for ``clipdg fetch backbone``; None if nothing is ever downloaded.
    ``catalogue()``: a line for each model that can be listed, with name, tags, size, embed_dim and can_prompt.
    ``initialise(model, seed, captions, size)``: fresh weights for contrastive pre-training.
    """

    load: Callable[[str | None, str | None, C], Backbone]
    config: type[C]
    libraries: tuple[str, ...] = ()
    downloads: Callable[[Any, str | None, str | None], set[Path]] | None = None
    catalogue: Callable[[], list[dict[str, Any]]] | None = None
    initialise: Callable[..., Backbone] | None = None

    def __post_init__(self) -> None:
        _check_settings(self.config)
        if not isinstance(self.libraries, tuple):
            raise ConfigError(f"libraries is {self.libraries!r}; it is a tuple of package names, such as ('timm',)")


@dataclass(frozen=True, kw_only=True)
class Method(Generic[C, M]):
    """A method: ``build(config, backbone, benchmark)`` makes the module from features (N, D) to logits (N, C).

    ``trains`` says what is learnt: "nothing"; "method", the module by gradient descent as ``fit(config)`` says;
    "solver", the module by ``solve``; "everything", the module and the backbone's image tower by gradient descent.
    A method that trains by "solver" may have ``fit`` too and return a Fit for the settings that go down a gradient.

    What a method needs of its surroundings:
        needs_text       a backbone with a text encoder
        needs_file       a setting ``file`` that another run left
        needs_head       a backbone with the classifier it was trained with
        validates        whether, with these settings, it chooses on validation images of the sources
        refits           whether it is then fitted on these images too, so that they are not evaluated
        takes_domains    whether the built module is called as module(features, domains), domains (N,) int64

    What a fit asks of the module, given as functions of it:
        solve            (module, features (N, D), labels (N,), validation or None): set its parameters
        regularize       (module, loss): the loss whose gradient a step goes down; asked once a step, after it
        represent        (module, features): what its classifier reads, (N, F); objectives on features act on this
        classify         (module, represented): logits of it; a fit calls represent and classify in place of the module
        trains_parameter (name): whether the backbone's parameter of that name is trained, by "everything"
        interpolates     (config): the share of the fitted weights in what is tested, of the line from the weights
                         before the fit (alpha 0) to those after it (alpha 1); ``alphas`` are tested beside it

    What a finished run writes:
        said             (config): settings that name files, as what these say; part of a run's identity
        learnt           (module): the tensors that are kept, in place of its parameters
        learns_context   whether they can stand before other class names (weights/learned_method.py)
        represents       whether its parameters change what objectives on features act on, with the backbone as it is
        story            (module): what the record tells of the fit, JSON
        converged        (module): whether a solver came to its end; None where that cannot be said
        merged           (backbone, before): ``before`` with what the backbone learnt, without modules put into it

    Test-time adaptation:
        adapts           an image's logits may depend on other images of its domain. Such a method gets each domain's
                         images as one stream in a seeded order, and for every domain a copy of the module as it was
                         after the fit; without it, logits that depend on other images are refused
        begin_domain     (module, name): told when a domain's stream begins
        stream_batch     (config): how many images of the stream arrive at a time
    """

    build: Callable[[C, Backbone, Benchmark], M]
    config: type[C]
    trains: Trains
    fit: Callable[[C], Fit | None] | None = None
    needs_text: bool = False
    needs_file: bool = False
    needs_head: bool = False
    validates: Callable[[C], bool] | None = None
    refits: Callable[[C], bool] | None = None
    takes_domains: Callable[[M], bool] | None = None
    solve: Callable[[M, Tensor, Tensor, tuple[Tensor, Tensor] | None], None] | None = None
    regularize: Callable[[M, Tensor], Tensor] | None = None
    represent: Callable[[M, Tensor], Tensor] | None = None
    classify: Callable[[M, Tensor], Tensor] | None = None
    trains_parameter: Callable[[str], bool] | None = None
    interpolates: Callable[[C], float] | None = None
    alphas: tuple[float, ...] = ()
    said: Callable[[C], dict[str, Any]] | None = None
    learnt: Callable[[M], Mapping[str, Tensor]] | None = None
    learns_context: bool = False
    represents: bool = False
    story: Callable[[M], Mapping[str, Any]] | None = None
    converged: Callable[[M], bool | None] | None = None
    merged: Callable[[Backbone, Backbone], Backbone] | None = None
    adapts: bool = False
    begin_domain: Callable[[M, str], None] | None = None
    stream_batch: Callable[[C], int] | None = None

    def __post_init__(self) -> None:
        _check_settings(self.config)
        if self.trains not in get_args(Trains):
            raise ConfigError(f"Method.trains is {self.trains!r}; it is one of {', '.join(get_args(Trains))}")
        if self.trains in ("method", "everything") and self.fit is None:
            raise ConfigError(f"a Method that trains='{self.trains}' needs fit(config), which says how")
        if self.trains == "nothing" and (self.fit or self.solve):
            raise ConfigError("a Method that trains='nothing' has neither fit nor solve")
        if (self.trains == "solver") != (self.solve is not None):
            raise ConfigError(
                "solve(module, features, labels, validation) goes with trains='solver', and it with solve"
            )
        if (self.represent is None) != (self.classify is None):
            raise ConfigError("represent and classify go together")
        if (self.begin_domain or self.stream_batch) and not self.adapts:
            raise ConfigError("begin_domain and stream_batch are of a method that adapts=True at test time")
        if self.alphas and self.interpolates is None:
            raise ConfigError("alphas are of a method that interpolates")

    @property
    def trains_backbone(self) -> bool:
        return self.trains == "everything"

    def fit_of(self, config: C) -> Fit | None:
        """How these settings are fitted by gradient descent; None if they are solved for, or nothing is learnt."""
        return None if self.fit is None else self.fit(config)


@dataclass(frozen=True, kw_only=True)
class Objective(Generic[C, M]):
    """What a fit by gradient descent minimises: ``build(config, domains, label_smoothing, seed)`` makes a module.

    It is called with (model, inputs, labels, domains) and gives a loss; ``model(inputs)`` is what the classifier reads
    and its logits. ``needs``: "images", or "domains" for batches with images of each domain, or "features" if it acts
    moreover on what the classifier reads. ``least``: images of each domain that a batch must have. ``updated(module)``
    is called at each update of the weights; ``restarts_optimizer(module)`` is asked before one.
    """

    build: Callable[[C, Sequence[int], float, int], M]
    config: type[C]
    needs: Needs
    least: int = 1
    updated: Callable[[M], None] | None = None
    restarts_optimizer: Callable[[M], bool] | None = None

    def __post_init__(self) -> None:
        _check_settings(self.config)
        if self.needs not in get_args(Needs):
            raise ConfigError(f"Objective.needs is {self.needs!r}; it is one of {', '.join(get_args(Needs))}")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number of a set of predictions, made from sums over its images.

    ``sums``: functions of a batch, (scores, labels (N,), number of classes) -> tensors by name, which are added up over
    batches and processes; metrics that name the same function share its sums. ``value(totals)``: the number from all
    of them, None where there is none. ``title``, ``unit``, ``better``, ``scale`` (100 makes percent of a fraction) and
    ``decimals`` are for tables, and ``order`` is its place there; ``low`` and ``high`` bound what a record may hold.
    """

    title: str
    sums: tuple[Callable[[Any, Tensor, int], Mapping[str, Tensor]], ...]
    value: Callable[[Mapping[str, Tensor]], float | None]
    unit: str = "%"
    better: Literal["higher", "lower"] = "higher"
    scale: float = 100.0
    decimals: int = 1
    low: float = 0.0
    high: float | None = 1.0
    order: int = 100


@dataclass(frozen=True, kw_only=True)
class Section:
    """A piece of a report: ``make(study)`` gives the tables and figures to show, none where there is nothing to say.

    ``order``: its place on the page. See report/section.py for what it is given and what it gives.
    """

    make: Callable[[Any], Sequence[Any]]
    order: int = 100


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Where a sweep's runs execute: ``make(options)`` gives what performs tasks, see runs/task.py.

    ``takes_resources``: whether ``--cpus`` and ``--gpus`` mean something to it.
    """

    make: Callable[[Any], Any]
    takes_resources: bool = False


Definition = (
    BenchmarkSource[Any] | BackboneFamily[Any] | Method[Any, Any] | Objective[Any, Any] | Metric | Section | Engine
)


@dataclass(frozen=True)
class Kind:
    """A kind of plug-in: the package that its files are in, and the typed value that each of them ends with."""

    package: str
    constant: str
    type: type[Any]

    @property
    def folder(self) -> str:
        return self.package.replace(".", "/")


KINDS: Mapping[str, Kind] = {
    "benchmarks": Kind("clipdg.benchmarks", "BENCHMARK", BenchmarkSource),
    "backbones": Kind("clipdg.backbones", "BACKBONE", BackboneFamily),
    "methods": Kind("clipdg.methods", "METHOD", Method),
    "objectives": Kind("clipdg.objectives", "OBJECTIVE", Objective),
    "metrics": Kind("clipdg.evaluation.metrics", "METRIC", Metric),
    "sections": Kind("clipdg.report.sections", "SECTION", Section),
    "engines": Kind("clipdg.runs.engines", "ENGINE", Engine),
}


def names(kind: str) -> tuple[str, ...]:
    """The built-in plug-ins of a kind, sorted: the files of its room that end with such a value."""
    return tuple(sorted(_files(KINDS[kind])))


def benchmark(name: str) -> BenchmarkSource[Any]:
    """Raises ConfigError; see ``load``."""
    found = load("benchmarks", name)
    assert isinstance(found, BenchmarkSource)
    return found


def backbone(family: str) -> BackboneFamily[Any]:
    """Raises ConfigError; see ``load``."""
    found = load("backbones", family)
    assert isinstance(found, BackboneFamily)
    return found


def method(name: str) -> Method[Any, Any]:
    """Raises ConfigError; see ``load``."""
    found = load("methods", name)
    assert isinstance(found, Method)
    return found


def objective(name: str) -> Objective[Any, Any]:
    """Raises ConfigError; see ``load``."""
    found = load("objectives", name)
    assert isinstance(found, Objective)
    return found


def metric(name: str) -> Metric:
    """Raises ConfigError; see ``load``."""
    found = load("metrics", name)
    assert isinstance(found, Metric)
    return found


def section(name: str) -> Section:
    """Raises ConfigError; see ``load``."""
    found = load("sections", name)
    assert isinstance(found, Section)
    return found


def engine(name: str) -> Engine:
    """Raises ConfigError; see ``load``."""
    found = load("engines", name)
    assert isinstance(found, Engine)
    return found


_own: dict[str, Path] = {}  # files of the current folder that a person named, by name


def admit(kind: str, name: str) -> None:
    """Let ``load`` take ``name``, which a person wrote, for a file of the current folder: NAME.py, or PACKAGE/NAME.py.

    Only what a person wrote is admitted, on the command line or in a YAML file that they named: a name that stands in a
    record or in a file of weights runs no file that happens to lie here. A built-in name means the built-in plug-in.
    Nothing is imported yet.
    """
    parts = name.split(".")
    file = Path.cwd().joinpath(*parts).with_suffix(".py")
    if name in names(kind) or not all(part.isidentifier() for part in parts) or not file.is_file():
        return
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # at its end, so that the folder hides no library; processes inherit it
    if len(parts) == 1:
        _own[name] = file


def load(kind: str, name: str) -> Definition:
    """The plug-in ``name`` of a kind: a file of the room, an admitted file of the user's own, or a dotted path.

    Raises ConfigError with the nearest name if there is none, and saying what is wrong with a file that is no plug-in.
    """
    where = KINDS[kind]
    if name in names(kind):
        return definition_in(module_of(f"{where.package}.{name}", kind), kind, name)
    if name in _own:
        _check_not_hidden(name, _own[name])
        return definition_in(module_of(name, kind), kind, name)
    if "." in name and all(part.isidentifier() for part in name.split(".")):
        return definition_in(module_of(name, kind), kind, name)
    own = f" `clipdg new {kind.removesuffix('s')} {name}` writes one of your own." if name.isidentifier() else ""
    raise ConfigError(
        f"no '{name}' in {where.folder}/.{nearest(name, names(kind))} There are: {', '.join(names(kind))}.{own}"
    )


def _check_not_hidden(name: str, file: Path) -> None:
    """Raises ConfigError if Python finds another module before the file."""
    there = sys.modules.get(name)
    spec = importlib.util.find_spec(name) if there is None else there.__spec__
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != file.resolve():
        origin = spec.origin if spec is not None else None
        raise ConfigError(f"{file.name} is hidden by the module '{name}' of {origin or 'Python'}; give it another name")


def module_of(path: str, kind: str) -> ModuleType:
    """Import the file of a plug-in. Raises ConfigError if there is none, or if it is no Python or no plug-in."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"no module '{path}' for {kind}: {error}; install it, or put its folder on PYTHONPATH"
        ) from error
    except SyntaxError as error:
        raise ConfigError(f"{path} is no Python: {error.filename}, line {error.lineno}: {error.msg}") from error
    except TypeError as error:
        if (said := _about_fields(str(error))) is None:
            raise
        raise ConfigError(f"{path}: {said}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def definition_in(module: ModuleType, kind: str, name: str) -> Definition:
    """The typed value that a plug-in's file ends with. Raises ConfigError if there is none of this kind."""
    where = KINDS[kind]
    found = vars(module).get(where.constant)
    if isinstance(found, where.type):
        return found  # type: ignore[no-any-return]  # of the kind's own type
    others = [other for other, k in KINDS.items() if isinstance(vars(module).get(k.constant), k.type)]
    if others:
        raise ConfigError(f"{name} is no plug-in for {kind}; it is one for {' and '.join(others)}")
    raise ConfigError(
        f"{name} is no plug-in for {kind}: it has no {where.constant} = {where.type.__name__}(…); "
        f"`clipdg new {kind.removesuffix('s')} NAME` writes a file to begin with"
    )


def _about_fields(message: str) -> str | None:
    """What to say of a TypeError that came of a definition's fields; None of any other."""
    types = {kind.type.__name__: kind.type for kind in KINDS.values()}
    found = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", message)
    if found and found[1] in types:
        fields = [f.name for f in dataclasses.fields(types[found[1]])]
        return f"{found[1]} has no field '{found[2]}'.{nearest(found[2], fields)} There are: {', '.join(fields)}."
    found = re.match(r"(\w+)\.__init__\(\) missing \d+ required .*?: (.*)", message)
    if found and found[1] in types:
        return f"{found[1]} lacks {found[2]}"
    return None


def _check_settings(config: Any) -> None:
    """Raises ConfigError if ``config`` is no dataclass type, or has a field without a default."""
    if not (isinstance(config, type) and dataclasses.is_dataclass(config)):
        raise ConfigError(f"config is {config!r}; it is a dataclass of settings, or NoSettings")
    for f in dataclasses.fields(config):
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ConfigError(f"the setting '{f.name}' has no default; every setting needs one")


@cache
def _files(kind: Kind) -> Mapping[str, Path]:
    """name -> file of the plug-ins in a kind's package: its files that end with the kind's value, without importing."""
    package = importlib.import_module(kind.package)
    found = {}
    for info in pkgutil.iter_modules(package.__path__):
        folder = Path(package.__path__[0])
        file = folder / info.name / "__init__.py" if info.ispkg else folder / f"{info.name}.py"
        if not info.name.startswith("_") and f"\n{kind.constant} = " in file.read_text(encoding="utf-8"):
            found[info.name] = file
    return found


def summary(kind: str, name: str) -> str:
    """The first sentence of a plug-in's docstring, read without importing it."""
    text = _files(KINDS[kind])[name].read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]


def nearest(word: str, words: Sequence[str]) -> str:
    """`` Did you mean 'coop'?`` or nothing."""
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""
