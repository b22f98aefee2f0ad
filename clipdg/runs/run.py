"""One run, top to bottom: benchmark and backbone, fit on the sources, evaluate every domain, record.

A run goes over stored features when its method leaves the backbone as it is; otherwise over images. Nothing of a target
is read before the fit is over, unless ``fit.checkpoint_every`` asks for evaluations on its way, of which the fit learns
nothing.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from clipdg.core import plugins, signals
from clipdg.core.benchmark import Benchmark, Domain, Shift
from clipdg.core.errors import ConfigError, DivergedError, OutOfMemoryError, RecordError
from clipdg.core.model import Backbone
from clipdg.core.progress import Progress
from clipdg.core.seeding import seed_hash
from clipdg.core.versions import version
from clipdg.data import augmentation, contact_sheet, datasets, few_shot_list
from clipdg.data import loaders as loaders_
from clipdg.data import splits as splits_
from clipdg.data.rows import fingerprint
from clipdg.data.test_set import TestSet
from clipdg.records.record import Record, read_record
from clipdg.runs import compatibility, config, record_content, status
from clipdg.runs.feature_store import FeatureStore, device_of_runs
from clipdg.runs.plan import Identity
from clipdg.runs.run_data import Inputs
from clipdg.runs.session import Session
from clipdg.storage.publish import digest, publish
from clipdg.text import prompts
from clipdg.text.templates import Prompted, texts_of
from clipdg.training import trainer, worker_processes
from clipdg.training.checkpoints import Checkpoints, FitState
from clipdg.training.classifier import Classifier
from clipdg.training.mid_fit_evaluation import Results, Waypoints
from clipdg.training.peak_memory import Memory
from clipdg.training.weight_averaging import Average
from clipdg.weights import interpolation

PROTOCOL = 1  # part of every run's identity; raised when the same settings would give another number
EVALUATION_BATCH = 256


def run(resolved: config.Resolved, out: Path | None = None, session: Session | None = None) -> list[Record]:
    """The records of one configuration, one for each shift; a record that stands in ``out`` is read, not made again.

    Raises ClipdgError for a mistake of the user's; nothing is left half-written.
    """
    session = session or Session()
    found = []
    for one in _runs(resolved, session):
        record = one.stored(out) if out else None
        if record is not None and one.keeps_weights and "kept" not in record.content:
            raise ConfigError(
                f"{out}/{record.run_id}.json stands without its weights, which only the run that trains them keeps; "
                "move it away, or give another --out"
            )
        if record is None:
            with _memory():
                record = one.make(out)
        found.append(record)
    return found


@contextmanager
def _memory() -> Iterator[None]:
    """Out of memory, on any device, as a ClipdgError that says what to change."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # Of a CPU, torch has no exception of its own.
        known = isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
        if not known:
            raise
        raise OutOfMemoryError(
            "out of memory; lower method.batch_size if the method has one, or set backbone.precision=bf16 "
            f"({str(error).splitlines()[0]:.200})"
        ) from error


def identify(resolved: config.Resolved, session: Session) -> list[Identity]:
    """The runs of a configuration, one for each shift.

    Raises what ``run`` would raise before it fits anything.
    """
    return [one.identity for one in _runs(resolved, session)]


def encode(resolved: config.Resolved, session: Session) -> None:
    """Bring the features of all domains into the store, if the configuration goes over features."""
    if plugins.plugin("methods", resolved.values["method"]["name"]).TRAINS == "everything":
        return
    backbone = session.backbone(resolved.values["backbone"])
    for domain in session.benchmark(resolved.values["benchmark"]).domains.values():
        session.store.encode(backbone, domain, session.progress, workers=resolved.values["workers"])


def _runs(resolved: config.Resolved, session: Session) -> list[Run]:
    """One for each shift, with all that is wrong with their settings found."""
    values = resolved.values
    method = plugins.plugin("methods", values["method"]["name"])
    benchmark = session.benchmark(values["benchmark"])
    shifts = compatibility.shifts_of(benchmark, values["shift"])
    backbone = session.backbone(values["backbone"])
    compatibility.check(values, method, backbone)
    return [Run(resolved, method, benchmark, backbone, shift, session) for shift in shifts]


class Run:
    """One configuration on one shift."""

    def __init__(
        self,
        resolved: config.Resolved,
        method: ModuleType,
        benchmark: Benchmark,
        backbone: Backbone,
        shift: Shift,
        session: Session,
    ) -> None:
        self.resolved, self.values = resolved, resolved.values
        self.method, self.benchmark, self.backbone, self.shift = method, benchmark, backbone, shift
        self.session = session
        self.picks = few_shot_list.read(Path(self.values["picks"]).expanduser()) if self.values["picks"] else None
        self._refitted = False  # validation images were fitted on in the end
        self._rate: float | None = None  # images a second of a fit by gradient descent
        self._seconds_before = 0.0  # of the same fit, before it was interrupted
        self._shares_mib: tuple[float, ...] = ()  # the most memory of each of several processes that shared the fit
        self.seed: int = resolved.values["seed"]
        splits_.check_shift(benchmark, shift)
        self.data_fingerprint = session.data_fingerprint(benchmark)
        settings = config.plugin_config("method", self.values["method"])
        self.texts = texts_of(settings, benchmark) if isinstance(settings, Prompted) else None
        self.pools = self._draw_from_pools()
        self.how = compatibility.how_of(self.values, method)
        self.inputs = Inputs(
            self.benchmark,
            backbone,
            session,
            self.how,
            trains_backbone=method.TRAINS == "everything",
            drawn=self.values["shots"] is not None or self.picks is not None,
            workers=self.values["workers"],
        )
        self.identity = Identity(shift.name, self._id(resolved.seeded), self._id(("seed",)), resolved.seeded)
        self.run_id = self.identity.run_id

    def _id(self, seeded: tuple[str, ...]) -> str:
        """Of all that can change the numbers, and of what follows the seed, which says what a mean may be over.

        Weights ``random:0`` and ``random:${seed}`` are the same at seed 0, but stand in rows of their own.
        """
        said = {f"method.{k}": v for k, v in self.said().items()}
        settings = self.resolved.identity() | said | {"shift": self.shift.name, "backbone.name": self.backbone.name}
        del settings["picks"]  # the list counts, not where it lies
        story = {
            "protocol": PROTOCOL,
            "config": settings | ({"picks": self.picks.digest} if self.picks else {}),
            "weights": self.backbone.weights.fingerprint,
            "data": self.data_fingerprint,
            "templates": None if self.values["method"].get("templates") else self.benchmark.templates,
        } | ({"pools": self.pools} if self.pools else {})
        return digest(story if len(seeded) == 1 else story | {"seeded": seeded})[:16]

    @cached_property
    def splits(self) -> dict[str, dict[str, np.ndarray]]:
        """Row indices by domain and split."""
        return {
            name: splits_.splits(domain, index, self.seed, self.values["holdout"])
            for index, (name, domain) in enumerate(self.benchmark.domains.items())
        }

    def _draw_from_pools(self) -> dict[str, str]:
        """Give the sources the training images that this run needs; -> the fingerprints of the domains that got any.

        They are no part of the data's fingerprint: tables hold runs that were tested on the same images.
        """
        if self.method.TRAINS == "nothing":
            return {}
        domains = dict(self.benchmark.domains)
        shots, holdout = self.values["shots"], self.values["holdout"]
        pools = {}
        for index, (name, domain) in enumerate(self.benchmark.domains.items()):
            if domain.pool is not None and name in self.shift.sources:
                domains[name] = splits_.with_pool(
                    domain, index, self.benchmark.classes, shots, self.seed, holdout, self.picks
                )
                pools[name] = fingerprint(domains[name], self.benchmark.classes)
        self.benchmark = dataclasses.replace(self.benchmark, domains=domains)
        return pools

    def stored(self, out: Path) -> Record | None:
        """The record of this run in ``out``; one that cannot be trusted is put aside under another name.

        A record that was written before ids told what follows the seed has the id of a run in which nothing does.
        """
        found: dict[str, Record] = {}
        for run_id in (self.run_id, self.identity.earlier):
            path = out / f"{run_id}.json"
            if not os.path.lexists(path):
                continue
            try:
                found[run_id] = read_record(path)
            except RecordError:
                with suppress(FileNotFoundError):  # another process was faster
                    path.rename(path.with_suffix(".json.corrupt"))
        return self.identity.among(found)

    def make(self, out: Path | None) -> Record:
        started, memory, fits = time.perf_counter(), Memory(), self.method.TRAINS != "nothing"
        fit_rows = self._fit_rows()
        classifier = self._classifier()
        method = classifier.method
        val_rows = self._val_rows() if getattr(method, "needs_validation", False) else {}
        on_the_way: dict[int, Results] = {}
        start = interpolation.state_of(classifier) if hasattr(self.method, "ALPHAS") else None
        if fits:
            fit = self._fit if self.devices == 1 else self._fit_together
            on_the_way = fit(classifier, fit_rows, val_rows, out)
        self._refitted = getattr(method, "refitted", False)
        fitted = time.perf_counter()
        classifier.to(device_of_runs())  # a fit leaves it on the CPU
        curve = self._curve(classifier, start) if start is not None else None
        self._evaluate(classifier)
        timing = {
            "seconds": round(time.perf_counter() - started + self._seconds_before, 3),
            "fit_seconds": round(fitted - started + self._seconds_before, 3) if fits else None,
            "trainable_parameters": _trainable(method, classifier.backbone if classifier.trains_backbone else None),
            "converged": getattr(method, "converged", None),
            "images_per_second": self._rate,  # that were fitted on
            "peak_memory_mib": max((p for p in (memory.peak_mib, *self._shares_mib) if p is not None), default=None),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
            "threads": torch.get_num_threads(),
        } | ({"processes": self.devices} if self.devices > 1 else {})
        if self._refitted:
            fit_rows = {name: np.concatenate([rows, val_rows[name]]) for name, rows in fit_rows.items()}
        return self._publish(classifier, on_the_way, curve, fit_rows, timing, out)

    def _classifier(self) -> Classifier:
        """As it is before the fit."""
        torch.manual_seed(self.seed)
        backbone = copy.deepcopy(self.backbone) if self.method.TRAINS == "everything" else self.backbone
        assert isinstance(backbone, nn.Module)
        backbone.to(device_of_runs())  # Lightning leaves on the CPU what it has used, and the method encodes texts
        settings = config.plugin_config("method", self.values["method"])
        with prompts.reporting(self.session.progress):
            method = self.method.build(settings, backbone, self.benchmark)
        assert isinstance(method, nn.Module)
        return Classifier(
            backbone,
            method,
            len(self.benchmark.classes),
            self.how,
            trains_backbone=self.method.TRAINS == "everything",
            objective=self._objective(),
            seed=self.seed,
        )

    @property
    def keeps_weights(self) -> bool:
        """Whether the trained tower is published; what is learnt on a frozen backbone always is."""
        return bool(self.values["keep_weights"]) and self.method.TRAINS == "everything"

    @property
    def devices(self) -> int:
        """Processes that share the fit; what is solved for is solved by one."""
        return int(self.values["devices"]) if self.how is not None else 1

    def _objective(self) -> nn.Module | None:
        """What the fit minimises; None for a method without one."""
        how = self.how
        if how is None:
            return None
        settings = self.values["objective"]
        names = list(self.benchmark.domains)
        sources = sorted(names.index(s) for s in self.shift.sources)
        module = plugins.plugin("objectives", settings["name"])
        built: nn.Module = module.build(
            config.plugin_config("objective", settings), sources, how.label_smoothing, self.seed
        )
        return built

    def _fit_rows(self) -> dict[str, np.ndarray]:
        """Rows of each source that are fitted on: its fit split, ``shots`` of every class in it, or the picks."""
        if self.method.TRAINS == "nothing":
            return {}
        if not self.shift.sources:
            raise ConfigError(
                f"{self.benchmark.name} without a source has nothing to fit {self.values['method']['name']} on"
            )
        rows = {}
        for source in self.shift.sources:
            domain = self.benchmark.domains[source]
            order = self.splits[source].get("train", self.splits[source].get("in"))
            if order is None:
                raise ConfigError(f"{self.benchmark.name} has no training images of {source}; it cannot be a source")
            shots = self.values["shots"]
            if self.picks is not None:
                rows[source] = self.picks.rows(domain, self.benchmark.classes, order, shots)
            else:
                rows[source] = splits_.pick(domain, self.benchmark.classes, order, shots, self.seed)
        return rows

    def _val_rows(self) -> dict[str, np.ndarray]:
        """Rows of each source that settings are chosen on: its held-out split; with shots, min(shots, 4) of a class."""
        shots = self.values["shots"]
        return {
            source: splits_.pick(
                self.benchmark.domains[source],
                self.benchmark.classes,
                self.splits[source].get("val", self.splits[source].get("out", np.empty(0, dtype=np.int64))),
                None if shots is None else min(shots, 4),  # CoOp, lpclip
                self.seed,
                enough=False,
            )
            for source in self.shift.sources
        }

    def _evaluated(self, name: str) -> dict[str, np.ndarray]:
        """Splits of a domain that are evaluated: all, but for validation images that were fitted on in the end."""
        fitted = ("val", "out") if self._refitted and name in self.shift.sources else ()
        return {split: rows for split, rows in self.splits[name].items() if split not in fitted}

    def _fit_together(
        self,
        classifier: Classifier,
        fit_rows: dict[str, np.ndarray],
        val_rows: dict[str, np.ndarray],
        out: Path | None,
    ) -> dict[int, Results]:
        """As ``_fit``, by ``devices`` processes; what they learnt is put into ``classifier``."""
        if self.method.TRAINS != "everything":
            self.inputs.to_fit(fit_rows)  # encoded once, and not by each
        values = self.values | {"shift": self.shift.name}
        given = (values, self.resolved.seeded, out, self.session.store.folder)
        shares = worker_processes.together(self.devices, _share, *given, progress=self.session.progress)
        classifier.load_state_dict(shares[0]["learnt"], strict=classifier.strict_loading)
        classifier.num_steps = shares[0]["num_steps"]
        self._rate = round(sum(s["images_per_second"] for s in shares), 1)
        self._seconds_before = shares[0]["seconds_before"]
        self._shares_mib = tuple(s["peak_memory_mib"] for s in shares if s["peak_memory_mib"] is not None)
        return {
            step: {(domain, split): metrics for domain, split, metrics in results}
            for step, results in shares[0]["on_the_way"]
        }

    def share(self, out: Path | None) -> dict[str, Any]:
        """This process's part of a fit by several: what it learnt with the others, and what it found on the way."""
        memory = Memory()
        classifier, learnt = self._classifier(), worker_processes.Learnt()
        on_the_way = self._fit(classifier, self._fit_rows(), {}, out, learnt)
        found = [
            (step, [(domain, split, metrics) for (domain, split), metrics in results.items()])
            for step, results in on_the_way.items()
        ]
        kept = {k: v for k, v in learnt.state.items() if classifier.trains_backbone or not k.startswith("backbone.")}
        first = not torch.distributed.get_rank()
        return {
            "learnt": kept if first else {},
            "num_steps": classifier.num_steps,
            "images_per_second": self._rate,
            "peak_memory_mib": memory.peak_mib,
            "seconds_before": self._seconds_before,
            "on_the_way": found if first else [],
        }

    def _check_shares(self, classifier: Classifier, num_images: int, batch_size: int, drop_last: bool) -> None:
        """Raises ConfigError if ``devices`` processes would fit anything else than one does."""
        num = self.devices
        if batch_size % num:
            raise ConfigError(
                f"{num} devices cannot share batches of {batch_size}; set method.batch_size to a multiple"
            )
        if not drop_last and 0 < num_images % batch_size < num:
            raise ConfigError(
                f"the last batch of {num_images:,} images has {num_images % batch_size}, fewer than {num} devices; "
                "change method.batch_size"
            )
        classifier.train()
        norms = [m for m in classifier.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
        if norms and not torch.cuda.is_available():
            raise ConfigError("a batch norm that is trained needs whole batches, which several processes share on GPUs")

    def _fit(
        self,
        classifier: Classifier,
        fit_rows: dict[str, np.ndarray],
        val_rows: dict[str, np.ndarray],
        out: Path | None,
        learnt: worker_processes.Learnt | None = None,
    ) -> dict[int, Results]:
        """Fits, and gives what was found on the way, by step. ``learnt``: where this is one of several processes."""
        how = classifier.how
        augment = how.augment if how is not None and how.augment in augmentation.READ else None
        views = how.views if how is not None else 0
        dataset = self.inputs.to_fit(fit_rows)
        held_out = [self.inputs.of(name, rows) for name, rows in val_rows.items() if len(rows)]
        batch_size = how.batch_size if how else EVALUATION_BATCH
        order = torch.Generator().manual_seed(self.seed)
        seen = torch.Generator().manual_seed(seed_hash(self.seed, "views"))
        objective = plugins.plugin("objectives", self.values["objective"]["name"])
        drop_last = how is not None and how.drop_last and len(dataset) >= batch_size  # Dassl keeps a lone batch
        per_domain = how is not None and (how.per_domain or objective.NEEDS != "images")
        if learnt is not None:
            self._check_shares(classifier, len(dataset), batch_size, drop_last or per_domain)
        loader = loaders_.loader(
            dataset,
            batch_size,
            generator=order if how else None,
            drop_last=drop_last,
            per_domain=per_domain,
            views=seen if augment or views else None,
            shared=learnt is not None,
            workers=self.values["workers"],
        )
        if how is not None:
            updates = math.ceil(len(loader) / how.accumulate)
            if how.steps is not None:  # in passes, for schedules that count these
                how = classifier.how = dataclasses.replace(how, epochs=math.ceil(how.steps / updates))
            compatibility.check_average(how, how.steps or how.epochs * updates)
        validation = loaders_.loader(datasets.concatenate(held_out), EVALUATION_BATCH) if held_out else None
        name = f"fit {self.values['method']['name']}"
        options: dict[str, Any] = trainer.options_of(how) if how else {"max_epochs": 1}
        average = None
        if how is not None and how.average != "none":
            average = Average(how.average_from, how.ema_decay if how.average == "ema" else None)
        on_the_way = self._waypoints(classifier, average)
        options |= worker_processes.options(self.devices, self.values["strategy"]) if learnt else {"plugins": []}
        options["callbacks"] = [c for c in (average, on_the_way, learnt) if c]
        started = time.perf_counter()
        with trainer.quiet():
            if how is None or out is None:
                trainer.make(name, self.session.progress, **options).fit(classifier, loader, validation)
            else:
                generators = {"order": order, "views": seen} | classifier.generators
                state = FitState(self._state_file(out), generators)
                options["callbacks"].append(state)
                options["plugins"].append(state.files)
                options["enable_checkpointing"] = True
                fitting = trainer.make(name, self.session.progress, **options)
                try:
                    fitting.fit(classifier, loader, validation, ckpt_path=state.resumes_from())
                except DivergedError:
                    state.remove()
                    raise
                except BaseException:
                    state.flush()
                    raise
                self._seconds_before = state.seconds_before
        if average is not None:
            average.finish(classifier)
        seconds = time.perf_counter() - started - (on_the_way.seconds if on_the_way else 0.0)
        if how is not None and classifier.num_images:
            self._rate = round(classifier.num_images / seconds, 1)
        return on_the_way.found if on_the_way else {}

    def _state_file(self, out: Path) -> Path:
        """Of a fit that is interrupted; only the same versions go on with it."""
        versions = digest({name: version(name) for name in record_content.VERSIONS})
        return status.checkpoint(out, f"{self.run_id}-{versions[:8]}")

    @property
    def tested(self) -> dict[str, Domain]:
        """The domains of this shift, in the benchmark's order."""
        chosen = (*self.shift.sources, *self.shift.targets)
        return {name: domain for name, domain in self.benchmark.domains.items() if name in chosen}

    def _test_sets(self) -> list[TestSet]:
        return [
            TestSet(name, tuple(self._evaluated(name)), domain.subset, self._is_whole(name), domain.views)
            for name, domain in self.tested.items()
        ]

    def _is_whole(self, name: str) -> bool:
        """A target without a published test split is also reported on all of its images."""
        return name in self.shift.targets and "test" not in self.splits[name]

    def _test_loaders(self, step: int) -> list[loaders_.Loader]:
        how = self.how
        loaders = []
        for name in self.tested:
            splits = self._evaluated(name)
            rows = np.concatenate(list(splits.values()))
            numbers = np.repeat(np.arange(len(splits)), [len(r) for r in splits.values()])
            augment = "domainbed" if how is not None and how.val_augmented and name in self.shift.sources else None
            views = torch.Generator().manual_seed(seed_hash(self.seed, "evaluation", name, step)) if augment else None
            dataset = datasets.with_splits(self.inputs.of(name, rows, augment), numbers)
            loaders.append(loaders_.loader(dataset, EVALUATION_BATCH, views=views, workers=self.values["workers"]))
        return loaders

    def _evaluate(self, classifier: Classifier, step: int | None = None) -> Results:
        """Of all splits of the tested domains; ``step``: in the middle of a fit."""
        loaders = self._test_loaders(classifier.num_steps if step is None else step)
        total = sum(loader.num_samples for loader in loaders)

        def watch(done: int) -> None:
            signals.check()
            if self.session.progress and classifier.trains_backbone:  # stored features take no time
                self.session.progress("evaluate", done, total)

        return classifier.evaluate(loaders, self._test_sets(), watch)

    def _waypoints(self, classifier: Classifier, average: Average | None) -> Waypoints | None:
        """Evaluations on the way of the fit, if they are asked for."""
        how = self.how
        if how is None or how.checkpoint_every is None:
            return None

        return Waypoints(how.checkpoint_every, lambda step: self._evaluate(classifier, step), average, how.steps)

    def _curve(self, classifier: Classifier, start: interpolation.State) -> dict[float, Results]:
        """Results at each alpha of the method's curve but its own, whose weights the classifier then has."""
        end, alpha = interpolation.state_of(classifier), float(getattr(classifier.method, "alpha"))  # noqa: B009
        found = {}
        for other in self.method.ALPHAS:
            if other != alpha:
                interpolation.put(classifier, start, end, other)
                found[other] = self._evaluate(classifier)
        interpolation.put(classifier, start, end, alpha)
        return found

    def _publish(
        self,
        classifier: Classifier,
        on_the_way: dict[int, Results],
        curve: dict[float, Results] | None,
        fit_rows: dict[str, np.ndarray],
        timing: dict[str, Any],
        out: Path | None,
    ) -> Record:
        stored = None
        if out:
            stored = record_content.publish_once(
                out, self.run_id, ".parquet", record_content.predictions_of(self, classifier)
            )
        content = record_content.content_of(self, classifier, on_the_way, curve, fit_rows, timing, stored)
        if out and self.method.TRAINS in ("method", "solver"):
            learnt = record_content.learnt_of(self, classifier.method)
            content["learnt"] = record_content.publish_once(out, self.run_id, ".safetensors", learnt)
        if out and self.keeps_weights:
            tower, head = record_content.kept_of(self, classifier)
            content["kept"] = {
                "backbone": record_content.publish_once(out, self.run_id, ".backbone.safetensors", tower),
                "head": record_content.publish_once(out, self.run_id, ".head.safetensors", head),
            }
        record = Record(content)
        if out:
            sheet = out / f"contact-{self.data_fingerprint[:12]}.png"
            if self.benchmark.shows_images and not sheet.exists():
                publish(sheet, contact_sheet.sheet(self.benchmark))
            fresh = record.publish(out)
            Checkpoints().remove_checkpoint(self._state_file(out))
            if not fresh and (first := self.stored(out)) is not None:
                return first  # another process was faster
        return record

    def said(self) -> dict[str, Any]:
        """Settings that name prompts, as what they say: the templates of a set or a file, the sentences' SHA-256."""
        given = self.values["method"]
        said: dict[str, Any] = {}
        if self.texts and isinstance(given["templates"], str):
            said["templates"] = list(self.texts.templates)
        if self.texts and self.texts.sentences:
            said["descriptions"] = f"sha256:{self.texts.digest}"
        if hasattr(self.method, "said"):
            said |= self.method.said(config.plugin_config("method", given))
        return said


def _share(
    report: Progress | None, values: dict[str, Any], seeded: tuple[str, ...], out: Path | None, store: Path
) -> dict[str, Any]:
    """The work of one of several processes."""
    [one] = _runs(config.Resolved(values, seeded), Session(FeatureStore(store), report))
    return one.share(out)


def _trainable(method: nn.Module, backbone: Any) -> int:
    """Learnt numbers: all of the method's, and the backbone's that get a gradient if it is trained."""
    trained = [] if backbone is None else [p for p in backbone.parameters() if p.requires_grad]
    return sum(p.numel() for p in (*method.parameters(), *trained))
