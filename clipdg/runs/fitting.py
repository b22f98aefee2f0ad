"""A run's fit: by one process, or by several that share it; interrupted and gone on with, to the bit."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clipdg.core.errors import ConfigError, DivergedError
from clipdg.core.progress import Progress
from clipdg.core.seeding import seed_hash
from clipdg.data.datamodule import fit_loader, validation_loader
from clipdg.evaluation.evaluator import Results
from clipdg.evaluation.tally import chosen_metrics
from clipdg.runs import compatibility, config, status
from clipdg.runs.evaluating import evaluate, inputs_of
from clipdg.runs.feature_store import FeatureStore, device_of_runs
from clipdg.runs.plan import Plan, plans
from clipdg.runs.session import Session
from clipdg.text import prompts
from clipdg.training import build, trainer, worker_processes
from clipdg.training.checkpoints import FitState
from clipdg.training.classifier import Classifier
from clipdg.training.mid_fit_evaluation import MidFitEvaluation
from clipdg.training.peak_memory import Memory


@dataclass(frozen=True)
class Fitted:
    """What a fit found on its way, and what it took.

    ``on_the_way``: results by step. ``images_per_second``: fitted on, by gradient descent. ``seconds_before``: of the
    same fit before it was interrupted. ``shares_mib``: the most memory of each of several processes.
    """

    on_the_way: Mapping[int, Results] = field(default_factory=dict)
    images_per_second: float | None = None
    seconds_before: float = 0.0
    shares_mib: tuple[float, ...] = ()


def classifier_of(plan: Plan, session: Session) -> Classifier:
    """Build the plan's classifier in its state before fitting."""
    backbone = plan.backbone
    assert isinstance(backbone, nn.Module)
    backbone.to(device_of_runs())  # Lightning leaves on the CPU what it has used, and the method encodes texts
    objective = plan.settings.objective
    goal = None
    if plan.fit is not None:
        sources = plan.shift.sources
        goal = build.minimised(objective.name, objective.own, plan.benchmark, sources, plan.fit, plan.seed)
    with prompts.reporting(session.progress):
        return build.classifier(
            plan.method,
            plan.settings.method.own,
            plan.backbone,
            plan.benchmark,
            plan.fit,
            objective=goal,
            metrics=chosen_metrics(plan.settings.metrics),
            seed=plan.seed,
        )


def fit(plan: Plan, session: Session, classifier: Classifier, out: Path | None) -> Fitted:
    """Fit the classifier on the plan's rows; its state is kept below ``out`` if the fit is interrupted."""
    if plan.devices == 1:
        return _fit(plan, session, classifier, out)
    return _fit_together(plan, session, classifier, out)


def _fit(
    plan: Plan,
    session: Session,
    classifier: Classifier,
    out: Path | None,
    learnt: worker_processes.Learnt | None = None,
) -> Fitted:
    """``learnt``: given to one of several processes."""
    inputs, batching, workers = inputs_of(plan, session), plan.batching, plan.settings.workers
    order = torch.Generator().manual_seed(plan.seed)
    seen = torch.Generator().manual_seed(seed_hash(plan.seed, "views"))
    shared = learnt is not None
    loader = fit_loader(plan.protocol, inputs, batching, order, seen, shared=shared, workers=workers)
    if shared:
        _check_shares(plan, classifier, loader.num_samples)
    how = plan.fit
    if how is not None:
        updates = math.ceil(len(loader) / how.accumulate)
        if how.steps is not None:  # in passes, for schedules that count these
            how = classifier.fit_settings = dataclasses.replace(how, epochs=math.ceil(how.steps / updates))
        compatibility.check_average(how, how.steps or how.epochs * updates)
    validation = validation_loader(plan.protocol, inputs, batching) if plan.validates else None
    average, on_the_way = classifier.average, _mid_fit_evaluation(plan, session, classifier)
    options: dict[str, Any] = trainer.options_of(how) if how else {"max_epochs": 1}
    options |= worker_processes.options(plan.devices, plan.settings.strategy) if shared else {"plugins": []}
    options["callbacks"] = [c for c in (average, on_the_way, learnt) if c]
    name, started, seconds_before = f"fit {plan.settings.method.name}", time.perf_counter(), 0.0
    with trainer.quiet():
        if how is None or out is None:
            trainer.make(name, session.progress, **options).fit(classifier, loader, validation)
        else:
            state = FitState(state_file(plan, out), {"order": order, "views": seen} | classifier.generators)
            options["callbacks"].append(state)
            options["plugins"].append(state.files)
            options["enable_checkpointing"] = True
            fitting = trainer.make(name, session.progress, **options)
            try:
                fitting.fit(classifier, loader, validation, ckpt_path=state.resumes_from())
            except DivergedError:
                state.remove()
                raise
            except BaseException:
                state.flush()
                raise
            seconds_before = state.seconds_before
    seconds = time.perf_counter() - started - (on_the_way.seconds if on_the_way else 0.0)
    rate = round(classifier.num_images / seconds, 1) if how is not None and classifier.num_images else None
    return Fitted(on_the_way.found if on_the_way else {}, rate, seconds_before)


def state_file(plan: Plan, out: Path) -> Path:
    """Where the plan's fit keeps its state when it is interrupted."""
    return status.checkpoint(out, plan.state_name)


def _mid_fit_evaluation(plan: Plan, session: Session, classifier: Classifier) -> MidFitEvaluation | None:
    """Evaluations on the way of the fit, if they are asked for."""
    if plan.fit is None or plan.fit.checkpoint_every is None:
        return None
    return MidFitEvaluation(
        plan.fit.checkpoint_every,
        lambda step: evaluate(plan, session, classifier, step),
        classifier.average,
        plan.fit.steps,
    )


# Several processes


def _fit_together(plan: Plan, session: Session, classifier: Classifier, out: Path | None) -> Fitted:
    """Fit by ``devices`` processes; what they learnt is put into ``classifier``."""
    if not plan.method.trains_backbone:  # encoded once, and not by each
        order = torch.Generator()
        fit_loader(plan.protocol, inputs_of(plan, session), plan.batching, order, order)
    settings = plan.settings.changed(shift=plan.shift.name)
    given = (dict(settings.plain), settings.seeded, out, session.store.folder)
    shares = worker_processes.together(plan.devices, _share, *given, progress=session.progress)
    classifier.load_state_dict(shares[0]["learnt"], strict=classifier.strict_loading)
    classifier.num_steps = shares[0]["num_steps"]
    classifier.interpolate()
    on_the_way = {
        step: {(domain, split): metrics for domain, split, metrics in results}
        for step, results in shares[0]["on_the_way"]
    }
    return Fitted(
        on_the_way,
        round(sum(s["images_per_second"] for s in shares), 1),
        shares[0]["seconds_before"],
        tuple(s["peak_memory_mib"] for s in shares if s["peak_memory_mib"] is not None),
    )


def _share(
    report: Progress | None, values: dict[str, Any], seeded: tuple[str, ...], out: Path | None, store: Path
) -> dict[str, Any]:
    """One process's part of a fit by several: what it learnt with the others, and what it found on the way."""
    memory, session = Memory(), Session(FeatureStore(store), report)
    [plan] = plans(config.from_plain(values, seeded), session)
    classifier, learnt = classifier_of(plan, session), worker_processes.Learnt()
    fitted = _fit(plan, session, classifier, out, learnt)
    found = [
        (step, [(domain, split, metrics) for (domain, split), metrics in results.items()])
        for step, results in fitted.on_the_way.items()
    ]
    kept = {k: v for k, v in learnt.state.items() if classifier.trains_backbone or not k.startswith("backbone.")}
    first = not torch.distributed.get_rank()
    return {
        "learnt": kept if first else {},
        "num_steps": classifier.num_steps,
        "images_per_second": fitted.images_per_second,
        "peak_memory_mib": memory.peak_mib,
        "seconds_before": fitted.seconds_before,
        "on_the_way": found if first else [],
    }


def _check_shares(plan: Plan, classifier: Classifier, num_images: int) -> None:
    """Raises ConfigError if ``devices`` processes would fit anything else than one does."""
    num, batch_size = plan.devices, plan.batching.batch_size
    drops = plan.batching.per_domain or (plan.batching.drop_last and num_images >= batch_size)
    if batch_size % num:
        raise ConfigError(f"{num} devices cannot share batches of {batch_size}; set method.batch_size to a multiple")
    if not drops and 0 < num_images % batch_size < num:
        raise ConfigError(
            f"the last batch of {num_images:,} images has {num_images % batch_size}, fewer than {num} devices; "
            "change method.batch_size"
        )
    classifier.train()
    norms = [m for m in classifier.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    if norms and not torch.cuda.is_available():
        raise ConfigError("a batch norm that is trained needs whole batches, which several processes share on GPUs")
