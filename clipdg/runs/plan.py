"""What a run is, as one value made before anything is fitted: its parts, its name and its rows.

Fitting, evaluating and writing the record take a plan and add nothing to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from clipdg.core import plugins
from clipdg.core.benchmark import Benchmark, Shift
from clipdg.core.errors import ConfigError
from clipdg.core.fit import Fit
from clipdg.core.model import Backbone
from clipdg.core.versions import version
from clipdg.data import few_shot_list, protocol
from clipdg.data.datamodule import Batching
from clipdg.data.few_shot_list import Picks
from clipdg.data.rows import fingerprint
from clipdg.data.splits import check_shift, with_pools
from clipdg.records.record import Record
from clipdg.runs import compatibility
from clipdg.runs.config import RunSettings
from clipdg.runs.session import Session
from clipdg.storage.publish import digest
from clipdg.text.templates import Prompted, Texts, texts_of

PROTOCOL = 1  # part of every run's identity; raised when the same settings would give another number
VERSIONS = ("torch", "torchvision", "lightning", "torchmetrics", "timm", "transformers", "open_clip_torch", "numpy",
            "pillow", "scikit-learn")  # fmt: skip


@dataclass(frozen=True)
class Identity:
    """What a run is called: ``earlier`` is the id it had before ids told what follows the seed."""

    shift: str
    run_id: str
    earlier: str
    seeded: tuple[str, ...]

    def among(self, known: Mapping[str, Record]) -> Record | None:
        """This run's record among records by run id."""
        record = known.get(self.run_id)
        if record is None and self.earlier in known and tuple(known[self.earlier].seeded) == self.seeded:
            record = known[self.earlier]
        return record


@dataclass(frozen=True)
class Plan:
    """One configuration on one shift.

    ``benchmark`` has the training images that were drawn from pools, ``pools`` their fingerprints by domain. ``fit``:
    how parameters are found by gradient descent, None if they are solved for or nothing is learnt. ``texts``: the
    prompts of a method that compares with some. ``said``: settings that name prompts or files, as what these say.
    """

    settings: RunSettings
    method: plugins.Method[Any, Any]
    benchmark: Benchmark
    backbone: Backbone
    shift: Shift
    fit: Fit | None
    picks: Picks | None
    texts: Texts | None
    said: Mapping[str, Any]
    pools: Mapping[str, str]
    data_fingerprint: str
    identity: Identity

    @property
    def run_id(self) -> str:
        return self.identity.run_id

    @property
    def seed(self) -> int:
        return self.settings.seed

    @property
    def learns(self) -> bool:
        return self.method.trains != "nothing"

    @property
    def devices(self) -> int:
        """Processes that share the fit; what is solved for is solved by one."""
        return self.settings.devices if self.fit is not None else 1

    @property
    def keeps_weights(self) -> bool:
        """Whether the trained tower is published; what is learnt on a frozen backbone always is."""
        return self.settings.keep_weights and self.method.trains_backbone

    @property
    def validates(self) -> bool:
        """Whether settings are chosen on validation images of the sources."""
        return self.method.validates is not None and self.method.validates(self.settings.method.own)

    @cached_property
    def batching(self) -> Batching:
        """How the classifier wants its batches."""
        own, stream, refits = self.settings.method.own, self.method.stream_batch, self.method.refits
        return Batching.of(
            self.fit,
            tells_domains=plugins.objective(self.settings.objective.name).needs != "images",
            stream_batch=stream(own) if stream is not None else None,
            adapts=self.method.adapts,
            refits=refits is not None and refits(own),
        )

    @cached_property
    def protocol(self) -> protocol.Protocol:
        """Which rows are fitted on, chosen on and tested; drawn when they are first asked for, since a sweep plans
        thousands of runs. Raises ConfigError and DataError for a shift that cannot be fitted on."""
        if self.learns and not self.shift.sources:
            raise ConfigError(
                f"{self.benchmark.name} without a source has nothing to fit {self.settings.method.name} on"
            )
        return protocol.decide(
            self.benchmark,
            self.shift,
            shots=self.settings.shots,
            picks=self.picks,
            seed=self.seed,
            holdout=self.settings.holdout,
            learns=self.learns,
            validates=self.validates,
            refits=self.batching.refits,
            adapts=self.method.adapts,
        )

    @property
    def state_name(self) -> str:
        """What the state of an interrupted fit is called; only the same versions go on with it."""
        versions = digest({name: version(name) for name in VERSIONS})
        return f"{self.run_id}-{versions[:8]}"


def plans(settings: RunSettings, session: Session) -> list[Plan]:
    """The plan of each shift of a configuration, with all that is wrong with its settings found.

    Raises ConfigError for settings that do not go together or name what is not there, DataError for data that cannot be
    read.
    """
    method = plugins.method(settings.method.name)
    benchmark = session.benchmark(settings.benchmark)
    shifts = compatibility.shifts_of(benchmark, settings.shift)
    backbone = session.backbone(settings.backbone)
    compatibility.check(settings, method, backbone)
    picks = few_shot_list.read(Path(settings.picks).expanduser()) if settings.picks else None
    own = settings.method.own
    texts = texts_of(own, benchmark) if isinstance(own, Prompted) else None
    said = _said(own, method, texts)
    found = []
    for shift in shifts:
        check_shift(benchmark, shift)
        data = session.data_fingerprint(benchmark)
        drawn, names = benchmark, tuple[str, ...]()
        if method.trains != "nothing":
            drawn, names = with_pools(benchmark, shift, settings.shots, settings.seed, settings.holdout, picks)
        # They are no part of the data's fingerprint: tables hold runs that were tested on the same images.
        pools = {name: fingerprint(drawn.domains[name], drawn.classes) for name in names}
        ids = [
            _run_id(settings, seeded, shift, backbone, benchmark, said, picks, data, pools)
            for seeded in (settings.seeded, ("seed",))
        ]
        identity = Identity(shift.name, ids[0], ids[1], settings.seeded)
        fit = compatibility.fit_of(settings, method)
        found.append(Plan(settings, method, drawn, backbone, shift, fit, picks, texts, said, pools, data, identity))
    return found


def identify(settings: RunSettings, session: Session) -> list[Identity]:
    """The runs of a configuration, one for each shift. Raises as ``plans``."""
    return [plan.identity for plan in plans(settings, session)]


def _run_id(
    settings: RunSettings,
    seeded: tuple[str, ...],
    shift: Shift,
    backbone: Backbone,
    benchmark: Benchmark,
    said: Mapping[str, Any],
    picks: Picks | None,
    data: str,
    pools: Mapping[str, str],
) -> str:
    """Hash every setting that can change the numbers, and the names of those that follow the seed.

    A mean is taken over what follows the seed alone: weights ``random:0`` and ``random:${seed}`` are the same at seed
    0, but stand in rows of their own.
    """
    named = {f"method.{k}": v for k, v in said.items()}
    chosen = settings.identity() | named | {"shift": shift.name, "backbone.name": backbone.name}
    del chosen["picks"]  # the list counts, not where it lies
    story: dict[str, Any] = {
        "protocol": PROTOCOL,
        "config": chosen | ({"picks": picks.digest} if picks else {}),
        "weights": backbone.weights.fingerprint,
        "data": data,
        "templates": None if settings.plain["method"].get("templates") else benchmark.templates,
    } | ({"pools": dict(pools)} if pools else {})
    return digest(story if len(seeded) == 1 else story | {"seeded": seeded})[:16]


def _said(own: Any, method: plugins.Method[Any, Any], texts: Texts | None) -> dict[str, Any]:
    """Settings that name prompts, as what they say: the templates of a set or a file, the sentences' SHA-256."""
    said: dict[str, Any] = {}
    if texts and isinstance(own, Prompted) and isinstance(own.templates, str):
        said["templates"] = list(texts.templates)
    if texts and texts.sentences:
        said["descriptions"] = f"sha256:{texts.digest}"
    return said | (method.said(own) if method.said is not None else {})
