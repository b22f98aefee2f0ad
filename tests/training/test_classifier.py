"""The LightningModule: metrics against independent answers, and what a plain Trainer may expect of it."""

import math
import warnings
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, log_loss, top_k_accuracy_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import clipdg
from clipdg.core.benchmark import Benchmark, Subset
from clipdg.core.errors import ConfigError, DivergedError
from clipdg.core.fit import Fit
from clipdg.core.model import Backbone, ClipBackbone
from clipdg.data.test_set import TestSet
from clipdg.evaluation.scores import Scores
from clipdg.evaluation.tally import Tally
from clipdg.training import trainer
from clipdg.training.classifier import PLAIN_TOWER, Classifier


class Fixed(nn.Module):
    """The features are the logits."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def evaluate(classifier: Classifier, *loaders: Any) -> None:
    with trainer.quiet():
        trainer.make("test").test(classifier, list(loaders), verbose=False)


def batches(*columns: torch.Tensor, size: int = 7) -> DataLoader[tuple[torch.Tensor, ...]]:
    return DataLoader(TensorDataset(*columns), batch_size=size)


def naive_ece(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    number = np.minimum((confidence * bins).astype(int), bins - 1)
    return sum(
        abs(correct[number == b].mean() - confidence[number == b].mean()) * (number == b).mean()
        for b in range(bins)
        if (number == b).any()
    )


def test_metrics_equal_scikit_learn(clip: ClipBackbone) -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(200, 8)) * 3, rng.integers(0, 8, 200)
    classifier = Classifier(clip, Fixed(), 8, test_sets=[TestSet("d", ("test",))])
    evaluate(classifier, batches(torch.tensor(logits), torch.tensor(labels)))
    found = classifier.results["d", "test"]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    predicted = logits.argmax(axis=1)
    recall = [(predicted[labels == k] == k).mean() for k in range(8)]
    assert found["top1"] == (predicted == labels).mean()  # a ratio of counts, to the last bit
    assert found["top5"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5))
    assert found["mean_per_class"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert found["worst_class"] == pytest.approx(min(recall))
    assert found["nll"] == pytest.approx(log_loss(labels, probabilities))
    assert found["ece"] == pytest.approx(naive_ece(probabilities, labels), abs=1e-6)


def test_a_class_without_images_is_not_in_the_mean_over_classes(clip: ClipBackbone) -> None:
    # class 2 is predicted once and has no image: the recalls are 1/2 and 1
    logits = torch.eye(3)[[0, 2, 1, 1]].double() * 5
    classifier = Classifier(clip, Fixed(), 3)
    evaluate(classifier, batches(logits, torch.tensor([0, 0, 1, 1])))
    assert classifier.results["test", "test"]["mean_per_class"] == pytest.approx(0.75)
    assert classifier.results["test", "test"]["worst_class"] == pytest.approx(0.5)


def test_top5_of_five_classes_or_fewer_is_none(clip: ClipBackbone) -> None:
    classifier = Classifier(clip, Fixed(), 5)
    evaluate(classifier, batches(torch.randn(9, 5), torch.arange(9) % 5))
    assert classifier.results["test", "test"]["top5"] is None


def test_a_saturated_softmax_stays_in_the_last_bin(clip: ClipBackbone) -> None:
    # 10 images of confidence 1, 4 wrong; 10 of confidence 0.98, all right. One bin: |0.8 - 0.99| = 0.19.
    sure = torch.tensor([[1000.0, 0.0]] * 10 + [[math.log(49.0), 0.0]] * 10).double()
    labels = torch.tensor([1] * 4 + [0] * 16)
    classifier = Classifier(clip, Fixed(), 2)
    evaluate(classifier, batches(sure, labels))
    assert classifier.results["test", "test"]["ece"] == pytest.approx(0.19, abs=1e-6)


def test_a_class_subset_is_scored_among_its_own_classes(clip: ClipBackbone) -> None:
    logits, labels = torch.randn(40, 10, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3 * 4
    whole = Classifier(clip, Fixed(), 10, test_sets=[TestSet("a", ("test",), Subset((0, 4, 8)))])
    evaluate(whole, batches(logits, labels))
    alone = Classifier(clip, Fixed(), 3, test_sets=[TestSet("a", ("test",))])
    evaluate(alone, batches(logits[:, [0, 4, 8]], labels // 4))
    for name in ("top1", "mean_per_class", "nll", "ece"):
        assert whole.results["a", "test"][name] == pytest.approx(alone.results["a", "test"][name])


def by_groups(logits: torch.Tensor, groups: list[list[int]]) -> torch.Tensor:
    """One column a group, its highest logit: the imagenet testbed's way."""
    return torch.stack([logits[:, group].max(dim=1).values for group in groups], dim=1)


def test_classes_that_count_as_one_have_their_highest_logit(clip: ClipBackbone) -> None:
    # of ten classes: 2 and 7 are one, 5 and 0 and 9 are one, 3 is alone, and 1, 4, 6, 8 are not there
    groups = [[2, 7], [0, 5, 9], [3]]
    generator = torch.Generator().manual_seed(0)
    logits, which = torch.randn(60, 10, generator=generator), torch.arange(60) % 3
    subset = Subset((0, 2, 3, 5, 7, 9), ((2, 7), (0, 5, 9)))
    whole = Classifier(clip, Fixed(), 10, test_sets=[TestSet("objects", ("test",), subset)])
    evaluate(whole, batches(logits, torch.tensor([2, 0, 3])[which]))
    alone = Classifier(clip, Fixed(), 3, test_sets=[TestSet("objects", ("test",))])
    evaluate(alone, batches(by_groups(logits, groups), which))
    for name in ("top1", "mean_per_class", "worst_class", "nll", "ece"):
        assert whole.results["objects", "test"][name] == pytest.approx(alone.results["objects", "test"][name])
    assert set(whole.predictions["objects"].predicted.tolist()) == {2, 0, 3}


def test_a_view_is_the_tested_images_of_some_classes_among_these(clip: ClipBackbone) -> None:
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(80, 10, generator=generator), torch.arange(80) % 10
    splits = (torch.arange(80) < 50).long()  # the last 30 are "val", which no view has
    views = {"some-classes": Subset((1, 4, 6)), "groups": Subset((1, 4, 6, 8), ((4, 6),))}
    classifier = Classifier(clip, Fixed(), 10, test_sets=[TestSet("d", ("val", "test"), class_subsets=views)])
    columns = (logits, labels, torch.zeros(80).long(), torch.arange(80), splits)
    evaluate(classifier, batches(*columns, size=9))
    assert list(classifier.results) == [("d", name) for name in ("val", "test", "some-classes", "groups")]
    for name, columns_of, numbers in (
        ("some-classes", [[1], [4], [6]], {1: 0, 4: 1, 6: 2}),
        ("groups", [[1], [4, 6], [8]], {1: 0, 4: 1, 6: 1, 8: 2}),
    ):
        chosen = (splits == 1) & torch.isin(labels, torch.tensor(list(numbers)))
        alone = Classifier(clip, Fixed(), 3)
        theirs = torch.tensor([numbers[label] for label in labels[chosen].tolist()])
        evaluate(alone, batches(by_groups(logits[chosen], columns_of), theirs))
        for metric in ("top1", "mean_per_class", "nll", "ece"):
            assert classifier.results["d", name][metric] == pytest.approx(alone.results["test", "test"][metric])


def test_a_tally_equals_torchmetrics() -> None:
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(500, 30, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 30, (500,), generator=generator)
    tally = Tally(30)
    for part in torch.arange(500).split(64):
        tally.update(Scores.of(logits[part]), labels[part])
    found, probabilities = tally.compute(), logits.softmax(dim=1)
    assert found["top1"] == pytest.approx(float(multiclass_accuracy(probabilities, labels, 30, "micro")))
    assert found["top5"] == pytest.approx(float(multiclass_accuracy(probabilities, labels, 30, "micro", top_k=5)))
    assert found["mean_per_class"] == pytest.approx(float(multiclass_accuracy(probabilities, labels, 30, "macro")))
    assert found["ece"] == pytest.approx(float(multiclass_calibration_error(probabilities, labels, 30)), abs=1e-6)


def test_a_tally_does_not_grow_with_the_images() -> None:
    def size(tally: Tally) -> int:
        return sum(getattr(tally, name).nbytes for name in tally._defaults)

    tally = Tally(1000)
    before = size(tally)
    scores = Scores.of(torch.randn(256, 1000).double())
    for _ in range(20):
        tally.update(scores, torch.arange(256))
    assert size(tally) == before < 20_000
    assert all(isinstance(getattr(tally, name), torch.Tensor) for name in tally._defaults)  # no list of batches


def test_splits_are_the_same_images_evaluated_apart(clip: ClipBackbone) -> None:
    logits, labels = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 6
    splits = torch.tensor([0, 1, 1, 1] * 10)
    sets = [TestSet("d", ("out", "in", "empty"), whole=True)]
    classifier = Classifier(clip, Fixed(), 6, test_sets=sets)
    columns = (logits, labels, torch.zeros(40).long(), torch.arange(40), splits)
    evaluate(classifier, batches(*columns, size=3))  # some of the batches have images of one split only
    assert set(classifier.results["d", "empty"].values()) == {None}
    for number, split in enumerate(("out", "in")):
        alone = Classifier(clip, Fixed(), 6)
        evaluate(alone, batches(logits[splits == number], labels[splits == number]))
        assert classifier.results["d", split] == pytest.approx(alone.results["test", "test"])
    top1 = [classifier.results["d", s]["top1"] for s in ("all", "in", "out")]
    assert None not in top1
    assert top1[0] == pytest.approx(0.75 * top1[1] + 0.25 * top1[2])  # type: ignore[operator]


def test_metrics_do_not_depend_on_the_batch_size(clip: ClipBackbone) -> None:
    logits, labels = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 6
    found = []
    for size in (1, 7, 50):
        classifier = Classifier(clip, Fixed(), 6)
        evaluate(classifier, batches(logits, labels, size=size))
        found.append(classifier.results["test", "test"])
    assert found[0] == pytest.approx(found[1])
    assert found[1] == pytest.approx(found[2])


def test_a_logit_that_is_not_finite_is_named(clip: ClipBackbone) -> None:
    with pytest.raises(DivergedError, match="a logit on test"):
        evaluate(Classifier(clip, Fixed(), 2), batches(torch.tensor([[math.nan, 0.0]]), torch.tensor([0])))


def loader(squares: Benchmark, clip: Backbone, domain: str) -> DataLoader[tuple[torch.Tensor, ...]]:
    rows = squares.domains[domain].rows
    images = torch.stack([clip.preprocess(rows.image(i)) for i in range(len(rows))])
    return DataLoader(TensorDataset(images, torch.from_numpy(rows.labels)), batch_size=8, shuffle=True)


def plain(**options: Any) -> lightning.Trainer:
    return lightning.Trainer(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu", **options,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # a plain Trainer advises on workers
def test_the_three_constructors_work_with_a_plain_trainer(squares: Benchmark, clip: ClipBackbone) -> None:
    train, test = loader(squares, clip, "bright"), loader(squares, clip, "dark")
    zero = clipdg.zero_shot(clip, squares.classes, ["a {}"])
    [before] = plain().test(zero, test, verbose=False)
    assert set(before) == {"test/top1", "test/mean_per_class", "test/worst_class", "test/ece", "test/nll"}
    probe = clipdg.linear_probe(clip, squares.classes, c=10.0)
    plain(max_epochs=5).fit(probe, train)
    [after] = plain().test(probe, train, verbose=False)
    assert after["test/top1"] == 1.0  # 36 images of three colours in 64 dimensions are separable
    context = clipdg.coop(clip, squares.classes, num_context=4, lr=0.1, epochs=3)
    initial = context.method.context.detach().clone()
    plain(max_epochs=3).fit(context, train)
    assert not torch.equal(initial, context.method.context)
    images = next(iter(test))[0]
    assert zero(images).shape == (8, 3)
    assert context.method(clip.encode_image(images)).shape == (8, 3)


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_holds_what_was_learnt_and_resumes(squares: Benchmark, clip: ClipBackbone, tmp_path: Path) -> None:
    context = clipdg.coop(clip, squares.classes, num_context=4, epochs=1)
    fitting = plain(max_epochs=1)
    fitting.fit(context, loader(squares, clip, "bright"))
    fitting.save_checkpoint(tmp_path / "a.ckpt")
    learnt = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    assert {k.partition(".")[0] for k in learnt} == {"method"}
    fresh = clipdg.coop(clip, squares.classes, num_context=4, epochs=2)
    plain(max_epochs=1).fit(fresh, loader(squares, clip, "bright"), ckpt_path=tmp_path / "a.ckpt")
    torch.testing.assert_close(fresh.method.context, context.method.context)


def test_a_frozen_backbone_stays_in_evaluation_mode_and_unchanged(squares: Benchmark, clip: ClipBackbone) -> None:
    before = {k: v.clone() for k, v in clip.state_dict().items()}  # type: ignore[attr-defined]
    context = clipdg.coop(clip, squares.classes, num_context=4, epochs=1)
    context.train()
    assert not context.backbone.training  # type: ignore[attr-defined]
    with trainer.quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.make("fit", max_epochs=1).fit(context, loader(squares, clip, "bright"))
    assert all(torch.equal(v, before[k]) for k, v in clip.state_dict().items())  # type: ignore[attr-defined]


def test_a_trained_backbone_learns_its_batch_statistics(squares: Benchmark) -> None:
    resnet = clipdg.load_backbone("tiny:resnet", "random:0")
    before = {k: v.clone() for k, v in resnet.state_dict().items()}  # type: ignore[attr-defined]
    fit = Fit("adam", lr=1e-3, epochs=1, batch_size=8)
    classifier = Classifier(resnet, nn.Linear(resnet.embed_dim, 3), 3, fit, PLAIN_TOWER)
    with trainer.quiet():
        trainer.make("fit", max_epochs=1).fit(classifier, loader(squares, resnet, "bright"))
    after = resnet.state_dict()  # type: ignore[attr-defined]
    assert {k for k in before if torch.equal(before[k], after[k])} == set()


def test_zero_shot_has_nothing_to_fit(squares: Benchmark, clip: ClipBackbone) -> None:
    with trainer.quiet(), pytest.raises(ConfigError, match="nothing to fit"):
        trainer.make("fit", max_epochs=1).fit(
            clipdg.zero_shot(clip, squares.classes), batches(torch.zeros(2, 64), torch.zeros(2).long())
        )


def test_a_loss_that_is_not_finite_stops(clip: ClipBackbone) -> None:
    head = nn.Linear(64, 2)
    fit = Fit("sgd", lr=1.0, epochs=1, batch_size=2)
    with trainer.quiet(), pytest.raises(DivergedError, match="step 0"):
        trainer.make("fit", max_epochs=1).fit(
            Classifier(clip, head, 2, fit), batches(torch.full((2, 64), math.inf), torch.zeros(2).long())
        )


def test_a_prompt_method_on_an_image_encoder_is_refused() -> None:
    resnet = clipdg.load_backbone("tiny:resnet", "random:0")
    with pytest.raises(ConfigError, match="coop needs a text encoder and tiny:resnet has none"):
        clipdg.coop(resnet, ["cat", "dog"])
    with pytest.raises(ConfigError, match="at least two classes"):
        clipdg.linear_probe(resnet, ["cat"])
