"""The contract of a backbone: ``check_backbone("my_package.my_backbone:MODEL")``.

It is held with random weights, ``random:SEED``, which need no download, or with those that are given.
Legend: N images, C texts, D features, S pixels a side.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from clipdg.core import plugins
from clipdg.core.errors import ClipdgError
from clipdg.core.model import Backbone, ClipBackbone
from clipdg.data import preprocessing
from clipdg.runs import config
from clipdg.runs.session import open_backbone
from clipdg.testing.problem import Check, NotPossible, Problem, look, place, problems_in
from clipdg.weights.files import libraries

TOLERANCE = 1e-4  # of the largest feature: what fp32 leaves between batches of other sizes
TEXTS = ("a dog", "a photo of a small red bird.", "sketch of a house")


@dataclass
class Subject:
    """A backbone, by the name that settings call it by."""

    spec: str
    definition: plugins.BackboneFamily[Any]
    weights: str | None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def family(self) -> str:
        return self.spec.partition(":")[0]

    def load(self, weights: str | None = None) -> Backbone:
        """Load it anew, on the CPU."""
        given = {"name": self.spec, "weights": weights or self.weights, **self.settings}
        settings = config.load(values={"backbone": given}).backbone
        loaded = open_backbone(settings)
        assert isinstance(loaded, nn.Module), "load gives an nn.Module"
        loaded.cpu()
        return loaded

    @cached_property
    def opened(self) -> Backbone | None:
        try:
            return self.load()
        except Exception:  # the first check tells it
            return None

    @property
    def backbone(self) -> Backbone:
        if self.opened is None:
            raise NotPossible
        return self.opened

    @property
    def clip(self) -> ClipBackbone:
        """Raises NotPossible if it has no text encoder."""
        if not isinstance(self.backbone, ClipBackbone):
            raise NotPossible
        return self.backbone

    @cached_property
    def images(self) -> Tensor:
        """(6, 3, S, S), normalised."""
        return torch.stack([self.backbone.preprocess(image) for image in _pictures()])


def _pictures() -> list[Image.Image]:
    """RGB images of several sizes."""
    rng = np.random.default_rng(0)
    sizes = ((40, 40), (64, 48), (33, 70), (32, 32), (50, 31), (90, 90))
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3)).astype(np.uint8)) for w, h in sizes]


def check_backbone(
    spec: str, weights: str | None = "random:0", settings: Mapping[str, Any] | None = None
) -> list[Problem]:
    """What a backbone does not hold of its contract; nothing if all is well."""
    return problems_in(checks(spec, weights, settings))


def checks(spec: str, weights: str | None = "random:0", settings: Mapping[str, Any] | None = None) -> list[Check]:
    """Everything that is looked at, with its problems."""
    definition = plugins.backbone(spec.partition(":")[0])
    subject = Subject(spec, definition, weights, settings or {})
    every = [
        loads_frozen,
        libraries_are_installed_and_key_the_features,
        preprocesses_as_it_says,
        features_have_their_shape,
        batches_do_not_matter,
        weights_are_told_apart,
        can_be_trained,
    ]
    if subject.opened is not None and isinstance(subject.opened, ClipBackbone):
        every += [texts_have_their_place, the_text_tower_is_cut_exactly]
    return look(every, subject, subject.family)


def loads_frozen(subject: Subject) -> Iterator[Problem]:
    """it loads, in evaluation mode and frozen, and its weights are called by the family's name."""
    backbone: Any = subject.load()  # refuses weights that are not called so
    where = place(subject.definition.load)
    if not isinstance(backbone, Backbone):
        lacks = [n for n in ("name", "weights", "embed_dim", "preprocessing", "preprocess", "encode_image")
                 if not hasattr(backbone, n)]  # fmt: skip
        yield Problem(f"what load gives has no {' and no '.join(lacks)}", where, "see Backbone in clipdg/core/model.py")
    assert isinstance(backbone, nn.Module)
    if backbone.training or any(p.requires_grad for p in backbone.parameters()):
        yield Problem("it is loaded in training mode or with gradients", where, "return weights.files.frozen(module)")


def libraries_are_installed_and_key_the_features(subject: Subject) -> Iterator[Problem]:
    """the libraries that it declares are installed and part of the stored features' name."""
    for library in subject.definition.libraries:
        try:
            version(library)
        except PackageNotFoundError:
            yield Problem(f"it declares the library {library}, which is not installed", "BACKBONE", "install it")
            return
    keyed = libraries(subject.backbone.weights)
    missing = [name for name in subject.definition.libraries if name not in keyed]
    if missing:
        yield Problem(
            f"{missing[0]} is not part of the name under which its features are stored",
            place(subject.definition.load),
            f"call its weights '{subject.family}:MODEL', by which its libraries are found",
        )


def preprocesses_as_it_says(subject: Subject) -> Iterator[Problem]:
    """an image is preprocessed to (3, S, S) as its ``preprocessing`` says."""
    backbone = subject.backbone
    size = backbone.preprocessing.size
    for image in _pictures():
        one = backbone.preprocess(image)
        if tuple(one.shape) != (3, size, size):
            yield Problem(
                f"preprocess gives the shape {tuple(one.shape)} and preprocessing.size is {size}",
                place(type(backbone).preprocess),
                "use clipdg.data.preprocessing.preprocess(image, self.preprocessing)",
            )
            return
        spec = backbone.preprocessing
        told = preprocessing.normalize(preprocessing.to_uint8(image, spec)[None], spec)[0]
        if not torch.allclose(one, told, atol=1e-5):
            yield Problem(
                "preprocess gives other pixels than its preprocessing, by which runs read images",
                place(type(backbone).preprocess),
                "use clipdg.data.preprocessing.preprocess(image, self.preprocessing)",
            )
            return


@torch.no_grad()
def _encode(backbone: Backbone, images: Tensor) -> Tensor:
    return backbone.encode_image(images)


def features_have_their_shape(subject: Subject) -> Iterator[Problem]:
    """features are (N, D) and finite, D being its ``embed_dim``."""
    features = _encode(subject.backbone, subject.images)
    wanted = (len(subject.images), subject.backbone.embed_dim)
    where = place(type(subject.backbone).encode_image)
    if tuple(features.shape) != wanted:
        yield Problem(f"features have the shape {tuple(features.shape)} and not {wanted}", where, "set embed_dim")
    if not torch.isfinite(features).all():
        yield Problem("a feature is not finite", where, "look at its weights and its preprocessing")


def batches_do_not_matter(subject: Subject) -> Iterator[Problem]:
    """an image has the same features whatever its batch and whatever came before."""
    backbone, images = subject.backbone, subject.images
    together = _encode(backbone, images)
    ways = {
        "alone": torch.cat([_encode(backbone, image[None]) for image in images]),
        "in another order": _encode(backbone, images.flip(0)).flip(0),
        "a second time": _encode(backbone, images),
    }
    largest = max(1e-6, float(together.abs().max()))
    for way, features in ways.items():
        if (far := float((features - together).abs().max()) / largest) > TOLERANCE or not far >= 0:
            yield Problem(
                f"features of an image that comes {way} differ by {far:.1e} of the largest one",
                place(type(backbone).encode_image),
                "stay in evaluation mode, and take no statistics over a batch",
            )


def weights_are_told_apart(subject: Subject) -> Iterator[Problem]:
    """its fingerprint is the same for the same weights and another for others."""
    where = place(subject.definition.load)
    first, again = subject.backbone, subject.load()
    if first.weights.fingerprint != again.weights.fingerprint:
        yield Problem("two loads of the same weights have two fingerprints", where, "make it by weights.files.identify")
    try:
        other = subject.load("random:1")
    except ClipdgError:  # it has no random weights to compare with
        return
    if other.weights.fingerprint == first.weights.fingerprint:
        same = torch.equal(_encode(other, subject.images), _encode(first, subject.images))
        yield Problem(
            "random:0 and random:1 are the same weights" if same else "other weights have the same fingerprint",
            where,
            "draw them from the seed" if same else "make the fingerprint of the tensors, by weights.files.identify",
        )


def can_be_trained(subject: Subject) -> Iterator[Problem]:
    """a copy of it passes gradients to its weights."""
    trained = copy.deepcopy(subject.backbone)
    assert isinstance(trained, nn.Module)
    trained.requires_grad_(True)
    features: Tensor = trained.encode_image(subject.images)
    if features.requires_grad:
        features.square().sum().backward()  # type: ignore[no-untyped-call]
    if all(p.grad is None for p in trained.parameters()):
        yield Problem(
            "no weight gets a gradient, so that erm could not train it",
            place(type(subject.backbone).encode_image),
            "encode without no_grad or detach; runs switch gradients off themselves",
        )


@torch.no_grad()
def texts_have_their_place(subject: Subject) -> Iterator[Problem]:
    """texts are (C, D) beside the images, and its logits are scaled cosines."""
    clip = subject.clip
    tokens = clip.tokenize(TEXTS)
    text, image = clip.encode_text(tokens), _encode(clip, subject.images)
    if tuple(text.shape) != (len(TEXTS), clip.embed_dim) or not torch.isfinite(text).all():
        yield Problem(
            f"texts have the shape {tuple(text.shape)} and not {(len(TEXTS), clip.embed_dim)}, or are not finite",
            place(type(clip).encode_text),
            "return (C, D) in the space of the images",
        )
        return
    if not clip.logit_scale > 0:
        yield Problem(f"logit_scale is {clip.logit_scale}", place(type(clip)), "give it exponentiated, as 100 in CLIP")
    alone = torch.cat([clip.encode_text(clip.tokenize([one])) for one in TEXTS])
    if (far := float((alone - text).abs().max() / text.abs().max())) > TOLERANCE:
        yield Problem(
            f"a text alone differs by {far:.1e} from the same beside others", place(type(clip).encode_text),
            "let the padding not be seen",
        )  # fmt: skip
    cosines = F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    by_image, by_text = clip.forward(subject.images, tokens)
    if by_image.shape != cosines.shape or by_text.shape != cosines.T.shape:
        yield Problem("forward gives logits of another shape", place(type(clip).forward), "return (N, C) and (C, N)")


@torch.no_grad()
def the_text_tower_is_cut_exactly(subject: Subject) -> Iterator[Problem]:
    """its text tower, cut at the token embeddings, is its text encoder."""
    clip = subject.clip
    tower = clip.text_tower
    if tower is None:
        return
    tokens = clip.tokenize(TEXTS)
    embedded = tower.embed(tokens)
    if embedded.shape[2] != tower.width or tokens.shape[1] > tower.context_length:
        yield Problem(
            f"tokens {tuple(tokens.shape)} are embedded as {tuple(embedded.shape)}; width is {tower.width} and "
            f"context_length {tower.context_length}",
            place(type(tower)),
            "set width and context_length",
        )
        return
    whole, cut = clip.encode_text(tokens), tower.encode(embedded, tokens)
    if (far := float((whole - cut).abs().max() / whole.abs().max())) > TOLERANCE:
        yield Problem(
            f"encode(embed(tokens)) differs by {far:.1e} from encode_text(tokens)",
            place(type(tower).encode),
            "add positions, mask and pooling there as the encoder does, or give text_tower=None",
        )
