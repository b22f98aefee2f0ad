"""WiSE-FT: the line from zero-shot to fine-tuned weights with its two ends, and the schedule."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import clipdg
from clipdg.core.benchmark import Benchmark
from clipdg.core.errors import ConfigError, RecordError
from clipdg.core.model import ClipBackbone
from clipdg.data import datasets, preprocessing, splits
from clipdg.methods import wise_ft
from clipdg.records import evaluations
from clipdg.records.record import Record, read_record
from clipdg.runs import config
from clipdg.runs import run as run_
from clipdg.runs.session import open_benchmark
from clipdg.training.schedules import lr_factor
from clipdg.weights import interpolation

pytestmark = pytest.mark.usefixtures("plugins_of_a_user")

BASE = ("benchmark=plugins_of.a_user", "shift=dark", "backbone=tiny", "backbone.weights=random:0", "method=wise_ft",
        "method.epochs=2", "method.batch_size=10", "method.warmup_steps=2", "method.lr=1e-3", "method.augment=none",
        "method.templates=['a {}']")  # fmt: skip


def run(*overrides: str, out: Path | None = None) -> Record:
    [record] = run_.run(config.load(overrides=[*BASE, *overrides]), out)
    return record


def found(entries: Any, **of: Any) -> dict[tuple[str, str], Any]:
    return {(e.domain, e.split): e.metrics for e in entries if all(getattr(e, k) == v for k, v in of.items())}


def nlls(metrics: dict[tuple[str, str], Any]) -> dict[tuple[str, str], float]:
    return {key: m["nll"] for key, m in metrics.items()}


def test_the_curve_begins_at_zero_shot_and_ends_at_the_fine_tuned_weights() -> None:
    half, whole = run(), run("method.alpha=1")
    curve = half.curve
    assert sorted({e.alpha for e in curve}) == [i / 10 for i in range(11)]
    zero_shot = run_.run(
        config.load(overrides=[*BASE[:4], "method=zero_shot", "method.templates=['a {}']", "shift=dark"])
    )[0]
    assert nlls(found(curve, alpha=0.0)) == pytest.approx(nlls(found(zero_shot.evaluations)), rel=1e-5)
    assert found(curve, alpha=1.0) == found(whole.evaluations)
    assert found(curve, alpha=0.5) == found(half.evaluations)
    assert curve == whole.curve  # the same fit
    assert half.run_id != whole.run_id
    assert found(curve, alpha=0.0) != found(curve, alpha=1.0)


def test_reports_read_the_configured_alpha_alone() -> None:
    record = run("method.alpha=0.3")
    for domain, split in (("dark", "all"), ("bright", "out")):
        evaluation = evaluations.reported(record, domain)
        assert evaluation is not None
        assert evaluation.metrics == found(record.curve, alpha=0.3)[domain, split]


def test_an_impossible_number_in_a_curve_is_refused(tmp_path: Path) -> None:
    record = run(out=tmp_path)
    content = copy.deepcopy(dict(record.content))
    content["curve"][3]["metrics"]["top1"] = 1.5
    (tmp_path / f"{record.run_id}.json").unlink()
    Record(content).publish(tmp_path)
    with pytest.raises(RecordError, match=r"top1 on .* is 1.5, not a fraction"):
        read_record(tmp_path / f"{record.run_id}.json")


def test_fine_tuning_is_the_authors_loop() -> None:
    record = run("method.alpha=1", "method.batch_size=29")
    benchmark = open_benchmark(config.load(overrides=[*BASE]).benchmark)
    backbone = clipdg.load_backbone("tiny", "random:0")
    assert isinstance(backbone, ClipBackbone)
    assert isinstance(backbone, nn.Module)
    directions = clipdg.class_directions(backbone, benchmark.classes, ["a {}"])
    weight, bias = nn.Parameter(backbone.logit_scale * directions), nn.Parameter(torch.zeros(len(directions)))
    tower = [p for n, p in backbone.named_parameters() if n.startswith(("image", "projection")) and "text" not in n]
    for p in tower:
        p.requires_grad_(True)
    backbone.train()
    adam = torch.optim.AdamW([*tower, weight, bias], lr=1e-3, weight_decay=0.1)
    domain = benchmark.domains["bright"]
    place = list(benchmark.domains).index("bright")
    part = datasets.ImageDataset(domain.rows, splits.splits(domain, place, 0)["in"], backbone.preprocessing, place)
    order = torch.Generator().manual_seed(0)
    for step in range(2):
        for group in adam.param_groups:  # wise-ft, src/models/utils.py, cosine_lr, within the warm-up
            group["lr"] = 1e-3 * (step + 1) / 2
        batch = part.take(torch.randperm(len(part), generator=order).tolist())
        x = preprocessing.normalize(batch.inputs, backbone.preprocessing)
        logits = F.normalize(backbone.encode_image(x), dim=1) @ weight.T + bias
        adam.zero_grad()
        F.cross_entropy(logits, batch.labels).backward()
        torch.nn.utils.clip_grad_norm_([*tower, weight, bias], 1.0)
        adam.step()
    backbone.eval()
    dark = datasets.ImageDataset(benchmark.domains["dark"].rows, range(36), backbone.preprocessing, 1).take(range(36))
    with torch.no_grad():
        features = F.normalize(
            backbone.encode_image(preprocessing.normalize(dark.inputs, backbone.preprocessing)), dim=1
        )
        nll = F.cross_entropy((features @ weight.T + bias).double(), dark.labels).item()
    assert found(record.evaluations)["dark", "all"]["nll"] == pytest.approx(nll, rel=1e-4)


def test_the_schedule_is_the_authors() -> None:
    def theirs(step: int) -> float:  # wise-ft, src/models/utils.py: cosine_lr(optimizer, base_lrs, 500, 2000)
        if step < 500:
            return (step + 1) / 500
        return 0.5 * (1 + float(np.cos(np.pi * (step - 500) / (2000 - 500))))

    factor = lr_factor(wise_ft.fit(wise_ft.Config()), 2000, 200)
    assert [factor(s) for s in range(2000)] == pytest.approx([theirs(s) for s in range(2000)])
    assert factor(0) == 0.002
    assert math.isclose(factor(1250), 0.5)


def test_between_two_states_every_weight_is_between_and_the_ends_are_exact() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    start = interpolation.state_of(net)
    net(torch.randn(5, 2))
    with torch.no_grad():
        net[0].weight += 1
    end = interpolation.state_of(net)
    interpolation.put(net, start, end, 0.25)
    torch.testing.assert_close(net[0].weight, start["0.weight"] + 0.25)
    torch.testing.assert_close(net[1].running_mean, 0.25 * end["1.running_mean"])
    for alpha, state in ((0.0, start), (1.0, end)):
        interpolation.put(net, start, end, alpha)
        assert all(torch.equal(v, state[k]) for k, v in interpolation.state_of(net).items())


def test_prompts_that_name_the_domain_are_refused(clip: ClipBackbone, squares: Benchmark) -> None:
    with pytest.raises(ConfigError, match="one classifier for all domains"):
        wise_ft.build(wise_ft.Config(templates=["a {domain} of a {}"]), clip, squares)
