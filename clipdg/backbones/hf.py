"""hf: CLIP models of transformers, ``hf:ORG/REPO`` or ``hf:FOLDER``, with an optional weights file or random:SEED.

The processor's own resizing and normalisation are taken over as a spec; its centre crop floors half pixels where
torchvision (and so OpenAI's CLIP) rounds them, which moves the crop of some images by one pixel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from clipdg.core import Preprocessing, TextTower, Weights
from clipdg.errors import ConfigError, DataError
from clipdg.images import preprocess
from clipdg.weights import frozen, identify, load_exactly, read, seed_of, seeded, tensors_of

INTERPOLATION = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # PIL's numbers, in preprocessor_config.json
SIZES = (
    "hidden_size",
    "intermediate_size",
    "projection_dim",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
    "attention_dropout",
    "image_size",
    "patch_size",
    "num_channels",
    "vocab_size",
    "max_position_embeddings",
    "eos_token_id",
)


class HfClip(nn.Module):
    """transformers' CLIPModel as a ClipBackbone; ``model`` is transformers' own."""

    name: str
    weights: Weights

    def __init__(self, name: str, model: Any, tokenizer: Any, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.name = name
        self.model, self.tokenizer, self.preprocessing = model, tokenizer, preprocessing
        self.embed_dim = int(model.config.projection_dim)
        self.text = HfText(model)
        if preprocessing.size != model.config.vision_config.image_size:
            raise DataError(
                f"{name}: its processor makes images of {preprocessing.size} pixels a side and its image tower takes "
                f"{model.config.vision_config.image_size}"
            )

    @property
    def architecture(self) -> dict[str, Any]:
        """What, beside the tensors and the preprocessing, makes this function."""
        config = self.model.config
        towers = {"text": config.text_config, "vision": config.vision_config}
        sizes = {name: {k: getattr(tower, k) for k in SIZES if hasattr(tower, k)} for name, tower in towers.items()}
        return {"family": "hf", "class": type(self.model).__name__, "embed_dim": self.embed_dim, **sizes}

    @property
    def log_scale(self) -> nn.Parameter:
        """What training learns; ``logit_scale`` is its exponential."""
        scale = self.model.logit_scale
        assert isinstance(scale, nn.Parameter)
        return scale

    @property
    def logit_scale(self) -> float:
        return self.log_scale.exp().item()

    @property
    def text_tower(self) -> TextTower:
        return self.text

    def tensors(self) -> dict[str, Tensor]:
        """What a file of these weights holds: transformers' own names."""
        return tensors_of(self.model)

    def preprocess(self, image: Image.Image) -> Tensor:
        """One RGB image -> (3, S, S), normalised."""
        return preprocess(image, self.preprocessing)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """C texts -> (C, L). Raises DataError naming a text that is too long or has no end token."""
        if isinstance(texts, str):
            raise TypeError("tokenize takes a list of texts, not one text")
        most = self.text.context_length
        listed = self.tokenizer(list(texts)).input_ids
        for text, ids in zip(texts, listed, strict=True):
            if len(ids) > most:
                raise DataError(
                    f"'{text}' is {len(ids)} tokens for {self.name}, which takes {most} with start and end; shorten it"
                )
            if ids[-1] != (max(ids) if self.text.end_token is None else self.text.end_token):
                # transformers would pool another token instead, and say nothing
                raise DataError(
                    f"{self.name}: its tokenizer does not end '{text}' with the token at which its text tower pools; "
                    "the tokenizer does not belong to these weights"
                )
            if not {ids[-1], self.tokenizer.unk_token_id}.isdisjoint(ids[1:-1]):  # in CLIP's they are one
                raise DataError(f"'{text}' has a part that the tokenizer of {self.name} cannot represent")
        padded = self.tokenizer(list(texts), padding="max_length", max_length=most, return_tensors="pt").input_ids
        tokens: Tensor = padded.to(self.log_scale.device)
        return tokens

    def encode_image(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) normalised -> (N, D), not of unit length."""
        # transformers 5 returns an output whose pooler_output is the projected embedding
        features: Tensor = self.model.get_image_features(pixel_values=images).pooler_output
        return features

    def encode_text(self, tokens: Tensor) -> Tensor:
        """(C, L) -> (C, D), not of unit length."""
        return self.text.encode(self.text.embed(tokens), tokens)

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """-> logits_per_image (N, C), logits_per_text (C, N): scaled cosines."""
        image = F.normalize(self.encode_image(images), dim=1)
        text = F.normalize(self.encode_text(tokens), dim=1)
        logits = self.log_scale.exp() * image @ text.T
        return logits, logits.T


class HfText:
    """transformers' causal text tower, cut at its token embeddings (core.TextTower).

    CLIPTextModel takes token ids only, so the output of its embedding layer is replaced while it runs. Tokens after
    the last end token of a batch are left out: in a causal tower they reach nothing that is pooled.
    """

    num_prefix_tokens = 1
    causal = True

    def __init__(self, model: Any) -> None:
        self._model = model
        config = model.config.text_config
        self.width, self.context_length = int(config.hidden_size), int(config.max_position_embeddings)
        # Checkpoints from before transformers#24773 say 2 and mean "the highest number in the row".
        self.end_token = None if config.eos_token_id == 2 else int(config.eos_token_id)

    def embed(self, tokens: Tensor) -> Tensor:
        """(C, L) -> (C, L, W), without positions."""
        embeddings: Tensor = self._model.text_model.embeddings.token_embedding(tokens)
        return embeddings

    def encode(self, embeddings: Tensor, tokens: Tensor) -> Tensor:
        """(C, L, W) embeddings and the (C, L) tokens they stand for -> (C, D)."""
        ends = tokens if self.end_token is None else (tokens == self.end_token).int()
        length = int(ends.argmax(dim=1).max()) + 1
        layer = self._model.text_model.embeddings.token_embedding
        hook = layer.register_forward_hook(lambda *_: embeddings[:, :length])
        try:
            features: Tensor = self._model.get_text_features(input_ids=tokens[:, :length]).pooler_output
        finally:
            hook.remove()
        return features


def load(model: str | None = None, weights: str | None = None) -> HfClip:
    """See the top of this file. Raises ConfigError for a model that is no CLIP, DataError for weights that misfit."""
    import transformers

    if not model:
        raise ConfigError("hf needs a repository or a folder, for instance hf:openai/clip-vit-base-patch32")
    name = f"hf:{model}"
    seed = seed_of(weights)
    path = Path(weights).expanduser() if weights is not None and seed is None else None
    try:
        config = transformers.AutoConfig.from_pretrained(model)
        if config.model_type != "clip":
            raise ConfigError(f"{name} is a {config.model_type} model; here are only those of type clip")
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        preprocessing = preprocessing_of(transformers.AutoImageProcessor.from_pretrained(model, backend="pil"), name)
        if seed is None and path is None:
            built = _pretrained(model, name)
        else:
            with seeded(seed or 0):
                built = transformers.CLIPModel(config)
    except (OSError, RuntimeError, KeyError, ImportError) as error:
        raise ConfigError(f"{name} cannot be loaded: {(str(error).splitlines() or [repr(error)])[0]}") from error
    backbone = HfClip(name, built, tokenizer, preprocessing)
    provenance: Mapping[str, object] = {}
    if path is not None:
        tensors, header = read(path)
        if header and header.get("architecture") != backbone.architecture:
            raise DataError(f"{path.name} holds weights of another architecture than {name}")
        load_exactly(built, tensors, path.name)
        provenance = header.get("provenance") or {}
    frozen(backbone)
    own = Path(model).name if Path(model).expanduser().exists() else model
    backbone.weights = identify(
        name,
        path.name if path else weights or own,
        built,
        backbone.architecture,
        preprocessing,
        random=seed is not None,
        provenance=provenance,
    )
    return backbone


def preprocessing_of(processor: Any, name: str) -> Preprocessing:
    """The processor's steps as a spec. Raises ConfigError for steps that the spec has no words for."""
    steps = {step: getattr(processor, step, None) for step in ("do_resize", "do_rescale", "do_normalize")}
    factor = float(processor.rescale_factor)
    if not all(steps.values()) or not math.isclose(factor, 1 / 255):
        raise ConfigError(
            f"{name}: its processor has {steps} and rescale_factor {factor}; needed are all three and 1/255"
        )
    interpolation = INTERPOLATION.get(int(processor.resample))
    size = {k: v for k, v in dict(processor.size).items() if v is not None}
    crop = (
        {k: v for k, v in dict(processor.crop_size or {}).items() if v is not None} if processor.do_center_crop else {}
    )
    mean, std = tuple(map(float, processor.image_mean)), tuple(map(float, processor.image_std))
    if interpolation is None or len(mean) != 3 or len(std) != 3 or len(set(crop.values())) > 1:
        raise ConfigError(
            f"{name}: its processor resamples by {processor.resample} and crops to {crop}, which is not known here"
        )
    if set(size) == {"shortest_edge"} and crop:
        side, edge = int(next(iter(crop.values()))), int(size["shortest_edge"])
        return Preprocessing(side, mean, std, "shortest", interpolation, crop_fraction(side, edge))  # type: ignore[arg-type]
    if set(size) == {"height", "width"} and size["height"] == size["width"] and crop in ({}, size):
        return Preprocessing(int(size["height"]), mean, std, "squash", interpolation)  # type: ignore[arg-type]
    raise ConfigError(
        f"{name}: its processor resizes to {size} and crops to {crop or 'nothing'}, which is not known here"
    )


def crop_fraction(size: int, edge: int) -> float:
    """The fraction of which ``floor(size / fraction)`` is ``edge`` again, as timm and images.py compute it."""
    fraction = size / edge
    while math.floor(size / fraction) < edge:
        fraction = math.nextafter(fraction, 0)
    assert math.floor(size / fraction) == edge
    return fraction


def _pretrained(model: str, name: str) -> Any:
    import transformers

    bar = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        built, info = transformers.CLIPModel.from_pretrained(model, dtype=torch.float32, output_loading_info=True)
    finally:
        if bar:
            transformers.utils.logging.enable_progress_bar()
    wrong = {kind: sorted(map(str, info[f"{kind}_keys"])) for kind in ("missing", "unexpected", "mismatched")}
    if any(wrong.values()):
        listed = "; ".join(f"{kind}: {', '.join(keys[:6])}" for kind, keys in wrong.items() if keys)
        raise DataError(f"the weights of {name} do not fit its architecture: {listed}")
    return built
