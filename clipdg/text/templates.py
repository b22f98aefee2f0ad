"""Which prompts a class gets: templates by name, from a file or written out, and sentences about each class.

    templates     None          the benchmark's own
                  imagenet_1    "a photo of a {}." alone (CoOp's zero-shot rows)
                  imagenet_7    OpenAI's seven ("itap of a {}.", …), chosen from the 80 on ImageNet
                  imagenet_80   OpenAI's eighty (openai/CLIP, Prompt_Engineering_for_ImageNet)
                  FILE          one template a line, or a JSON list; clip-benchmark's {c} is the class name too
                  "my {}"       a template; or a list of them
    descriptions  FILE          JSON, {"class": ["sentence", …]}, as in CuPL (Pratt et al. 2023, arXiv:2209.03320)

With descriptions alone a class's prompts are its sentences; with templates as well, the filled templates and then the
sentences, each of equal weight in the one mean. Runs know both by what they say and not by where they lie.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipdg.core.benchmark import Benchmark
from clipdg.core.errors import ConfigError
from clipdg.core.plugins import nearest
from clipdg.storage import publish
from clipdg.text.prompts import Ensemble, check_template, fill, names_domain

NAMES = ("imagenet_1", "imagenet_7", "imagenet_80")


@dataclass(frozen=True)
class Prompted:
    """Settings of a method that compares with prompts; see the top of this file.

    A template that holds {domain} makes the prompts domain-aware.
    """

    templates: Any = None  # a name, a file, a template or a list of templates
    descriptions: str | None = None
    ensemble: Ensemble = "normalized"


@dataclass(frozen=True)
class Texts:
    """``templates`` may be none where there are ``sentences``, one tuple for each class of the benchmark."""

    templates: tuple[str, ...]
    sentences: tuple[tuple[str, ...], ...] | None = None

    def prompts(self, classes: Sequence[str], noun: str | None = None) -> list[list[str]]:
        """For each class its prompts. Raises ConfigError if a template names the domain and ``noun`` is None."""
        own = self.sentences or ((),) * len(classes)
        return [
            [*(fill(t, name, noun) for t in self.templates), *sentences]
            for name, sentences in zip(classes, own, strict=True)
        ]

    @property
    def domain_aware(self) -> bool:
        return any(names_domain(t) for t in self.templates)

    @property
    def digest(self) -> str | None:
        """SHA-256 of the sentences, by class; None without any."""
        return None if self.sentences is None else publish.digest([list(s) for s in self.sentences])


def texts_of(settings: Prompted, benchmark: Benchmark) -> Texts:
    """Raises ConfigError for a name, file, template or class that is not there."""
    sentences = None
    if settings.descriptions is not None:
        found = read_descriptions(Path(settings.descriptions))
        wnids = getattr(benchmark, "wnids", ())
        sentences = described(found, benchmark.classes, settings.descriptions, wnids)
    if settings.templates is None:
        return Texts(() if sentences else benchmark.templates, sentences)
    return Texts(read_templates(settings.templates), sentences)


def read_templates(given: object) -> tuple[str, ...]:
    """What the setting ``templates`` means, checked. Raises ConfigError saying what it may be."""
    if isinstance(given, str):
        if given in NAMES:
            return named(given)
        templates: Any = [given] if "{" in given else _from_file(Path(given).expanduser(), given)
    else:
        templates = given
    if not isinstance(templates, list | tuple) or not all(isinstance(t, str) for t in templates):
        raise ConfigError(f"templates is {given!r}; it is a list of templates, a file or one of {', '.join(NAMES)}")
    if not templates:
        raise ConfigError("there is no template; give at least one, such as 'a photo of a {}.'")
    for template in templates:
        check_template(template)
    return tuple(templates)


def named(name: str) -> tuple[str, ...]:
    """A set of OpenAI's as open_clip ships it."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

    if name == "imagenet_1":
        return ("a photo of a {}.",)
    functions = SIMPLE_IMAGENET_TEMPLATES if name == "imagenet_7" else OPENAI_IMAGENET_TEMPLATES
    return tuple(function("{}") for function in functions)


def read_descriptions(path: Path) -> dict[str, tuple[str, ...]]:
    """Sentences by class.

    Raises ConfigError naming the file, and the class whose sentences are none or that is described twice, differently.
    """
    content = _json(path.expanduser(), _text(path.expanduser(), f"descriptions {path}"), once=True)
    if not isinstance(content, dict) or not content:
        raise ConfigError(f'{path} is not descriptions; write {{"class": ["sentence", …], …}}')
    for name, sentences in content.items():
        if not isinstance(sentences, list) or not sentences or not all(isinstance(s, str) and s for s in sentences):
            raise ConfigError(f"'{name}' in {path} has no list of sentences")
    first: dict[str, str] = {}
    for name in content:
        other = first.setdefault(_plain(name), name)
        if content[other] != content[name]:
            raise ConfigError(f"'{other}' and '{name}' in {path} are one name with other sentences; keep one of them")
    return {name: tuple(sentences) for name, sentences in content.items()}


def described(
    found: Mapping[str, tuple[str, ...]], classes: Sequence[str], where: str, wnids: Sequence[str] = ()
) -> tuple[tuple[str, ...], ...]:
    """The sentences of each class, by its name or its WordNet id; "_" for a blank and capitals do not matter.

    Raises ConfigError naming a class that has none.
    """
    known = {_plain(name): sentences for name, sentences in found.items()}
    chosen = []
    for number, name in enumerate(classes):
        keys = [_plain(name), *([_plain(wnids[number])] if wnids else [])]
        sentences = next((known[key] for key in keys if key in known), None)
        if sentences is None:
            raise ConfigError(f"{where} describes no '{name}'.{nearest(name, list(found))} Each class needs a sentence")
        chosen.append(sentences)
    return tuple(chosen)


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).casefold()


def _from_file(path: Path, given: str) -> list[Any]:
    if not path.is_file():
        hint = nearest(given, NAMES)
        raise ConfigError(f"no templates '{given}'.{hint} There are {', '.join(NAMES)}, a file, or a list of templates")
    text = _text(path, f"templates {given}")
    if path.suffix != ".json":
        return [line.strip() for line in text.splitlines() if line.strip()]
    content = _json(path, text)
    if not isinstance(content, list):
        raise ConfigError(f'{given} is not templates; write ["a photo of a {{}}.", …], or one template a line of text')
    return content


def _text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # a byte order mark is no character of the first prompt
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {what}: {getattr(error, 'strerror', None) or error}") from error


def _json(path: Path, text: str, *, once: bool = False) -> Any:
    """``once``: a name that stands twice in an object is refused, of which JSON itself keeps the last."""

    def together(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]
        if once and twice:
            raise ConfigError(f"'{twice[0]}' stands in {path} twice; keep one of them, with all of its sentences")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=together)
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
