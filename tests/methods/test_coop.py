"""CoOp equals references that write each prompt out token by token, in every position of the class name."""

import copy

import pytest
import torch
from torch.nn import functional as F

from clipdg.core.benchmark import Benchmark
from clipdg.core.errors import ConfigError, OutOfMemoryError
from clipdg.core.model import ClipBackbone
from clipdg.methods import _context, coop
from clipdg.training.schedules import lr_factor
from clipdg.weights.precision import place

CLASSES = ("cat", "dog", "bird house")


def bench() -> Benchmark:
    return Benchmark("b", CLASSES)


def test_a_context_of_words_is_the_prompt_with_those_words(clip: ClipBackbone) -> None:
    """Nothing learnt yet: the embeddings of "a photo of" in the context's place are that prompt."""
    method = coop.build(coop.Config(context_init="a photo of"), clip, bench())
    expected = clip.encode_text(clip.tokenize([f"a photo of {name}." for name in CLASSES]))
    torch.testing.assert_close(method.directions(), F.normalize(expected, dim=1), atol=1e-6, rtol=1e-5)


def test_the_context_has_as_many_vectors_as_the_text_has_tokens(clip: ClipBackbone) -> None:
    spelled = coop.build(coop.Config(context_init="qx a", num_context=7), clip, bench())
    tokens = clip.tokenize(["qx a"])[0]
    assert len(spelled.context) == int((tokens != 0).sum()) - 2  # without start and end
    assert clip.text_tower is not None
    torch.testing.assert_close(
        spelled.context.data, clip.text_tower.embed(tokens[None])[0, 1 : 1 + len(spelled.context)]
    )


def naive_logits(clip: ClipBackbone, context: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """One class at a time, its prompt spelled out token by token."""
    tower = clip.text_tower
    assert tower is not None
    rows = []
    for i, name in enumerate(CLASSES):
        ids = clip.tokenize([f"{name}."])
        embedded = tower.embed(ids)[0]
        own = context if context.ndim == 2 else context[i]
        sequence = torch.cat([embedded[:1], own, embedded[1:]])[: tower.context_length]
        placed = torch.cat([ids[0, :1], ids[0, 1:2].repeat(len(own)), ids[0, 1:]])[: tower.context_length]
        rows.append(tower.encode(sequence[None], placed[None])[0])
    text = F.normalize(torch.stack(rows), dim=1)
    return clip.logit_scale * F.normalize(features, dim=1) @ text.T


@pytest.mark.parametrize("class_specific", [False, True])
def test_five_steps_equal_a_naive_reference(clip: ClipBackbone, class_specific: bool) -> None:
    torch.manual_seed(3)
    method = coop.build(coop.Config(num_context=4, class_specific=class_specific), clip, bench())
    features = torch.randn(8, 64)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    reference = method.context.detach().clone().requires_grad_()
    ours = torch.optim.SGD(method.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    theirs = torch.optim.SGD([reference], lr=0.05, momentum=0.9, weight_decay=5e-4)
    for _ in range(5):
        for optimizer, logits in ((ours, method(features)), (theirs, naive_logits(clip, reference, features))):
            optimizer.zero_grad()
            F.cross_entropy(logits, labels).backward()
            optimizer.step()
        assert method.context.grad is not None
        torch.testing.assert_close(method.context.grad, reference.grad, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(method.context.data, reference.data, atol=1e-6, rtol=1e-5)


def test_only_the_context_has_a_gradient(clip: ClipBackbone) -> None:
    method = coop.build(coop.Config(num_context=4), clip, bench())
    method(torch.randn(2, 64)).sum().backward()
    assert [name for name, p in method.named_parameters() if p.grad is not None] == ["context"]
    assert all(p.grad is None for p in clip.parameters())  # type: ignore[attr-defined]


def test_a_context_that_leaves_no_room_is_refused(clip: ClipBackbone) -> None:
    with pytest.raises(ConfigError, match="46 context vectors leave too little of 48 tokens"):
        coop.build(coop.Config(num_context=46), clip, bench())


@pytest.mark.parametrize(
    ("epochs", "epoch", "rate"),  # Dassl's, PROTOCOLS.md 2.2
    [
        (50, 0, 1e-5),
        (50, 1, 0.002),
        (50, 2, 0.00199803),
        (50, 25, 0.00106279),
        (50, 49, 7.8853e-6),
        (200, 199, 4.934e-7),
    ],
)
def test_the_schedule_is_dassls(epochs: int, epoch: int, rate: float) -> None:
    fit = coop.METHOD.fit_of(coop.Config(epochs=epochs))
    assert fit is not None
    assert fit.lr * lr_factor(fit, epochs, 1)(epoch) == pytest.approx(rate, rel=1e-4)


LONG_CLASSES = ("cat", "dog", "bird house", "a very tall house", "zebra")


def by_the_papers_code(
    clip: ClipBackbone, context: torch.Tensor, features: torch.Tensor, position: str
) -> torch.Tensor:
    """KaiyangZhou/CoOp's PromptLearner.forward, class by class, and all tokens through the tower written out."""
    tower = clip.text_tower
    assert tower is not None
    description = tower.description
    assert description is not None
    m, rows = context.shape[-2], []
    for i, name in enumerate(LONG_CLASSES):
        tokens = clip.tokenize([f"{name}."])[0]
        name_length = int((clip.tokenize([name])[0] != 0).sum()) - 2
        embedded = tower.embed(tokens[None])[0]
        prefix, class_i, suffix = embedded[:1], embedded[1 : 1 + name_length], embedded[1 + name_length :]
        ctx = context if context.ndim == 2 else context[i]
        half = m // 2
        parts = {
            "end": [prefix, ctx, class_i, suffix],
            "middle": [prefix, ctx[:half], class_i, ctx[half:], suffix],
            "front": [prefix, class_i, ctx, suffix],
        }[position]
        x = torch.cat(parts)[: tower.context_length] + description.positions
        end = m + int((tokens != 0).sum()) - 1
        mask = torch.ones(len(x), len(x)).tril().log()  # 0 and -inf
        for block in description.blocks:
            q, k, v = (block.query_key_value(block.norm1(x))).unflatten(1, (3, description.heads, -1)).unbind(1)  # type: ignore[operator]
            scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5 + mask
            x = x + block.out(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1))
            x = x + block.down(F.gelu(block.up(block.norm2(x))))
        assert description.projection is not None
        rows.append(description.projection(description.norm(x[end])))
    return clip.logit_scale * F.normalize(features, dim=1) @ F.normalize(torch.stack(rows), dim=1).T


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("class_specific", [False, True])
@pytest.mark.parametrize("memory_mib", [None, 1])
def test_each_position_is_that_of_the_papers_code_through_five_steps(
    clip: ClipBackbone, position: _context.Position, class_specific: bool, memory_mib: int | None
) -> None:
    torch.manual_seed(4)
    config = coop.Config(num_context=5, class_specific=class_specific, position=position, memory_mib=memory_mib)
    method = coop.build(config, clip, Benchmark("b", LONG_CLASSES))
    features, labels = torch.randn(8, 64), torch.tensor([0, 1, 2, 3, 4, 1, 2, 0])
    reference = method.context.detach().clone().requires_grad_()
    ours = torch.optim.SGD(method.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    theirs = torch.optim.SGD([reference], lr=0.05, momentum=0.9, weight_decay=5e-4)
    for _ in range(5):
        logits, expected = method(features), by_the_papers_code(clip, reference, features, position)
        torch.testing.assert_close(logits, expected, atol=1e-5 * clip.logit_scale, rtol=1e-5)
        for optimizer, loss in ((ours, F.cross_entropy(logits, labels)), (theirs, F.cross_entropy(expected, labels))):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert method.context.grad is not None
        assert reference.grad is not None
        torch.testing.assert_close(method.context.grad, reference.grad, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(method.context.data, reference.data, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("position", "sentence"), [("end", "a b c d {}."), ("middle", "a b {} c d."), ("front", "{} a b c d.")]
)
def test_words_as_context_are_that_sentence_wherever_the_name_stands(
    clip: ClipBackbone, position: _context.Position, sentence: str
) -> None:
    method = coop.build(coop.Config(context_init="a b c d", position=position), clip, bench())
    expected = F.normalize(clip.encode_text(clip.tokenize([sentence.replace("{}", name) for name in CLASSES])), dim=1)
    torch.testing.assert_close(method.directions(), expected, atol=1e-6, rtol=1e-5)


def test_the_context_and_its_gradient_are_fp32_over_bf16_weights(clip: ClipBackbone) -> None:
    placed = place(copy.deepcopy(clip), "bf16", "cpu")
    method = coop.build(coop.Config(num_context=4), placed, bench())
    loss = F.cross_entropy(method(torch.randn(3, 64)), torch.tensor([0, 1, 2]))
    loss.backward()
    assert method.context.grad is not None
    assert (loss.dtype, method.context.dtype, method.context.grad.dtype) == (torch.float32,) * 3


def test_a_step_that_fits_nowhere_is_refused(clip: ClipBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipdg.text.prompt_encoder._free", lambda device: 1000)
    method = coop.build(coop.Config(num_context=4), clip, bench())
    with pytest.raises(OutOfMemoryError, match=r"a step over 3 prompts needs .* MiB"):
        method.directions()
