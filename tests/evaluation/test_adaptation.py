"""Test-time adaptation: each domain is a stream of its own, in an order that follows the seed and nothing else."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import clipdg
from clipdg.core.benchmark import Benchmark, Shift
from clipdg.core.seeding import seed_hash
from clipdg.data.protocol import decide

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("helpers_of")]
METHOD = "helpers_of.prototypes"


def run(out: Path, **values: Any) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """The record, and by domain the confidence in each image's prediction, which adaptation moves."""
    settings = {"benchmark": "helpers_of.three_styles", "backbone": "tiny", "method": METHOD, "shift": "dark", **values}
    [record] = clipdg.run(settings, out=out)
    table = pq.read_table(io.BytesIO((out / f"{record.run_id}.parquet").read_bytes())).to_pydict()
    found: dict[str, dict[str, float]] = {}
    for domain, image, confidence in zip(table["domain"], table["id"], table["confidence"], strict=True):
        found.setdefault(domain, {})[image] = confidence
    return json.loads(record.bytes()), found


def by_module(benchmark: Benchmark, shift: Shift, seed: int = 0) -> dict[str, dict[int, float]]:
    """By domain the confidence in each row's prediction, of a script's test of one shift."""
    from clipdg.data.datamodule import DataModule
    from clipdg.data.inputs import Images

    backbone = clipdg.load_backbone("tiny")
    protocol = decide(benchmark, shift, seed=seed, learns=False)
    data = DataModule(protocol, Images(benchmark, backbone.preprocessing))
    model = clipdg.method(METHOD, backbone, benchmark)
    options = model.trainer_options | {"enable_progress_bar": False, "enable_model_summary": False}
    lightning.Trainer(**options, accelerator="cpu").test(model, data, verbose=False)
    return {
        domain: dict(zip(found.indices.tolist(), found.confidence.tolist(), strict=True))
        for domain, found in model.predictions.items()
    }


def reordered(benchmark: Benchmark, *names: str) -> Benchmark:
    from dataclasses import replace

    return replace(benchmark, domains={name: benchmark.domains[name] for name in names})


def test_the_order_of_domains_and_the_presence_of_others_do_not_matter() -> None:
    benchmark = clipdg.load_benchmark("helpers_of.three_styles", published=True)
    names = list(benchmark.domains)
    together = by_module(benchmark, Shift("all", (), tuple(names)))
    backwards = by_module(reordered(benchmark, *names[::-1]), Shift("all", (), tuple(names[::-1])))
    assert together == backwards
    for name in names:
        alone = by_module(reordered(benchmark, name), Shift(name, (), (name,)))
        assert alone == {name: together[name]}


def test_a_seed_orders_the_stream_and_the_order_matters(tmp_path: Path) -> None:
    record, first = run(tmp_path / "a")
    _, again = run(tmp_path / "b")
    assert first == again
    other_record, other = run(tmp_path / "c", seed=1)
    assert record["protocol"]["test_time"] == {"seed": 0, "batch_size": 8}
    assert other_record["protocol"]["test_time"]["seed"] == 1
    assert first["dark"] != other["dark"]


def test_the_stream_is_the_one_that_the_record_names() -> None:
    """RandomState(seed_hash("stream", seed, domain, split)).permutation over the tested rows in ascending order."""
    benchmark = clipdg.load_benchmark("helpers_of.three_styles")
    [shift] = [s for s in benchmark.shifts if s.name == "dark"]
    protocol = decide(benchmark, shift, seed=3, learns=False)
    from dataclasses import replace

    streams = {(s.test_set.domain, s.test_set.splits): s for s in replace(protocol, adapts=True).streams()}
    whole = streams["dark", ("in", "out")]
    order = np.random.RandomState(seed_hash("stream", 3, "dark", "all")).permutation(60)
    assert whole.rows.tolist() == order.tolist()
    assert whole.test_set.whole
    held_out = np.sort(protocol.splits["dim"]["out"])
    order = np.random.RandomState(seed_hash("stream", 3, "dim", "out")).permutation(len(held_out))
    assert streams["dim", ("out",)].rows.tolist() == held_out[order].tolist()


def test_a_script_adapts_as_a_run_does(tmp_path: Path) -> None:
    _, by_run = run(tmp_path, seed=2)
    backbone = clipdg.load_backbone("tiny")
    data = clipdg.datamodule("helpers_of.three_styles", "dark", backbone, seed=2, stored=True)
    model = clipdg.method(METHOD, backbone, data, seed=2)
    options = model.trainer_options | {"enable_progress_bar": False, "enable_model_summary": False}
    lightning.Trainer(**options, accelerator="cpu").test(model, data, verbose=False)
    for domain, found in model.predictions.items():
        ids = data.benchmark.domains[domain].rows.ids
        for row, confidence in zip(found.indices.tolist(), found.confidence.tolist(), strict=True):
            assert by_run[domain][ids[row]] == pytest.approx(confidence, abs=1e-6)


def test_it_is_told_which_domain_begins_and_keeps_nothing(tmp_path: Path) -> None:
    import helpers_of.prototypes as plugin  # type: ignore[import-not-found]  # made by a fixture

    plugin.begun.clear()
    backbone = clipdg.load_backbone("tiny")
    data = clipdg.datamodule("helpers_of.three_styles", "dark", backbone)
    model = clipdg.method(METHOD, backbone, data)
    options = model.trainer_options | {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(**options, accelerator="cpu")
    trainer.test(model, data, verbose=False)
    first = {k: v.confidence for k, v in model.predictions.items()}
    trainer.test(model, data, verbose=False)
    assert plugin.begun == ["bright", "dim", "dark"] * 2
    assert all(torch.equal(first[k], v.confidence) for k, v in model.predictions.items())
    assert all(len(own) == 1 for own in model.method.memory)  # type: ignore[union-attr, arg-type]  # a Prototypes
