"""The contract of a method: ``check_method("my_package.my_method")``.

It is held on a tiny backbone with random weights and on squares of seven colours, by the Classifier and the Trainer
that a script has, and takes seconds. Legend: N images, C classes, D features.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from clipdg.core import plugins
from clipdg.core.errors import ConfigError
from clipdg.runs import config
from clipdg.testing.fitted import STEPS, TARGET, Subject, tiny, with_classes
from clipdg.testing.problem import Check, NotPossible, Problem, look, place, problems_in
from clipdg.text.templates import Prompted

TOLERANCE = 2e-5  # of the largest logit: what fp32 leaves between batches of other sizes
Look = Callable[[Subject], Iterator[Problem]]


def check_method(
    name: str, settings: Mapping[str, Any] | None = None, backbone: str | None = None, weights: str | None = "random:0"
) -> list[Problem]:
    """What a method does not hold of its contract; nothing if all is well.

    ``settings``: other than its defaults, such as the file of a method that needs one. ``backbone`` and ``weights``:
    of the tiny family, where the first tiny backbone that the method takes is not meant.
    """
    return problems_in(checks(name, settings, backbone, weights))


def checks(
    name: str, settings: Mapping[str, Any] | None = None, backbone: str | None = None, weights: str | None = "random:0"
) -> list[Check]:
    """Everything that is looked at, with its problems."""
    definition = plugins.method(name)
    subject = Subject(name, definition, settings or {}, backbone, weights)
    if definition.needs_file and not subject.settings.get("file"):
        return look([asks_for_its_file], subject, name)
    return look(_for(definition), subject, name)


def _for(definition: plugins.Method[Any, Any]) -> list[Look]:
    """The checks that mean something for such a method."""
    chosen: list[Look] = [
        settings_survive_yaml,
        builds_for_any_number_of_classes,
        says_that_it_needs_texts,
        permutes_with_the_classes,
        draws_from_the_seed_alone,
        hooks_give_what_they_should,
        fits_and_is_tested,
    ]
    if definition.trains != "nothing":
        chosen += [learns_what_it_says, leaves_what_is_frozen]
    chosen += [can_be_copied, state_dict_is_all_of_it]
    if definition.adapts:
        chosen += [starts_afresh_for_each_domain]
    else:
        chosen += [knows_no_other_images, remembers_no_earlier_images]
    return [*chosen, what_it_leaves_can_be_kept, a_script_is_a_run]


def asks_for_its_file(subject: Subject) -> Iterator[Problem]:
    """it says that it needs a file (give file=PATH to check the rest)."""
    try:
        subject.definition.build(subject.definition.config(), tiny(), subject.benchmark)
    except ConfigError:
        return
    yield Problem(
        "it declares needs_file and is built without one",
        place(subject.definition.build),
        "raise ConfigError if config.file is None, or leave needs_file out",
    )


def settings_survive_yaml(subject: Subject) -> Iterator[Problem]:
    """settings are the same after a way through YAML."""
    from ruamel.yaml import YAML

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "settings.yaml"
        with file.open("w") as out:
            YAML(typ="safe", pure=True).dump({"method": dict(subject.typed.plain["method"])}, out)
        again = config.load(values=config.read_yaml(file)).method.own
    if again != subject.config:
        yield Problem(
            f"settings {subject.config} come back from YAML as {again}",
            place(subject.definition.config),
            "use fields of numbers, words, booleans and lists, in a frozen dataclass",
        )


def builds_for_any_number_of_classes(subject: Subject) -> Iterator[Problem]:
    """logits are (N, C) and finite, for 2, 3 and 7 classes."""
    for count in (2, 3, 7):
        made = subject.built(with_classes(subject.benchmark, range(count)))
        logits = subject.logits(made)
        wanted = (len(subject.inputs), count)
        if tuple(logits.shape) != wanted:
            yield Problem(
                f"logits of {wanted[0]} images and {count} classes have the shape {tuple(logits.shape)}",
                place(type(made.method).forward),
                f"return one row for each image and one column for each class of the benchmark, {wanted}",
            )
            return
        if not torch.isfinite(logits).all():
            yield Problem(
                f"a logit among {count} classes is not finite",
                place(type(made.method).forward),
                "look for a division by zero, a logarithm of it, or a statistic of one image",
            )
            return


def says_that_it_needs_texts(subject: Subject) -> Iterator[Problem]:
    """it says so if it needs a text encoder."""
    definition = subject.definition
    if definition.needs_text or definition.needs_head or definition.needs_file:
        return
    if isinstance(subject.config, Prompted):
        yield Problem(
            "its settings name prompts and it does not declare needs_text",
            "METHOD",
            "give Method needs_text=True",
        )
        return
    tower = tiny("tiny:resnet")
    try:
        definition.build(subject.config, tower, subject.benchmark)
    except ConfigError:
        return
    except Exception as error:
        yield Problem(
            f"on a backbone without a text encoder build raises {type(error).__name__}: {error}",
            place(definition.build),
            "give Method needs_text=True, so that such a backbone is refused in a sentence",
        )


def permutes_with_the_classes(subject: Subject) -> Iterator[Problem]:
    """classes in another order give the same logits in that order."""
    order = [2, 0, 4, 3, 1, 6, 5]
    logits = subject.logits(_told_apart(subject, list(range(7))))
    turned = subject.logits(_told_apart(subject, order))
    if logits.shape != turned.shape:
        raise NotPossible
    if (far := _distance(turned, logits[:, order])) > TOLERANCE:
        yield Problem(
            f"with the classes in another order, a logit differs by {far:.1e} of the largest one",
            place(subject.definition.build),
            "let each class's logit come from its name or its own row of parameters, never from its place",
        )


def _told_apart(subject: Subject, order: list[int]) -> Any:
    """The classifier of classes in this order, the rows of its parameters following the class and not the place."""
    made = subject.built(with_classes(subject.benchmark, order))
    with torch.no_grad():
        for parameter in made.method.parameters():
            if parameter.ndim and parameter.shape[0] == len(order):
                for row, number in enumerate(order):
                    generator = torch.Generator().manual_seed(number)
                    parameter[row] = torch.randn(parameter[row].shape, generator=generator)
    return made


def draws_from_the_seed_alone(subject: Subject) -> Iterator[Problem]:
    """two builds with one seed are equal."""
    first = subject.built(seed=3)
    torch.rand(17)  # what was drawn before must not matter
    second = subject.built(seed=3)
    differ = _differing(first.method.state_dict(), second.method.state_dict())
    if differ or not torch.equal(subject.logits(first), subject.logits(second)):
        yield Problem(
            f"two builds with seed 3 differ{f' in {differ[0]}' if differ else ''}",
            place(subject.definition.build),
            "draw from torch's generator, which follows the seed, and from no other",
        )


def hooks_give_what_they_should(subject: Subject) -> Iterator[Problem]:
    """the hooks that it declares give what they should."""
    definition: Any = subject.definition  # a user's hooks give anything
    own = subject.config
    for name in ("validates", "refits"):
        hook = getattr(definition, name)
        if hook is not None and type(value := hook(own)) is not bool:
            yield Problem(f"{name}(config) gives {value!r}", place(hook), "return True or False")
    made = subject.built()
    method = made.method
    if definition.takes_domains is not None and type(value := definition.takes_domains(method)) is not bool:
        yield Problem(f"takes_domains(module) gives {value!r}", place(definition.takes_domains), "return True or False")
    if (stream := definition.stream_batch) is not None and (type(value := stream(own)) is not int or value < 1):
        yield Problem(f"stream_batch(config) gives {value!r}", place(stream), "return a number of images, 1 or more")
    if (share := definition.interpolates) is not None and not 0 <= (value := share(own)) <= 1:
        yield Problem(f"interpolates(config) gives {value!r}", place(share), "return a share between 0 and 1")
    if (said := definition.said) is not None:
        yield from _is_json(said(own), "said(config)", said)
    if (trains := definition.trains_parameter) is not None:
        names = [name for name, _ in made.backbone.named_parameters()]
        if not any(trains(name) for name in names):
            yield Problem(
                "trains_parameter(name) is true of no parameter of the backbone",
                place(trains),
                f"choose some of its names, such as {names[0]}",
            )
    features = _features(subject, made)
    if definition.represent is not None and definition.classify is not None:
        represented = definition.represent(method, features)
        if represented.ndim != 2 or len(represented) != len(features):
            yield Problem(
                f"represent gives the shape {tuple(represented.shape)} for {len(features)} images",
                place(definition.represent),
                "return (N, F), what the classifier reads of each image",
            )
        elif _distance(definition.classify(method, represented), method(features)) > TOLERANCE:
            yield Problem(
                "classify(represent(features)) are other logits than those of the module",
                place(definition.classify),
                "let forward(features) be classify(represent(features))",
            )
    if definition.regularize is not None:
        method.train()
        labels = torch.zeros(len(features), dtype=torch.int64)
        loss = definition.regularize(method, F.cross_entropy(method(features), labels))
        if not isinstance(loss, Tensor) or loss.ndim or not loss.requires_grad or not torch.isfinite(loss):
            yield Problem(
                f"regularize(module, loss) gives {loss!r:.60}",
                place(definition.regularize),
                "return a finite scalar with a gradient, the loss and what is added to it",
            )


def fits_and_is_tested(subject: Subject) -> Iterator[Problem]:
    """a plain Trainer fits and tests it."""
    subject.fitted(first=True)
    yield from ()


def learns_what_it_says(subject: Subject) -> Iterator[Problem]:
    """what it trains gets finite gradients and changes."""
    fitted = subject.fitted()
    after = fitted.model.state_dict()
    if not subject.by_gradient:
        if not _differing(fitted.before, after):
            yield Problem(
                "nothing has changed after solve",
                place(subject.definition.solve),
                "set the module's parameters there, or declare trains='nothing'",
            )
        return
    parameters = [name for name, p in fitted.model.named_parameters() if p.requires_grad]
    if not parameters:
        yield Problem(
            f"it declares trains='{subject.definition.trains}' and has no parameter that is trained",
            place(subject.definition.build),
            "give the module an nn.Parameter, or declare trains='nothing'",
        )
    for name in parameters:
        called = name.removeprefix("method.")
        if name not in fitted.gradients.got:
            yield Problem(
                f"parameter {called} gets no gradient",
                place(type(fitted.model.method)),
                "use it in forward, or make it a buffer",
            )
        elif name in fitted.gradients.broken:
            yield Problem(
                f"the gradient of {called} is not finite",
                place(type(fitted.model.method).forward),
                "look for a square root, a norm or a logarithm at zero",
            )
    if parameters and all(_same(fitted.before[name], after[name]) for name in parameters):
        yield Problem(
            f"all of its parameters are the same after {STEPS} updates",
            place(subject.definition.fit),
            "look at the learning rate of its Fit, and at where the gradient goes to zero",
        )


def leaves_what_is_frozen(subject: Subject) -> Iterator[Problem]:
    """nothing that is frozen changes in a fit."""
    fitted = subject.fitted()
    model, after = fitted.model, fitted.model.state_dict()
    trained = {name for name, p in model.named_parameters() if p.requires_grad} if subject.by_gradient else set()
    fixed = {name for name, _ in model.named_parameters()} - trained
    if not subject.definition.trains_backbone:
        fixed |= {name for name in after if name.startswith("backbone.")}
    if not subject.by_gradient:
        fixed = {name for name in fixed if name.startswith("backbone.")}
    for name in sorted(fixed):
        if name in fitted.before and not _same(fitted.before[name], after[name]):
            yield Problem(
                f"{name.removeprefix('method.')} is frozen and has changed in the fit",
                place(type(model.method)),
                "write to nothing but parameters that require a gradient; a buffer may change",
            )


def can_be_copied(subject: Subject) -> Iterator[Problem]:
    """copy.deepcopy gives the same module with a state of its own."""
    model = subject.fitted().model.eval()
    other = copy.deepcopy(model.method)
    features = _features(subject, model)
    domains = torch.zeros(len(features), dtype=torch.int64)
    with torch.no_grad():
        mine, theirs = (copy.deepcopy(model)._classified(m, features, domains) for m in (model.method, other))
    if not subject.definition.adapts and not torch.equal(mine, theirs):
        yield Problem(
            "a copy of the module gives other logits",
            place(type(model.method)),
            "keep tensors in parameters and buffers",
        )


def state_dict_is_all_of_it(subject: Subject) -> Iterator[Problem]:
    """its state dict, put into a fresh module, gives the same logits."""
    model = subject.final()
    fresh = subject.built(seed=1)
    fresh.method.load_state_dict(model.method.state_dict())
    if subject.definition.trains_backbone:
        fresh.backbone.load_state_dict(model.backbone.state_dict())
    if (far := _distance(subject.logits(fresh), subject.logits(model))) > TOLERANCE:
        yield Problem(
            f"a fresh module with its state dict gives logits that differ by {far:.1e} of the largest one",
            place(type(model.method)),
            "keep all that is learnt in parameters and buffers, and none of it in plain attributes",
        )


REMEDY_STATE = "let an image's logits follow from it alone; a method that means to adapt declares adapts=True"


def knows_no_other_images(subject: Subject) -> Iterator[Problem]:
    """logits of an image do not depend on the other images of its batch, nor on their order."""
    everything = torch.arange(len(subject.inputs))
    together = subject.logits(subject.final())
    ways = {
        "one by one": [everything[i : i + 1] for i in range(8)],
        "in batches of 7": list(torch.split(everything, 7)),
        "in another order": [everything.flip(0)],
        "beside other images": [torch.cat([everything[:9], everything[:3], everything[20:]])],
    }
    for way, batches in ways.items():
        for batch in batches:
            far = _distance(subject.logits(subject.final(), batch), together[batch])
            if far > TOLERANCE:
                yield Problem(
                    f"the logits of images that come {way} differ by {far:.1e} of the largest one from those of all "
                    f"{len(everything)} images together",
                    place(type(subject.final().method).forward),
                    REMEDY_STATE,
                )
                break


def remembers_no_earlier_images(subject: Subject) -> Iterator[Problem]:
    """logits of an image do not depend on images that came before it."""
    model = subject.final()
    first = subject.logits(model)
    state = {name: tensor.clone() for name, tensor in model.method.state_dict().items()}
    for turn in range(4):
        for batch in torch.split(torch.arange(len(subject.inputs)).roll(5 * turn), 9):
            subject.logits(model, batch)
    last = subject.logits(model)
    if (far := _distance(last, first)) > TOLERANCE:
        yield Problem(
            f"the logits of the same images differ by {far:.1e} of the largest one after others were looked at",
            place(type(model.method).forward),
            REMEDY_STATE,
        )
    elif changed := _differing(state, model.method.state_dict()):
        yield Problem(
            f"{changed[0]} changes while images are looked at in evaluation mode",
            place(type(model.method).forward),
            REMEDY_STATE,
        )


def starts_afresh_for_each_domain(subject: Subject) -> Iterator[Problem]:
    """neither the order of domains nor the presence of others changes a domain's predictions."""
    model = subject.fitted().model
    names = list(subject.benchmark.domains)
    together = subject.streamed(names, model)
    ways = {
        "if the same is tested again": subject.streamed(names, model),
        "if domains come in another order": subject.streamed(names[::-1], model),
        **{f"if {name} is tested alone": subject.streamed([name], model) for name in names},
    }
    for way, found in ways.items():
        for name, confidences in found.items():
            if any(abs(together[name][row] - value) > TOLERANCE for row, value in confidences.items()):
                yield Problem(
                    f"the predictions on {name} are others {way}",
                    place(type(model.method).forward),
                    "keep what is learnt of a domain in the module itself, whose copy each domain gets, and share "
                    "nothing through the file or the class",
                )
                break


def what_it_leaves_can_be_kept(subject: Subject) -> Iterator[Problem]:
    """what it writes of a finished run is JSON and finite tensors."""
    definition, model = subject.definition, subject.fitted().model
    if definition.story is not None:
        yield from _is_json(definition.story(model.method), "story(module)", definition.story)
    if definition.converged is not None and definition.converged(model.method) not in (True, False, None):
        yield Problem("converged(module) is no truth value", place(definition.converged), "return True, False or None")
    if definition.learnt is not None:
        for name, tensor in definition.learnt(model.method).items():
            if not isinstance(tensor, Tensor) or not torch.isfinite(tensor.double()).all():
                yield Problem(
                    f"learnt(module) has {name}, which is no finite tensor", place(definition.learnt), "keep tensors"
                )
    if definition.merged is not None:
        after = subject.final()
        plain = definition.merged(after.backbone, copy.deepcopy(tiny(subject.backbone_name, subject.weights)))
        with torch.no_grad():
            mine, theirs = plain.encode_image(subject.inputs), after.backbone.encode_image(subject.inputs)
        if _distance(mine, theirs) > 10 * TOLERANCE:
            yield Problem(
                "merged(backbone, before) gives other features than the trained backbone",
                place(definition.merged),
                "put all that was learnt into the weights of before",
            )


def a_script_is_a_run(subject: Subject) -> Iterator[Problem]:
    """a fit in a script predicts as clipdg run does."""
    by_script = subject.fitted().predicted
    by_run = subject.run()
    differ = [key for key, predicted in by_script.items() if by_run[key] != predicted]
    if differ:
        yield Problem(
            f"a script and a run predict other classes for {len(differ)} of {len(by_script)} images, {TARGET} being "
            f"the target, such as {differ[0][1]}",
            place(subject.definition.build),
            "let what it learns follow from config, backbone, benchmark and the seed alone",
        )


def _features(subject: Subject, model: Any) -> Tensor:
    """(N, D), of its own backbone."""
    if not subject.definition.trains_backbone:
        return subject.inputs
    with torch.no_grad():
        features: Tensor = model.backbone.encode_image(subject.inputs)
    return features


def _is_json(value: Any, called: str, hook: Any) -> Iterator[Problem]:
    try:
        json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError) as error:
        yield Problem(f"{called} is no JSON: {error}", place(hook), "return a mapping of numbers, words and lists")


def _distance(one: Tensor, other: Tensor) -> float:
    """The largest difference, as a share of the largest value; infinite if a value is none or shapes differ."""
    if one.shape != other.shape or not torch.isfinite(one).all() or not torch.isfinite(other).all():
        return float("inf")
    return float((one - other).abs().max() / max(1.0, float(other.abs().max())))


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of the tensors that differ or are there in one only."""
    names = dict.fromkeys([*one, *other])
    return [n for n in names if n not in one or n not in other or (
        isinstance(one[n], Tensor) and not _same(one[n], other[n])
    )]  # fmt: skip
