"""Contrastive pre-training: its loss, also over several processes; its pairs; a whole small run."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from clipdg.backbones import tiny
from clipdg.core.errors import ConfigError, DivergedError
from clipdg.training import pretrain as module
from clipdg.training.pretrain import (
    Batches,
    ContrastivePretraining,
    ImageTextPairs,
    PretrainConfig,
    Source,
    itc_loss,
    pretrain,
)

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "yellow": (220, 220, 30)}


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def small(folder: Path, **changes: Any) -> PretrainConfig:
    return replace(PretrainConfig("folder", str(folder), epochs=2, batch_size=8), **changes)


# ---- the loss ----


def test_the_loss_by_hand() -> None:
    # two pairs, each image along its text and across the other: -log(e^s / (e^s + 1)) for either direction
    eye = torch.eye(2) * torch.tensor([[3.0], [0.5]])
    assert itc_loss(eye, eye, torch.tensor(2.0)).item() == pytest.approx(math.log(1 + math.exp(-2)))


def test_the_loss_is_open_clips() -> None:
    from open_clip.loss import ClipLoss

    image, text, scale = random(7, 5), random(7, 5, seed=1), torch.tensor(14.0)
    theirs = ClipLoss()(nn.functional.normalize(image, dim=1), nn.functional.normalize(text, dim=1), scale)
    torch.testing.assert_close(itc_loss(image, text, scale), theirs)


def _blind_gather(features: Tensor) -> Tensor:
    """The usual mistake: what comes from the other processes, and what goes to them, has no gradient."""
    parts = [torch.empty_like(features) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, features.detach())
    parts[dist.get_rank()] = features
    return torch.cat(parts)


def _joined() -> tuple[ContrastivePretraining, Tensor, Tensor]:
    backbone = tiny.initialise("vit", 0, ["red fish", "blue tree"])
    assert isinstance(backbone, tiny.Tiny)
    tokens = backbone.tokenize([f"a {c} {n}" for n in ("fish", "tree", "car") for c in ("red", "blue")])
    return ContrastivePretraining(backbone).double(), random(6, 3, 32, 32, dtype=torch.float64), tokens


def _one_of_two(rank: int, folder: str, blind: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store-{blind}", rank=rank, world_size=2)
    if blind:
        module.gather = _blind_gather
    pretraining, images, tokens = _joined()
    parallel = DistributedDataParallel(pretraining)
    own = slice(3 * rank, 3 * rank + 3)
    parallel(images[own], tokens[own]).backward()
    if rank == 0:
        torch.save({n: p.grad for n, p in pretraining.named_parameters()}, f"{folder}/gradients-{blind}.pt")
    del parallel  # a reducer that outlives its process group can wait for it for ever
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # and nothing else is to be torn down in an order that nobody chose


@pytest.fixture(scope="module")
def gradients(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    """Of one process on the joined batch, of two, and of two with the mistake."""
    place = str(tmp_path_factory.mktemp("gloo"))
    pretraining, images, tokens = _joined()
    pretraining(images, tokens).backward()
    found = {"one": {n: p.grad for n, p in pretraining.named_parameters() if p.grad is not None}}
    for blind in (False, True):
        both = mp.spawn(_one_of_two, (place, blind), nprocs=2, join=False)
        try:
            deadline = time.monotonic() + 120
            while not both.join(timeout=5):
                assert time.monotonic() < deadline, "two processes of gloo did not end"
        finally:
            for process in both.processes:
                process.kill()
        found["blind" if blind else "two"] = torch.load(f"{place}/gradients-{blind}.pt", weights_only=True)
    return found


def _largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def test_two_processes_have_the_gradients_of_one_on_the_joined_batch(gradients: dict[str, Any]) -> None:
    assert len(gradients["one"]) == sum(1 for _ in _joined()[0].parameters())
    assert _largest_difference(gradients["one"], gradients["two"]) < 1e-6


def test_a_gather_without_gradients_would_be_noticed(gradients: dict[str, Any]) -> None:
    assert _largest_difference(gradients["one"], gradients["blind"]) > 1e-3


# ---- the optimiser ----


def test_gains_biases_and_the_temperature_do_not_decay(monkeypatch: pytest.MonkeyPatch) -> None:
    pretraining = ContrastivePretraining(tiny.initialise("vit", 0))
    trainer = type("Trainer", (), {"estimated_stepping_batches": 10})()
    monkeypatch.setattr(ContrastivePretraining, "trainer", trainer)
    groups = pretraining.configure_optimizers()["optimizer"].param_groups
    assert [g["weight_decay"] for g in groups] == [0.05, 0.0]
    assert {p.ndim for p in groups[1]["params"]} == {0, 1}
    assert sum(len(g["params"]) for g in groups) == len(list(pretraining.parameters()))


def test_the_scale_stays_at_100_at_most() -> None:
    backbone = tiny.initialise(None, 0)
    assert isinstance(backbone, tiny.Tiny)
    pretraining = ContrastivePretraining(backbone)
    with torch.no_grad():
        backbone.scale.fill_(10)
    pretraining.on_train_batch_end()
    assert backbone.logit_scale == pytest.approx(100)


def test_a_backbone_without_texts_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tiny:resnet cannot be pre-trained"):
        pretrain(small(folder, backbone="tiny:resnet"), tmp_path / "out")


# ---- batches ----


def numbered(num: int) -> ImageTextPairs:
    pixels = np.arange(num, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2).repeat(3, 3)
    spec = tiny.initialise("resnet", 0, size=8).preprocessing
    return Source([str(i) for i in range(num)], pixels=pixels).pairs(spec)


def test_an_epoch_shows_each_pair_once_beside_its_text_and_leaves_the_rest_out() -> None:
    batches = Batches(numbered(11), torch.arange(11)[:, None], 3, seed=0)
    epochs = [[(images[:, 0, 0, 0], tokens[:, 0]) for images, tokens in batches] for _ in range(2)]
    for epoch in epochs:
        assert [len(tokens) for _, tokens in epoch] == [3] * 3 == [3] * len(batches)
        assert all(torch.equal(images.long(), tokens) for images, tokens in epoch)
        assert len({int(i) for _, tokens in epoch for i in tokens}) == 9
    first, second = (torch.cat([tokens for _, tokens in epoch]).tolist() for epoch in epochs)
    assert first != second
    again = Batches(numbered(11), torch.arange(11)[:, None], 3, seed=0)
    assert torch.cat([tokens[:, 0] for _, tokens in again]).tolist() == first


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size=12 is more than the 11 pairs"):
        Batches(numbered(11), torch.arange(11)[:, None], 12, seed=0)


# ---- where pairs come from ----


def test_the_web_mix_and_its_photo_only_control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPDG_CACHE", str(tmp_path / "cache"))
    steps: list[tuple[str, int, int]] = []
    mixed = module.open_source(PretrainConfig(num_pairs=40), 24, lambda *step: steps.append(step))
    photos = module.open_source(PretrainConfig(num_pairs=40, styles={"photo": 1.0}), 24)
    spec = tiny.initialise("resnet", 0, size=24).preprocessing
    assert len(mixed.captions) == len(mixed.pairs(spec)) == 40
    assert mixed.pairs(spec).digest != photos.pairs(spec).digest
    assert steps[-1] == ("drawing the pairs", 40, 40)
    assert mixed.pixels is not None
    assert torch.equal(
        mixed.pairs(spec).images(torch.tensor([3]))[0], torch.from_numpy(mixed.pixels[3]).permute(2, 0, 1)
    )
    with pytest.raises(ConfigError, match="styles are shares of the built-in web mix"):
        module.open_source(PretrainConfig("folder", str(tmp_path), styles={"photo": 1.0}), 24)


def test_unknown_data_and_a_missing_root_are_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'webdataset'"):
        module.open_source(PretrainConfig("webdatasets"), 32)
    with pytest.raises(ConfigError, match="data=folder needs root"):
        module.open_source(PretrainConfig("folder"), 32)


# ---- a whole run ----


def test_a_seed_decides_the_weights_and_the_file_tells_its_story(folder: Path, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    paths = [
        pretrain(small(folder), tmp_path / "one", lambda *step: steps.append(step)),
        pretrain(small(folder), tmp_path / "two"),
        pretrain(small(folder, seed=1), tmp_path / "two"),
    ]
    assert [p.relative_to(tmp_path).as_posix() for p in paths] == [
        "one/tiny-0.safetensors",
        "two/tiny-0.safetensors",
        "two/tiny-1.safetensors",
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    one, other = (tiny.load(None, str(p)).weights for p in (paths[0], paths[2]))
    story = one.provenance
    assert one.fingerprint == story["fingerprint"] != other.fingerprint
    assert story["recipe"] == other.provenance["recipe"]
    assert story["command"] == "clipdg pretrain data=folder root=pairs seed=0 epochs=2 batch_size=8"
    assert str(tmp_path) not in json.dumps(dict(story))
    assert steps[-1] == ("pre-training", 12, 12)  # 48 pairs, batches of 8, 2 epochs
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == ["tiny-0.safetensors", "tiny-1.safetensors"]


def test_it_learns_which_word_means_which_colour(folder: Path, tmp_path: Path) -> None:
    path = pretrain(small(folder, epochs=10, augment="none"), tmp_path)
    clip = tiny.load(None, str(path))
    assert isinstance(clip, tiny.Tiny)
    images = torch.stack([clip.preprocess(Image.new("RGB", (32, 32), c)) for c in COLOURS.values()])
    with torch.no_grad():
        logits, _ = clip(images, clip.tokenize([f"a {name} square" for name in COLOURS]))
    assert logits.argmax(1).tolist() == [0, 1, 2, 3]


def test_training_goes_on_from_a_file(folder: Path, tmp_path: Path) -> None:
    first = pretrain(small(folder), tmp_path)
    second = pretrain(small(folder, weights=str(first), epochs=1, lr=0.0, name="more"), tmp_path)
    one, two = (dict(tiny.load(None, str(p)).named_parameters()) for p in (first, second))
    assert all(torch.equal(one[name], two[name]) for name in one)  # at lr 0 only the running averages move
    assert tiny.load(None, str(second)).weights.provenance["start"] == tiny.load(None, str(first)).weights.fingerprint


def test_a_run_that_diverges_writes_nothing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="lower lr"):
        pretrain(small(folder, lr=1e30), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_interrupt_writes_nothing_and_leaves_the_next_one_working(folder: Path, tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("pre-training", 3):
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        pretrain(small(folder), tmp_path / "out", interrupt)
    assert signal.getsignal(signal.SIGINT) is before
    assert not (tmp_path / "out").exists()


def test_a_name_with_a_folder_and_a_size_for_other_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"name '\.\./x'"):
        pretrain(small(folder, name="../x", epochs=1), tmp_path)
    with pytest.raises(ConfigError, match="size=48"):
        pretrain(small(folder, size=48, weights="random:0"), tmp_path)
