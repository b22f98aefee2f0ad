"""A run's evaluation: every stream of its protocol, in the middle of a fit, at its end and along a line of weights."""

from __future__ import annotations

from clipdg.core import signals
from clipdg.data.datamodule import stream_loader
from clipdg.data.inputs import Images, Inputs
from clipdg.evaluation.evaluator import Results
from clipdg.runs.plan import Plan
from clipdg.runs.session import Session
from clipdg.runs.stored_features import StoredFeatures
from clipdg.training.classifier import Classifier


def inputs_of(plan: Plan, session: Session) -> Inputs:
    """The rows as the run takes them: images where the backbone is trained, and stored features elsewhere."""
    if plan.method.trains_backbone:
        return Images(plan.benchmark, plan.backbone.preprocessing)
    return StoredFeatures(
        plan.benchmark,
        plan.backbone,
        session.store,
        drawn=plan.settings.shots is not None or plan.picks is not None,
        progress=session.progress,
        workers=plan.settings.workers,
    )


def evaluate(plan: Plan, session: Session, classifier: Classifier, step: int | None = None) -> Results:
    """Evaluate all tested splits of the shift's domains; ``step``: in the middle of a fit."""
    at = classifier.num_steps if step is None else step
    streams, inputs = plan.protocol.streams(), inputs_of(plan, session)
    loaders = [
        stream_loader(plan.protocol, inputs, plan.batching, stream, at, workers=plan.settings.workers)
        for stream in streams
    ]
    total = sum(loader.num_samples for loader in loaders)

    def watch(done: int) -> None:
        signals.check()
        if session.progress and classifier.trains_backbone:  # stored features take no time
            session.progress("evaluate", done, total)

    return classifier.evaluate(loaders, [stream.test_set for stream in streams], watch)


def along_line(plan: Plan, session: Session, classifier: Classifier) -> dict[float, Results] | None:
    """Results at each alpha of the curve but the method's own, whose weights the classifier then has."""
    if plan.method.interpolates is None:
        return None
    own, found = plan.method.interpolates(plan.settings.method.own), {}
    for alpha in plan.method.alphas:
        if alpha != own:
            classifier.put_on_line(alpha)
            found[alpha] = evaluate(plan, session, classifier)
    classifier.put_on_line(own)
    return found
