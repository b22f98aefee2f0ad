"""Weights are read without running code, loaded exactly or not at all, and named by what they are."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch
from torch import nn

from clipdg.core.errors import ConfigError, DataError, UnsafeError
from clipdg.core.model import Preprocessing, Weights
from clipdg.weights import files

SPEC = Preprocessing(32, (0.5, 0.5, 0.5), (0.27, 0.27, 0.27))


def net() -> nn.Module:
    with files.seeded(0):
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def test_random_weights_need_a_whole_seed() -> None:
    assert files.seed_of("random:7") == 7
    assert files.seed_of(None) is None
    assert files.seed_of("openai") is None
    for wrong in ("random", "random:", "random:-1", "random:1.5", "random:²"):
        with pytest.raises(ConfigError, match="random:SEED"):
            files.seed_of(wrong)


def test_a_seed_decides_the_initialisation_and_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    assert torch.equal(net()[0].weight, net()[0].weight)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_fingerprint_changes_with_a_bit_a_name_a_type_a_shape_the_architecture_and_the_preprocessing() -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1.0)}
    own = files.fingerprint(tensors, {"layers": 2}, SPEC)
    bit = tensors["a"].clone()
    bit[0, 0] = 1e-30
    others = [
        files.fingerprint({**tensors, "a": bit}, {"layers": 2}, SPEC),
        files.fingerprint({"c": tensors["a"], "b": tensors["b"]}, {"layers": 2}, SPEC),
        files.fingerprint({**tensors, "a": tensors["a"].view(torch.int32)}, {"layers": 2}, SPEC),
        files.fingerprint({**tensors, "a": tensors["a"].reshape(3, 2)}, {"layers": 2}, SPEC),
        files.fingerprint(tensors, {"layers": 3}, SPEC),
        files.fingerprint(tensors, {"layers": 2}, replace(SPEC, interpolation="bilinear")),
    ]
    assert len({own, *others}) == 7


def test_the_fingerprint_is_blind_to_memory_format_and_order() -> None:
    model = net()
    own = files.fingerprint(model.state_dict(), {}, SPEC)
    model.to(memory_format=torch.channels_last)
    backwards = dict(reversed(list(model.state_dict().items())))
    assert files.fingerprint(backwards, {}, SPEC) == own


def test_a_file_brings_back_tensors_and_header(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    model = net().to(memory_format=torch.channels_last)
    path.write_bytes(files.pack(model.state_dict(), {"words": ["猫", "a"], "n": 1}))
    tensors, header = files.read(path)
    assert header == {"words": ["猫", "a"], "n": 1}
    assert files.fingerprint(tensors, {}, SPEC) == files.fingerprint(model.state_dict(), {}, SPEC)


@pytest.mark.parametrize("nested", [False, True])
def test_a_pt_file_of_tensors_is_read(tmp_path: Path, nested: bool) -> None:
    state = {f"module.{name}": t for name, t in net().state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state} if nested else state, tmp_path / "net.pt")
    tensors, header = files.read(tmp_path / "net.pt")
    assert header == {}
    files.load_exactly(net(), tensors, "net.pt")


@pytest.mark.parametrize("key", ["state_dict", "model", "state_dict_ema", "model_ema"])
@pytest.mark.parametrize("name", ["net.pth", "model_best.pth.tar"])
def test_training_checkpoints_of_each_library_are_read(tmp_path: Path, key: str, name: str) -> None:
    # open_clip and Lightning; DeiT, DINO and MAE; timm's train.py, which also chooses the ending
    state = net().state_dict()
    torch.save({"epoch": 3, key: state, "optimizer": {"state": {}}, "arch": "net"}, tmp_path / name)
    tensors, _ = files.read(tmp_path / name)
    assert files.fingerprint(tensors, {}, SPEC) == files.fingerprint(state, {}, SPEC)


def test_of_two_sets_of_weights_in_a_file_none_is_chosen(tmp_path: Path) -> None:
    # timm would take the average
    state = net().state_dict()
    torch.save({"state_dict": state, "state_dict_ema": {n: t + 1 for n, t in state.items()}}, tmp_path / "net.pth")
    with pytest.raises(DataError, match=r"several sets of weights \(state_dict, state_dict_ema\); save the one"):
        files.read(tmp_path / "net.pth")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "is a Git LFS pointer"),
    ],
)
def test_a_download_that_went_wrong_is_said_to_be_one(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "net.pt").write_bytes(content)
    with pytest.raises(DataError, match=rf"net\.pt {what} and no checkpoint; fetch the file itself"):
        files.read(tmp_path / "net.pt")


def test_tensors_that_are_no_plain_numbers_are_refused_by_name(tmp_path: Path) -> None:
    plain = torch.ones(2, 2)
    for odd in (plain.to_sparse(), plain.to("meta"), plain.to(torch.complex64)):
        torch.save({"a": plain, "odd": odd}, tmp_path / "net.pt")
        with pytest.raises(DataError, match=r"not plain real numbers .*: odd; save dense"):
            files.read(tmp_path / "net.pt")
    torch.save({1: plain}, tmp_path / "net.pt")
    with pytest.raises(DataError, match="must map names to tensors"):
        files.read(tmp_path / "net.pt")


def test_integers_in_the_place_of_weights_are_refused_and_float8_is_read() -> None:
    state = net().state_dict()
    with pytest.raises(DataError, match=r"of another type: 0\.weight torch\.int8"):
        files.load_exactly(net(), {**state, "0.weight": state["0.weight"].to(torch.int8)}, "w.safetensors")
    small = {n: t.to(torch.float8_e4m3fn) if t.is_floating_point() else t for n, t in state.items()}
    model = net()
    files.load_exactly(model, small, "w.safetensors")
    assert torch.equal(model[0].weight, small["0.weight"].float())


def test_what_could_run_code_is_refused_with_the_way_to_convert_it(tmp_path: Path) -> None:
    torch.save(net(), tmp_path / "module.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"a": print}))
    torch.jit.save(torch.jit.script(nn.ReLU()), str(tmp_path / "script.pt"))
    for name in ("module.pt", "plain.pt", "script.pt"):
        with pytest.raises(UnsafeError, match=r"safetensors.torch.save_file") as caught:
            files.read(tmp_path / name)
        assert name in str(caught.value)


def test_missing_cut_and_foreign_files_are_named(tmp_path: Path) -> None:
    whole = files.pack(net().state_dict(), {})
    (tmp_path / "cut.safetensors").write_bytes(whole[:-20])
    torch.save({"a": torch.zeros(1000)}, tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:-900])
    torch.save({"a": 1}, tmp_path / "number.pt")
    (tmp_path / "net.h5").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"no weights file .*none.safetensors"):
        files.read(tmp_path / "none.safetensors")
    with pytest.raises(ConfigError, match=r"'.h5'"):
        files.read(tmp_path / "net.h5")
    for name in ("cut.safetensors", "cut.pt", "number.pt"):
        with pytest.raises((DataError, UnsafeError), match=name):
            files.read(tmp_path / name)


def test_weights_that_do_not_fit_are_listed_and_nothing_is_loaded() -> None:
    model = net()
    tensors = {name: t + 1 for name, t in model.state_dict().items()}
    before = model[0].bias.clone()
    del tensors["0.weight"]
    tensors["extra"] = torch.zeros(1)
    tensors["1.bias"] = torch.zeros(5)
    with pytest.raises(DataError, match=r"missing: 0.weight; unexpected: extra; of another shape: 1.bias") as caught:
        files.load_exactly(model, tensors, "w.safetensors")
    assert "(5,) for (4,)" in str(caught.value)
    assert torch.equal(model[0].bias, before)


def test_weights_that_are_not_finite_are_refused() -> None:
    tensors = {**net().state_dict(), "0.bias": torch.full((4,), torch.nan)}
    with pytest.raises(DataError, match=r"not finite: 0.bias"):
        files.load_exactly(net(), tensors, "w.safetensors")


# As weights.py had them in a table before families declared them: stored features stay findable.
@pytest.mark.parametrize(
    ("backbone", "names"),
    [
        ("tiny", ["torch"]),
        ("tiny:vit", ["torch"]),
        ("timm:resnet50.tv_in1k", ["torch", "timm"]),
        ("hf:openai/clip-vit-base-patch32", ["torch", "transformers"]),
        ("open_clip:ViT-B-32-quickgelu", ["torch", "open_clip_torch", "timm"]),
        ("open_clip:hf-hub:org/repo", ["torch", "open_clip_torch", "timm"]),
        ("net", ["torch"]),  # what a script made is of no family
        ("a_script.of_mine", ["torch"]),
    ],
)
def test_features_are_keyed_by_the_libraries_of_their_family(backbone: str, names: list[str]) -> None:
    found = files.libraries(Weights(backbone, "tag", "0"))
    assert list(found.items()) == [(name, metadata.version(name)) for name in names]


FAMILY = """
from clipdg.core.plugins import BackboneFamily, NoSettings

def load(model, weights, config):
    raise NotImplementedError

BACKBONE = BackboneFamily(config=NoSettings, load=load, libraries=("safetensors", "{library}"))
"""


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """family(name, library): the dotted path of a family of a user's own that declares the library."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, library: str) -> str:
        package = tmp_path / name
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "family.py").write_text(FAMILY.format(library=library))
        return f"{name}.family"

    return write


def test_a_family_of_a_users_own_is_keyed_by_its_own_libraries(family: Callable[[str, str], str]) -> None:
    found = files.libraries(Weights(f"{family('keyed_by', 'numpy')}:small", "tag", "0"))
    assert found == {name: metadata.version(name) for name in ("torch", "safetensors", "numpy")}


def test_a_library_that_is_not_installed_is_one_sentence(family: Callable[[str, str], str]) -> None:
    with pytest.raises(ConfigError, match=r"lacks_it\.family declare the library 'no_such_library', and no package"):
        files.libraries(Weights(f"{family('lacks_it', 'no_such_library')}:small", "tag", "0"))
