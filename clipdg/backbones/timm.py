"""timm: image encoders with exact tags, ``timm:resnet50.tv_in1k`` (Wightman, huggingface/pytorch-image-models).

The tag is part of the name because it decides the numbers: "resnet50" alone is other weights in every release of timm.
Features are what the classifier would see, before its last layer. Weights: those of the tag, a file, or random:SEED.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from clipdg.catalog import nearest
from clipdg.core import Preprocessing, Weights
from clipdg.errors import ConfigError, DataError
from clipdg.images import preprocess
from clipdg.weights import frozen, identify, load_exactly, read, seed_of, seeded, tensors_of


class TimmImage(nn.Module):
    """A timm model without its classifier as a Backbone; ``model`` is timm's own."""

    name: str
    weights: Weights

    def __init__(self, name: str, model: Any, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.name, self.model, self.preprocessing = name, model, preprocessing
        self.embed_dim = int(model.head_hidden_size)

    @property
    def architecture(self) -> dict[str, Any]:
        """What, beside the tensors and the preprocessing, makes this function."""
        cfg = self.model.pretrained_cfg
        return {"family": "timm", "model": cfg["architecture"], "pool": cfg.get("global_pool")}

    def tensors(self) -> dict[str, Tensor]:
        """What a file of these weights holds: timm's own names."""
        return tensors_of(self.model)

    def preprocess(self, image: Image.Image) -> Tensor:
        """One RGB image -> (3, S, S), normalised."""
        return preprocess(image, self.preprocessing)

    def encode_image(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) normalised -> (N, D), not of unit length."""
        features: Tensor = self.model(images)
        return features

    def forward(self, images: Tensor) -> Tensor:
        return self.encode_image(images)


def load(model: str | None = None, weights: str | None = None) -> TimmImage:
    """See the top of this file. Raises ConfigError with the tags that there are."""
    import timm

    name = f"timm:{model}"
    architecture, _, tag = (model or "").partition(".")
    known = timm.list_models()
    if architecture not in known:
        raise ConfigError(f"no timm model '{architecture}'.{nearest(architecture, known)} There are {len(known)}.")
    tags = sorted(timm.list_pretrained(f"{architecture}.*"))
    if model not in tags:
        wrong = f"no tag '{tag}' of" if tag else "no tag given for"
        raise ConfigError(f"{wrong} timm:{architecture}; the weights are one of: {', '.join(tags) or 'none'}")
    seed = seed_of(weights)
    path = Path(weights).expanduser() if weights is not None and seed is None else None
    provenance: Mapping[str, object] = {}
    try:
        with seeded(seed or 0):
            # With its classifier: without it, timm loads pretrained weights with strict=False.
            built = timm.create_model(model, pretrained=weights is None)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{name} cannot be loaded: {(str(error).splitlines() or [repr(error)])[0]}") from error
    head = built.pretrained_cfg.get("classifier")
    built.reset_classifier(0)
    backbone = TimmImage(name, built, preprocessing_of(built, name))
    if path is not None:
        tensors, header = read(path)
        if header and header.get("architecture") != backbone.architecture:
            raise DataError(f"{path.name} holds weights of another architecture than {name}")
        heads = tuple(f"{h}." for h in ([head] if isinstance(head, str) else head or ()))
        load_exactly(built, {n: t for n, t in tensors.items() if not n.startswith(heads)}, path.name)
        provenance = header.get("provenance") or {}
    frozen(backbone)
    backbone.weights = identify(
        name,
        path.name if path else weights or tag,
        built,
        backbone.architecture,
        backbone.preprocessing,
        random=seed is not None,
        provenance=provenance,
    )
    return backbone


def preprocessing_of(model: Any, name: str) -> Preprocessing:
    """What the weights were trained with; timm keeps it with the tag."""
    import timm.data

    cfg = timm.data.resolve_model_data_config(model)
    _, height, width = cfg["input_size"]
    mode = {"center": "shortest", "squash": "squash"}.get(cfg["crop_mode"])
    if height != width or mode is None or cfg["interpolation"] not in ("bicubic", "bilinear"):
        raise ConfigError(
            f"{name} takes {height} × {width} pixels, crop_mode={cfg['crop_mode']}, "
            f"interpolation={cfg['interpolation']}, which is not known here"
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
