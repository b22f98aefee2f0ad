"""timm: image encoders by exact tag, ``timm:resnet50.tv_in1k``.

    timm:NAME.TAG              weights: those of the tag (None), a file or folder in timm's own format, or random:SEED
    timm:NAME.TAG@REVISION     the tag's weights as of a commit of their repository

The library is Wightman's, huggingface/pytorch-image-models. The tag is part of the name because it decides the numbers:
"resnet50" alone means other weights from one release of timm to the next. The features are what the classifier reads,
``forward_head(…, pre_logits=True)``, and ``classify`` is the classifier that came with the weights. Two settings matter
in training only: stochastic depth (Huang et al. 2016) and DomainBed's frozen batch norm (Gulrajani & Lopez-Paz 2021).

Legend: N images, D features, K classes of the weights' own, S pixels a side.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from clipdg.backbones._library import commit_of, how_to_fetch, hub_file
from clipdg.core.errors import ConfigError, DataError, NetworkError
from clipdg.core.model import Preprocessing, Weights
from clipdg.core.plugins import BackboneFamily, nearest
from clipdg.data.preprocessing import preprocess
from clipdg.storage.hub import HubClient
from clipdg.weights.files import frozen, identify, load_exactly, preprocessing_in, read, seed_of, seeded, tensors_of

# The files that timm itself looks for in a repository, in its order.
WEIGHTS_NAMES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Config:
    """Settings of training, and the size of the images.

    ``test_size``: take images of the size at which timm measured its own results, which may be larger than in training.
    """

    drop_path: float = field(default=0.0, metadata={"min": 0.0, "max": 1.0})  # probability in the deepest block
    frozen_batch_norm: bool = False
    test_size: bool = False


class TimmImage(nn.Module):
    """A timm model as a Backbone. ``model`` is timm's own, with its classifier."""

    name: str
    weights: Weights

    def __init__(self, name: str, model: Any, preprocessing: Preprocessing, *, frozen_batch_norm: bool = False) -> None:
        super().__init__()
        self.name, self.model, self.preprocessing = name, model, preprocessing
        self.embed_dim = int(model.head_hidden_size)
        self.frozen_batch_norm = frozen_batch_norm

    @property
    def architecture(self) -> dict[str, Any]:
        """The settings that decide, with the tensors and the preprocessing, what this backbone computes."""
        cfg = self.model.pretrained_cfg
        return {"family": "timm", "model": cfg["architecture"], "pool": cfg.get("global_pool")}

    @property
    def head(self) -> nn.Module | None:
        """The classifier from features to the weights' own classes; for most tags these are ImageNet's 1,000, in order.

        None if the weights have no classifier, or none that reads the features: where there are several heads
        (distilled models, VOLO), each of them reads other tokens.
        """
        found = self.model.get_classifier()
        found = getattr(found, "fc", found) if hasattr(found, "global_pool") else found  # Sequencer's pools again
        alone = isinstance(found, nn.Module) and not isinstance(found, nn.Identity | nn.ModuleList)
        return found if alone and not isinstance(getattr(self.model, "aux_head", None), nn.Linear) else None

    @property
    def head_wnids(self) -> tuple[str, ...] | None:
        """The WordNet ids of the classifier's K outputs, by timm's lists: 1,000 are ImageNet-1k's, and so on.

        None if there is no classifier, or if timm has no list of K.
        """
        from timm.data import ImageNetInfo, infer_imagenet_subset

        subset = infer_imagenet_subset(self.model) if self.head is not None else None
        return None if subset is None else tuple(ImageNetInfo(subset).label_names())

    def classify(self, features: Tensor) -> Tensor:
        """Classify features: (N, D) -> (N, K) logits of the weights' own classes, without the classifier's dropout."""
        head = self.head
        if head is None:
            raise ConfigError(
                f"{self.name} with weights '{self.weights.tag}' has no classifier that takes its features; "
                "use linear_probe or erm with it"
            )
        if isinstance(head, nn.Conv2d):  # ResNetV2, DLA and DPN classify by a convolution of kernel 1
            features = features[:, :, None, None]
        logits: Tensor = head(features)
        return logits.flatten(1)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that a file of these weights holds, under timm's own names."""
        return tensors_of(self.model)

    def preprocess(self, image: Image.Image) -> Tensor:
        """Turn one RGB image into (3, S, S), normalised."""
        return preprocess(image, self.preprocessing)

    def encode_image(self, images: Tensor) -> Tensor:
        """Encode images: (N, 3, S, S) normalised -> (N, D), not of unit length."""
        features: Tensor = self.model.forward_head(self.model.forward_features(images), pre_logits=True)
        return features

    def forward(self, images: Tensor) -> Tensor:
        return self.encode_image(images)

    def train(self, mode: bool = True) -> TimmImage:
        """Set the mode. With ``frozen_batch_norm`` the running statistics stay, and the affine weights still train."""
        super().train(mode)
        if self.frozen_batch_norm:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def requires_grad_(self, requires_grad: bool = True) -> TimmImage:
        """Turn gradients on or off for all that makes the features. The classifier is never trained."""
        super().requires_grad_(requires_grad)
        if self.head is not None:
            self.head.requires_grad_(False)
        return self


def load(model: str | None = None, weights: str | None = None, config: Config | None = None) -> TimmImage:
    """Open ``timm:model`` with ``weights``, as the top of this file says.

    Raises ConfigError for a tag that there is not, with those that there are, and for weights that cannot be found.
    Raises DataError for weights that do not fit the architecture.
    """
    config = config or Config()
    name = f"timm:{model}"
    tagged, _, revision = (model or "").partition("@")
    check_tag(tagged)
    seed = seed_of(weights)
    if revision and weights is not None:
        raise ConfigError(f"{name}: a revision is of the tag's own weights; leave out backbone.weights or @{revision}")
    path = None if weights is None or seed is not None else _path(weights, tagged)
    provenance: Mapping[str, object] = {}
    if path is not None:
        built, header = _from_file(path, tagged, config)
        provenance = header.get("provenance") or {}
    elif seed is not None:
        with seeded(seed):
            built, header = _create(tagged, config), {}
    else:
        source = _found(tagged, revision or None)
        built, header = _from_tag(source, tagged, config), {}
        commit = commit_of(source)
        provenance = {"revision": commit} if commit else {}
    if config.frozen_batch_norm and not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in built.modules()):
        raise ConfigError(f"{name} has no batch norm that could be frozen; leave out backbone.frozen_batch_norm")
    preprocessing = preprocessing_of(built, name, test_size=config.test_size)
    if "preprocessing" in header:  # the file is of a run that kept its weights
        preprocessing = preprocessing_in(header)
    backbone = TimmImage(name, built, preprocessing, frozen_batch_norm=config.frozen_batch_norm)
    if header and header.get("architecture") != backbone.architecture:
        raise DataError(f"{weights} holds weights of another architecture than {name}")
    frozen(backbone)
    backbone.weights = identify(
        name,
        Path(weights).expanduser().resolve().name if path and weights else weights or tagged.partition(".")[2],
        built,
        backbone.architecture,
        preprocessing,
        random=seed is not None,
        provenance=provenance,
    )
    return backbone


def check_tag(model: str) -> None:
    """Raises ConfigError if timm has no such model or tag, with those that it has."""
    import timm

    architecture, _, tag = model.partition(".")
    known = timm.list_models()
    if architecture not in known:
        raise ConfigError(f"no timm model '{architecture}'.{nearest(architecture, known)} There are {len(known)}.")
    tags = sorted(timm.list_pretrained(f"{architecture}.*"))
    if model not in tags:
        wrong = f"no tag '{tag}' of" if tag else "no tag given for"
        raise ConfigError(f"{wrong} timm:{architecture}; the weights are one of: {', '.join(tags) or 'none'}")


def sources(model: str) -> tuple[str | None, tuple[str, ...]]:
    """Where timm keeps a tag's weights: a repository and the names of files to try, or None and a URL."""
    import timm

    cfg = timm.get_pretrained_cfg(model)
    if cfg.hf_hub_id:
        return cfg.hf_hub_id, (cfg.hf_hub_filename,) if cfg.hf_hub_filename else WEIGHTS_NAMES
    return None, (cfg.url,)


def downloads(hub: HubClient, model: str | None, weights: str | None) -> set[Path]:
    """Fetch the file of a tag's weights. Other weights need no download: the package has all the rest."""
    from timm.models import _hub

    tagged, _, revision = (model or "").partition("@")
    check_tag(tagged)
    if weights is not None:
        return set()
    repository, names = sources(tagged)
    if repository is None:
        return {hub.url(names[0], Path(_hub.get_cache_dir()))}
    return {hub.first(repository, names, revision or None)}


def preprocessing_of(model: Any, name: str, *, test_size: bool = False) -> Preprocessing:
    """The preprocessing of the weights' training, or of their test with ``test_size``; timm keeps both with the tag."""
    import timm.data

    cfg = timm.data.resolve_model_data_config(model, use_test_size=test_size)
    channels, height, width = cfg["input_size"]
    mode = {"center": "shortest", "squash": "squash"}.get(cfg["crop_mode"])
    if channels != 3 or height != width or mode is None or cfg["interpolation"] not in ("bicubic", "bilinear"):
        raise ConfigError(
            f"{name} takes {channels} × {height} × {width} values, crop_mode={cfg['crop_mode']}, "
            f"interpolation={cfg['interpolation']}; here are square RGB images, center and squash, bicubic and bilinear"
        )
    mean, std = tuple(map(float, cfg["mean"])), tuple(map(float, cfg["std"]))
    return Preprocessing(
        int(height),
        mean,  # type: ignore[arg-type]  # three of them
        std,  # type: ignore[arg-type]
        mode,  # type: ignore[arg-type]
        cfg["interpolation"],
        float(cfg["crop_pct"]),
    )


def _create(model: str, config: Config, **options: Any) -> Any:
    """Build timm's model, with random weights unless ``options`` ask for others."""
    import timm
    from timm.layers import DropPath

    if config.drop_path:
        options["drop_path_rate"] = config.drop_path
    refusal = f"timm:{model} has no blocks that could be dropped; leave out backbone.drop_path"
    try:
        built = timm.create_model(model, **options)
    except TypeError as error:
        if "drop_path_rate" in str(error):
            raise ConfigError(refusal) from error
        raise
    if config.drop_path and not any(isinstance(m, DropPath) and m.drop_prob for m in built.modules()):
        raise ConfigError(refusal)  # it took the setting and did nothing with it
    return built


def _from_tag(source: Path, model: str, config: Config) -> Any:
    """Build the model with the tag's weights. It keeps its classifier, since timm is not strict without it."""
    tensors, _ = read(source)
    try:
        # timm renames the tensors of other code. It is given tensors, as it would unpickle a file without our care.
        with seeded(0):
            built = _create(model, config, pretrained=True, pretrained_cfg_overlay={"state_dict": tensors})
    except RuntimeError as error:
        listed = " ".join(str(error).split())
        raise DataError(f"the weights of timm:{model} do not fit its architecture: {listed}") from error
    built.pretrained_cfg.pop("state_dict")
    return built


def _from_file(path: Path, model: str, config: Config) -> tuple[Any, dict[str, Any]]:
    """Build the model from a file with timm's own names, and read the file's header.

    The model gets as many classes as the file has, which may be none.
    """
    import timm

    tensors, header = read(path)
    heads = timm.get_pretrained_cfg(model).classifier
    first = heads[0] if isinstance(heads, list | tuple) else heads
    own = tensors.get(f"{first}.weight")
    with seeded(0):
        built = _create(model, config, num_classes=0 if own is None else len(own))
    load_exactly(built, tensors, path.name)
    return built, header


def _path(weights: str, model: str) -> Path:
    """The weights' file: ``weights`` itself, or the one in a folder that timm's ``save_for_hf`` wrote."""
    path = Path(weights).expanduser()
    if not path.is_dir():
        return path
    try:
        saved = json.loads((path / "config.json").read_text())["architecture"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is no folder of timm's save_for_hf, which has a config.json with an architecture"
        ) from error
    if saved != model.partition(".")[0]:
        raise ConfigError(f"{path} holds weights of timm's {saved} and not of {model}")
    found = next((path / name for name in WEIGHTS_NAMES if (path / name).is_file()), None)
    if found is None:
        raise ConfigError(f"{path} has no {' and no '.join(WEIGHTS_NAMES)}, as timm's save_for_hf writes them")
    return found


def _found(model: str, revision: str | None) -> Path:
    """Find the file of a tag's weights: in the cache, or else on the hub.

    Raises NetworkError if it cannot be had, saying where it was looked for and how to fetch it.
    """
    from timm.models import _hub

    repository, names = sources(model)
    if repository is not None:
        return hub_file(repository, names, revision, f"timm:{model}{f'@{revision}' if revision else ''}")
    folder, file = Path(_hub.get_cache_dir()), names[0].rpartition("/")[2]
    if revision:
        raise ConfigError(f"timm:{model} does not come from a repository, so it has no revision '{revision}'")
    if (folder / file).is_file():
        return folder / file
    raise NetworkError(f"timm:{model} needs {file}, which is not in {folder}; {how_to_fetch(f'timm:{model}')}")


def catalogue() -> list[dict[str, Any]]:
    """List every tag of timm's from its cards. Nothing is built or fetched, so D is not known."""
    import timm

    rows = []
    for name in timm.list_pretrained():
        card = timm.get_pretrained_cfg(name)
        rows.append(
            {
                "name": f"timm:{name}",
                "tags": [name.partition(".")[2]],
                "size": card.input_size[-1],
                "embed_dim": None,
                "can_prompt": False,
            }
        )
    return rows


BACKBONE = BackboneFamily(config=Config, load=load, libraries=("timm",), downloads=downloads, catalogue=catalogue)
