"""ERM by steps equals DomainBed's loop, written out plainly; fits evaluated, averaged and resumed on the way."""

import copy
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import clipdg
from clipdg.core.benchmark import Benchmark, Domain, leave_one_out
from clipdg.core.errors import ConfigError
from clipdg.core.fit import Fit
from clipdg.core.model import ClipBackbone
from clipdg.data import datasets, inputs, preprocessing, splits
from clipdg.data.rows import ArrayRows
from clipdg.methods import erm
from clipdg.records import model_selection
from clipdg.records.record import Record, predictions
from clipdg.runs import config
from clipdg.runs import run as run_
from clipdg.training import checkpoints
from clipdg.training import trainer as trainer_
from clipdg.training.classifier import Classifier
from clipdg.training.weight_averaging import Average

BASE = ("benchmark=rotated_digits", "shift=75", "backbone=tiny:resnet", "backbone.weights=random:0", "method=erm",
        "method.batch_size=4", "method.augment=none", "fit.per_domain=true", "fit.steps=7")  # fmt: skip


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Benchmark:
    """rotated_digits with three of its angles and 40 images of each."""
    whole = clipdg.load_benchmark("rotated_digits")
    domains = {}
    for name in ("0", "15", "75"):
        rows = whole.domains[name].rows
        few_rows = ArrayRows(rows.array[:40], rows.labels[:40], rows.ids[:40])
        domains[name] = Domain(name, few_rows)
    made = Benchmark("rotated_digits", whole.classes, domains, leave_one_out(tuple(domains)))
    monkeypatch.setattr("clipdg.runs.session.open_benchmark", lambda settings: made)
    return made


def run(*overrides: str, out: Path | None = None) -> Record:
    [record] = run_.run(config.load(overrides=[*BASE, *overrides]), out)
    return record


def last(record: Record) -> dict[tuple[str, str], Any]:
    step = max(e.step for e in record.evaluations)
    return {(e.domain, e.split): e.metrics for e in record.evaluations if e.step == step}


def test_steps_on_batches_of_each_domain_are_domainbeds_loop(few: Benchmark) -> None:
    record = run("method.weight_decay=0.01")
    assert {e.step for e in record.evaluations} == {7}
    # domainbed/algorithms.py, ERM.update, and scripts/train.py, on the same draws
    torch.manual_seed(0)
    backbone = clipdg.load_backbone("tiny:resnet", "random:0")
    featurizer = copy.deepcopy(backbone)
    assert isinstance(featurizer, nn.Module)
    head = nn.Linear(backbone.embed_dim, 10)
    network = nn.ModuleList([featurizer, head]).train().requires_grad_(True)
    parts = [
        datasets.ImageDataset(few.domains[d].rows, splits.splits(few.domains[d], i, 0)["in"], backbone.preprocessing, i)
        for i, d in enumerate(("0", "15"))
    ]
    adam = torch.optim.Adam(network.parameters(), lr=5e-5, weight_decay=0.01)
    draws = torch.Generator().manual_seed(0)
    for _ in range(7):
        drawn = [part.take(torch.randint(len(part), (4,), generator=draws).tolist()) for part in parts]
        x = torch.cat([preprocessing.normalize(b.inputs, backbone.preprocessing) for b in drawn])
        y = torch.cat([b.labels for b in drawn])
        loss = F.cross_entropy(head(featurizer.encode_image(x)), y)  # type: ignore[operator]
        adam.zero_grad()
        loss.backward()
        adam.step()
    network.eval()
    target = datasets.ImageDataset(few.domains["75"].rows, range(40), backbone.preprocessing, 2).take(range(40))
    with torch.no_grad():
        logits = head(featurizer.encode_image(preprocessing.normalize(target.inputs, backbone.preprocessing)))  # type: ignore[operator]
    nll = F.cross_entropy(logits.double(), target.labels).item()
    assert last(record)["75", "all"]["nll"] == pytest.approx(nll, rel=1e-6)


def test_evaluations_on_the_way_are_domainbeds_and_change_nothing(few: Benchmark) -> None:
    watched = run("fit.checkpoint_every=3", "method.dropout=0.5")
    assert sorted({e.step for e in watched.evaluations}) == [1, 4, 7]  # DomainBed's steps 0, 3 and 6
    blind = run("method.dropout=0.5")
    assert last(watched) == last(blind)
    assert watched.run_id != blind.run_id
    [early, _, _] = model_selection.checkpoints_of(watched)
    assert early.step == 1
    assert set(early.accuracies) == {(d, s) for d in ("0", "15", "75") for s in ("in", "out")} | {("75", "all")}


def test_a_prompt_method_is_evaluated_on_its_way_too(few: Benchmark) -> None:
    [record] = run_.run(
        config.load(
            overrides=["benchmark=rotated_digits", "shift=75", "backbone=tiny", "backbone.weights=random:0",
                       "method=coop", "method.num_context=2", "fit.steps=5", "fit.checkpoint_every=2"]
        )
    )  # fmt: skip
    assert sorted({e.step for e in record.evaluations}) == [1, 3, 5]


class Interrupted(BaseException):
    pass


class InterruptAt(lightning.Callback):
    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == 22:  # in the third pass of eight updates
            raise Interrupted


def _with_seconds(checkpoint: Any, seconds: float) -> Any:
    """A checkpoint that says how long it took to get there."""
    [state] = [s for name, s in checkpoint["callbacks"].items() if name.startswith("FitState")]
    assert 0 < state["seconds"] < 300
    state["seconds"] = seconds
    return checkpoint


def test_an_interrupted_fit_ends_in_the_same_weights_and_keeps_what_it_found(
    few: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("fit.steps=30", "fit.checkpoint_every=6", "fit.average=swa", "fit.average_from=10",
                "method.augment=domainbed", "method.val_transform=domainbed", "method.dropout=0.3")  # fmt: skip
    whole = run(*settings, out=tmp_path / "whole")
    make = trainer_.make
    monkeypatch.setattr("clipdg.runs.fitting.FitState", lambda *a: checkpoints.FitState(*a, hold=0.0))

    def interrupted(*arguments: Any, callbacks: Any = (), **options: Any) -> lightning.Trainer:
        return make(*arguments, callbacks=[*callbacks, InterruptAt()], **options)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_, "make", interrupted)
        with pytest.raises(Interrupted):
            run(*settings, out=tmp_path / "cut")
    assert list((tmp_path / "cut" / ".runs").glob("*.ckpt"))
    load = checkpoints.load
    monkeypatch.setattr(checkpoints, "load", lambda path: _with_seconds(load(path), 1000.0))
    seen: list[int] = []
    step = Classifier.training_step

    def counted(self: Classifier, *batch: Any) -> Any:
        seen.append(self.global_step)
        return step(self, *batch)

    monkeypatch.setattr(Classifier, "training_step", counted)
    resumed = run(*settings, out=tmp_path / "cut")
    assert seen == list(range(16, 30))  # the passes that had ended are not done again
    assert resumed.content["timing"]["fit_seconds"] > 1000  # what they took is a cost of the run too
    assert resumed.evaluations == whole.evaluations
    assert predictions(resumed, tmp_path / "cut") == predictions(whole, tmp_path / "whole")


def test_source_images_are_evaluated_under_domainbeds_augmentation_on_request_alone(few: Benchmark) -> None:
    clean = last(run("method.augment=domainbed"))
    theirs = last(run("method.augment=domainbed", "method.val_transform=domainbed"))
    assert theirs["75", "all"] == clean["75", "all"]
    assert all(theirs[d, s]["nll"] != clean[d, s]["nll"] for d in ("0", "15") for s in ("in", "out"))


def test_squashed_images_are_domainbeds_test_images() -> None:
    from torchvision import transforms

    spec = clipdg.load_backbone("tiny:resnet", "random:0").preprocessing
    noise = torch.randint(256, (3, 24, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = transforms.functional.to_pil_image(noise)
    theirs = transforms.Compose([transforms.Resize((32, 32)), transforms.ToTensor()])(image)
    assert torch.equal(preprocessing.to_uint8(image, inputs.squashed(spec)).float() / 255, theirs)


@pytest.mark.parametrize("name", ["tiny", "tiny:vit"])
def test_of_a_clip_the_image_tower_alone_is_trained(name: str) -> None:
    clip = clipdg.load_backbone(name, "random:0")
    assert isinstance(clip, nn.Module)
    assert isinstance(clip, ClipBackbone)
    method = erm.build(erm.Config(), clip, Benchmark("b", ("a", "b")))
    classifier = Classifier(clip, method, 2, erm.fit(erm.Config()), erm.METHOD, erm.Config())
    clip.encode_image(torch.randn(4, 3, 32, 32)).square().sum().backward()
    for parameter in clip.parameters():
        assert parameter.requires_grad == (parameter.grad is not None)
    assert not any(p.requires_grad for p in clip.text_tower.parameters())  # type: ignore[union-attr]
    assert sum(p.requires_grad for p in classifier.parameters()) > 10


class Batches:
    """The same batches, cut at another size."""

    def __init__(self, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        inputs, labels = torch.randn(48, 64, generator=generator), torch.randint(3, (48,), generator=generator)
        self.batches = list(zip(inputs.split(size), labels.split(size), strict=True))

    def __iter__(self) -> Any:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def fitted(clip: ClipBackbone, size: int, fit: Fit, *callbacks: lightning.Callback) -> torch.Tensor:
    """The weights of a linear classifier after a fit on batches of this size."""
    torch.manual_seed(0)
    head = nn.Linear(64, 3)
    classifier = Classifier(clip, head, 3, fit)
    with trainer_.quiet():
        trainer_.make("fit", callbacks=list(callbacks), **trainer_.options_of(fit)).fit(classifier, Batches(size))
    return head.weight.detach()


def test_accumulated_batches_are_one_larger_batch(clip: ClipBackbone) -> None:
    one = fitted(clip, 12, Fit("sgd", 0.1, 2, 12))
    two = fitted(clip, 4, Fit("sgd", 0.1, 2, 4, accumulate=3))
    torch.testing.assert_close(one, two)


def test_a_last_update_of_fewer_batches_is_the_mean_of_these(clip: ClipBackbone) -> None:
    batches = Batches(12).batches
    torch.manual_seed(0)
    head = nn.Linear(64, 3)
    plain = torch.optim.SGD(head.parameters(), 0.1, momentum=0.9)
    for group in (batches[:3], batches[3:]):
        plain.zero_grad()
        for x, y in group:
            (F.cross_entropy(head(x), y) / len(group)).backward()
        plain.step()
    torch.testing.assert_close(fitted(clip, 12, Fit("sgd", 0.1, 1, 12, accumulate=3)), head.weight.detach())


def test_gradients_are_no_longer_than_clip_norm(clip: ClipBackbone) -> None:
    torch.manual_seed(0)
    start = nn.Linear(64, 3).weight.detach()
    moved = fitted(clip, 48, Fit("sgd", 1.0, 1, 48, momentum=0.0, clip_norm=1e-3)) - start
    assert 0 < moved.norm().item() <= 1.0001e-3


@pytest.mark.parametrize("decay", [None, 0.9])
def test_averages_are_torchs(clip: ClipBackbone, decay: float | None) -> None:
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    class Reference(lightning.Callback):
        averaged: AveragedModel | None = None

        def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
            if trainer.global_step > 3:
                options: dict[str, Any] = {"multi_avg_fn": get_ema_multi_avg_fn(decay)} if decay else {}
                self.averaged = self.averaged or AveragedModel(module.method, **options)
                self.averaged.update_parameters(module.method)

    reference, ours = Reference(), Average(3, decay)
    found = fitted(clip, 4, Fit("sgd", 0.1, 1, 4), reference, ours)
    assert reference.averaged is not None
    torch.testing.assert_close(found, reference.averaged.module.weight.detach())
    assert ours.num_averaged == 9


def test_mixed_precision_keeps_weights_in_fp32_and_comes_close(clip: ClipBackbone) -> None:
    one, two = (fitted(clip, 12, Fit("sgd", 0.1, 2, 12, precision=p)) for p in ("fp32", "bf16"))  # type: ignore[arg-type]
    assert two.dtype == torch.float32
    assert not torch.equal(one, two)
    torch.testing.assert_close(one, two, atol=2e-3, rtol=0.05)  # bf16 keeps 8 bits of a product


@pytest.mark.parametrize("setting", ["fit.steps=3", "fit.average=swa", "fit.checkpoint_every=1"])
def test_settings_of_a_fit_are_refused_where_nothing_is_fitted(few: Benchmark, setting: str) -> None:
    overrides = ["benchmark=rotated_digits", "backbone=tiny", "method=zero_shot", setting]
    with pytest.raises(ConfigError, match=r"is for what learns by gradient descent, and zero_shot does not"):
        run_.run(config.load(overrides=overrides))


@pytest.mark.parametrize(
    "more",
    [("fit.accumulate=2", "fit.average=ema"), ("fit.per_domain=false",), ("fit.per_domain=false", "fit.steps=32")],
)
def test_a_number_of_updates_is_resumed_at_the_end_of_a_pass(
    more: tuple[str, ...], few: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passes of four or sixteen updates, broken off in the second one or the sixth."""
    settings = ("fit.steps=30", "method.augment=light", "method.dropout=0.3", *more)
    whole = run(*settings, out=tmp_path / "whole")
    make = trainer_.make
    monkeypatch.setattr("clipdg.runs.fitting.FitState", lambda *a: checkpoints.FitState(*a, hold=0.0))
    with monkeypatch.context() as patch:
        patch.setattr(
            trainer_, "make", lambda *a, callbacks=(), **o: make(*a, callbacks=[*callbacks, InterruptAt()], **o)
        )
        with pytest.raises(Interrupted):
            run(*settings, out=tmp_path / "cut")
    assert list((tmp_path / "cut" / ".runs").glob("*.ckpt"))
    assert run(*settings, out=tmp_path / "cut").evaluations == whole.evaluations


def test_a_fit_that_was_over_when_it_was_interrupted_ends_in_its_average(
    few: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("fit.steps=9", "fit.average=swa", "method.lr=0.01")
    whole = run(*settings, out=tmp_path / "whole")
    last_weights = run("fit.steps=9", "method.lr=0.01")
    monkeypatch.setattr("clipdg.runs.fitting.FitState", lambda *a: checkpoints.FitState(*a, hold=0.0, write=0.0))

    def killed(*_: Any) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr("clipdg.runs.run.evaluate", killed)
        with pytest.raises(Interrupted):
            run(*settings, out=tmp_path / "cut")
    resumed = run(*settings, out=tmp_path / "cut")
    assert last(resumed) == last(whole)
    assert last(resumed) != last(last_weights)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (("fit.average=swa", "fit.average_from=7"), "average_from is 7 and the fit has 7 updates"),
        (("fit.average_from=3",), "average_from is for weights that are averaged"),
        (("fit.average=swa", "fit.ema_decay=0.9"), "ema_decay is of a decaying average"),
    ],
)
def test_an_average_of_nothing_is_refused(few: Benchmark, settings: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        run(*settings)


def test_what_a_run_costs_is_in_its_record(few: Benchmark) -> None:
    timing = run().content["timing"]
    assert timing["trainable_parameters"] == 289058 - 129 * 2 + 129 * 10
    assert timing["images_per_second"] > 0
    assert timing["peak_memory_mib"] > 50
    assert timing["fit_seconds"] <= timing["seconds"]
