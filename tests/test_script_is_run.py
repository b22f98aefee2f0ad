"""Script = run: a method from ``clipdg.<method>(…)``, fitted and tested by a plain Trainer on ``clipdg.datamodule(…)``,
gives the predictions of ``clipdg run`` with the same settings, image by image; for every method and every protocol."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import pyarrow.parquet as pq
import pytest
import torch

import clipdg
from clipdg.core import plugins
from clipdg.records.record import Record

TARGET = "dark"
QUIET: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
# What makes each method quick here; everything else is its default.
SMALL: Mapping[str, Mapping[str, Any]] = {
    "zero_shot": {},
    "linear_probe": {},
    "coop": {"epochs": 2, "num_context": 4},
    "cocoop": {"epochs": 1, "batch_size": 8},
    "kgcoop": {"epochs": 2, "batch_size": 16},
    "prograd": {"epochs": 2, "num_context": 6},
    "tip_adapter": {"alphas": 5, "betas": 5},
    "clip_adapter": {"epochs": 2},
    "erm": {"epochs": 2, "batch_size": 16, "dropout": 0.2},
    "lora": {"epochs": 1, "batch_size": 16},
    "wise_ft": {"epochs": 1, "batch_size": 16, "warmup_steps": 2},
}
BACKBONE: Mapping[str, tuple[str, str | None]] = {"lora": ("tiny:vit", "random:3")}
GIVEN_FILES = ("context", "head")  # what another run left: below
OWN_HEAD = ("own_head",)  # needs weights with a classifier of WordNet's classes: tests/methods/test_own_head.py
ON_FEATURES = [name for name in SMALL if not plugins.method(name).trains_backbone]


def test_every_method_is_here() -> None:
    assert {*SMALL, *GIVEN_FILES, *OWN_HEAD} == set(plugins.names("methods"))


def backbone_of(method: str) -> tuple[str, str | None]:
    return BACKBONE.get(method, ("tiny", None))


def by_run(
    method: str,
    settings: Mapping[str, Any],
    out: Path,
    published: bool = False,
    fit: Mapping[str, Any] | None = None,
    **others: Any,
) -> tuple[Record, dict[tuple[str, str], int]]:
    """The record, and (domain, image) -> prediction."""
    name, weights = backbone_of(method)
    values: dict[str, Any] = {
        "benchmark": {"name": "helpers_of.three_styles", "published": published},
        "backbone": {"name": name, "weights": weights},
        "method": {"name": method, **settings},
        "shift": TARGET,
        **({"fit": dict(fit)} if fit else {}),
        **others,
    }
    [record] = clipdg.run(values, out=out)
    table = pq.read_table(io.BytesIO((out / f"{record.run_id}.parquet").read_bytes())).to_pydict()
    columns = zip(table["domain"], table["id"], table["prediction"], strict=True)
    return record, {(domain, image): prediction for domain, image, prediction in columns}


def by_script(
    method: str,
    settings: Mapping[str, Any],
    published: bool = False,
    stored: bool = False,
    seed: int = 0,
    fit: Mapping[str, Any] | None = None,
    objective: Any = "erm",
    **data_options: Any,
) -> tuple[Any, dict[tuple[str, str], int]]:
    """The fitted model, and (domain, image) -> prediction of what ``trainer.test`` tests."""
    backbone = clipdg.load_backbone(*backbone_of(method))
    data = clipdg.datamodule(
        "helpers_of.three_styles", TARGET, backbone, published=published, stored=stored, seed=seed, **data_options
    )
    model = getattr(clipdg, method)(backbone, data, seed=seed, fit=fit, objective=objective, **settings)
    trainer = lightning.Trainer(**model.trainer_options, **QUIET)
    if plugins.method(method).trains != "nothing":
        trainer.fit(model, data)
    trainer.test(model, data, verbose=False)
    found = {}
    for domain, predictions in model.predictions.items():
        ids = data.benchmark.domains[domain].rows.ids
        for row, predicted in zip(predictions.indices.tolist(), predictions.predicted.tolist(), strict=True):
            found[domain, ids[row]] = predicted
    return model, found


def assert_same(run: tuple[Record, dict[tuple[str, str], int]], script: tuple[Any, dict[tuple[str, str], int]]) -> None:
    """The script tests each domain's reported split, and predicts there what the run predicted."""
    record, predicted = run
    model, found = script
    assert found
    assert {key: predicted[key] for key in found} == found
    metrics = {(e["domain"], e["split"]): e["metrics"] for e in json.loads(record.bytes())["evaluations"]}
    for key, values in model.results.items():
        assert values["top1"] == metrics[key]["top1"]
        assert values["nll"] == pytest.approx(metrics[key]["nll"], rel=1e-4)
    reported = json.loads(record.bytes())["protocol"]["reported"]
    assert {key for key in model.results if key[1] == reported.get(key[0])} == set(reported.items())


pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("helpers_of")]


@pytest.mark.parametrize("method", SMALL)
def test_over_images(method: str, tmp_path: Path) -> None:
    assert_same(by_run(method, SMALL[method], tmp_path), by_script(method, SMALL[method]))


@pytest.mark.parametrize("method", ON_FEATURES)
def test_over_stored_features(method: str, tmp_path: Path) -> None:
    assert_same(by_run(method, SMALL[method], tmp_path), by_script(method, SMALL[method], stored=True))


@pytest.mark.parametrize("method", [name for name in SMALL if name != "zero_shot"])
def test_few_shots_of_a_seed_under_published_splits(method: str, tmp_path: Path) -> None:
    stored = method in ON_FEATURES
    assert_same(
        by_run(method, SMALL[method], tmp_path, published=True, shots=3, seed=4),
        by_script(method, SMALL[method], published=True, shots=3, seed=4, stored=stored),
    )


@pytest.mark.parametrize("method", ["linear_probe", "coop", "erm"])
def test_images_from_a_list(method: str, tmp_path: Path) -> None:
    chosen = {domain: [f"{domain}/{i}" for i in range(3, 30)] for domain in ("bright", "dim")}
    given = {"published": True, "picks": str(tmp_path / "picks.json")}
    (tmp_path / "picks.json").write_text(json.dumps(chosen))
    assert_same(by_run(method, SMALL[method], tmp_path / "out", **given), by_script(method, SMALL[method], **given))


@pytest.mark.parametrize("method", ["linear_probe", "kgcoop", "erm"])
@pytest.mark.parametrize("holdout", [0.0, 0.45])
def test_another_holdout(method: str, holdout: float, tmp_path: Path) -> None:
    assert_same(
        by_run(method, SMALL[method], tmp_path, holdout=holdout), by_script(method, SMALL[method], holdout=holdout)
    )


SWEEPS = [
    ("linear_probe", {"sweep": True}),
    ("linear_probe", {"sweep": True, "refit": False}),
    ("linear_probe", {"solver": "sgd", "epochs": 3, "batch_size": 7}),
    ("linear_probe", {"start": "zero_shot", "normalize": True}),
    ("tip_adapter", {"fine_tune": True, "epochs": 2, "alphas": 4, "betas": 4}),
    ("coop", {"class_specific": True, "position": "middle", "epochs": 1, "num_context": 4}),
    ("zero_shot", {"templates": ["a {domain} photo of {}"]}),
    ("wise_ft", {"alpha": 1.0, "epochs": 1, "batch_size": 16, "warmup_steps": 2}),
]


@pytest.mark.parametrize(("method", "settings"), SWEEPS, ids=lambda x: x if isinstance(x, str) else "-".join(x))
@pytest.mark.parametrize("shots", [None, 5])
def test_settings_that_choose_refit_and_batch(
    method: str, settings: Mapping[str, Any], shots: int | None, tmp_path: Path
) -> None:
    run = by_run(method, settings, tmp_path, shots=shots)
    stored = not plugins.method(method).trains_backbone
    script = by_script(method, settings, shots=shots, stored=stored)
    assert_same(run, script)
    if settings.get("sweep") and settings.get("refit", True):
        # What was fitted on in the end is not tested: of a source nothing is left.
        assert {domain for domain, _ in script[1]} == {TARGET}
        assert json.loads(run[0].bytes())["fit"]["c"] == script[0].method.story["c"]


FITS: list[tuple[str, dict[str, Any], Any]] = [
    ("coop", {"accumulate": 3}, "erm"),  # the last update of a pass lacks batches
    ("coop", {"steps": 5, "per_domain": True}, "erm"),
    ("clip_adapter", {"average": "swa", "average_from": 2}, {"name": "vrex", "anneal_steps": 2}),
    ("clip_adapter", {"steps": 4}, "coral"),
    ("coop", {"views": 2}, "erm"),
    ("erm", {"steps": 5, "average": "ema", "clip_norm": 0.5}, "group_dro"),
    ("erm", {"accumulate": 2}, "mixup"),
]


@pytest.mark.parametrize(("method", "fit", "objective"), FITS, ids=lambda x: "-".join(x) if isinstance(x, dict) else x)
def test_fits_and_objectives(method: str, fit: Mapping[str, Any], objective: Any, tmp_path: Path) -> None:
    run = by_run(method, SMALL[method], tmp_path, fit=fit, objective=objective)
    stored = method in ON_FEATURES
    assert_same(run, by_script(method, SMALL[method], fit=fit, objective=objective, stored=stored))


def test_what_another_run_left(tmp_path: Path) -> None:
    learnt, _ = by_run("coop", SMALL["coop"], tmp_path)
    file = {"file": str(tmp_path / f"{learnt.run_id}.safetensors")}
    assert_same(by_run("context", file, tmp_path), by_script("context", file))
    trained, _ = by_run("wise_ft", SMALL["wise_ft"], tmp_path, keep_weights=True)
    tower = str(tmp_path / f"{trained.run_id}.backbone.safetensors")
    head = {"file": str(tmp_path / f"{trained.run_id}.head.safetensors")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONE, "head", ("tiny", tower))  # type: ignore[arg-type]  # a dict
        assert_same(by_run("head", head, tmp_path), by_script("head", head))


def test_a_fit_draws_from_its_seed_alone() -> None:
    """What a script drew before does not matter, and it goes on drawing as if there had been no fit."""
    found = []
    for num_drawn in (1, 100):
        torch.manual_seed(num_drawn)
        torch.rand(num_drawn)
        before = torch.get_rng_state()
        found.append(by_script("erm", SMALL["erm"])[1])
        assert torch.equal(torch.get_rng_state(), before)
    assert found[0] == found[1]


def test_a_trained_backbone_is_a_copy() -> None:
    backbone = clipdg.load_backbone("tiny")
    before = {k: v.clone() for k, v in backbone.state_dict().items()}  # type: ignore[attr-defined]
    data = clipdg.datamodule("helpers_of.three_styles", TARGET, backbone)
    model = clipdg.erm(backbone, data, epochs=1, batch_size=16)  # type: ignore[attr-defined]  # methods are found by name
    lightning.Trainer(**model.trainer_options, **QUIET).fit(model, data)
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())  # type: ignore[attr-defined]
    assert model.backbone is not backbone
