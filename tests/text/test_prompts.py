import copy
import dataclasses

import pytest
import torch
from torch.nn import functional as F

import clipdg
from clipdg.core.errors import ConfigError, DataError
from clipdg.core.model import ClipBackbone
from clipdg.text import prompts
from clipdg.weights import files


def test_placeholders_by_hand() -> None:
    assert prompts.fill("a photo of a {}.", "apple") == "a photo of a apple."
    assert prompts.fill("a photo of a {label}, a type of pet.", "cat") == "a photo of a cat, a type of pet."
    assert prompts.fill("a photo of {a}", "apple") == "a photo of an apple"
    assert prompts.fill("{a_domain} of {a}", "tree", "oil painting") == "an oil painting of a tree"
    assert prompts.fill("{domain} {}", "{}", "sketch") == "sketch {}"  # a name is never filled again


@pytest.mark.parametrize("template", ["a photo", "a photo of {class}", "{domain}", "{0}"])
def test_a_template_without_a_place_for_the_name_is_refused(template: str) -> None:
    with pytest.raises(ConfigError, match="template"):
        prompts.check_template(template)


def test_a_domain_aware_template_needs_a_noun() -> None:
    with pytest.raises(ConfigError, match="noun"):
        prompts.fill("a {domain} of {a}", "cat")


def naive(clip: ClipBackbone, classes: list[str], templates: list[str], normalized: bool) -> torch.Tensor:
    rows = []
    for name in classes:
        parts = [clip.encode_text(clip.tokenize([t.replace("{}", name)]))[0] for t in templates]
        if normalized:
            parts = [p / p.norm() for p in parts]
        mean = sum(parts[1:], parts[0]) / len(parts)
        rows.append(mean / mean.norm())
    return torch.stack(rows)


@pytest.mark.parametrize("ensemble", ["normalized", "raw"])
def test_directions_equal_one_prompt_at_a_time(clip: ClipBackbone, ensemble: prompts.Ensemble) -> None:
    classes, templates = ["cat", "dog", "big dog"], ["a {}", "my {}", "the {} here"]
    found = prompts.class_directions(clip, classes, templates, ensemble=ensemble)
    torch.testing.assert_close(found, naive(clip, classes, templates, ensemble == "normalized"), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))


def test_the_two_ensembles_are_different_methods(clip: ClipBackbone) -> None:
    of = [
        prompts.class_directions(clip, ["cat"], ["{}", "a {} or two or three"], ensemble=e)
        for e in ("normalized", "raw")
    ]
    assert not torch.allclose(*of, atol=1e-6)


def test_permuting_classes_permutes_directions(clip: ClipBackbone) -> None:
    found = prompts.class_directions(clip, ["cat", "dog", "bird"], ["a {}"])
    turned = prompts.class_directions(clip, ["bird", "cat", "dog"], ["a {}"])
    torch.testing.assert_close(turned, found[[2, 0, 1]], atol=1e-6, rtol=1e-5)


def test_classes_of_one_name_have_one_direction(clip: ClipBackbone) -> None:
    # ImageNet has "missile" and "sunglasses" twice
    found = prompts.class_directions(clip, ["cat", "dog", "cat"], ["a {}"])
    assert torch.equal(found[0], found[2])


def test_no_template_is_refused(clip: ClipBackbone) -> None:
    with pytest.raises(ConfigError, match="no template"):
        prompts.class_directions(clip, ["cat"], [])


def test_a_prompt_that_is_too_long_is_named(clip: ClipBackbone) -> None:
    with pytest.raises(DataError, match="a zzzzzzzzzzzzzzzzzzzz"):
        prompts.class_directions(clip, ["z" * 50], ["a {}"])


def test_directions_carry_no_gradient(clip: ClipBackbone) -> None:
    assert not F.normalize(prompts.class_directions(clip, ["cat"], ["a {}"])).requires_grad


def test_a_large_classifier_is_the_same_as_one_prompt_at_a_time(clip: ClipBackbone) -> None:
    classes = [f"{size} {kind}" for size in ("big", "small", "red", "tall") for kind in ("cat", "dog", "house", "tree")]
    templates = [
        f"{a} {b} {{}}{end}" for a in ("a", "the") for b in ("photo of a", "sketch of my") for end in ("", ".")
    ]
    found = prompts.class_directions(clip, classes, templates)
    torch.testing.assert_close(found, naive(clip, classes, templates, True), atol=1e-6, rtol=1e-5)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of prompts that went through the tower."""
    counts: list[int] = []
    encode = prompts._Directions._encode

    def counted(self: prompts._Directions, rows: torch.Tensor) -> torch.Tensor:
        counts.append(len(rows))
        return encode(self, rows)

    monkeypatch.setattr(prompts._Directions, "_encode", counted)
    return counts


def test_stored_directions_are_the_same_and_encode_no_text(clip: ClipBackbone, encoded: list[int]) -> None:
    prompts_of = [["a cat", "my cat"], ["a dog"], ["a cat", "my cat"]]
    plain = prompts.prompt_directions(clip, prompts_of)
    first, second = (prompts.prompt_directions(clip, prompts_of, store=True) for _ in range(2))
    assert torch.equal(first, plain)
    assert torch.equal(second, plain)
    assert encoded == [3, 3]  # without the store, and the first time with it


def test_nothing_stored_is_taken_for_something_else(clip: ClipBackbone, encoded: list[int]) -> None:
    other = clipdg.load_backbone("tiny", "random:1")
    assert isinstance(other, ClipBackbone)
    asked: list[tuple[ClipBackbone, list[list[str]], prompts.Ensemble]] = [
        (clip, [["a cat", "a dog"]], "normalized"),
        (clip, [["a cat"], ["a dog"]], "normalized"),
        (clip, [["a dog"], ["a cat"]], "normalized"),
        (clip, [["a cat", "a dog"]], "raw"),
        (other, [["a cat", "a dog"]], "normalized"),
    ]
    for backbone, prompts_of, ensemble in asked:
        stored = prompts.prompt_directions(backbone, prompts_of, ensemble, store=True)
        assert torch.equal(stored, prompts.prompt_directions(backbone, prompts_of, ensemble))
    assert len(encoded) == 2 * len(asked)


def test_directions_of_another_version_of_the_library_are_others(
    clip: ClipBackbone, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = copy.copy(clip)
    theirs.weights = dataclasses.replace(clip.weights, backbone="hf:made/up")
    prompts.prompt_directions(theirs, [["a cat"]], store=True)
    known = files.version
    monkeypatch.setattr("clipdg.weights.files.version", lambda name: "9" if name == "transformers" else known(name))
    for backbone, again in ((clip, 1), (clip, 0), (theirs, 1), (theirs, 0)):
        encoded.clear()
        prompts.prompt_directions(backbone, [["a cat"]], store=True)
        assert len(encoded) == again


def test_weights_that_are_trained_are_never_stored(clip: ClipBackbone) -> None:
    trained = copy.deepcopy(clip)
    trained.requires_grad_(True)  # type: ignore[attr-defined]
    with pytest.raises(AssertionError, match="trained"):
        prompts.prompt_directions(trained, [["a cat"]], store=True)


def test_progress_counts_prompts_to_the_last(clip: ClipBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipdg.text.prompt_encoder.ENCODING", 2**18)
    told: list[tuple[str, int, int]] = []
    with prompts.reporting(lambda *at: told.append(at)):
        prompts.class_directions(clip, [f"{a}{b}" for a in "abcdef" for b in "qxyz"], [f"{w} {{}}." for w in "abcdef"])
    assert told[-1] == ("encode prompts", 144, 144)
    assert len(told) > 2
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
