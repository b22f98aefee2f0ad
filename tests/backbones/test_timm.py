"""timm's image encoders as backbones: exact tags, the library's own numbers, a classifier beside the features."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import numpy as np
import pytest
import timm as library
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file
from timm.models._hub import save_for_hf
from torch import Tensor, nn

from clipdg.backbones import timm
from clipdg.core.errors import ConfigError, DataError, NetworkError
from clipdg.core.model import Backbone, ClipBackbone
from clipdg.data.decode import decode

NAME = "test_resnet.r160_in1k"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
# One small model for each way in which timm cuts features from a classifier.
FAMILIES = [
    NAME,
    "test_byobnet.r160_in1k",
    "test_convnext.r160_in1k",
    "test_efficientnet.r160_in1k",
    "test_nfnet.r160_in1k",
    "test_vit.r160_in1k",
    "test_vit3.r160_in1k",
    "resnet18.tv_in1k",
    "dla46_c.in1k",  # a classifier that is a convolution
    "repvit_m0_9.dist_450e_in1k",  # two heads in training, one afterwards
]


def images(n: int, size: int = 160) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def theirs(name: str = NAME, **options: object) -> nn.Module:
    """timm's own model with random weights, and with statistics and norms that differ from those of a new one."""
    torch.manual_seed(7)
    model: nn.Module = library.create_model(name, **options)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.ndim == 1 and tensor.is_floating_point():
                tensor.add_(0.2 * torch.rand_like(tensor))
    return model.eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_for_hf(theirs(), tmp_path / "model", safe_serialization=True)
    return tmp_path / "model"


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put(cache: Path, model: nn.Module, name: str = NAME, commit: str = COMMIT) -> None:
    """A file in the hub's cache as a download leaves it."""
    repository = cache / f"models--timm--{name}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    save_file(model.state_dict(), repository / "snapshots" / commit / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("safe", [True, False])  # timm's own default is a pickle
def test_features_and_logits_are_timms(name: str, safe: bool, tmp_path: Path) -> None:
    model = theirs(name)
    save_for_hf(model, tmp_path, safe_serialization=safe)
    backbone = timm.load(name, str(tmp_path))
    assert isinstance(backbone, Backbone)
    assert not isinstance(backbone, ClipBackbone)
    size = backbone.preprocessing.size
    with torch.no_grad():
        logits = model(images(2, size))
        model.reset_classifier(0)  # timm's own way to features
        features = backbone.encode_image(images(2, size))
        assert features.shape == (2, backbone.embed_dim)
        torch.testing.assert_close(features, model(images(2, size)), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(backbone.classify(features), logits, rtol=1e-5, atol=1e-6)
    assert logits.shape == (2, 1000)
    assert (backbone.weights.tag, backbone.weights.random) == (tmp_path.name, False)
    assert not any(p.requires_grad for p in backbone.parameters())


def test_the_tags_weights_are_read_from_the_hubs_cache_with_their_commit(offline: Path) -> None:
    model = theirs()
    put(offline, model)
    backbone = timm.load(NAME)
    with torch.no_grad():
        torch.testing.assert_close(
            backbone.classify(backbone.encode_image(images(2))), model(images(2)), rtol=1e-5, atol=1e-6
        )
    weights = backbone.weights
    assert (weights.tag, weights.random, dict(weights.provenance)) == ("r160_in1k", False, {"revision": COMMIT})


def test_a_revision_is_another_file(offline: Path) -> None:
    old, new = "a" * 40, "b" * 40
    put(offline, theirs(), commit=old)
    other = theirs()
    with torch.no_grad():
        other.get_parameter("fc.bias").add_(1)
    put(offline, other, commit=new)
    first, second, latest = (timm.load(n) for n in (f"{NAME}@{old}", f"{NAME}@{new}", NAME))
    assert first.weights.fingerprint != second.weights.fingerprint == latest.weights.fingerprint
    assert (first.name, first.weights.provenance["revision"]) == (f"timm:{NAME}@{old}", old)
    with pytest.raises(ConfigError, match="a revision is of the tag's own weights"):
        timm.load(f"{NAME}@{old}", "random:0")


def test_missing_weights_say_what_was_looked_for_where_and_how_to_fetch_it(offline: Path) -> None:
    with pytest.raises(NetworkError) as raised:
        timm.load(NAME)
    assert str(raised.value) == (
        f"timm:{NAME} needs model.safetensors or pytorch_model.bin of repository timm/{NAME}, which is not in the "
        f"hub's cache {offline}, and HF_HUB_OFFLINE is set; `clipdg fetch backbone timm:{NAME}` fetches it where "
        "there is a network"
    )


def test_missing_weights_that_no_repository_has_are_named_by_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        NetworkError, match=r"needs seresnet18-4bb0ce65\.pth, which is not in .*checkpoints; `clipdg fetch"
    ):
        timm.load("legacy_seresnet18.in1k")


def test_a_tags_weights_that_do_not_fit_are_refused(offline: Path) -> None:
    model = theirs()
    del model.bn1
    put(offline, model)
    with pytest.raises(DataError, match=rf"the weights of timm:{NAME} do not fit.*bn1\.weight"):
        timm.load(NAME)


CASES = [
    (NAME, False),
    ("resnet50.tv_in1k", False),  # bilinear
    ("resnet50.a1_in1k", True),  # tested at another size and crop than trained
    ("convnext_tiny.in12k_ft_in1k_384", False),  # squash
    ("beit_base_patch16_224.in22k_ft_in22k_in1k", False),  # another mean
    ("inception_v3.tv_in1k", False),  # an odd size
]


@pytest.mark.parametrize(("name", "test_size"), CASES)
@pytest.mark.parametrize(
    ("mode", "size"), [("RGB", (401, 300)), ("RGB", (97, 333)), ("L", (201, 301)), ("P", (222, 77)), ("CMYK", (64, 65))]
)
def test_preprocessing_is_timms_pixel_for_pixel(name: str, test_size: bool, mode: str, size: tuple[int, int]) -> None:
    cfg = {"pretrained_cfg": library.get_pretrained_cfg(name).to_dict()}
    shell = type("Model", (), cfg)()
    wanted = library.data.resolve_model_data_config(shell, use_test_size=test_size)
    transform = library.data.create_transform(**wanted, is_training=False)
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "TIFF" if mode == "CMYK" else "PNG")
    spec = timm.preprocessing_of(shell, name, test_size=test_size)
    ours = timm.preprocess(decode(buffer.getvalue(), name), spec)
    expected = transform(Image.open(buffer).convert("RGB"))  # as timm's own data sets convert
    assert ours.shape == expected.shape == (3, spec.size, spec.size)
    assert torch.equal(ours, expected)


def test_the_test_size_is_larger_and_another_identity() -> None:
    small, large = (timm.load("resnet18.a1_in1k", "random:0", timm.Config(test_size=t)) for t in (False, True))
    assert (small.preprocessing.size, large.preprocessing.size) == (224, 288)
    assert small.weights.fingerprint != large.weights.fingerprint


def test_a_preprocessing_that_cannot_be_said_is_refused() -> None:
    cfg = {"pretrained_cfg": {**library.get_pretrained_cfg(NAME).to_dict(), "crop_mode": "border"}}
    with pytest.raises(ConfigError, match="timm:x takes 3 × 160 × 160 values, crop_mode=border"):
        timm.preprocessing_of(type("Model", (), cfg)(), "timm:x")


def test_a_file_brings_its_own_number_of_classes(tmp_path: Path) -> None:
    model = theirs(num_classes=7)
    save_file(model.state_dict(), tmp_path / "seven.safetensors")
    backbone = timm.load(NAME, str(tmp_path / "seven.safetensors"))
    with torch.no_grad():
        logits = backbone.classify(backbone.encode_image(images(2)))
        torch.testing.assert_close(logits, model(images(2)), rtol=1e-5, atol=1e-6)
    assert logits.shape == (2, 7)


def test_weights_without_a_classifier_have_none(tmp_path: Path) -> None:
    model = theirs(num_classes=0)
    save_file(model.state_dict(), tmp_path / "body.safetensors")
    backbone = timm.load(NAME, str(tmp_path / "body.safetensors"))
    assert backbone.head is None
    with torch.no_grad():
        torch.testing.assert_close(backbone.encode_image(images(2)), model(images(2)), rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match=r"'body\.safetensors' has no classifier that takes its features; use linear"):
        backbone.classify(torch.zeros(2, 96))


def test_two_heads_on_two_tokens_are_no_function_of_the_features() -> None:
    assert timm.load("deit_tiny_distilled_patch16_224.fb_in1k", "random:0").head is None


def test_a_saved_file_is_one_that_timm_reads(folder: Path, tmp_path: Path) -> None:
    save_file(timm.load(NAME, str(folder)).tensors(), tmp_path / "w.safetensors")
    model = library.create_model(NAME, checkpoint_path=str(tmp_path / "w.safetensors")).eval()
    with torch.no_grad():
        assert torch.equal(model(images(1)), theirs()(images(1)))


def test_frozen_batch_norm_keeps_its_statistics_and_trains_its_weights(folder: Path) -> None:
    moved = {}
    for frozen in (False, True):
        backbone = timm.load(NAME, str(folder), timm.Config(frozen_batch_norm=frozen))
        before = copy.deepcopy(backbone.state_dict())
        backbone.requires_grad_(True).train()
        optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], 0.1)
        backbone.encode_image(images(2)).square().mean().backward()
        optimizer.step()
        moved[frozen] = {n for n, t in backbone.state_dict().items() if not torch.equal(t, before[n])}
    statistics = {n for n in before if n.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    head = {"model.fc.weight", "model.fc.bias"}
    assert moved[False] == before.keys() - head
    assert moved[True] == before.keys() - head - statistics


def test_dropped_paths_change_training_and_nothing_else(folder: Path) -> None:
    plain = timm.load(NAME, str(folder))
    dropped = timm.load(NAME, str(folder), timm.Config(drop_path=0.9))
    assert dropped.weights == plain.weights
    assert torch.equal(dropped.encode_image(images(4)), plain.encode_image(images(4)))
    torch.manual_seed(0)
    for backbone in (plain, dropped):
        backbone.train()
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    assert torch.equal(plain.encode_image(images(8)), plain.encode_image(images(8)))
    assert not torch.equal(dropped.encode_image(images(8)), dropped.encode_image(images(8)))
    with pytest.raises(ConfigError, match=r"timm:vgg11\.tv_in1k has no blocks that could be dropped"):
        timm.load("vgg11.tv_in1k", "random:0", timm.Config(drop_path=0.1))


def test_a_name_without_its_exact_tag_is_refused_with_the_tags() -> None:
    with pytest.raises(ConfigError, match=r"no tag given for timm:resnet50; .*resnet50\.a1_in1k.*resnet50\.tv_in1k"):
        timm.load("resnet50", None)
    with pytest.raises(ConfigError, match=r"no tag 'v1' of timm:resnet50; .*resnet50\.tv_in1k"):
        timm.load("resnet50.v1", None)
    with pytest.raises(ConfigError, match=r"no timm model 'resnet05'.*Did you mean 'resnet"):
        timm.load("resnet05.tv_in1k", None)


def test_random_weights_follow_the_seed() -> None:
    one, same, other = (timm.load(NAME, f"random:{seed}").weights for seed in (0, 0, 1))
    assert one == same
    assert (one.tag, one.random) == ("random:0", True)
    assert one.fingerprint != other.fingerprint


def test_weights_that_do_not_fit_are_refused(tmp_path: Path, folder: Path) -> None:
    state = dict(theirs().state_dict())
    state["extra.weight"] = state.pop("bn1.weight")
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(DataError, match=r"missing: bn1\.weight; unexpected: extra\.weight"):
        timm.load(NAME, str(tmp_path / "w.safetensors"))
    with pytest.raises(ConfigError, match=r"holds weights of timm's test_resnet and not of test_vit\.r160_in1k"):
        timm.load("test_vit.r160_in1k", str(folder))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"is no folder of timm's save_for_hf"):
        timm.load(NAME, str(tmp_path / "empty"))


def test_frozen_batch_norm_is_refused_where_there_is_none() -> None:
    with pytest.raises(ConfigError, match="has no batch norm that could be frozen"):
        timm.load("test_vit.r160_in1k", "random:0", timm.Config(frozen_batch_norm=True))
