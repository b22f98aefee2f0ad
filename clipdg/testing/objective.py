"""The contract of an objective: ``check_objective("my_package.my_objective")``.

It is held on a small network and two domains, and goes through one fit by the real Classifier and a plain Trainer.
Legend: n images, C classes, F what the classifier reads.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from clipdg import api
from clipdg.core import plugins
from clipdg.core.errors import ConfigError
from clipdg.core.model import Model
from clipdg.runs import config
from clipdg.testing.fitted import STEPS, TARGET, squares, tiny, trainer_for
from clipdg.testing.problem import Check, Problem, look, place, problems_in
from clipdg.training import trainer

DOMAINS = (1, 4)  # places of the two sources in their benchmark
NUM_CLASSES = 3
TOLERANCE = 1e-5


class Network(nn.Module):
    """(n, 5) -> what the classifier reads (n, 4), logits (n, 3)."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(4, 5, generator=generator))
        self.second = nn.Parameter(torch.randn(NUM_CLASSES, 4, generator=generator))

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        read = torch.tanh(inputs @ self.first.T)
        return read, read @ self.second.T


@dataclass(frozen=True)
class Batch:
    """Images of the two domains, mixed."""

    inputs: Tensor
    labels: Tensor
    domains: Tensor

    @classmethod
    def drawn(cls, each: int, seed: int) -> Batch:
        """``each`` images of each domain."""
        generator = torch.Generator().manual_seed(seed)
        domains = torch.tensor(DOMAINS).repeat(each)
        inputs = torch.randn(len(domains), 5, generator=generator) + domains[:, None] / 4
        return cls(inputs, torch.randint(NUM_CLASSES, (len(domains),), generator=generator), domains)

    def at(self, order: Tensor) -> Batch:
        """The same images in another order."""
        return Batch(self.inputs[order], self.labels[order], self.domains[order])


@dataclass
class Subject:
    """An objective with some settings."""

    name: str
    definition: plugins.Objective[Any, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> Any:
        return config.load(values={"objective": {"name": self.name, **self.settings}}).objective.own

    def built(self, domains: tuple[int, ...] = DOMAINS) -> nn.Module:
        """A fresh module of it, always with the same seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = self.definition.build(self.config, domains, 0.0, 7)
        assert isinstance(made, nn.Module), "build gives an nn.Module"
        return made

    def loss(self, module: nn.Module, batch: Batch, model: Model | None = None, *, tell: bool = True) -> Tensor:
        """``tell``: whether it is told the domains."""
        loss: Tensor = module(model or Network(), batch.inputs, batch.labels, batch.domains if tell else None)
        return loss

    def updated(self, module: nn.Module) -> None:
        """Tell it that the weights were updated."""
        if self.definition.updated is not None:
            self.definition.updated(module)


def check_objective(name: str, settings: Mapping[str, Any] | None = None) -> list[Problem]:
    """What an objective does not hold of its contract; nothing if all is well."""
    return problems_in(checks(name, settings))


def checks(name: str, settings: Mapping[str, Any] | None = None) -> list[Check]:
    """Everything that is looked at, with its problems."""
    every = [
        loss_is_a_scalar_with_a_gradient,
        order_does_not_matter,
        needs_what_it_says,
        takes_the_least_batch,
        one_domain_is_refused_or_taken,
        state_is_saved,
        a_fit_goes_down_it,
    ]
    return look(every, Subject(name, plugins.objective(name), settings or {}), name)


def loss_is_a_scalar_with_a_gradient(subject: Subject) -> Iterator[Problem]:
    """its loss is a finite scalar with a finite gradient."""
    module, network = subject.built(), Network()
    for step in range(3):
        loss: Any = subject.loss(module, Batch.drawn(8, step), network)  # of a user's module: anything
        where = place(type(module).forward)
        if not isinstance(loss, Tensor) or loss.ndim or not torch.isfinite(loss):
            yield Problem(f"the loss is {loss!r:.60}", where, "return one finite number as a tensor without axes")
            return
        if not loss.requires_grad:
            yield Problem("the loss has no gradient", where, "compute it from model(inputs), without detach or item")
            return
        gradients = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
        if any(g is not None and not torch.isfinite(g).all() for g in gradients) or gradients[1] is None:
            yield Problem("a gradient is not finite, or there is none", where, "look for a root or a logarithm at zero")
            return
        restarts: Any = subject.definition.restarts_optimizer
        if restarts is not None and type(restarts(module)) is not bool:
            yield Problem("restarts_optimizer gives no truth value", place(restarts), "return True or False")
        subject.updated(module)


def order_does_not_matter(subject: Subject) -> Iterator[Problem]:
    """its loss is the same when the images of a batch are permuted (within a domain they keep their order)."""
    batch = Batch.drawn(8, 0)
    one, other = (batch.domains == DOMAINS[0]).nonzero()[:, 0], (batch.domains == DOMAINS[1]).nonzero()[:, 0]
    ways = [torch.cat([one, other]), torch.cat([other, one])]
    if subject.definition.needs == "images":
        ways.append(torch.randperm(16, generator=torch.Generator().manual_seed(0)))
    first = subject.loss(subject.built(), batch).item()
    for order in ways:
        if abs((loss := subject.loss(subject.built(), batch.at(order)).item()) - first) > TOLERANCE:
            yield Problem(
                f"a batch has the loss {first:.6f} and the same batch in another order {loss:.6f}",
                place(type(subject.built()).forward),
                "tell domains by the argument domains and not by the place in the batch",
            )
            return


def needs_what_it_says(subject: Subject) -> Iterator[Problem]:
    """it needs what it declares in ``needs`` and no more."""
    needs, batch = subject.definition.needs, Batch.drawn(8, 0)
    where = place(type(subject.built()).forward)
    first = subject.loss(subject.built(), batch)
    if needs == "images":
        try:
            alone = subject.loss(subject.built(), batch, tell=False)
        except Exception as error:
            alone = first + float("nan")
            told = f"without domains it raises {type(error).__name__}"
        else:
            told = "without domains the loss is another"
        if not torch.allclose(alone, first):
            yield Problem(f"it declares needs='images', and {told}", where, "declare needs='domains'")
    if needs != "features":
        network = Network()

        def hidden(inputs: Tensor) -> tuple[Tensor, Tensor]:
            read, logits = network(inputs)
            return torch.full_like(read, float("nan")), logits

        if not torch.allclose(subject.loss(subject.built(), batch, hidden), first):
            yield Problem(
                f"it declares needs='{needs}' and acts on what the classifier reads", where, "declare needs='features'"
            )


def takes_the_least_batch(subject: Subject) -> Iterator[Problem]:
    """it takes a batch of ``least`` images of each domain."""
    network, least = Network(), subject.definition.least
    loss = subject.loss(subject.built(), Batch.drawn(least, 0), network)
    gradients = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    if not torch.isfinite(loss) or any(g is not None and not torch.isfinite(g).all() for g in gradients):
        yield Problem(
            f"with {least} image{'s' * (least > 1)} of each domain the loss or its gradient is not finite",
            place(type(subject.built()).forward),
            f"declare least={least + 1}, or as many as it needs",
        )


def one_domain_is_refused_or_taken(subject: Subject) -> Iterator[Problem]:
    """it takes one source domain, or refuses it in a sentence."""
    batch = Batch.drawn(8, 0)
    alone = batch.at((batch.domains == DOMAINS[0]).nonzero()[:, 0])
    try:
        module = subject.built(DOMAINS[:1])
    except ConfigError:
        return
    if not torch.isfinite(subject.loss(module, alone)):
        yield Problem(
            "with one source domain the loss is not finite",
            place(subject.definition.build),
            "raise ConfigError there if there are fewer than two domains",
        )


def state_is_saved(subject: Subject) -> Iterator[Problem]:
    """an interrupted fit goes on with its state."""
    module = subject.built()
    for step in range(2):
        subject.loss(module, Batch.drawn(8, step))
        subject.updated(module)
    fresh = subject.built()
    fresh.load_state_dict(copy.deepcopy(module.state_dict()))
    batch = Batch.drawn(8, 2)
    goes_on, begins = subject.loss(module, batch).item(), subject.loss(fresh, batch).item()
    if abs(goes_on - begins) > TOLERANCE:
        yield Problem(
            f"the loss of the next update is {goes_on:.6f}, and {begins:.6f} after its state dict was loaded",
            place(type(module)),
            "keep what changes in buffers, or in get_extra_state and set_extra_state",
        )


def a_fit_goes_down_it(subject: Subject) -> Iterator[Problem]:
    """a fit by a plain Trainer goes down it."""
    backbone = tiny()
    data = api.datamodule(squares(), TARGET, backbone)
    goal = {"name": subject.name, **subject.settings}
    model = api.method("clip_adapter", backbone, data, objective=goal, fit={"steps": STEPS})
    before = [p.detach().clone() for p in model.method.parameters()]
    with trainer.quiet():
        trainer_for(model).fit(model, data)
    if all(torch.equal(b, p) for b, p in zip(before, model.method.parameters(), strict=True)):
        yield Problem(
            f"no parameter of clip_adapter has changed after {STEPS} updates",
            place(subject.definition.build),
            "let the loss follow from the logits",
        )
