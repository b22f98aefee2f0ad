import pytest
import torch
from torch.nn import functional as F

from clipdg.classifier import lr_factor
from clipdg.core import Benchmark, ClipBackbone
from clipdg.errors import ConfigError
from clipdg.methods import coop

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
    fit = coop.fit(coop.Config(epochs=epochs))
    assert fit.lr * lr_factor(fit, epochs, 1)(epoch) == pytest.approx(rate, rel=1e-4)
