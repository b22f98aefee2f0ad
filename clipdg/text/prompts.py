"""Templates, and class names as directions in CLIP space.

A class's direction is the mean of its prompts' embeddings, each of unit length before the mean and the mean made unit
length after it (Radford et al. 2021, openai/CLIP's Prompt_Engineering_for_ImageNet). ``ensemble="raw"`` averages the
embeddings as they come and normalises once, as the ImageNet testbed and PromptSRC do: another method, by another name.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Literal

from clipdg.core.errors import ConfigError
from clipdg.storage import cache_folder
from clipdg.storage.publish import digest
from clipdg.storage.sharded_array import StoredArray

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from clipdg.core.model import ClipBackbone

Ensemble = Literal["normalized", "raw"]
SCHEMA = 2  # of stored directions; raised when the same prompts would have other ones
CLASSES_PER_SHARD = 256
_progress: ContextVar[Callable[[str, int, int], None] | None] = ContextVar("progress", default=None)
PLACEHOLDERS = {
    "{}": "the class name",
    "{label}": "the same",
    "{c}": "the same, in clip-benchmark's files",
    "{a}": "the class name with its indefinite article",
    "{domain}": "what images of the test domain are called",
    "{a_domain}": "the same with its indefinite article",
}


def with_article(noun: str) -> str:
    """``apple`` -> ``an apple``; by the first letter, which is all that a template needs."""
    return f"{'an' if noun[:1].lower() in set('aeiou') else 'a'} {noun}"


def check_template(template: str) -> None:
    """Raises ConfigError if ``template`` has no place for the class name or a placeholder that there is not."""
    found = re.findall(r"\{[^{}]*\}", template)
    unknown = [p for p in found if p not in PLACEHOLDERS]
    if unknown:
        raise ConfigError(f"template '{template}' has {unknown[0]}; a template may hold {', '.join(PLACEHOLDERS)}")
    if not {"{}", "{label}", "{c}", "{a}"} & set(found):
        raise ConfigError(f"template '{template}' has no place for the class name; write {{}} where it goes")


def names_domain(template: str) -> bool:
    """Whether the prompt uses knowledge of the test domain, which is to be said beside its results."""
    return "{domain}" in template or "{a_domain}" in template


def fill(template: str, class_name: str, noun: str | None = None) -> str:
    """The prompt for one class. Raises ConfigError if the template names the domain and ``noun`` is None."""
    if names_domain(template) and noun is None:
        raise ConfigError(f"template '{template}' names the domain, and this benchmark's domains have no noun for it")
    values = {"{}": class_name, "{label}": class_name, "{c}": class_name, "{a}": with_article(class_name)}
    if noun is not None:
        values |= {"{domain}": noun, "{a_domain}": with_article(noun)}
    return re.sub(r"\{[^{}]*\}", lambda match: values[match.group()], template)


def class_directions(
    backbone: ClipBackbone,
    classes: Sequence[str],
    templates: Sequence[str],
    *,
    ensemble: Ensemble = "normalized",
    noun: str | None = None,
) -> Tensor:
    """Unit directions (C, D) of ``classes``, in fp32.

    Raises:
        ConfigError: no template, or one without a place for the class name.
        DataError: a prompt is longer than the context or has characters the tokenizer cannot represent.
    """
    if not templates:
        raise ConfigError("there is no template; give at least one, such as 'a photo of a {}.'")
    for template in templates:
        check_template(template)
    return prompt_directions(backbone, [[fill(t, name, noun) for t in templates] for name in classes], ensemble)


def prompt_directions(
    backbone: ClipBackbone,
    prompts_of: Sequence[Sequence[str]],
    ensemble: Ensemble = "normalized",
    *,
    store: bool = False,
) -> Tensor:
    """Unit directions (C, D) in fp32 of C classes, each given by one prompt or more.

    ``store``: keep them beside the stored features, under a hash of what makes them, and encode no text the next time;
    only weights that are as they were loaded may ask for it, for it is by those that they are found.

    Raises DataError for a prompt that is longer than the context or that the tokenizer cannot represent.
    """
    import numpy as np
    import torch

    owns = [tuple(own) for own in prompts_of]
    distinct = list(dict.fromkeys(owns))  # classes of one name have one direction, to the last bit
    texts = list(dict.fromkeys(text for own in distinct for text in own))
    row = {text: i for i, text in enumerate(texts)}
    tokens = backbone.tokenize(texts)
    counts = [len(own) for own in distinct]
    index = np.array([row[text] for own in distinct for text in own])
    device = next(backbone.parameters()).device  # type: ignore[attr-defined]  # every backbone is an nn.Module
    work = _Directions(backbone, tokens.to(device), index, counts, ensemble)
    found = work.stored() if store else work.of(range(len(distinct)))
    number = {own: i for i, own in enumerate(distinct)}
    return found.to(device)[torch.tensor([number[own] for own in owns], device=device)]


class _Directions:
    """The directions of classes that differ. ``index``: the rows of ``tokens`` of all of them, ``counts`` of each."""

    def __init__(
        self, backbone: ClipBackbone, tokens: Tensor, index: np.ndarray, counts: Sequence[int], ensemble: Ensemble
    ) -> None:
        self.backbone, self.tokens, self.index, self.counts = backbone, tokens, index, counts
        self.ensemble: Ensemble = ensemble
        self.starts = [0, *itertools.accumulate(counts)]
        self.num_encoded = 0

    def of(self, classes: range) -> Tensor:
        """(number of ``classes``, D), computed; so many prompts at a time that their features take 256 MiB at most."""
        import torch
        from torch.nn import functional as F

        most = max(1, 2**26 // self.backbone.embed_dim)
        means = []
        start = classes.start
        with torch.no_grad():
            while start < classes.stop:
                stop = start + 1
                while stop < classes.stop and self.starts[stop + 1] - self.starts[start] <= most:
                    stop += 1
                own = torch.from_numpy(self.index[self.starts[start] : self.starts[stop]])
                rows, index = torch.unique(own, return_inverse=True)
                embeddings = self._encode(rows.to(self.tokens.device))
                if self.ensemble == "normalized":
                    embeddings = F.normalize(embeddings, dim=-1)
                for part in torch.split(index, list(self.counts[start:stop])):
                    means.append(embeddings[part.to(embeddings.device)].mean(dim=0))
                start = stop
            return F.normalize(torch.stack(means), dim=-1)

    def _encode(self, rows: Tensor) -> Tensor:
        """(number of ``rows``, D) in fp32"""
        import torch

        from clipdg.text.prompt_encoder import Prompts

        tower = self.backbone.text_tower
        if tower is not None:
            features = Prompts(tower, self.tokens[rows]).encode(progress=lambda done, _: self._tell(done))
        else:
            features = torch.cat(
                [self.backbone.encode_text(self.tokens[part]).float() for part in torch.split(rows, 256)]
            )
        self.num_encoded += len(rows)
        return features

    def _tell(self, done: int) -> None:
        progress = _progress.get()
        if progress:
            progress("encode prompts", min(self.num_encoded + done, len(self.tokens)), len(self.tokens))

    def stored(self) -> Tensor:
        """(number of classes, D), from the store, or computed and put there."""
        import torch

        from clipdg.weights.files import libraries

        tensors = list(self.backbone.parameters())  # type: ignore[attr-defined]  # every backbone is an nn.Module
        assert not any(t.requires_grad for t in tensors), "weights that are trained are not those of their fingerprint"
        kind = tensors[0].device.type
        story = {
            "schema": SCHEMA,
            "weights": self.backbone.weights.fingerprint,
            "precision": getattr(self.backbone, "precision", "fp32"),  # of precision.Placed
            "tokens": hashlib.sha256(self.tokens.cpu().numpy().tobytes()).hexdigest(),
            "shape": list(self.tokens.shape),
            "classes": digest([self.index.tolist(), list(self.counts)]),
            "ensemble": self.ensemble,
            "device": torch.backends.cpu.get_cpu_capability() if kind == "cpu" else torch.cuda.get_device_name(),
            "libraries": libraries(self.backbone.weights),
        }
        name = {"domain": f"{len(self.tokens):,} prompts", "tag": self.backbone.weights.tag}
        about = {**story, **name, "backbone": self.backbone.weights.backbone}
        num = len(self.counts)
        array = StoredArray(
            cache_folder.folder("features") / digest(story), num, self.backbone.embed_dim, CLASSES_PER_SHARD, about
        )
        found = array.open()
        if found is None:
            with array.lease(lambda done: None):
                while (found := array.open()) is None:
                    array.begin()
                    for shard in array.missing():
                        array.write(shard, self.of(array.ranges[shard]).cpu().numpy())
                    array.join()
        return torch.from_numpy(found)


@contextmanager
def reporting(progress: Callable[[str, int, int], None] | None) -> Iterator[None]:
    """While it lasts, prompts that are encoded are counted to ``progress``: stage, done, total."""
    token = _progress.set(progress)
    try:
        yield
    finally:
        _progress.reset(token)
