"""Each objective equals its formula, written out plainly, on two domains, a small network and three steps of Adam."""

import math
from collections.abc import Callable
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import clipdg
from clipdg.core import plugins
from clipdg.core.benchmark import Benchmark
from clipdg.core.errors import ConfigError
from clipdg.core.fit import Fit
from clipdg.core.model import Backbone
from clipdg.data import datasets, loaders
from clipdg.methods import clip_adapter, erm, wise_ft
from clipdg.runs import config
from clipdg.training import trainer
from clipdg.training.classifier import Classifier, Minimised

IDS = (1, 4)  # places of the two source domains in their benchmark
SETTINGS: dict[str, dict[str, Any]] = {
    "erm": {},
    "irm": {"weight": 3.0, "anneal_steps": 1},
    "vrex": {"weight": 5.0, "anneal_steps": 1},
    "group_dro": {"step_size": 0.5},
    "coral": {"weight": 2.0},
    "mixup": {"alpha": 0.7},
}


class Network(nn.Module):
    """(n, 5) -> features (n, 4), logits (n, 3)."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(4, 5, generator=generator))
        self.second = nn.Parameter(torch.randn(3, 4, generator=generator))

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.tanh(inputs @ self.first.T)
        return features, features @ self.second.T


def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Eight images of each domain, mixed."""
    generator = torch.Generator().manual_seed(100 + step)
    domains = torch.tensor(IDS).repeat(8)
    inputs = torch.randn(16, 5, generator=generator) + domains[:, None] / 4
    return inputs, torch.randint(3, (16,), generator=generator), domains


def built(name: str) -> nn.Module:
    definition = plugins.objective(name)
    objective: nn.Module = definition.build(definition.config(**SETTINGS[name]), IDS, 0.0, 7)
    return objective


# A reference: (network, images and labels of domain 1, those of domain 4, step, values kept between steps) -> loss
Kept = dict[str, Any]
Part = tuple[Tensor, Tensor]


def plain_erm(net: Network, one: Part, two: Part, step: int, kept: Kept) -> Tensor:
    return (F.cross_entropy(net(one[0])[1], one[1]) + F.cross_entropy(net(two[0])[1], two[1])) / 2


def plain_irm(net: Network, one: Part, two: Part, step: int, kept: Kept) -> Tensor:
    total = torch.zeros(())
    for x, y in (one, two):
        logits = net(x)[1]
        # d/dw CE(w z) at w = 1 is the mean over images of sum_c softmax(z)_c z_c - z_y
        slope = (logits.softmax(1) * logits).sum(1) - logits.gather(1, y[:, None]).squeeze(1)
        penalty = slope[0::2].mean() * slope[1::2].mean()
        total = total + F.cross_entropy(logits, y) + (3.0 if step >= 1 else 1.0) * penalty
    return total / 2


def plain_vrex(net: Network, one: Part, two: Part, step: int, kept: Kept) -> Tensor:
    a, b = (F.cross_entropy(net(x)[1], y) for x, y in (one, two))
    return (a + b) / 2 + (5.0 if step >= 1 else 1.0) * (a - b) ** 2 / 4  # the variance of two numbers


def plain_group_dro(net: Network, one: Part, two: Part, step: int, kept: Kept) -> Tensor:
    q1, q2 = kept.get("q", (1.0, 1.0))
    a, b = (F.cross_entropy(net(x)[1], y) for x, y in (one, two))
    q1, q2 = q1 * math.exp(0.5 * a.item()), q2 * math.exp(0.5 * b.item())
    kept["q"] = q1 / (q1 + q2), q2 / (q1 + q2)
    return kept["q"][0] * a + kept["q"][1] * b


def plain_coral(net: Network, one: Part, two: Part, step: int, kept: Kept) -> Tensor:
    (f1, z1), (f2, z2) = net(one[0]), net(two[0])
    means = ((f1.mean(0) - f2.mean(0)) ** 2).mean()
    covariances = ((torch.cov(f1.T) - torch.cov(f2.T)) ** 2).mean()
    return (F.cross_entropy(z1, one[1]) + F.cross_entropy(z2, two[1])) / 2 + 2.0 * (means + covariances)


def plain_mixup(net: Network, one: Part, two: Part, step: int, kept: Kept) -> Tensor:
    rng = kept.setdefault("rng", np.random.default_rng(7))
    parts = [one, two]
    order = rng.permutation(2)
    total = torch.zeros(())
    for i, j in ((order[0], order[1]), (order[1], order[0])):
        share = rng.beta(0.7, 0.7)
        logits = net(share * parts[i][0] + (1 - share) * parts[j][0])[1]
        total = total + share * F.cross_entropy(logits, parts[i][1])
        total = total + (1 - share) * F.cross_entropy(logits, parts[j][1])
    return total / 2


PLAIN: dict[str, Callable[[Network, Part, Part, int, Kept], Tensor]] = {
    "erm": plain_erm,
    "irm": plain_irm,
    "vrex": plain_vrex,
    "group_dro": plain_group_dro,
    "coral": plain_coral,
    "mixup": plain_mixup,
}


def test_every_objective_has_a_reference_here() -> None:
    assert set(PLAIN) == set(plugins.names("objectives"))


@pytest.mark.parametrize("name", PLAIN)
def test_gradients_and_three_steps_equal_the_plain_formula(name: str) -> None:
    ours, theirs, objective = Network(), Network(), built(name)
    definition = plugins.objective(name)
    kept: Kept = {}
    adams = [torch.optim.Adam(net.parameters(), 0.05) for net in (ours, theirs)]
    for step in range(3):
        inputs, labels, domains = batch(step)
        if definition.restarts_optimizer is not None and definition.restarts_optimizer(objective):
            adams[0].state.clear()
        if name in ("irm", "vrex") and step == 1:  # where the weight changes, DomainBed makes a new Adam
            adams[1] = torch.optim.Adam(theirs.parameters(), 0.05)
        one, two = domains == IDS[0], domains == IDS[1]
        loss = objective(ours, inputs, labels, domains)
        reference = PLAIN[name](theirs, (inputs[one], labels[one]), (inputs[two], labels[two]), step, kept)
        for value, net, adam in ((loss, ours, adams[0]), (reference, theirs, adams[1])):
            net.zero_grad()
            value.backward()
            adam.step()
        if definition.updated is not None:
            definition.updated(objective)
        assert loss.item() == pytest.approx(reference.item(), rel=1e-6)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in PLAIN if n != "erm"])
def test_one_source_domain_is_refused(name: str) -> None:
    definition = plugins.objective(name)
    with pytest.raises(ConfigError, match="this shift has one"):
        definition.build(definition.config(), (0,), 0.0, 0)


@pytest.mark.parametrize("name", PLAIN)
def test_a_saved_objective_goes_on_where_it_was(name: str) -> None:
    whole, first, second = built(name), built(name), built(name)
    network = Network()
    losses = [whole(network, *batch(step)).item() for step in range(3)]
    assert first(network, *batch(0)).item() == losses[0]
    second.load_state_dict(first.state_dict())
    assert [second(network, *batch(step)).item() for step in (1, 2)] == losses[1:]


@pytest.mark.parametrize("name", PLAIN)
def test_label_smoothing_reaches_every_objective(name: str) -> None:
    definition = plugins.objective(name)
    sharp, smooth = (
        definition.build(definition.config(**SETTINGS[name]), IDS, smoothing, 7)(Network(), *batch(0)).item()
        for smoothing in (0.0, 0.2)
    )
    assert sharp != smooth


# ---------------------------------------------------------------------------------------------------------------------
# In a run


@pytest.mark.parametrize("name", [n for n in PLAIN if n != "coral"])
def test_coop_learns_under_every_objective_that_leaves_features_alone(name: str) -> None:
    settings = {
        "benchmark": "rotated_digits",
        "shift": "75",
        "shots": 1,
        "method": {"name": "coop", "num_context": 2, "epochs": 2, "warmup_epochs": 0},
        "objective": {"name": name},
    }
    [record] = clipdg.run(settings)
    assert record.content["config"]["objective"]["name"] == name
    assert record.content["timing"]["trainable_parameters"] == 2 * 64


@pytest.mark.parametrize("name", ["coral", "mixup"])
def test_an_adapter_learns_under_objectives_on_features_too(name: str) -> None:
    settings = {
        "benchmark": "rotated_digits",
        "shift": "75",
        "shots": 2,
        "method": {"name": "clip_adapter", "epochs": 1, "batch_size": 4},
    }
    [plain], [record] = clipdg.run(settings), clipdg.run({**settings, "objective": name})
    assert record.content["timing"]["trainable_parameters"] == 2 * 64 * 16
    assert record.evaluations != plain.evaluations


def test_coral_sees_what_the_classifier_reads(clip: Any) -> None:
    """Features of unit length with a head of cosines; features behind dropout with ERM's head, as in DomainBed."""
    bench, features = Benchmark("b", ("cat", "dog")), 9 * torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    adapter = clip_adapter.build(clip_adapter.Config(templates=["a {}"]), clip, bench)
    head = wise_ft.build(wise_ft.Config(templates=["a {}"]), clip, bench)
    for method in (adapter, head):
        assert method.represent(features).norm(dim=1).tolist() == pytest.approx([1.0] * 6)
        torch.testing.assert_close(method.classify(method.represent(features)), method(features))
    dropping = erm.build(erm.Config(dropout=0.5), clip, bench).train()
    read = dropping.represent(features)
    assert set((read / features).round().unique().tolist()) == {0.0, 2.0}
    torch.testing.assert_close(dropping.classify(read), F.linear(read, dropping.weight, dropping.bias))
    assert torch.equal(dropping.eval().represent(features), features)


class Batches(torch.utils.data.Dataset[tuple[Tensor, Tensor, Tensor]]):
    def __len__(self) -> int:
        return 7

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        return batch(step)


@pytest.mark.parametrize("name", ["irm", "vrex"])
def test_annealing_counts_updates_where_batches_are_gathered(name: str, clip: Any) -> None:
    definition = plugins.objective(name)
    objective = definition.build(definition.config(weight=50.0, anneal_steps=2), IDS, 0.0, 0)
    weights: list[float] = []

    class Watch(lightning.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            weights.append(objective.weight)

    fit = Fit("adam", 0.01, 1, 8, accumulate=2)
    classifier = Classifier(clip, nn.Linear(5, 3), 3, fit, objective=Minimised(objective, definition))
    batches: Any = torch.utils.data.DataLoader(Batches(), batch_size=None)
    with trainer.quiet():
        trainer.make("fit", callbacks=[Watch()], **trainer.options_of(fit)).fit(classifier, batches)
    assert weights == [1.0] * 4 + [50.0] * 3
    assert int(objective.num_updates) == 4


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"method": "coop", "objective": "coral"}, "acts on features, which coop leaves as they are"),
        ({"method": "zero_shot", "objective": "vrex"}, "learns by gradient descent, and zero_shot does not"),
        ({"method": "coop", "objective": "irmm"}, "Did you mean 'irm'"),
        ({"method": {"name": "erm", "batch_size": 1}, "objective": "coral"}, "needs at least 2 images of each domain"),
        ({"method": {"name": "coop", "batch_size": 1}, "objective": "irm"}, "needs at least 2 images of each domain"),
        ({"method": "coop", "objective": {"name": "irm", "weight": -1}}, "objective.weight is -1"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        clipdg.run({"benchmark": "rotated_digits", "shift": "75", **settings})


def test_a_run_of_before_there_were_objectives_keeps_its_identity() -> None:
    plain = config.load(values={"method": "coop"}).identity()
    assert not any(key.startswith("objective") for key in plain)
    assert "objective.weight" in config.load(values={"method": "coop", "objective": "irm"}).identity()


def test_batches_have_as_many_images_of_each_domain(squares: Benchmark, clip: Backbone) -> None:
    parts = [
        datasets.ImageDataset(squares.domains[name].rows, range(num), clip.preprocessing, i)
        for i, (name, num) in enumerate((("bright", 30), ("dark", 6)))
    ]
    samples = datasets.concatenate(parts)
    loader = loaders.loader(samples, 4, generator=torch.Generator().manual_seed(0), per_domain=True)
    batches = list(loader)
    assert len(batches) == len(loader) == 5  # 36 images, 8 a batch
    assert all(b.domains.tolist() == [0] * 4 + [1] * 4 for b in batches)
    assert all(set(b.indices[4:].tolist()) <= set(range(6)) for b in batches)
    again = loaders.loader(samples, 4, generator=torch.Generator().manual_seed(0), per_domain=True, workers=1)
    assert all(torch.equal(a.indices, b.indices) for a, b in zip(batches, again, strict=True))
