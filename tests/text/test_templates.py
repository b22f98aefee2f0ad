import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from clipdg.core.benchmark import Benchmark
from clipdg.core.errors import ConfigError
from clipdg.core.model import ClipBackbone
from clipdg.methods import zero_shot
from clipdg.text import templates
from clipdg.text.templates import Prompted, read_templates, texts_of

BENCH = Benchmark("b", ("cat", "polar bear"), templates=("a {}", "my {}"))


def test_the_named_sets_are_openais() -> None:
    eighty, seven = read_templates("imagenet_80"), read_templates("imagenet_7")
    assert read_templates("imagenet_1") == ("a photo of a {}.",)
    assert (len(eighty), len(set(eighty)), len(seven)) == (80, 80, 7)
    assert seven == (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    )  # openai/CLIP, Prompt_Engineering_for_ImageNet
    assert eighty[0] == "a bad photo of a {}."
    assert eighty[-1] == "a tattoo of the {}."


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.txt", "a {}\n\n  my {}, here.\n"),
        ("t.json", '["a {}", "my {}, here."]'),
        ("c.json", '["a {c}", "my {c}, here."]'),
        ("bom.txt", "\ufeffa {}\r\nmy {}, here.\r\n"),
        ("bom.json", '\ufeff["a {}", "my {}, here."]'),
    ],
)
def test_templates_come_from_a_file(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_bytes(content.encode())
    found = texts_of(Prompted(str(tmp_path / name)), BENCH).prompts(BENCH.classes)
    assert found == [["a cat", "my cat, here."], ["a polar bear", "my polar bear, here."]]


def test_none_means_the_benchmarks_own_and_a_template_itself() -> None:
    assert texts_of(Prompted(), BENCH).templates == ("a {}", "my {}")
    assert read_templates("the {}") == ("the {}",)
    assert read_templates(["the {}", "{a}"]) == ("the {}", "{a}")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("imagenet80", "no templates 'imagenet80'. Did you mean 'imagenet_80'"),
        ("a photo of {class}", "has {class}"),
        ([], "no template"),
        (3, "templates is 3"),
        (["{}", 3], "it is a list of templates"),
    ],
)
def test_templates_that_cannot_be_meant_are_refused(given: object, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence.replace("{", r"\{")):
        read_templates(given)


def write(path: Path, content: object) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def test_sentences_alone_or_after_the_filled_templates(tmp_path: Path) -> None:
    file = write(tmp_path / "d.json", {"Polar_Bear": ["White and big."], "cat": ["It purrs.", "It has whiskers {}."]})
    alone = texts_of(Prompted(descriptions=file), BENCH)
    assert alone.prompts(BENCH.classes) == [["It purrs.", "It has whiskers {}."], ["White and big."]]
    both = texts_of(Prompted(["the {}"], file), BENCH)
    assert both.prompts(BENCH.classes)[1] == ["the polar bear", "White and big."]


def test_classes_are_joined_by_wordnet_id_too() -> None:
    found = {"n02123045": ("It purrs.",), "polar bear": ("Big.",)}
    chosen = templates.described(found, ("cat", "polar bear"), "d.json", ("n02123045", "n02134084"))
    assert chosen == (("It purrs.",), ("Big.",))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"cat": ["It purrs."], "polar bar": ["Big."]}, "describes no 'polar bear'. Did you mean 'polar bar'"),
        ({"cat": [], "polar bear": ["Big."]}, "'cat' in .* has no list of sentences"),
        ({"cat": "It purrs."}, "'cat' in .* has no list of sentences"),
        (["It purrs."], "is not descriptions"),
    ],
)
def test_descriptions_that_lack_something_are_refused(tmp_path: Path, content: object, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        texts_of(Prompted(descriptions=write(tmp_path / "d.json", content)), BENCH)


@pytest.mark.parametrize("ensemble", ["normalized", "raw"])
def test_classes_of_unequal_numbers_of_prompts_equal_one_at_a_time(
    clip: ClipBackbone, tmp_path: Path, ensemble: str
) -> None:
    file = write(tmp_path / "d.json", {"polar bear": ["white and big"], "cat": ["it purrs", "whiskers"]})
    config = zero_shot.Config(["a {}"], file, ensemble)  # type: ignore[arg-type]
    found = zero_shot.build(config, clip, BENCH).directions
    for row, texts in enumerate((["a cat", "it purrs", "whiskers"], ["a polar bear", "white and big"])):
        parts = [clip.encode_text(clip.tokenize([t]))[0].detach() for t in texts]
        if ensemble == "normalized":
            parts = [p / p.norm() for p in parts]
        expected = F.normalize(torch.stack(parts).sum(dim=0), dim=0)
        torch.testing.assert_close(found[row], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"cat": ["a"], "polar bear": ["b"], "cat": ["c"]}', "'cat' stands in"),
        ('{"cat": ["a"], "polar bear": ["b"], "Polar_Bear": ["c"]}', "'polar bear' and 'Polar_Bear' in"),
    ],
)
def test_a_class_that_is_described_twice_is_refused(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "d.json").write_text(content)
    with pytest.raises(ConfigError, match=sentence):
        texts_of(Prompted(descriptions=str(tmp_path / "d.json")), BENCH)
