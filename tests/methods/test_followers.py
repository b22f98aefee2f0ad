"""KgCoOp, ProGrad and CoCoOp equal their papers' formulas, written out over whole prompts."""

import copy
import dataclasses
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from clipdg.core.benchmark import Benchmark
from clipdg.core.errors import ConfigError
from clipdg.core.model import ClipBackbone
from clipdg.methods import _context, cocoop, kgcoop, prograd
from clipdg.text import prompt_encoder, prompts
from clipdg.training.classifier import Classifier
from clipdg.weights.precision import place

CLASSES = ("cat", "dog", "bird house")
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


def bench() -> Benchmark:
    return Benchmark("b", CLASSES, templates=("a picture of a {}.",))


def directions_of(clip: ClipBackbone, context: torch.Tensor) -> torch.Tensor:
    """One class at a time, its prompt spelled out token by token to the tower's last place."""
    tower = clip.text_tower
    assert tower is not None
    rows = []
    for name in CLASSES:
        ids = clip.tokenize([f"{name}."])
        embedded = tower.embed(ids)[0]
        sequence = torch.cat([embedded[:1], context, embedded[1:]])[: tower.context_length]
        placed = torch.cat([ids[0, :1], ids[0, 1:2].repeat(len(context)), ids[0, 1:]])[: tower.context_length]
        rows.append(tower.encode(sequence[None], placed[None])[0])
    return F.normalize(torch.stack(rows), dim=1)


def written(clip: ClipBackbone) -> torch.Tensor:
    return F.normalize(clip.encode_text(clip.tokenize([f"a picture of a {name}." for name in CLASSES])), dim=1)


def kgcoops_gradient(clip: ClipBackbone, context: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    directions = directions_of(clip, context)
    logits = clip.logit_scale * F.normalize(features, dim=1) @ directions.T
    squared = (directions - written(clip)).square().sum(dim=1).mean()  # the paper's; the code's weight 8 is 4 of it
    return torch.autograd.grad(F.cross_entropy(logits, LABELS) + 4.0 * squared, context)[0]


def prograds_gradient(clip: ClipBackbone, context: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """As in the authors' trainer: the two gradients one after the other, flattened."""
    features = F.normalize(features, dim=1)
    logits = clip.logit_scale * features @ directions_of(clip, context).T
    teacher = (clip.logit_scale * features @ written(clip).T).softmax(dim=1)
    divergence = (teacher * (teacher.log() - logits.log_softmax(dim=1))).sum(dim=1).mean()
    [general] = torch.autograd.grad(divergence, context, retain_graph=True)
    [own] = torch.autograd.grad(F.cross_entropy(logits, LABELS), context)
    unit = general / general.norm()
    along = torch.dot(own.flatten(), unit.flatten())
    return own - along * unit if along < 0 else own


@pytest.mark.parametrize(("module", "gradient"), [(kgcoop, kgcoops_gradient), (prograd, prograds_gradient)])
@pytest.mark.parametrize("memory_mib", [None, 1])
def test_five_steps_are_the_papers(
    clip: ClipBackbone, module: ModuleType, gradient: object, memory_mib: int | None
) -> None:
    torch.manual_seed(0)
    assert callable(gradient)
    method = module.build(module.Config(context_init=None, num_context=4, memory_mib=memory_mib), clip, bench())
    features = torch.randn(8, 64)
    reference = method.context.detach().clone().requires_grad_()
    ours, theirs = (torch.optim.SGD([p], lr=0.05, momentum=0.9) for p in (method.context, reference))
    for _ in range(5):
        loss = F.cross_entropy(method(features), LABELS)
        ours.zero_grad()
        method.regularize(loss).backward()
        reference.grad = gradient(clip, reference, features)
        assert method.context.grad is not None
        torch.testing.assert_close(method.context.grad, reference.grad, atol=1e-5, rtol=1e-4)
        ours.step()
        theirs.step()
    torch.testing.assert_close(method.context.data, reference.data, atol=1e-5, rtol=1e-5)


def test_prograd_leaves_a_gradient_that_opposes_nothing_and_turns_one_that_does(clip: ClipBackbone) -> None:
    """By hand, in two dimensions: g = (1, 0), h = (-1, 1); g·h = -1, h·h = 2, so g becomes (1/2, 1/2)."""
    project = prograd.Projection(written(clip), 1.0, strength=1.0, temperature=1.0)
    context = nn.Parameter(torch.tensor([[0.0, 0.0]]))
    found = []
    for general in ((-1.0, 1.0), (1.0, 1.0)):
        passes = [_context.Pass(torch.zeros(1, 64), torch.zeros(3, 64), _Linear(general)(context))]
        context.grad = None
        loss = project(7.0 + context[0, 0], context, passes)
        loss.backward()
        assert loss.item() == 7.0
        assert context.grad is not None
        found.append(context.grad[0].tolist())
    assert found == [pytest.approx([0.5, 0.5], abs=1e-5), [1.0, 0.0]]


class _Linear:
    """Logits of one image whose divergence from the uniform distribution has a gradient along ``direction``."""

    def __init__(self, direction: tuple[float, float]) -> None:
        self.direction = torch.tensor(direction)

    def __call__(self, context: torch.Tensor) -> torch.Tensor:
        along = context[0] @ self.direction
        return torch.stack([1 + along, along * 0, along * 0])[None]  # further from uniform as it grows


def test_both_hold_the_context_where_it_started(clip: ClipBackbone) -> None:
    """A context that is the written prompt is not held back, so KgCoOp's loss is the cross-entropy alone."""
    benchmark = Benchmark("b", CLASSES, templates=("a photo of a {}.",))
    method = kgcoop.build(kgcoop.Config(), clip, benchmark)
    loss = F.cross_entropy(method(torch.randn(8, 64)), LABELS)
    torch.testing.assert_close(method.regularize(loss), loss, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        method.directions(), prompts.class_directions(clip, CLASSES, ["a photo of a {}."]), atol=1e-5, rtol=0
    )


def test_prograds_context_is_padded_with_zeros_in_front_of_its_words(clip: ClipBackbone) -> None:
    context = prograd.build(prograd.Config(), clip, bench()).context
    words = kgcoop.build(kgcoop.Config(), clip, bench()).context
    assert len(context) == 16
    assert not context[: 16 - len(words)].any()
    torch.testing.assert_close(context[16 - len(words) :], words)


def test_only_passes_of_a_step_are_kept_and_only_until_its_loss(clip: ClipBackbone) -> None:
    method = kgcoop.build(kgcoop.Config(), clip, bench())
    method(torch.randn(2, 64))
    method.eval()(torch.randn(2, 64))
    with torch.no_grad():
        method.train()(torch.randn(2, 64))
    assert len(method._passes) == 1
    method.regularize(torch.zeros(()))
    assert not method._passes


def cocoops_logits(clip: ClipBackbone, method: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """KaiyangZhou/CoOp's CustomCLIP.forward, image by image and class by class."""
    rows = []
    for feature in F.normalize(features, dim=1):
        hidden = (method.reduce.weight @ feature + method.reduce.bias).clamp(min=0)  # type: ignore[union-attr, operator]
        shift = method.expand.weight @ hidden + method.expand.bias  # type: ignore[union-attr, operator]
        rows.append(clip.logit_scale * directions_of(clip, method.context + shift) @ feature)  # type: ignore[operator]
    return torch.stack(rows)


@pytest.mark.parametrize("group", [1, 3, 8])
@pytest.mark.parametrize("memory_mib", [None, 1])
def test_five_steps_of_cocoop_are_the_papers_whatever_the_groups(
    clip: ClipBackbone, group: int, memory_mib: int | None
) -> None:
    torch.manual_seed(1)
    method = cocoop.build(cocoop.Config(context_init=None, memory_mib=memory_mib), clip, bench())
    method.group = group
    reference = copy.deepcopy(method)
    features = torch.randn(8, 64)
    ours, theirs = (torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9) for m in (method, reference))
    for _ in range(5):
        logits, expected = method(features), cocoops_logits(clip, reference, features)
        torch.testing.assert_close(logits, expected, atol=1e-5 * clip.logit_scale, rtol=1e-4)
        for optimizer, found in ((ours, logits), (theirs, expected)):
            optimizer.zero_grad()
            F.cross_entropy(found, LABELS).backward()
        for own, other in zip(method.parameters(), reference.parameters(), strict=True):
            assert own.grad is not None
            assert own.grad.abs().max() > 1e-7
            torch.testing.assert_close(own.grad, other.grad, atol=1e-5, rtol=1e-4)
        ours.step()
        theirs.step()


def test_a_network_of_zeros_leaves_cocoop_the_prompt_of_its_words(clip: ClipBackbone) -> None:
    method = cocoop.build(cocoop.Config(), clip, bench())
    nn.init.zeros_(method.expand.weight)
    nn.init.zeros_(method.expand.bias)
    own = prompts.class_directions(clip, CLASSES, ["a photo of a {}."])
    torch.testing.assert_close(method.directions(torch.randn(2, 64)), own.expand(2, -1, -1), atol=1e-5, rtol=0)


def test_cocoop_has_no_class_specific_context(clip: ClipBackbone) -> None:
    with pytest.raises(ConfigError, match="no class's"):
        cocoop.build(cocoop.Config(class_specific=True), clip, bench())


def test_images_in_groups_keep_the_activations_of_one_group(clip: ClipBackbone) -> None:
    """Counts the bytes that are kept for the backward pass."""
    method = cocoop.build(cocoop.Config(), clip, bench())

    def kept(num_images: int, group: int) -> int:
        method.group = group
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            logits = method(torch.randn(num_images, 64))
        assert logits.requires_grad
        return sum(sizes.values())

    assert kept(8, group=1) < kept(8, group=8) / 4


@pytest.mark.parametrize("module", [kgcoop, prograd, cocoop])
def test_what_is_learnt_is_fp32_over_bf16_weights(clip: ClipBackbone, module: ModuleType) -> None:
    placed = place(copy.deepcopy(clip), "bf16", "cpu")
    method = module.build(module.Config(), placed, bench())
    loss = F.cross_entropy(method(torch.randn(8, 64)), LABELS)
    regularize = module.METHOD.regularize
    (loss if regularize is None else regularize(method, loss)).backward()
    assert {p.dtype for p in method.parameters()} == {p.grad.dtype for p in method.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("module", "expected"),  # of the authors' code
    [
        (kgcoop, {"epochs": 100, "batch_size": 128, "lr": 0.002, "num_context": 4, "weight": 8.0}),
        (prograd, {"epochs": 100, "batch_size": 32, "lr": 0.002, "num_context": 16, "strength": 1.0}),
        (cocoop, {"epochs": 10, "batch_size": 1, "lr": 0.002, "num_context": 4, "context_init": "a photo of a"}),
    ],
)
def test_defaults_are_the_authors(module: ModuleType, expected: dict[str, object]) -> None:
    config = dataclasses.asdict(module.Config())
    assert {k: config[k] for k in expected} == expected


def test_the_classifier_goes_down_the_regularized_loss(clip: ClipBackbone) -> None:
    method = kgcoop.build(kgcoop.Config(weight=1e3), clip, bench())
    classifier = Classifier(
        clip, method, 3, kgcoop.METHOD.fit_of(kgcoop.Config()), kgcoop.METHOD, kgcoop.Config()
    ).train()
    batch = torch.randn(8, 64), LABELS
    loss = classifier.training_step(batch, 0)
    assert loss is not None
    plain = F.cross_entropy(method.eval()(batch[0]), LABELS)
    assert loss.item() > plain.item() + 1


def test_text_is_encoded_once_a_step(clip: ClipBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    method = kgcoop.build(kgcoop.Config(), clip, bench())
    calls = []
    encode = prompt_encoder.Prompts.encode
    monkeypatch.setattr(
        prompt_encoder.Prompts, "encode", lambda self, *a, **k: calls.append(1) or encode(self, *a, **k)
    )
    method.regularize(F.cross_entropy(method(torch.randn(8, 64)), LABELS))
    assert len(calls) == 1
