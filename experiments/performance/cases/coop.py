"""A step of CoOp over stored features: against the authors' way, 77 tokens of every class through the text tower.

Theirs has the image encoder in the step as well, because of random crops; cases named ``-images`` have it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from harness import Case, Setting, Side, Step
from torch.nn import functional as F

from cases._towers import PACS, backbone, imagenet_classes
from clipdg.core.benchmark import Benchmark
from clipdg.methods import coop

BATCH, LR = 32, 2e-3


def names(setting: Setting, count: int) -> list[str]:
    return PACS if count == len(PACS) else imagenet_classes(min(count, 20) if setting.small else count)


def start(width: int, num_context: int, device: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (0.02 * torch.randn(num_context, width, generator=generator)).to(device)


def batch(width: int, classes: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and labels, as they come out of the store."""
    generator = torch.Generator().manual_seed(1)
    features = F.normalize(torch.randn(BATCH, width, generator=generator), dim=1)
    return features.to(device), torch.randint(classes, (BATCH,), generator=generator).to(device)


def inputs(clip: Any, classes: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of normalised images, ready on the device, and their labels."""
    size = clip.preprocessing.size
    generator = torch.Generator().manual_seed(2)
    drawn = torch.randn(BATCH, 3, size, size, generator=generator).to(device)
    return drawn, torch.randint(classes, (BATCH,), generator=generator).to(device)


def features_of(clip: Any, drawn: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return F.normalize(clip.encode_image(drawn), dim=1)


def gradient_step(context: torch.nn.Parameter, loss: Any) -> Step:
    """One SGD step whose outcome is the gradient it took; the context is put back, so that every turn is the same."""
    optimizer = torch.optim.SGD([context], LR, momentum=0.9, weight_decay=5e-4)
    before = context.detach().clone()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        with torch.no_grad():
            context.copy_(before)
        assert context.grad is not None
        return context.grad.clone()

    return step


def theirs(count: int, num_context: int, part: float = 1.0, encodes: bool = False) -> Any:
    """As in KaiyangZhou/CoOp's trainers/coop.py, over open_clip's own modules."""

    def prepare(setting: Setting) -> Step:
        clip = backbone(setting)
        model, classes = clip.model, names(setting, count)[:: round(1 / part)]
        tokens = clip.tokenize([" ".join(["X"] * num_context) + f" {name}." for name in classes])
        embeddings = model.token_embedding(tokens).detach()
        prefix, suffix = embeddings[:, :1], embeddings[:, 1 + num_context :]
        context = torch.nn.Parameter(start(embeddings.shape[2], num_context, setting.device))
        features, labels = batch(clip.embed_dim, len(classes), setting.device)
        if encodes:
            drawn, labels = inputs(clip, len(classes), setting.device)

        def loss() -> torch.Tensor:
            seen = features_of(clip, drawn) if encodes else features
            x = torch.cat([prefix, context.expand(len(classes), -1, -1), suffix], dim=1)  # (C, 77, W)
            x = model.transformer(x + model.positional_embedding, attn_mask=model.attn_mask)
            x = model.ln_final(x)[torch.arange(len(x)), tokens.argmax(dim=1)] @ model.text_projection
            return F.cross_entropy(clip.logit_scale * seen @ F.normalize(x, dim=1).T, labels)

        return gradient_step(context, loss)

    return prepare


def ours(count: int, num_context: int, images: str = "none") -> Any:
    """``images``: "stored" for a batch of images that are encoded before the step, "encoded" in it."""

    def prepare(setting: Setting) -> Step:
        clip = backbone(setting)
        classes = names(setting, count)
        method = coop.build(coop.Config(num_context=num_context), clip, Benchmark("classes", tuple(classes)))
        method.context.data = start(method.context.shape[1], num_context, setting.device)
        features, labels = batch(clip.embed_dim, len(classes), setting.device)
        if images != "none":
            drawn, labels = inputs(clip, len(classes), setting.device)
            features = features_of(clip, drawn)
        if images == "encoded":
            return gradient_step(method.context, lambda: F.cross_entropy(method(features_of(clip, drawn)), labels))
        return gradient_step(method.context, lambda: F.cross_entropy(method(features), labels))

    return prepare


def gradients(outcomes: Sequence[torch.Tensor]) -> dict[str, float]:
    first, last = outcomes[0], outcomes[-1]
    return {"relative difference of the gradient": float((first - last).norm() / first.norm())}


def step_case(count: int, num_context: int, at_least: float, memory: float | None, turns: int | None = None) -> Case:
    return Case(
        f"coop-{count}" if num_context == 16 else f"coop-{count}-{num_context}",
        f"a CoOp step, {count} classes, {num_context} shared context tokens, features stored",
        (
            Side("77 tokens of every class", theirs(count, num_context), turns=turns),
            Side("clipdg", ours(count, num_context)),
        ),
        gradients,
        # fp32's own error at this size: each way is about 6e-6 from the same in fp64
        {"relative difference of the gradient": 2e-5},
        at_least=at_least,
        memory_at_least=memory,
    )


CASES = (
    step_case(7, 16, 10, None),
    step_case(65, 16, 20, 10),
    step_case(345, 16, 25, 10, turns=1),
    Case(
        "coop-1000",
        "a CoOp step, 1,000 classes, 16 shared context tokens; theirs does not fit, and is of 100 classes",
        (
            Side("77 tokens of every class", theirs(1000, 16, 0.1), scale=0.1, memory_scale=0.1, turns=1),
            Side("clipdg", ours(1000, 16)),
        ),
        at_least=25,
        memory_at_least=10,
    ),
    step_case(65, 4, 20, 10),
    Case(
        "coop-65-images",
        "a CoOp step from images, 65 classes, 16 shared context tokens: encoded in the step, or once before",
        (
            Side("image encoder, 77 tokens of every class", theirs(65, 16, encodes=True), turns=1, memory=False),
            Side("clipdg, image encoder in the step", ours(65, 16, "encoded"), memory=False),
            Side("clipdg, features stored", ours(65, 16, "stored"), memory=False),
        ),
        gradients,
        {"relative difference of the gradient": 2e-5},
        at_least=20,
    ),
)
