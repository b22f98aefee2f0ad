"""Random views that are encoded once: the right pixels, the same wherever an image lies, drawn anew by each step."""

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms.functional import to_tensor

from clipdg.core.benchmark import Benchmark, Domain
from clipdg.core.errors import ConfigError
from clipdg.core.model import ClipBackbone, Preprocessing
from clipdg.core.plugins import BenchmarkSource, NoSettings
from clipdg.data import augmentation, datasets, loaders, preprocessing
from clipdg.data.augmentation import View
from clipdg.data.rows import select
from clipdg.records.identity import CAME_LATER
from clipdg.runs import config, feature_store
from clipdg.runs.feature_store import FeatureStore
from clipdg.runs.run import run
from clipdg.runs.session import Session


def by_pillow(image: Image.Image, size: int, seed: int) -> Image.Image:
    """CoOp's training transform taken apart: torchvision draws the rectangle and the coin, Pillow does the rest."""
    torch.manual_seed(seed)
    box = transforms.RandomResizedCrop.get_params(image, scale=[0.08, 1.0], ratio=[3 / 4, 4 / 3])
    top, left, height, width = box
    flipped = bool(torch.rand(1) < 0.5)
    cut = image.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BICUBIC)
    return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else cut


def test_a_views_features_are_those_of_coops_training_transform(
    clip: ClipBackbone, squares: Benchmark, tmp_path: Path
) -> None:
    domain = squares.domains["bright"]
    view = View(2)
    found = FeatureStore(tmp_path).encode(clip, domain, view=view)
    spec: Preprocessing = clip.preprocessing
    rows = domain.rows
    pixels = [by_pillow(rows.image(i), spec.size, view.seed_of(rows.digests()[i])) for i in range(36)]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (spec.mean, spec.std))
    with torch.inference_mode():
        expected = clip.encode_image(torch.stack([(to_tensor(p) - mean) / std for p in pixels]))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    plain = FeatureStore(tmp_path).encode(clip, domain)
    assert not torch.isclose(found, plain, atol=1e-3).all(dim=1).any()


def test_an_image_has_the_same_view_in_every_selection(clip: ClipBackbone, squares: Benchmark, tmp_path: Path) -> None:
    domain, kept = squares.domains["bright"], np.array([31, 4, 17])
    store = FeatureStore(tmp_path)
    whole = store.encode(clip, domain, view=View(0))
    part = store.encode(clip, Domain("few", select(domain.rows, kept)), view=View(0))
    assert torch.equal(part, whole[kept])
    assert store.num_encoded == 36 + 3


def test_each_view_has_a_name_and_features_of_its_own(
    clip: ClipBackbone, squares: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain = squares.domains["bright"]
    names = [
        feature_store.key(clip, domain, view) for view in (None, View(0), View(1), View(0, "crop"), View(0, seed=1))
    ]
    with monkeypatch.context() as patch:
        patch.setattr(augmentation, "version", lambda _: "other")
        names.append(feature_store.key(clip, domain, View(0)))
    assert len(set(names)) == len(names)
    assert len({View(0).seed_of("a"), View(1).seed_of("a"), View(0).seed_of("b"), View(0, seed=1).seed_of("a")}) == 4


def views_of(count: int) -> datasets.ViewDataset:
    """Row i of view v has the feature (i, v)."""
    rows = torch.arange(6.0)
    return datasets.ViewDataset(
        [torch.stack([rows, torch.full((6,), float(v))], dim=1) for v in range(count)],
        np.zeros(9),
        [0, 2, 3, 5, 7, 8],
        0,
    )


def test_each_step_draws_a_view_of_each_sample() -> None:
    order, seen = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
    loader = loaders.loader(datasets.concatenate([views_of(4), views_of(4)]), 5, generator=order, views=seen)
    passes = [torch.cat([batch.inputs for batch in loader]) for _ in range(200)]
    for one in passes:
        assert sorted(one[:, 0].tolist()) == sorted([*range(6)] * 2)  # each sample once a pass
    drawn = torch.cat(passes)[:, 1].long().bincount(minlength=4)  # of 2,400: 600 each, standard deviation 21
    assert drawn.min() > 500
    assert drawn.max() < 700
    first = passes[0][passes[0][:, 0].argsort(stable=True)]
    assert any(not torch.equal(first, one[one[:, 0].argsort(stable=True)]) for one in passes[1:])


def test_a_sample_keeps_its_row_whatever_view_is_drawn() -> None:
    batch = views_of(3).take([(4, 7), (1, 3), (0, 2)])  # seeds 7, 3 and 2, modulo 3
    assert batch.inputs.tolist() == [[4, 1], [1, 0], [0, 2]]
    assert batch.indices.tolist() == [7, 2, 0]


@pytest.fixture
def own(squares: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("mine.squares")

    source = BenchmarkSource(config=NoSettings, build=lambda config, root: squares)
    module.BENCHMARK = source  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mine", types.ModuleType("mine"))
    monkeypatch.setitem(sys.modules, "mine.squares", module)


def settings(*overrides: str) -> config.RunSettings:
    base = ["benchmark=mine.squares", "backbone=tiny", "backbone.weights=random:0", "method.epochs=3"]
    return config.load(overrides=[*base, "method=coop", "method.batch_size=8", *overrides])


def test_every_view_of_every_image_is_encoded_once_whatever_runs(own: None) -> None:
    """A source and a target of 36 images, evaluated as they are; 3 views of the source alone, for runs of all seeds."""
    session = Session(store=FeatureStore())
    for seed in (0, 1):
        for method in ("coop", "clip_adapter"):
            run(settings("fit.views=3", f"seed={seed}", f"method={method}", "method.epochs=2"), session=session)
    run(settings("fit.views=2"), session=session)
    assert session.store.num_encoded == 2 * 36 + 3 * 36


def test_of_a_few_shots_only_their_views_are_encoded(own: None) -> None:
    session = Session(store=FeatureStore())
    run(settings("fit.views=5", "shots=2"), session=session)
    assert session.store.num_encoded == 2 * 36 + 5 * 3 * 2


def test_one_view_that_changes_nothing_trains_as_without_views(own: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def unchanged(image: Image.Image, spec: Preprocessing, how: str, seed: int) -> Tensor:
        return preprocessing.to_uint8(image, spec)

    monkeypatch.setattr(augmentation, "augmented", unchanged)
    for shots in ([], ["shots=4"]):
        [plain], [viewed] = run(settings(*shots)), run(settings("fit.views=1", *shots))
        assert viewed.evaluations == plain.evaluations
        assert viewed.run_id != plain.run_id


def test_real_views_change_what_is_learnt(own: None) -> None:
    nll = [run(settings(f"fit.views={k}", "method.epochs=8"))[0].evaluations[0].metrics["nll"] for k in (0, 1, 4)]
    assert len(set(nll)) == 3


def test_runs_without_views_keep_their_identity(own: None) -> None:
    assert settings("fit.views=0").identity() == settings().identity()
    assert "fit.views" not in settings().identity()
    assert settings("fit.views=2").identity() | {"fit.views": 3} == settings("fit.views=3").identity()
    assert CAME_LATER["fit.views"] == 0


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["method=zero_shot"], "fit.views is for what learns by gradient descent, and zero_shot does not"),
        (["method=linear_probe"], "fit.views is for what learns by gradient descent, and linear_probe does not"),
        (["method=erm"], "fit.views is for features that are stored, and erm trains the encoder; use method.augment"),
    ],
)
def test_views_are_for_what_learns_from_stored_features(own: None, overrides: list[str], sentence: str) -> None:
    values: dict[str, Any] = {"benchmark": "mine.squares", "backbone": {"name": "tiny", "weights": "random:0"}}
    with pytest.raises(ConfigError, match=sentence):
        run(config.load(overrides=[*overrides, "fit.views=2"], values=values))
