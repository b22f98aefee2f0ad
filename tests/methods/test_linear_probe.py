import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from clipdg.methods.linear_probe import Config, LinearProbe


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
