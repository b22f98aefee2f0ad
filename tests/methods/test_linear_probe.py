"""The linear probe equals scikit-learn's, alone and along a path of strengths; its sweep; its start at zero-shot."""

from dataclasses import dataclass, field

import lightning
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.utils.data import DataLoader, TensorDataset

import clipdg
from clipdg.core.benchmark import Benchmark
from clipdg.core.errors import ConfigError, DataError
from clipdg.core.model import ClipBackbone
from clipdg.methods import linear_probe, zero_shot
from clipdg.methods._logistic import Logistic, Solution
from clipdg.methods.linear_probe import Config, LinearProbe, search


def problem() -> tuple[np.ndarray, np.ndarray]:
    """Three overlapping classes in 10 dimensions, 300 samples."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    return rng.normal(size=(300, 10)) + 0.7 * rng.normal(size=(3, 10))[labels], labels


def objective(x: np.ndarray, y: np.ndarray, weight: np.ndarray, bias: np.ndarray, c: float) -> float:
    logits = x @ weight.T + bias
    logits -= logits.max(axis=1, keepdims=True)
    nll = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(y)), y]
    return float(c * nll.sum() + 0.5 * np.square(weight).sum())


@pytest.mark.parametrize("c", [0.01, 0.316, 10.0])
def test_equals_scikit_learn(c: float) -> None:
    x, y = problem()
    theirs = LogisticRegression(C=c, max_iter=10_000, tol=1e-8).fit(x, y)
    probe = LinearProbe(Config(c=c), 10, 3)
    probe.solve(torch.tensor(x), torch.tensor(y))
    assert probe.converged
    ours = objective(x, y, probe.weight.double().numpy(), probe.bias.double().numpy(), c)
    assert ours == pytest.approx(objective(x, y, theirs.coef_, theirs.intercept_, c), rel=1e-6)
    np.testing.assert_allclose(probe.weight.numpy(), theirs.coef_, atol=1e-3)
    predicted = probe(torch.tensor(x).float()).argmax(dim=1).numpy()
    assert (predicted == theirs.predict(x)).mean() > 0.99


@pytest.mark.parametrize("c", [0.001, 0.316])
def test_two_classes_equal_scikit_learns_one_weight_vector(c: float) -> None:
    x, y = problem()
    x, y = x[y < 2], y[y < 2]
    theirs = LogisticRegression(C=c, max_iter=10_000, tol=1e-8).fit(x, y)
    probe = LinearProbe(Config(c=c), 10, 2)
    probe.solve(torch.tensor(x), torch.tensor(y))
    difference, intercept = probe.weight[1] - probe.weight[0], probe.bias[1] - probe.bias[0]
    np.testing.assert_allclose(difference.numpy(), theirs.coef_[0], rtol=1e-3, atol=1e-4)
    assert float(intercept) == pytest.approx(float(theirs.intercept_[0]), rel=1e-3, abs=1e-4)
    predicted = probe(torch.tensor(x).float()).argmax(dim=1).numpy()
    assert (predicted == theirs.predict(x)).all()


def test_separable_classes_reach_scikit_learns_loss_at_a_smaller_tolerance() -> None:
    labels = np.arange(300) % 3
    x = np.random.default_rng(0).normal(size=(300, 40)) + 3 * np.eye(40)[labels]
    theirs = LogisticRegression(C=1000.0, max_iter=100_000, tol=1e-12).fit(x, labels)
    least = objective(x, labels, theirs.coef_, theirs.intercept_, 1000.0)
    probe = LinearProbe(Config(c=1000.0, tolerance=1e-10), 40, 3)
    probe.solve(torch.tensor(x), torch.tensor(labels))
    assert probe.converged
    ours = objective(x, labels, probe.weight.double().numpy(), probe.bias.double().numpy(), 1000.0)
    assert ours == pytest.approx(least, rel=1e-4)


def test_an_iteration_limit_is_not_called_convergence() -> None:
    x, y = problem()
    probe = LinearProbe(Config(c=100.0, max_iterations=2), 10, 3)
    probe.solve(torch.tensor(x), torch.tensor(y))
    assert not probe.converged


def test_normalized_features_ignore_their_length() -> None:
    x, y = problem()
    lengths = np.random.default_rng(1).uniform(0.1, 10, (300, 1))
    one, two = LinearProbe(Config(normalize=True), 10, 3), LinearProbe(Config(normalize=True), 10, 3)
    one.solve(torch.tensor(x), torch.tensor(y))
    two.solve(torch.tensor(x * lengths), torch.tensor(y))
    torch.testing.assert_close(one.weight, two.weight, atol=1e-4, rtol=1e-3)


def wide_problem(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """CLIP-like: 12 classes, 40 dimensions whose spread falls by 20 times, a common mean far from 0; 1,200 samples."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 12, 1200)
    centres = 0.6 * np.random.default_rng(99).normal(size=(12, 40))
    x = (centres[labels] + rng.normal(size=(1200, 40))) * np.linspace(1, 0.05, 40) + 2
    return x.astype(np.float32), labels


@pytest.fixture(scope="module")
def by_scikit_learn() -> dict[float, LogisticRegression]:
    x, y = wide_problem()
    solver = {"solver": "newton-cholesky", "tol": 1e-8}  # Newton's method, not L-BFGS: the other way to the same place
    return {c: LogisticRegression(C=c, **solver).fit(x.astype(np.float64), y) for c in (1e-4, 1e-2, 1.0, 30.0)}


@pytest.mark.parametrize("order", [[1e-4, 1e-2, 1.0, 30.0], [30.0, 1.0, 1e-2, 1e-4], [1e-4, 30.0, 1e-2, 1.0]], ids=str)
def test_every_strength_of_a_path_equals_scikit_learn(
    order: list[float], by_scikit_learn: dict[float, LogisticRegression]
) -> None:
    x, y = wide_problem()
    problem = Logistic(torch.tensor(x), torch.tensor(y), 12, tolerance=3e-6, max_iterations=1000)
    for c in order:
        found, theirs = problem.solve(c), by_scikit_learn[c]
        assert found.converged
        best = objective(x.astype(np.float64), y, theirs.coef_, theirs.intercept_, c)
        ours = objective(x.astype(np.float64), y, found.weight.numpy(), found.bias.numpy(), c)
        assert ours == pytest.approx(best, rel=1e-4)
        agree = (x @ found.weight.numpy().T + found.bias.numpy()).argmax(1) == theirs.predict(x)
        assert agree.mean() > 0.99


def test_a_warm_start_saves_iterations() -> None:
    x, y = (torch.tensor(a) for a in wide_problem())
    path, cold = (Logistic(x, y, 12, tolerance=1e-5, max_iterations=1000) for _ in range(2))
    for c in (0.5, 0.7):
        path.solve(c)
    assert path.solve(1.0).iterations < cold.solve(1.0).iterations


def test_where_fp32_cannot_go_on_float64_does() -> None:
    """A gradient of 1e-10 is far below fp32's rounding."""
    x, y = (torch.tensor(a) for a in wide_problem())
    found = Logistic(x, y, 12, tolerance=1e-10, max_iterations=1000).solve(0.1)
    assert found.converged
    theirs = LogisticRegression(C=0.1, solver="newton-cholesky", tol=1e-12).fit(x.double().numpy(), y.numpy())
    np.testing.assert_allclose(found.weight.numpy(), theirs.coef_, atol=1e-5)


def test_the_order_of_the_rows_does_not_matter() -> None:
    x, y = (torch.tensor(a) for a in wide_problem())
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    one, two = (
        Logistic(a, b, 12, tolerance=1e-7, max_iterations=1000).solve(1.0) for a, b in ((x, y), (x[order], y[order]))
    )
    torch.testing.assert_close(one.weight, two.weight, atol=1e-3, rtol=1e-3)


@dataclass
class Threshold:
    """Solutions whose accuracy on 1,000 even points falls with the distance of log10 C from 0.4."""

    asked: list[float] = field(default_factory=list)

    def solve(self, c: float) -> Solution:
        self.asked.append(c)
        off = abs(float(np.log10(c)) - 0.4)
        return Solution(c, torch.tensor([[0.0], [1.0]]), torch.tensor([0.0, -off]), 0.0, 1, True)


def test_the_search_halves_down_to_eight_steps_a_decade() -> None:
    x = torch.linspace(-10, 10, 1001)[:, None]
    problem = Threshold()
    best, tried = search(problem, x, (x[:, 0] > 0).long())  # type: ignore[arg-type]
    # Places on the grid of 8 a decade from 1e-6: the best is 51.2, so 48, then 48, 52, 52, 51.
    places = [0, 16, 32, 48, 64, 80, 96, 40, 56, 44, 52, 50, 54, 51, 53]
    assert problem.asked == pytest.approx([10 ** (i / 8 - 6) for i in places])
    assert best.c == pytest.approx(10**0.375)
    assert [t["c"] for t in tried] == sorted(problem.asked)


def test_of_equally_good_strengths_the_smallest_is_taken() -> None:
    class Same(Threshold):
        def solve(self, c: float) -> Solution:
            return Solution(c, torch.tensor([[0.0], [1.0]]), torch.zeros(2), 0.0, 1, True)

    best, _ = search(Same(), torch.ones(3, 1), torch.ones(3, dtype=torch.int64))  # type: ignore[arg-type]
    assert best.c == 1e-6


def test_a_sweep_chooses_on_validation_and_fits_again_on_both() -> None:
    (x, y), (val_x, val_y) = (tuple(map(torch.tensor, wide_problem(seed))) for seed in (0, 1))
    probe = LinearProbe(Config(sweep=True, tolerance=1e-8), 40, 12)
    probe.solve(x[:300], y[:300], (val_x[:200], val_y[:200]))
    assert linear_probe.METHOD.refits is not None
    assert linear_probe.METHOD.refits(probe.config)
    assert not linear_probe.METHOD.refits(Config(sweep=True, refit=False))
    assert probe.converged
    newton = {"solver": "newton-cholesky", "tol": 1e-8}
    for tried in probe.story["sweep"]:
        if 1e-4 <= tried["c"] <= 10:  # beyond, the classes are separable and each solver stops on its own way out
            theirs = LogisticRegression(C=tried["c"], **newton).fit(x[:300].double(), y[:300])
            accuracy = theirs.score(val_x[:200].double(), val_y[:200])
            assert tried["validation_accuracy"] == pytest.approx(accuracy, abs=0.006)  # one of 200
    assert max(t["validation_accuracy"] for t in probe.story["sweep"]) > 0.5
    c = probe.story["c"]
    both_x, both_y = torch.cat([x[:300], val_x[:200]]).double().numpy(), torch.cat([y[:300], val_y[:200]]).numpy()
    theirs = LogisticRegression(C=c, **newton).fit(both_x, both_y)
    ours = objective(both_x, both_y, probe.weight.double().numpy(), probe.bias.double().numpy(), c)
    assert ours == pytest.approx(objective(both_x, both_y, theirs.coef_, theirs.intercept_, c), rel=1e-4)


def test_a_sweep_without_validation_images_is_refused() -> None:
    x, y = (torch.tensor(a) for a in problem())
    with pytest.raises(DataError, match="validation images"):
        LinearProbe(Config(sweep=True), 10, 3).solve(x.float(), y)


def test_a_strength_that_did_not_converge_is_said() -> None:
    x, y = (torch.tensor(a) for a in wide_problem())
    probe = LinearProbe(Config(sweep=True, refit=False, max_iterations=3), 40, 12)
    probe.solve(x, y, (x, y))
    assert probe.converged is False
    assert not all(tried["converged"] for tried in probe.story["sweep"])


def test_a_probe_that_starts_at_zero_shot_stays_there_if_held_tight(clip: ClipBackbone) -> None:
    bench = Benchmark("b", ("cat", "dog", "bird"), templates=("a {}", "my {}"))
    features = torch.randn(30, 64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(30) % 3
    tight, free = (linear_probe.build(Config(c=c, normalize=True, start="zero_shot"), clip, bench) for c in (1e-8, 1e4))
    expected = zero_shot.build(zero_shot.Config(), clip, bench)(features)
    for probe in (tight, free):
        torch.testing.assert_close(probe(features), expected, atol=1e-4, rtol=1e-5)  # before anything is solved
        probe.solve(features, labels)
    torch.testing.assert_close(tight.weight, torch.zeros(3, 64), atol=1e-4, rtol=0)
    assert (free(features).argmax(dim=1) == labels).all()


def test_settings_that_exclude_each_other_are_refused(clip: ClipBackbone) -> None:
    bench = Benchmark("b", ("cat", "dog"))
    with pytest.raises(ConfigError, match="unit features"):
        linear_probe.build(Config(start="zero_shot"), clip, bench)
    with pytest.raises(ConfigError, match="search of C"):
        linear_probe.build(Config(sweep=True, solver="adamw"), clip, bench)


def fitted(data: TensorDataset, settings: dict[str, object], batch_size: int) -> LinearProbe:
    """Through an ordinary Trainer, over batches of features."""
    clip = clipdg.load_backbone("tiny", "random:0")
    model = clipdg.linear_probe(clip, ["a", "b", "c"], **settings)  # type: ignore[arg-type]
    epochs = int(settings.get("epochs", 1))  # type: ignore[call-overload]
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    loader = DataLoader(data, batch_size=batch_size)
    trainer.fit(model, loader, loader if settings.get("sweep") else None)
    assert isinstance(model.method, LinearProbe)
    return model.method


@pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers and loggers
def test_batches_lead_where_the_solver_goes() -> None:
    """SGD on all rows at once with weight decay 1 / (C N) has the solver's objective, but for the intercept's decay."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    x = torch.randn(90, 64, generator=generator) + 0.5 * torch.randn(3, 64, generator=generator)[labels]
    data = TensorDataset(x, labels)
    c = 0.2
    solved = fitted(data, {"c": c}, 32)
    settings = {"solver": "sgd", "lr": 0.5, "epochs": 200, "batch_size": 90, "weight_decay": 1 / (c * 90)}
    stepped = fitted(data, settings, 90)
    values = [
        objective(
            x.double().numpy(), labels.numpy(), p.weight.detach().double().numpy(), p.bias.detach().double().numpy(), c
        )
        for p in (solved, stepped)
    ]
    assert values[1] == pytest.approx(values[0], rel=5e-3)
    assert values[1] >= values[0] * (1 - 1e-6)
    assert solved.converged
    assert stepped.converged is None


@pytest.mark.filterwarnings("ignore")
def test_a_trainer_gives_a_sweep_its_validation_loader() -> None:
    x = torch.randn(60, 64, generator=torch.Generator().manual_seed(0))
    probe = fitted(TensorDataset(x, torch.arange(60) % 3), {"sweep": True, "refit": False}, 32)
    assert probe.story["num_validation"] == 60
    assert probe.converged
