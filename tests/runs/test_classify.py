from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import clipdg
from clipdg.core.errors import ConfigError, DataError
from clipdg.core.model import ClipBackbone
from clipdg.runs.classify import classify, parse_labels


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 40, 3), np.uint8)).save(path)
    return path


def test_probabilities_equal_the_clips_own(picture: Path) -> None:
    clip = clipdg.load_backbone("tiny", "random:0")
    assert isinstance(clip, ClipBackbone)
    labels, templates = ["dog", "cat", "person"], ["a photo of a {}, a type of pet.", "a {}"]
    [(path, ranked)] = classify([picture], labels, templates, "tiny", "random:0").ranked
    with torch.no_grad():
        image = F.normalize(clip.encode_image(clip.preprocess(Image.open(picture))[None]), dim=1)
        texts = [[clip.encode_text(clip.tokenize([t.replace("{}", n)]))[0] for t in templates] for n in labels]
        directions = torch.stack([F.normalize(sum(F.normalize(p, dim=0) for p in row), dim=0) for row in texts])  # type: ignore[arg-type]
        expected = (clip.logit_scale * image @ directions.T)[0].softmax(dim=0)
    assert path == picture
    assert sum(p for _, p in ranked) == pytest.approx(1.0)
    assert [p for _, p in ranked] == sorted((p for _, p in ranked), reverse=True)
    assert dict(ranked) == pytest.approx(dict(zip(labels, expected.tolist(), strict=True)), rel=1e-4)


@pytest.mark.parametrize("text", ["dog,cat", " dog , cat ", "dog，cat", "dog、cat"])
def test_labels_stand_between_commas_of_any_script(text: str) -> None:
    assert parse_labels(text) == ["dog", "cat"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("dog", "one label"), ("dog,,cat", "empty label"), ("dog,cat,dog", "'dog' is there twice"), ("", "empty")],
)
def test_labels_that_cannot_be_meant_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse_labels(text)


def test_a_label_the_tokenizer_cannot_represent_is_named(picture: Path) -> None:
    with pytest.raises(DataError, match="label '狗' has '狗', which tiny cannot spell"):
        classify([picture], ["cat", "狗"], ["a {}"], "tiny", "random:0")


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    path = tmp_path / "notes.jpg"
    path.write_text("no image")
    with pytest.raises(DataError, match=r"notes\.jpg"):
        classify([path], ["cat", "dog"], ["a {}"], "tiny", "random:0")
    with pytest.raises(DataError, match=r"cannot read .*nowhere\.jpg"):
        classify([tmp_path / "nowhere.jpg"], ["cat", "dog"], ["a {}"], "tiny", "random:0")


def test_words_never_seen_are_admitted(picture: Path) -> None:
    remarks = classify([picture], ["cat", "dog"], ["a {}"], "tiny", "random:0").remarks
    assert len(remarks) == 1
    assert "cat, dog" in remarks[0]


def test_an_image_encoder_cannot_classify_by_text(picture: Path) -> None:
    with pytest.raises(ConfigError, match="needs a text encoder"):
        classify([picture], ["cat", "dog"], ["a {}"], "tiny:resnet", "random:0")
