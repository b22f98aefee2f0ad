"""A run of the files that keep_weights leaves finds the same numbers as the run that trained the tower."""

from pathlib import Path
from typing import Any

import pytest
import torch

import clipdg
from clipdg.core.benchmark import Benchmark
from clipdg.core.errors import ConfigError
from clipdg.methods import head
from clipdg.records.record import Record
from clipdg.runs import config
from clipdg.runs import run as run_
from clipdg.storage.publish import hash_bytes
from clipdg.weights import finetuned_tower

pytestmark = pytest.mark.usefixtures("plugins_of_a_user")
BASE = ("benchmark=plugins_of.a_user", "shift=dark")
SHORT = ("method.epochs=1", "method.batch_size=12", "method.lr=0.01", "method.augment=none")
TRAINED = {
    "erm": ("tiny:resnet", ("method=erm", "method.resize=squash", "method.dropout=0.2")),
    "lora": ("tiny:vit", ("method=lora", "method.rank=3", "method.templates=['a {}']")),
    "lora with its head": ("tiny:vit", ("method=lora", "method.head=true", "method.templates=['a {}']")),
    "wise_ft": ("tiny", ("method=wise_ft", "method.alpha=0.3", "method.warmup_steps=1", "method.templates=['a {}']")),
}


def run(*overrides: str, out: Path | None = None) -> Record:
    [record] = run_.run(config.load(overrides=[*BASE, *overrides]), out)
    return record


def nlls(record: Record) -> dict[tuple[str, str], float]:
    return {(e.domain, e.split): e.metrics["nll"] for e in record.evaluations}


def files(record: Record, out: Path) -> tuple[Path, Path]:
    made = record.content["kept"]
    assert {k: hash_bytes((out / v["file"]).read_bytes()) for k, v in made.items()} == {
        k: v["digest"] for k, v in made.items()
    }
    return out / made["backbone"]["file"], out / made["head"]["file"]


@pytest.mark.parametrize("name", TRAINED)
def test_the_files_of_a_run_find_what_it_found(name: str, tmp_path: Path) -> None:
    backbone, settings = TRAINED[name]
    common = (f"backbone={backbone}", "backbone.weights=random:0", *settings, *SHORT)
    record = run(*common, "keep_weights=true", out=tmp_path)
    tower, classifier = files(record, tmp_path)
    trained = (f"backbone={backbone}", f"backbone.weights={tower}")
    again = run(*trained, "method=head", f"method.file={classifier}")
    assert nlls(again) == pytest.approx(nlls(record), rel=1e-4)
    start = nlls(run(f"backbone={backbone}", "backbone.weights=random:0", *settings, "method.lr=0", *SHORT[:2]))
    assert nlls(record) != pytest.approx(start, rel=1e-2)  # something was learnt
    if name == "lora":  # whose classifier is the prompts'
        prompted = run(*trained, "method=zero_shot", "method.templates=['a {}']")
        assert nlls(prompted) == pytest.approx(nlls(record), rel=1e-4)


def test_keeping_weights_is_no_part_of_a_run(tmp_path: Path) -> None:
    common = ("backbone=tiny:resnet", "backbone.weights=random:0", "method=erm", *SHORT)
    plain = run(*common, out=tmp_path)
    with pytest.raises(ConfigError, match="stands without its weights"):
        run(*common, "keep_weights=true", out=tmp_path)
    record = run(*common, "keep_weights=true", out=tmp_path / "kept")
    assert record.run_id == plain.run_id
    assert record.content["config"] == plain.content["config"]
    assert run(*common, "keep_weights=true", out=tmp_path / "kept").content == record.content  # found again
    assert "kept" not in run("method=zero_shot", "keep_weights=true", out=tmp_path).content


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A backbone, and a classifier of three classes on it as a file."""
    backbone = clipdg.load_backbone("tiny:resnet", "random:0")
    torch.manual_seed(0)
    layer = torch.nn.Linear(backbone.embed_dim, 3)
    _, content = finetuned_tower.contents(
        backbone, backbone.preprocessing, layer, "erm", ("a", "b", "c"), {"run_id": "0" * 16}
    )
    path = tmp_path_factory.mktemp("kept") / "x.head.safetensors"
    path.write_bytes(content)
    return backbone, layer, path


def test_classes_are_found_by_their_names(saved: Any) -> None:
    backbone, layer, path = saved
    features = torch.randn(4, backbone.embed_dim)
    built = head.build(head.Config(str(path)), backbone, Benchmark("b", ("c", "a")))
    torch.testing.assert_close(built(features), layer(features)[:, [2, 0]])


def test_another_tower_and_another_class_are_refused(saved: Any) -> None:
    backbone, _, path = saved
    with pytest.raises(ConfigError, match=r"knows 3 classes and not 'd' of b; use zero_shot or linear_probe"):
        head.build(head.Config(str(path)), backbone, Benchmark("b", ("a", "d")))
    other = clipdg.load_backbone("tiny:resnet", "random:1")
    with pytest.raises(ConfigError, match=r"give backbone=tiny:resnet backbone.weights=x.backbone.safetensors"):
        head.build(head.Config(str(path)), other, Benchmark("b", ("a", "b", "c")))
    with pytest.raises(ConfigError, match="method head needs a file"):
        head.build(head.Config(), backbone, Benchmark("b", ("a",)))
