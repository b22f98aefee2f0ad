"""Templates, and class names as directions in CLIP space.

A class's direction is the mean of its prompts' embeddings, each of unit length before the mean and the mean made unit
length after it (Radford et al. 2021, openai/CLIP's Prompt_Engineering_for_ImageNet). ``ensemble="raw"`` averages the
embeddings as they come and normalises once, as the ImageNet testbed and PromptSRC do: another method, by another name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from clipdg.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from clipdg.core import ClipBackbone

Ensemble = Literal["normalized", "raw"]
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
    backbone: ClipBackbone, prompts_of: Sequence[Sequence[str]], ensemble: Ensemble = "normalized"
) -> Tensor:
    """Unit directions (C, D) in fp32 of C classes, each given by one prompt or more.

    Raises DataError for a prompt that is longer than the context or that the tokenizer cannot represent.
    """
    import torch
    from torch.nn import functional as F

    prompts = [prompt for own in prompts_of for prompt in own]
    distinct = list(dict.fromkeys(prompts))
    with torch.no_grad():
        chunks = [encode_texts(backbone, distinct[i : i + 256]) for i in range(0, len(distinct), 256)]
        embeddings = torch.cat(chunks).float()  # (number of distinct prompts, D)
        row = {prompt: i for i, prompt in enumerate(distinct)}
        index = torch.tensor([row[p] for p in prompts], device=embeddings.device)
        if ensemble == "normalized":
            embeddings = F.normalize(embeddings, dim=-1)
        parts = torch.split(embeddings[index], [len(own) for own in prompts_of])
        means = [part.mean(dim=0) for part in parts]
        return F.normalize(torch.stack(means), dim=-1)


def encode_texts(backbone: ClipBackbone, texts: Sequence[str]) -> Tensor:
    """(number of texts, D), on the device that the backbone is on."""
    device = next(backbone.parameters()).device  # type: ignore[attr-defined]  # every backbone is an nn.Module
    return backbone.encode_text(backbone.tokenize(texts).to(device))
