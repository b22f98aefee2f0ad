"""``clipdg.datamodule`` on every DomainBed data set, from a tiny copy to batches."""

from __future__ import annotations

from pathlib import Path

import domain_sets
import pytest
import torch

import clipdg
from clipdg.benchmarks import domain_net, office_home, pacs, terra_incognita, vlcs
from clipdg.core.errors import ConfigError
from clipdg.core.model import ClipBackbone

SETS = {
    "pacs": (pacs.PACS, "S", 3),
    "vlcs": (vlcs.VLCS, "L", 1),
    "office_home": (office_home.OFFICE_HOME, "R", 3),
    "terra_incognita": (terra_incognita.TERRA_INCOGNITA, "L38", 1),
    "domain_net": (domain_net.DOMAIN_NET, "quick", 3),
}


@pytest.mark.parametrize("name", SETS)
def test_a_target_by_its_short_name_gives_batches_of_all_its_images(
    name: str, tmp_path: Path, clip: ClipBackbone
) -> None:
    known, target, number = SETS[name]
    root = domain_sets.tree(tmp_path, domain_sets.samples(known, 1))
    data = clipdg.datamodule(name, target, clip, root=str(root), batch_size=8)
    assert data.shift.targets == (known.members[number].name,)
    assert data.classes == tuple(known.classes.values())
    batch = next(iter(data.train_dataloader()))
    size = clip.preprocessing.size
    assert batch.inputs.shape == (8, 3, size, size)
    assert batch.inputs.dtype == torch.uint8
    assert number not in batch.domains
    labels = torch.cat([b.labels for b in data.test_dataloader()[data.test_names.index(data.shift.targets[0])]])
    assert labels.tolist() == list(range(len(known.classes)))


@pytest.mark.parametrize(("name", "target"), [("colored_mnist", "-90%"), ("rotated_mnist", "45")])
def test_the_mnist_pair_gives_batches(name: str, target: str, tmp_path: Path, clip: ClipBackbone) -> None:
    root = domain_sets.idx(tmp_path, domain_sets.mnist(100), domain_sets.mnist(20, 1), packed=True)
    data = clipdg.datamodule(name, target, clip, root=str(root), batch_size=8)
    assert len(next(iter(data.train_dataloader())).labels) == 8
    assert sum(len(b.labels) for b in data.test_dataloader()[data.test_names.index(target)]) == 120 // len(
        data.benchmark.domains
    )


def test_a_target_that_there_is_not_is_refused_with_those_there_are(tmp_path: Path, clip: ClipBackbone) -> None:
    root = domain_sets.tree(tmp_path, domain_sets.samples(pacs.PACS, 1))
    with pytest.raises(ConfigError, match="targets are art_painting, cartoon, photo, sketch"):
        clipdg.datamodule("pacs", "X", clip, root=str(root))
