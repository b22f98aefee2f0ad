"""Learnt contexts as files, before other class names, and in words."""

import json
from pathlib import Path

import lightning
import pytest
import torch
from PIL import Image

import clipdg
from clipdg.cli import main
from clipdg.core.benchmark import Benchmark
from clipdg.core.errors import ConfigError, DataError
from clipdg.core.model import ClipBackbone
from clipdg.methods import coop
from clipdg.runs import config, plan, run
from clipdg.runs.session import Session
from clipdg.storage.publish import hash_bytes
from clipdg.weights import files, learned_method

CLASSES = ("circle", "square", "heart")
OTHERS = ("star", "ring", "cross", "moon")


@pytest.fixture
def tiny() -> ClipBackbone:
    backbone = clipdg.load_backbone("tiny")
    assert isinstance(backbone, ClipBackbone)
    return backbone


def saved(clip: ClipBackbone, path: Path, classes: tuple[str, ...] = CLASSES, **settings: object) -> Path:
    """A context that a fit of two steps learnt."""
    model = clipdg.coop(clip, classes, **{"num_context": 4, "epochs": 1, "warmup_epochs": 0, "lr": 1.0, **settings})  # type: ignore[arg-type]
    batches = [(torch.randn(6, 64, generator=torch.Generator().manual_seed(i)), torch.arange(6) % 3) for i in range(2)]
    trainer = lightning.Trainer(
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(model, torch.utils.data.DataLoader(batches, batch_size=None))  # type: ignore[arg-type]  # a list is a data set
    return clipdg.save_context(model, path)


@pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_a_context_that_was_saved_classifies_other_names_as_before(
    tiny: ClipBackbone, tmp_path: Path, position: str
) -> None:
    path = saved(tiny, tmp_path / "c.safetensors", position=position)
    learnt = learned_method.read(path)
    expected = coop.build(coop.Config(num_context=4, position=position), tiny, Benchmark("b", OTHERS))  # type: ignore[arg-type]
    start = coop.build(coop.Config(num_context=4), tiny, Benchmark("b", OTHERS)).context.detach()
    assert (learnt.vectors - start).abs().max() > 1e-3  # it was learnt
    expected.context.data = learnt.vectors.clone()
    features = torch.randn(5, 64)
    found = clipdg.load_context(path, tiny, OTHERS)
    torch.testing.assert_close(found(features), expected(features), atol=1e-5, rtol=1e-5)
    assert not any(p.requires_grad for p in found.parameters())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["coop", "cocoop", "kgcoop", "prograd"])
def test_a_fitted_run_leaves_its_context_and_a_run_of_it_finds_the_same_numbers(name: str, tmp_path: Path) -> None:
    given = {
        "benchmark": "rotated_digits",
        "shift": "75",
        "shots": 1,
        "method": {"name": name, "epochs": 1, "warmup_epochs": 0, "num_context": 2, "context_init": None},
    }
    first, *_ = run.run(config.load(values=given), tmp_path)
    file = tmp_path / first.content["learnt"]["file"]
    assert file.name == f"{first.run_id}.safetensors"
    assert hash_bytes(file.read_bytes()) == first.content["learnt"]["digest"]
    assert learned_method.read(file).made["run_id"] == first.run_id
    again = {**given, "method": {"name": "context", "file": str(file)}}
    second, *_ = run.run(config.load(values=again), tmp_path)
    assert second.content["config"]["method"]["file"] == f"sha256:{first.content['learnt']['digest']}"
    assert second.content["fit"]["method"]["name"] == name
    assert [e.metrics["top1"] for e in second.evaluations] == [e.metrics["top1"] for e in first.evaluations]
    moved = tmp_path / "elsewhere.safetensors"
    moved.write_bytes(file.read_bytes())
    [third] = plan.identify(config.load(values={**given, "method": {"name": "context", "file": str(moved)}}),
                              Session())  # fmt: skip
    assert third.run_id == second.run_id


@pytest.mark.filterwarnings("ignore")
def test_another_backbone_and_other_classes_than_its_own_are_refused(
    tiny: ClipBackbone, clip: ClipBackbone, tmp_path: Path
) -> None:
    shared = saved(tiny, tmp_path / "shared.safetensors")
    with pytest.raises(ConfigError, match=r"with tiny, weights 'shipped' .* this is tiny, weights 'random:0'"):
        clipdg.load_context(shared, clip, OTHERS)
    own = saved(tiny, tmp_path / "own.safetensors", class_specific=True)
    with pytest.raises(ConfigError, match="a context for each of circle, square, heart, which are not the 4 classes"):
        clipdg.load_context(own, tiny, OTHERS)
    assert clipdg.load_context(own, tiny, CLASSES)(torch.randn(2, 64)).shape == (2, 3)


def test_what_is_no_context_is_one_sentence(tiny: ClipBackbone, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no context .*missing\.safetensors"):
        learned_method.read(tmp_path / "missing.safetensors")
    probe = tmp_path / "probe.safetensors"
    model = clipdg.linear_probe(tiny, CLASSES)
    assert model.settings is not None
    probe.write_bytes(learned_method.content(model.method, model.settings, CLASSES, tiny, {}))
    with pytest.raises(DataError, match="was learnt by linear_probe, which has no context"):
        learned_method.read(probe)
    other = tmp_path / "other.safetensors"
    other.write_bytes(files.pack({"context": torch.zeros(2, 64)}, {"some": "thing"}))
    with pytest.raises(DataError, match="not a learnt context"):
        learned_method.read(other)
    with pytest.raises(ConfigError, match="no context to save"):
        clipdg.save_context(model, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match="needs a file"):
        run.run(config.load(overrides=["method=context"]))


@pytest.mark.filterwarnings("ignore")
def test_the_nearest_words_of_words_are_those_words_at_no_distance(tiny: ClipBackbone, tmp_path: Path) -> None:
    model = clipdg.coop(tiny, CLASSES, context_init="a photo of")
    learnt = learned_method.read(clipdg.save_context(model, tmp_path / "c.safetensors"))
    found = learned_method.nearest_words(learnt, tiny, count=3)
    assert [(number, near[0]) for number, near in found] == [
        ("1", ("a", 0.0)),
        ("2", ("photo", 0.0)),
        ("3", ("of", 0.0)),
    ]
    for _, near in found:
        distances = [d for _, d in near]
        assert distances == sorted(distances)
    # By hand, over the whole vocabulary.
    assert tiny.text_tower is not None
    assert tiny.text_tower.description is not None
    vocabulary = tiny.text_tower.description.tokens
    by_hand = (vocabulary - learnt.vectors[0]).square().sum(dim=1).sqrt().sort()
    assert [d for _, d in found[0][1]] == pytest.approx(by_hand.values[:3].tolist(), abs=1e-5)
    decode = tiny.decode  # type: ignore[attr-defined]
    assert [w for w, _ in found[0][1]] == decode(by_hand.indices[:3].tolist())


@pytest.mark.filterwarnings("ignore")
def test_the_command_line_takes_a_context_with_its_own_backbone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, jpeg: object
) -> None:
    assert callable(jpeg)
    tiny = clipdg.load_backbone("tiny")
    assert isinstance(tiny, ClipBackbone)
    path = saved(tiny, tmp_path / "c.safetensors")
    image = tmp_path / "red.jpg"
    image.write_bytes(jpeg((200, 20, 20)))

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["clipdg", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    given = ["classify", str(image), "--labels", ",".join(OTHERS), "--json", "--context", str(path)]
    code, shown, _ = call(*given)
    assert code == 0
    logits = clipdg.load_context(path, tiny, OTHERS)(
        tiny.encode_image(tiny.preprocess(Image.open(image).convert("RGB"))[None])
    )
    expected = dict(zip(OTHERS, logits[0].double().softmax(dim=0).tolist(), strict=True))
    assert {e["label"]: e["probability"] for e in json.loads(shown)["labels"]} == pytest.approx(expected, rel=1e-4)
    code, _, said = call(*given, "--template", "a {}")
    assert (code, "in the place of templates" in said) == (2, True)
    code, _, said = call(*given, "--backbone", "tiny", "--weights", "random:0")
    assert (code, "was learnt with tiny, weights 'shipped'" in said) == (2, True)
    code, shown, _ = call("words", str(path), "--count", "2")
    assert code == 0
    assert len(shown.splitlines()) == 4
    assert all(len(line) <= 80 for line in shown.splitlines())
