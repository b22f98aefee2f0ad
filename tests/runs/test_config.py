from pathlib import Path

import pytest

from clipdg.core.errors import ConfigError
from clipdg.runs import config


def test_defaults_name_their_parts() -> None:
    values = config.load().plain
    assert (values["benchmark"]["name"], values["backbone"]["name"], values["method"]["name"]) == (
        "miniatures",
        "tiny",
        "zero_shot",
    )


def test_file_then_overrides(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("method: {name: coop, lr: 0.5, num_context: 4}\nseed: 7\n")
    values = config.load(file, ["method.lr=0.25", "shots=16"]).plain
    assert (values["method"]["lr"], values["method"]["num_context"], values["seed"], values["shots"]) == (
        0.25,
        4,
        7,
        16,
    )


def test_another_method_starts_from_its_own_defaults(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("method: {name: coop, num_context: 4}\n")
    assert "num_context" not in config.load(file, ["method=linear_probe"]).plain["method"]
    assert config.load(file, ["method=coop"]).plain["method"]["num_context"] == 4


def test_the_order_of_single_settings_does_not_matter_to_a_name() -> None:
    late = config.load(overrides=["method.lr=0.5", "backbone.precision=bf16", "method=coop", "backbone=tiny:resnet"])
    assert (late.plain["method"]["lr"], late.plain["backbone"]["precision"]) == (0.5, "bf16")


def test_a_schema_of_its_own_may_have_a_plain_backbone() -> None:
    from clipdg.training.pretrain import PretrainConfig

    given = config.settings_of(None, ["backbone=tiny:vit", "epochs=1"])
    assert config.check(PretrainConfig, given).values["backbone"] == "tiny:vit"


def test_yaml_is_1_2() -> None:
    # in YAML 1.1 these are False, 8 and 90
    assert config.load(overrides=["label=no", "seed=010"]).plain["label"] == "no"
    assert config.load(overrides=["seed=010"]).plain["seed"] == 10
    assert config.load(overrides=["label=1:30"]).plain["label"] == "1:30"


def test_what_follows_the_seed_is_remembered() -> None:
    resolved = config.load(overrides=["backbone.weights=random:${seed}", "benchmark.seed=${seed}", "seed=3"])
    assert resolved.seeded == ("seed", "backbone.weights", "benchmark.seed")
    assert resolved.plain["backbone"]["weights"] == "random:3"
    assert resolved.plain["benchmark"]["seed"] == 3


def test_identity_has_no_path_and_no_worker_count() -> None:
    one = config.load(overrides=["benchmark=folder", "benchmark.root=/a", "workers=0", "label=x"])
    two = config.load(overrides=["benchmark=folder", "benchmark.root=/b", "workers=4", "label=y"])
    assert one.identity() == two.identity()
    assert one.identity() != config.load(overrides=["benchmark=folder", "benchmark.root=/a", "seed=1"]).identity()


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("metod=coop", "no setting 'metod'.*Did you mean 'method'"),
        (
            "method=co_op",
            "no 'co_op' in clipdg/methods/. Did you mean 'coop'.*There are: .*coop, .*erm, .*linear_probe, .*zero_shot",
        ),
        ("method.templatse=[]", "no setting 'method.templatse'.*Did you mean 'templates'"),
        ("benchmark=miniature", "Did you mean 'miniatures'"),
        ("backbone=openclip:ViT-B-32", "Did you mean 'open_clip'"),
        ("seed=-1", "seed is -1; it must be between 0"),
        ("seed=1.5", "seed"),
        ("seed=${shots}", "interpolation"),
        ("shots=0", "shots is 0; it must be at least 1"),
        ("holdout=.nan", "holdout is nan; it must be a finite number"),
        ("holdout=0.95", "holdout is 0.95; it must be between 0.0 and 0.9"),
        ("label=${oc.env:HOME}", "interpolation"),
        ('label="a\\0b"', "control character"),
        ("benchmark=null", "benchmark is None"),
        ("benchmark.size=true", "benchmark.size"),
        ("seed", "not key=value"),
        ("+seed=1", "not key=value"),
        ("label=[", "not YAML"),
        ("method.name.x=1", "method"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused(override: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        config.load(overrides=[override])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty"),
        ("- 1\n", "not settings"),
        ("seed: [\n", "line 2 is not YAML"),
        ("seed: 1\nseed: 2\n", "duplicate"),
    ],
)
def test_a_file_that_is_no_settings_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        config.load(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere\.yaml"):
        config.load(tmp_path / "nowhere.yaml")


def test_settings_given_as_a_mapping_are_not_changed() -> None:
    given = {"method": {"name": "coop"}}
    config.load(values=given, overrides=["method.lr=1"])
    assert given == {"method": {"name": "coop"}}
