"""Runs from settings to record, on a small benchmark registered as a user's own module."""

import importlib
import json
import sys
import types
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

import clipdg
from clipdg.core import plugins
from clipdg.core.benchmark import Benchmark, Domain, Rows, leave_one_out
from clipdg.core.errors import ConfigError, DataError
from clipdg.core.plugins import BenchmarkSource
from clipdg.records.record import read_record
from clipdg.runs import config
from clipdg.runs.feature_store import FeatureStore
from clipdg.runs.run import run
from clipdg.runs.session import Session
from clipdg.storage.publish import hash_bytes


@pytest.fixture
def own(squares: Benchmark, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A benchmark of the user's own, by dotted path: squares."""
    module = types.ModuleType("mine.squares")

    @dataclass(frozen=True)
    class Config:
        seed: int = 0

    module.give = lambda benchmark: setattr(  # type: ignore[attr-defined]
        module, "BENCHMARK", BenchmarkSource(config=Config, build=lambda config, root: benchmark)
    )
    module.give(squares)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mine", types.ModuleType("mine"))
    monkeypatch.setitem(sys.modules, "mine.squares", module)
    return module


def settings(*overrides: str) -> config.RunSettings:
    return config.load(overrides=["benchmark=mine.squares", "backbone=tiny", "backbone.weights=random:0", *overrides])


ERM = ("backbone=tiny:resnet", "backbone.weights=random:${seed}", "method=erm", "method.epochs=2")


@pytest.mark.parametrize(
    "overrides",
    [
        ("method=zero_shot",),
        ("method=linear_probe", "shots=4"),
        ("method=tip_adapter", "shots=4", "method.fine_tune=true"),
        ("method=clip_adapter", "method.epochs=2"),
        ("method=coop", "method.epochs=2"),
        ERM,
    ],
    ids=lambda o: o[-1] if isinstance(o, tuple) else o,
)
def test_a_run_is_repeated_to_the_bit_and_found_again(
    own: types.ModuleType, overrides: tuple[str, ...], tmp_path: Path
) -> None:
    [first] = run(settings(*overrides), tmp_path / "a")
    [second] = run(settings(*overrides), tmp_path / "b")
    assert first.evaluations == second.evaluations
    assert first.run_id == second.run_id
    tables = [pq.read_table(tmp_path / f / f"{first.run_id}.parquet") for f in ("a", "b")]
    assert tables[0].equals(tables[1])
    [found] = run(settings(*overrides), tmp_path / "a")
    assert found.content["timing"] == first.content["timing"]  # read, not made again


def test_the_record_says_what_was_done(own: types.ModuleType, tmp_path: Path) -> None:
    [record] = run(settings("method=linear_probe", "shots=4", "label=LP"), tmp_path)
    content = record.content
    assert read_record(tmp_path / f"{record.run_id}.json").content == content
    assert content["data"]["num_fit"] == 12
    assert len(content["data"]["fitted_on"]["bright"]) == 12
    assert content["data"]["num_images"] == {"bright": {"in": 29, "out": 7}, "dark": {"in": 29, "out": 7}}
    counts = {(e.domain, e.split): e.num_images for e in record.evaluations}
    assert counts == {
        ("bright", "in"): 29,
        ("bright", "out"): 7,
        ("dark", "in"): 29,
        ("dark", "out"): 7,
        ("dark", "all"): 36,
    }
    assert content["weights"]["random"]
    assert "root" not in content["config"]["benchmark"]
    assert str(tmp_path) not in record.bytes().decode()


def test_predictions_give_the_recorded_accuracy(own: types.ModuleType, tmp_path: Path) -> None:
    [record] = run(settings("method=linear_probe"), tmp_path)
    table = pq.read_table(tmp_path / f"{record.run_id}.parquet").to_pandas()
    assert hash_bytes((tmp_path / f"{record.run_id}.parquet").read_bytes()) == record.content["predictions"]["digest"]
    for e in record.evaluations:
        rows = table[table["domain"] == e.domain]
        if e.split != "all":
            rows = rows[rows["split"] == e.split]
        assert len(rows) == e.num_images
        assert (rows["label"] == rows["prediction"]).mean() == pytest.approx(e.metrics["top1"])
    assert sorted(table["id"]) == sorted(f"{d}/{i}" for d in ("bright", "dark") for i in range(36))


def test_another_seed_is_another_run_of_the_same_group(own: types.ModuleType) -> None:
    [zero], [one] = (run(settings(*ERM, f"seed={s}")) for s in (0, 1))
    assert zero.run_id != one.run_id
    assert zero.group == one.group
    assert zero.evaluations != one.evaluations


class Unreadable(Rows):
    """Rows of which no image can be opened."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    labels = property(lambda self: self.rows.labels)
    ids = property(lambda self: self.rows.ids)

    def __len__(self) -> int:
        return len(self.rows)

    def digests(self) -> Any:
        return self.rows.digests()

    def image(self, index: int) -> Image.Image:
        raise DataError("a target was opened")


@pytest.mark.parametrize(
    "overrides",
    [("method=linear_probe",), ("method=linear_probe", "method.sweep=true"), ("method=coop", "method.epochs=1"), ERM],
    ids=["lp", "lp-sweep", "coop", "erm"],
)
def test_fitting_never_opens_the_target(
    own: types.ModuleType, squares: Benchmark, overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fit goes through; the first image of a target is asked for by the evaluation."""
    hidden = Domain("dark", Unreadable(squares.domains["dark"].rows), noun="dark")
    benchmark = Benchmark(
        squares.name,
        squares.classes,
        {"bright": squares.domains["bright"], "dark": hidden},
        squares.shifts,
        squares.templates,
    )
    own.give(benchmark)  # type: ignore[attr-defined]
    fitted = []
    from clipdg.training.classifier import Classifier

    end = Classifier.on_fit_end
    monkeypatch.setattr(Classifier, "on_fit_end", lambda self: (fitted.append(True), end(self))[1])
    with pytest.raises(DataError, match="a target was opened"):
        run(settings(*overrides))
    assert fitted == [True]


def test_nothing_is_encoded_twice(own: types.ModuleType, tmp_path: Path) -> None:
    session = Session(store=FeatureStore(tmp_path / "features"))
    for overrides in (("method=zero_shot",), ("method=linear_probe", "seed=1"), ("method=coop", "method.epochs=1")):
        run(settings(*overrides), session=session)
    assert session.store.num_encoded == 72
    again = Session(store=FeatureStore(tmp_path / "features"))
    run(settings("method=zero_shot"), session=again)
    assert again.store.num_encoded == 0


def test_a_stored_feature_that_rotted_is_not_used(own: types.ModuleType, tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "features")
    [before] = run(settings("method=linear_probe"), session=Session(store=store))
    for file in (tmp_path / "features").glob("*/array"):
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)
    again = FeatureStore(tmp_path / "features")
    [after] = run(settings("method=linear_probe"), session=Session(store=again))
    assert again.num_encoded == 72
    assert after.evaluations == before.evaluations


def test_a_record_that_cannot_be_trusted_is_put_aside_and_made_again(own: types.ModuleType, tmp_path: Path) -> None:
    [record] = run(settings("method=zero_shot"), tmp_path)
    path = tmp_path / f"{record.run_id}.json"
    path.write_bytes(path.read_bytes()[:-100])
    [again] = run(settings("method=zero_shot"), tmp_path)
    assert again.evaluations == record.evaluations
    assert read_record(path).run_id == record.run_id
    assert path.with_suffix(".json.corrupt").exists()


def test_each_shift_has_a_record_of_its_own(own: types.ModuleType, squares: Benchmark, tmp_path: Path) -> None:
    both = Benchmark(
        squares.name, squares.classes, squares.domains, leave_one_out(list(squares.domains)), squares.templates
    )
    own.give(both)  # type: ignore[attr-defined]
    found = run(settings("method=linear_probe"), tmp_path)
    assert [r.content["shift"]["targets"] for r in found] == [["bright"], ["dark"]]
    [alone] = run(settings("method=linear_probe", "shift=dark"), tmp_path)
    assert alone.run_id == found[1].run_id
    with pytest.raises(ConfigError, match=r"no shift 'drak'\. Did you mean 'dark'"):
        run(settings("shift=drak"))


def test_shots_larger_than_a_class_are_refused(own: types.ModuleType, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="16 shots"):
        run(settings("method=linear_probe", "shots=16"), tmp_path)
    assert not list(tmp_path.glob("*.json"))


def test_a_prompt_method_needs_a_text_encoder(own: types.ModuleType) -> None:
    with pytest.raises(ConfigError, match="coop needs a text encoder and tiny:resnet has none"):
        run(settings("backbone=tiny:resnet", "backbone.weights=random:0", "method=coop"))


def test_scripts_run_mappings(own: types.ModuleType) -> None:
    values = {"benchmark": "mine.squares", "backbone": {"name": "tiny", "weights": "random:0"}, "seed": 0}
    [record] = clipdg.run(values, "method=linear_probe")
    assert record.content["config"]["method"]["name"] == "linear_probe"


@pytest.mark.parametrize(("shots", "num_val"), [((), 7), (("shots=1",), 3)])
def test_validation_images_that_were_fitted_on_are_not_evaluated(
    own: types.ModuleType, shots: tuple[str, ...], num_val: int
) -> None:
    """Seven images of the source are held out; with one shot, one of each class is what C is chosen on."""
    refit, not_refit = (
        run(settings("method=linear_probe", "method.sweep=true", f"method.refit={r}", *shots))[0]
        for r in ["true", "false"]
    )
    assert [(e.domain, e.split) for e in refit.evaluations] == [
        ("bright", "in"), ("dark", "in"), ("dark", "out"), ("dark", "all"),
    ]  # fmt: skip
    assert ("bright", "out") in {(e.domain, e.split) for e in not_refit.evaluations}
    assert refit.content["data"]["num_fit"] == not_refit.content["data"]["num_fit"] + num_val
    for record in (refit, not_refit):
        found = record.content["fit"]
        assert found["num_validation"] == num_val
        assert found["c"] in [tried["c"] for tried in found["sweep"]]
        assert all(tried["converged"] for tried in found["sweep"])


def test_a_linear_probe_learns_the_source(own: types.ModuleType) -> None:
    [record] = run(settings("method=linear_probe", "method.c=100"))
    found = {(e.domain, e.split): e.metrics["top1"] for e in record.evaluations}
    assert found["bright", "in"] == 1.0
    assert found["bright", "out"] > 0.9


def test_prompts_count_by_what_they_say(own: types.ModuleType, tmp_path: Path) -> None:
    """A set by its name, the same from a file and written out is one run; a word more is another."""
    places = [tmp_path / "one.txt", tmp_path / "two.json", tmp_path / "three.txt"]
    places[0].write_text("a photo of a {}.\n")
    places[1].write_text('["a photo of a {}."]')
    places[2].write_text("a photo of a {}!\n")
    given = ["imagenet_1", *map(str, places), "['a photo of a {}.']"]
    found = [run(settings("method=zero_shot", f"method.templates={t}"))[0] for t in given]
    assert [r.run_id == found[0].run_id for r in found] == [True, True, True, False, True]
    assert found[0].content["data"]["templates"] == ["a photo of a {}."]
    assert found[0].content["config"]["method"]["templates"] == ["a photo of a {}."]
    assert str(tmp_path) not in found[1].bytes().decode()


def test_descriptions_count_by_what_they_say(own: types.ModuleType, squares: Benchmark, tmp_path: Path) -> None:
    places = [tmp_path / "one.json", tmp_path / "two.json", tmp_path / "three.json"]
    for place, word in zip(places, ("a", "a", "the"), strict=True):
        place.write_text(json.dumps({name: [f"{word} {name}"] for name in squares.classes}, indent=len(place.stem)))
    found = [run(settings("method=zero_shot", f"method.descriptions={p}"))[0] for p in places]
    assert found[0].run_id == found[1].run_id != found[2].run_id
    [as_template] = run(settings("method=zero_shot", "method.templates=['a {}']"))
    assert found[0].evaluations == as_template.evaluations
    assert found[0].run_id != as_template.run_id
    assert found[0].content["data"]["templates"] == []
    assert found[0].content["config"]["method"]["descriptions"].startswith("sha256:")
    assert str(tmp_path) not in found[0].bytes().decode()


def test_where_a_backbone_lies_is_neither_in_its_record_nor_in_its_run_id(
    own: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = {"width": 32, "layers": 1}
    text = {**tower, "heads": 2, "context_length": 20, "vocab_size": 49408}
    vision = {**tower, "image_size": 32, "head_width": 16, "patch_size": 16}
    found = []
    for place in ("here", "there"):
        folder = tmp_path / place / "clip"
        folder.mkdir(parents=True)
        card = {"model_cfg": {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}}
        (folder / "open_clip_config.json").write_text(json.dumps(card))
        monkeypatch.chdir(tmp_path / place)
        spec = f"open_clip:local-dir:{'clip' if place == 'here' else folder}"  # a relative and an absolute path
        [record] = run(settings(f"backbone={spec}", "backbone.weights=random:0", "method=zero_shot"), tmp_path / place)
        found.append(record)
    assert found[0].run_id == found[1].run_id
    for record in found:
        assert record.content["config"]["backbone"]["name"] == "open_clip:local-dir:clip"
        assert str(tmp_path) not in json.dumps(record.content)
        assert record.content["weights"]["random"]


@pytest.mark.gpu
def test_a_second_run_encodes_its_texts_on_the_gpu(own: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning leaves on the CPU what it has used; a run puts its backbone back before the method is built."""
    places: list[str] = []
    session = Session(store=FeatureStore())
    for method in ("zero_shot", "coop"):
        resolved = settings(f"method={method}", *(["method.epochs=2"] if method == "coop" else []))
        definition = plugins.method(method)
        module, build = importlib.import_module(f"clipdg.methods.{method}"), definition.build

        def watched(config: Any, backbone: Any, benchmark: Benchmark, build: Any = build) -> Any:
            places.append(next(backbone.parameters()).device.type)
            return build(config, backbone, benchmark)

        monkeypatch.setattr(module, "METHOD", replace(definition, build=watched))
        for seed in (0, 1):
            run(config.load(values=dict(resolved.plain) | {"seed": seed}), session=session)
    assert places == ["cuda"] * 4
