"""hf: the CLIPs of transformers, by repository or folder.

    hf:ORG/REPO               weights: the repository's own (None), a file, or random:SEED
    hf:ORG/REPO@REVISION      the same as of a commit, branch or tag
    hf:FOLDER                 the same from what save_pretrained wrote

    CLIP            causal text tower, pooled at the end token (both of transformers' conventions)
    MetaCLIP 2      the same with XLM-R's vocabulary; its end token has the number 2 and means it
    SigLIP          also SigLIP 2 of one resolution: texts padded to full length, no mask, pooled at the last place;
                    logits have a bias. SigLIP 2 NaFlex, whose images keep their own shape, is refused
    AltCLIP         XLM-R as text tower: padding masked, pooled at the first token
    Chinese-CLIP    BERT as text tower: the same

A repository is taken from the hub's cache. The hub is asked only for what is not there, and not if HF_HUB_OFFLINE is
set. The commit is recorded with the weights. Code that a repository brings is never run.

Texts are lower-cased, split and padded as the checkpoint's own tokenizer files say, even where these keep capitals that
training did not see (SigLIP 2 with a GemmaTokenizer). Images are resized, cropped and normalised as its own processor
says; of transformers' two, the PIL one is used. A processor with steps that core.model.Preprocessing cannot state is
refused.

Legend: N images, C texts, L tokens, W token width, D features, S pixels a side.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from clipdg.backbones._library import (
    SETTINGS,
    check_length,
    reading,
    scaled_cosines,
    tokenizer_digest,
    unrepresentable,
)
from clipdg.core.errors import ConfigError, DataError, NetworkError
from clipdg.core.model import Preprocessing, TextTower, Weights
from clipdg.core.plugins import BackboneFamily, NoSettings
from clipdg.core.text_transformer import Activation, Block, Linear, Norm, Pool, Transformer
from clipdg.data.preprocessing import preprocess
from clipdg.storage.hub import HubClient
from clipdg.weights.files import (
    first_line,
    frozen,
    identify,
    load_exactly,
    not_finite,
    preprocessing_in,
    read,
    seed_of,
    seeded,
    some,
    tensors_of,
)

INTERPOLATION = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # PIL's numbers, in preprocessor_config.json
ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "tanh_gelu",
    "gelu_new": "tanh_gelu",
}
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
MORE_SIZES = ("projection_size", "project_dim", "type_vocab_size", "pad_token_id")  # for all but CLIP

# A repository is whole if it has one of each, in the order in which they are looked for.
CONFIG = ("config.json",)
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
# The files that the indices name, which may be several.
SAFETENSORS_PARTS = ("model.safetensors", "model-*-of-*.safetensors")
PICKLE_PARTS = ("pytorch_model.bin", "pytorch_model-*-of-*.bin")


@dataclass(frozen=True)
class Family:
    """One kind of CLIP in transformers.

    ``text`` says which tokens attend to which in the text tower. "causal": a token to those before it. "masked": all
    tokens to all others, and none to padding. "full": all places to all others, padding included.
    """

    model: str  # transformers' class
    text: Literal["causal", "masked", "full"]
    embedding: str = "text_model.embeddings.token_embedding"


FAMILIES = {  # by the model_type in config.json
    "clip": Family("CLIPModel", "causal"),
    "metaclip_2": Family("MetaClip2Model", "causal"),
    "siglip": Family("SiglipModel", "full"),
    "altclip": Family("AltCLIPModel", "masked", "text_model.roberta.embeddings.word_embeddings"),
    "chinese_clip": Family("ChineseCLIPModel", "masked", "text_model.embeddings.word_embeddings"),
}


class HfClip(nn.Module):
    """A CLIP of transformers as a ClipBackbone. ``model`` is transformers' own."""

    name: str
    weights: Weights

    def __init__(self, name: str, model: Any, tokenizer: Any, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.name = name
        self.model, self.tokenizer, self.preprocessing = model, tokenizer, preprocessing
        config = model.config
        if config.model_type == "siglip":
            self.embed_dim = int(config.text_config.projection_size)
        else:
            self.embed_dim = int(config.projection_dim)
        self.text = HfText(model, tokenizer)
        self._tokenizer_digest = tokenizer_digest(tokenizer)
        if preprocessing.size != config.vision_config.image_size:
            raise DataError(
                f"{name}: its processor makes images of {preprocessing.size} pixels a side and its image tower takes "
                f"{config.vision_config.image_size}"
            )

    @property
    def architecture(self) -> dict[str, Any]:
        """The settings that decide, with the tensors and the preprocessing, what this backbone computes."""
        config = self.model.config
        names = SIZES if config.model_type == "clip" else SIZES + MORE_SIZES
        towers = {"text": config.text_config, "vision": config.vision_config}
        sizes = {name: {k: getattr(tower, k) for k in names if hasattr(tower, k)} for name, tower in towers.items()}
        kind = {"family": "hf", "class": type(self.model).__name__, "embed_dim": self.embed_dim}
        return {**kind, **sizes, "tokenizer": self._tokenizer_digest, "context_length": self.text.context_length}

    @property
    def log_scale(self) -> nn.Parameter:
        """The logarithm of ``logit_scale``: the parameter that training learns."""
        scale = self.model.logit_scale
        assert isinstance(scale, nn.Parameter)
        return scale

    @property
    def logit_scale(self) -> float:
        return self.log_scale.exp().item()

    @property
    def logit_bias(self) -> float | None:
        """The number that SigLIP adds to scaled cosines to make their sigmoid a probability; None in other families.

        It is the same for every class, so it changes neither a softmax over classes nor a decision.
        """
        return float(self.model.logit_bias) if hasattr(self.model, "logit_bias") else None

    @property
    def text_tower(self) -> TextTower:
        return self.text

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that a file of these weights holds, under transformers' own names."""
        return tensors_of(self.model)

    def preprocess(self, image: Image.Image) -> Tensor:
        """Turn one RGB image into (3, S, S), normalised."""
        return preprocess(image, self.preprocessing)

    def decode(self, ids: Sequence[int]) -> list[str]:
        """The text of each token, as the vocabulary writes it."""
        return [str(token) for token in self.tokenizer.convert_ids_to_tokens(list(ids))]

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Turn C texts into tokens (C, L). L is the context length; in masked towers, the length of the longest text.

        Raises DataError naming a text that is too long, or one with a part that the vocabulary lacks or that would be
        taken for a special token.
        """
        if isinstance(texts, str):
            raise TypeError("tokenize takes a list of texts, not one text")
        text = self.text
        listed = self.tokenizer(list(texts), padding=False, truncation=False, verbose=False).input_ids
        for each, ids in zip(texts, listed, strict=True):
            self._check(each, ids)
        length = {} if text.kind == "masked" else {"max_length": text.context_length}
        padding = "longest" if text.kind == "masked" else "max_length"
        padded = self.tokenizer(list(texts), padding=padding, **length, truncation=False, return_tensors="pt").input_ids
        tokens: Tensor = padded.to(self.log_scale.device)
        return tokens

    def _check(self, text: str, ids: list[int]) -> None:
        """Raises DataError if the text tower cannot take these tokens of ``text``."""
        tower, tokenizer = self.text, self.tokenizer
        check_length(text, len(ids), tower.context_length, self.name)
        start = ids[0] if tower.kind == "full" or tower.start_token is None else tower.start_token
        end = (max(ids) if tower.end_token is None else tower.end_token) if tower.kind == "causal" else ids[-1]
        if max(ids) >= tower.vocab_size:
            raise DataError(
                f"{self.name}: its tokenizer gives '{text}' a token {max(ids)} and its text tower has only "
                f"{tower.vocab_size}; the tokenizer does not belong to these weights"
            )
        if ids[0] != start or ids[-1] != end:
            # transformers would silently pool another token
            raise DataError(
                f"{self.name}: its tokenizer does not begin or end '{text}' with the token at which its text tower "
                "pools; the tokenizer does not belong to these weights"
            )
        inner = ids[tower.num_prefix_tokens : -1]
        special = {ids[-1], tokenizer.unk_token_id}  # CLIP has one token for both
        if tower.kind != "causal":  # some CLIPs pad with '!', which a text may have
            special.update(tokenizer.all_special_ids)
        if not special.isdisjoint(inner):
            raise unrepresentable(text, self.name)

    def encode_image(self, images: Tensor) -> Tensor:
        """Encode images: (N, 3, S, S) normalised -> (N, D), not of unit length."""
        # transformers 5 returns an output whose pooler_output is the projected embedding
        features: Tensor = self.model.get_image_features(pixel_values=images).pooler_output
        return features

    @property
    def penultimate_dim(self) -> int | None:
        """The width of the image tower before its projection; None if it has no projection (SigLIP)."""
        projects = hasattr(self.model, "visual_projection")
        return int(self.model.visual_projection.in_features) if projects else None

    def encode_penultimate(self, images: Tensor) -> Tensor:
        """Encode images without the projection: (N, 3, S, S) normalised -> (N, penultimate_dim)."""
        features: Tensor = self.model.vision_model(pixel_values=images).pooler_output
        return features

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Encode texts: (C, L) -> (C, D), not of unit length."""
        return self.text.encode(self.text.embed(tokens), tokens)

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Compare images and texts -> logits_per_image (N, C), logits_per_text (C, N).

        They are scaled cosines, to which SigLIP adds ``logit_bias``.
        """
        bias = getattr(self.model, "logit_bias", None)
        return scaled_cosines(self.encode_image(images), self.encode_text(tokens), self.log_scale.exp(), bias)


class HfText:
    """A text tower of transformers, cut at its token embeddings as core.model.TextTower asks.

    The towers take token ids and derive positions, masks and the place to pool from them. So they are given the ids,
    and the output of the embedding layer is replaced while they run. In causal and masked towers padding reaches
    nothing that is pooled, so what lies behind the longest text of a batch is left out.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model = model
        family, config = FAMILIES[model.config.model_type], model.config.text_config
        self.kind = family.text
        self.causal = family.text == "causal"
        self._embedding = model.get_submodule(family.embedding)
        self.width, self.vocab_size = int(config.hidden_size), int(config.vocab_size)
        positions = int(config.max_position_embeddings)
        if model.config.model_type == "altclip":  # RoBERTa counts positions from the padding token's number + 1
            positions -= int(config.pad_token_id) + 1
        self.context_length = min(positions, int(tokenizer.model_max_length))
        self.pad_token = int(tokenizer.pad_token_id)
        self.start_token = tokenizer.cls_token_id if family.text == "masked" else tokenizer.bos_token_id
        self.num_prefix_tokens = int(self.start_token is not None and tokenizer("a").input_ids[0] == self.start_token)
        # CLIPs from before transformers#24773 say 2 and mean "the highest number in the row".
        legacy = model.config.model_type == "clip" and config.eos_token_id == 2
        self.end_token = None if legacy or family.text != "causal" else int(config.eos_token_id)

    @property
    def description(self) -> Transformer | None:
        """The same tower as text/prompt_encoder.py takes it.

        None for BERT and RoBERTa, which normalise behind each layer.
        """
        config = self._model.config.text_config
        activation = ACTIVATIONS.get(config.hidden_act)
        if self.kind == "masked" or activation is None:
            return None
        tower = self._model.text_model
        pool: Pool = "last" if self.kind == "full" else "argmax" if self.end_token is None else "end"
        return Transformer(
            tower.embeddings.token_embedding.weight,
            tower.embeddings.position_embedding.weight,
            tuple(_block(layer) for layer in tower.encoder.layers),
            Norm.of(tower.final_layer_norm),
            Linear.of(tower.head if self.kind == "full" else self._model.text_projection),
            int(config.num_attention_heads),
            activation,
            self.causal,
            pool,
            self.end_token,
        )

    def embed(self, tokens: Tensor) -> Tensor:
        """Look up token embeddings: (C, L) -> (C, L, W), without positions."""
        embeddings: Tensor = self._embedding(tokens)
        return embeddings

    def encode(self, embeddings: Tensor, tokens: Tensor) -> Tensor:
        """Encode (C, L, W) embeddings, which stand for the (C, L) tokens -> (C, D)."""
        mask, length = None, tokens.shape[1]
        if self.kind == "causal":
            ends = tokens if self.end_token is None else (tokens == self.end_token).int()
            length = int(ends.argmax(dim=1).max()) + 1
        elif self.kind == "masked":
            mask = tokens != self.pad_token
            length = int(mask.sum(dim=1).max())
            mask = mask[:, :length].long()
        else:
            # This tower pools at the last place, whatever stands there. A shorter row would be pooled elsewhere.
            assert length == self.context_length
        layer = self._embedding
        hook = layer.register_forward_hook(lambda *_: embeddings[:, :length])
        try:
            output = self._model.get_text_features(input_ids=tokens[:, :length], attention_mask=mask)
        finally:
            hook.remove()
        features: Tensor = output.pooler_output
        return features


def _block(layer: Any) -> Block:
    """Describe an encoder layer of CLIP, MetaCLIP 2 or SigLIP."""
    attention, mlp = layer.self_attn, layer.mlp
    query, key, value = (Linear.of(part) for part in (attention.q_proj, attention.k_proj, attention.v_proj))
    norms = Norm.of(layer.layer_norm1), Norm.of(layer.layer_norm2)
    inside = Linear.of(mlp.fc1), Linear.of(mlp.fc2)
    return Block(norms[0], (query, key, value), Linear.of(attention.out_proj), norms[1], *inside)


def load(model: str | None = None, weights: str | None = None, config: NoSettings | None = None) -> HfClip:
    """Open ``hf:model`` with ``weights``, as the top of this file says.

    Raises ConfigError for a model that is no CLIP, DataError for weights that do not fit the architecture.
    """
    import transformers

    name = f"hf:{model or ''}"
    seed = seed_of(weights)
    path = Path(weights).expanduser() if weights is not None and seed is None else None
    folder, own, commit = _locate(model or "", with_weights=weights is None)
    family = _family(folder, name)
    tensors, header = ({}, {}) if path is None else read(path)
    with reading(name), _quiet():
        try:
            # A model_type of transformers' own never needs a repository's code. One that asks for it all the same is
            # refused.
            their_config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, config=their_config, trust_remote_code=False)
            processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
        except ImportError as error:
            raise ConfigError(_needs(name, error)) from error
        preprocessing = preprocessing_of(processor, name)
        if "preprocessing" in header:  # the file is of `clipdg pretrain`, or of a run that kept its weights
            preprocessing = preprocessing_in(header)
        with seeded(seed or 0):
            built = None if weights is None else getattr(transformers, family.model)(their_config)
    if family.text != "full" and tokenizer.padding_side != "right":
        raise ConfigError(f"{name}: its tokenizer pads on the left, and its text tower takes padding on the right only")
    if tokenizer.pad_token_id is None:
        raise ConfigError(f"{name}: its tokenizer has no padding token")
    provenance: Mapping[str, object] = {} if commit is None else {"revision": commit}
    if built is None:
        files = _weight_files(folder, name)
        tensors = {k: t for file in files for k, t in read(file)[0].items()}
        built = _pretrained(getattr(transformers, family.model), their_config, tensors, f"the weights of {name}")
    shown = name if commit else f"hf:{own}"  # the place of a folder is no part of what it is
    with reading(name):
        backbone = HfClip(shown, built, tokenizer, preprocessing)
    if path is not None:
        if header and header.get("architecture") != backbone.architecture:
            raise DataError(f"{path.name} holds weights of another architecture than {name}")
        if header:
            load_exactly(built, tensors, path.name)
        else:  # a file of another maker may have the names that transformers had before
            backbone.model = built = _pretrained(type(built), their_config, tensors, path.name)
            backbone.text = HfText(built, tokenizer)
        provenance = {**provenance, **(header.get("provenance") or {})}
    frozen(backbone)
    backbone.weights = identify(
        shown,
        path.name if path else weights or own,
        built,
        backbone.architecture,
        preprocessing,
        random=seed is not None,
        provenance=provenance,
    )
    return backbone


def preprocessing_of(processor: Any, name: str) -> Preprocessing:
    """State a processor's steps as a Preprocessing. Raises ConfigError for steps that it cannot state."""
    from transformers.image_processing_backends import PilBackend

    kind = type(processor)
    steps_of = ("_preprocess", "process_image", "convert_to_rgb", "resize", "center_crop", "rescale", "normalize")
    if not all(getattr(kind, step, None) is getattr(PilBackend, step) for step in steps_of):
        raise ConfigError(f"{name}: its processor is a {kind.__name__}, whose steps are its own and not known here")
    steps = {step: getattr(processor, step, None) for step in ("do_resize", "do_rescale", "do_normalize")}
    factor = float(processor.rescale_factor)
    if not all(steps.values()) or not math.isclose(factor, 1 / 255) or getattr(processor, "do_pad", None):
        raise ConfigError(
            f"{name}: its processor has {steps} and rescale_factor {factor}; needed are all three and 1/255, "
            "and no padding"
        )
    interpolation = INTERPOLATION.get(int(processor.resample))
    size = {k: v for k, v in dict(processor.size).items() if v is not None}
    cropped = dict(processor.crop_size or {}) if getattr(processor, "do_center_crop", None) else {}
    crop = {k: v for k, v in cropped.items() if v is not None}
    mean, std = tuple(map(float, processor.image_mean)), tuple(map(float, processor.image_std))
    if interpolation is None or len(set(crop.values())) > 1:
        raise ConfigError(
            f"{name}: its processor resamples by {processor.resample} and crops to {crop}, which is not known here"
        )
    if len(mean) != 3 or len(std) != 3 or 0 in std:
        raise ConfigError(f"{name}: its processor's mean {mean} and std {std} are not those of three colours")
    if set(size) == {"shortest_edge"} and crop and int(next(iter(crop.values()))) <= int(size["shortest_edge"]):
        side, edge = int(next(iter(crop.values()))), int(size["shortest_edge"])
        fraction = crop_fraction(side, edge)
        return Preprocessing(side, mean, std, "shortest_floor", interpolation, fraction)  # type: ignore[arg-type]
    if set(size) == {"height", "width"} and size["height"] == size["width"] and crop in ({}, size):
        return Preprocessing(int(size["height"]), mean, std, "squash", interpolation)  # type: ignore[arg-type]
    raise ConfigError(
        f"{name}: its processor resizes to {size} and crops to {crop or 'nothing'}, which is not known here"
    )


def crop_fraction(size: int, edge: int) -> float:
    """The fraction for which ``floor(size / fraction)``, as timm and data/preprocessing.py compute it, is ``edge``."""
    fraction = size / edge
    while math.floor(size / fraction) < edge:
        fraction = math.nextafter(fraction, 0)
    assert math.floor(size / fraction) == edge
    return fraction


def _family(folder: Path, name: str) -> Family:
    """The family that a folder's config.json names. Raises ConfigError if it is none of those here."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = config["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{name}: its config.json names no model_type: {first_line(error)}") from error
    if kind == "siglip2":
        raise ConfigError(
            f"{name} is SigLIP 2 NaFlex, whose images keep their own shape; here are SigLIP 2 checkpoints of one "
            "resolution, for instance hf:google/siglip2-base-patch16-224"
        )
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ConfigError(f"{name} is a {kind} model; here are {', '.join(FAMILIES)}")
    vision = config.get("vision_config")
    if kind == "siglip" and isinstance(vision, dict) and not vision.get("vision_use_head", True):
        raise ConfigError(
            f"{name} is a SigLIP without the head that pools its image tower, so it has no image features"
        )
    return FAMILIES[kind]


def _locate(model: str, *, with_weights: bool) -> tuple[Path, str, str | None]:
    """Find the folder of ``model``, the name it goes by, and its commit if it comes from the hub.

    Raises ConfigError or NetworkError saying what was looked for, where, and how to fetch it.
    """
    import huggingface_hub

    named = repository(model, with_weights=with_weights)
    if named is None:
        path = Path(model).expanduser().resolve()
        return path, path.name, None
    repo, revision = named
    cached = huggingface_hub.try_to_load_from_cache(repo, "config.json", revision=revision)
    folder = Path(cached).parent if isinstance(cached, str) else None
    lacks = "config.json" if folder is None else _lacks(folder, with_weights)
    if folder is not None and not lacks:
        return folder, repo, folder.name
    constants = huggingface_hub.constants
    if constants.HF_HUB_OFFLINE:
        raise NetworkError(
            f"hf:{model} is no folder, and the hub's cache in {constants.HF_HUB_CACHE} has no {lacks} of {repo}"
            f"{f' at {revision}' if revision else ''}; HF_HUB_OFFLINE is set, so fetch it where there is a network: "
            f"`clipdg fetch backbone hf:{model}`"
        )
    folder, commit = _download(repo, revision, with_weights=with_weights)
    lacks = _lacks(folder, with_weights)
    if lacks:
        raise ConfigError(f"hf:{model}: the repository has no {lacks}")
    return folder, repo, commit


def repository(model: str, *, with_weights: bool) -> tuple[str, str | None] | None:
    """The repository and revision that ``model`` names; None if it is a folder that has all it needs.

    Raises ConfigError for a name that is neither, and for a folder that lacks a part.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    if not model:
        raise ConfigError("hf needs a repository or a folder, for instance hf:openai/clip-vit-base-patch32")
    path = Path(model).expanduser()
    if os.path.isdir(path):  # Path.is_dir would raise for a name that is too long
        if (path / "config.json").is_file():
            _family(path, f"hf:{model}")  # another kind of model is the first thing to say
        lacks = _lacks(path, with_weights)
        if lacks:
            raise ConfigError(f"hf:{model}: the folder has no {lacks}; it must hold what save_pretrained writes")
        return None
    repo, at, revision = model.partition("@")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(
            f"hf:{model}: there is no such folder, and a repository is ORG/REPO or ORG/REPO@REVISION"
        ) from error
    if at and not revision:
        raise ConfigError(f"hf:{model}: there is no revision after the @; a commit, branch or tag is meant")
    return repo, revision or None


def _lacks(folder: Path, with_weights: bool) -> str:
    """Name what a folder lacks; '' if it is whole."""
    needed = [CONFIG, PROCESSORS, TOKENIZERS] + ([SAFETENSORS + PICKLES] if with_weights else [])
    return "; no ".join(" or ".join(names) for names in needed if not any((folder / n).is_file() for n in names))


def _download(repo: str, revision: str | None, *, with_weights: bool) -> tuple[Path, str]:
    """Download a repository: its settings, and its safetensors, or its pickles if it has none."""
    import huggingface_hub

    def get(*patterns: str) -> Path:
        # The folders of other formats (onnx/ …), which some repositories have, are left out.
        at = huggingface_hub.snapshot_download(
            repo, revision=revision, allow_patterns=list(patterns), ignore_patterns=["*/*"]
        )
        return Path(at)

    try:
        with _quiet():
            folder = get(*SETTINGS)
            if with_weights:
                folder = get("*.json", *SAFETENSORS_PARTS)
                if not any((folder / n).is_file() for n in SAFETENSORS):
                    folder = get("*.json", *PICKLE_PARTS)
    except Exception as error:  # there are many kinds: no such repository, gated, no network, a proxy
        spec = f"{repo}@{revision}" if revision else repo
        if isinstance(error, huggingface_hub.errors.RepositoryNotFoundError):
            raise ConfigError(
                f"hf:{spec}: there is no folder and no repository '{repo}', or it is not yours to read"
            ) from error
        if isinstance(error, huggingface_hub.errors.RevisionNotFoundError):
            raise ConfigError(f"hf:{spec}: the repository has no branch, tag or commit '{revision}'") from error
        raise NetworkError(
            f"hf:{spec} is no folder and not whole in the hub's cache in {huggingface_hub.constants.HF_HUB_CACHE}, and "
            f"the hub did not give it ({first_line(error)}); fetch it where there is a network: "
            f"`clipdg fetch backbone hf:{spec}`"
        ) from error
    return folder, folder.name


def downloads(hub: HubClient, model: str | None, weights: str | None) -> set[Path]:
    """Fetch a repository's settings and, unless other weights are given, its weights. A folder needs no download."""
    named = repository(model or "", with_weights=weights is None)
    if named is None:
        return set()
    repo, revision = named
    found = hub.matching(repo, SETTINGS, revision)
    if weights is not None:
        return found
    held = hub.matching(repo, SAFETENSORS_PARTS, revision) or hub.matching(repo, PICKLE_PARTS, revision)
    # Without a network, a folder counts as whole once some of its files were fetched. So a file is asked for by name.
    return found | (held or {hub.first(repo, (SAFETENSORS[0], PICKLES[0]), revision)})


def _weight_files(folder: Path, name: str) -> list[Path]:
    """The files of the weights: one, or those that an index lists."""
    first = next(folder / n for n in SAFETENSORS + PICKLES if (folder / n).is_file())
    if not first.name.endswith(".index.json"):
        return [first]
    try:
        shards = sorted({os.fspath(s) for s in json.loads(first.read_text(encoding="utf-8"))["weight_map"].values()})
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError(f"{name}: its {first.name} is not an index of weights: {first_line(error)}") from error
    outside = [s for s in shards if Path(s).name != s]
    lacking = [s for s in shards if not (folder / s).is_file()]
    if outside or lacking:
        raise DataError(f"{name}: its {first.name} lists {(outside or lacking)[0]}, which is not beside it")
    return [folder / s for s in shards]


def _pretrained(kind: Any, config: Any, tensors: dict[str, Tensor], source: str) -> Any:
    """Load by transformers' own code, which knows the tensors' names of earlier versions.

    Raises DataError if a tensor is missing or left over.
    """
    infinite = not_finite(tensors)
    if infinite:
        raise DataError(f"{source} are not finite: {some(infinite)}")
    with reading(source), _quiet(), seeded(0):
        built, info = kind.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # they are listed below, with the others
            output_loading_info=True,
        )
    wrong = {k: sorted(str(n[0] if isinstance(n, tuple) else n) for n in info[f"{k}_keys"]) for k in KINDS}
    if any(wrong.values()) or info.get("error_msgs"):
        listed = "; ".join(f"{KINDS[kind]}: {some(keys)}" for kind, keys in wrong.items() if keys)
        raise DataError(f"{source} do not fit its architecture: {listed or info['error_msgs'][0]}")
    whole = [n for n, t in tensors.items() if not t.is_floating_point() and not n.endswith("position_ids")]
    if whole:  # quantised weights, whose scale is not among them
        raise DataError(f"{source} are integers, not floating-point numbers: {some(whole)}")
    return built


KINDS = {"missing": "missing", "unexpected": "unexpected", "mismatched": "of another shape"}


def _needs(name: str, error: ImportError) -> str:
    """Say which package a checkpoint needs."""
    if "sentencepiece" in str(error).lower() or "protobuf" in str(error).lower():
        return f"{name} has a tokenizer of SentencePiece's; install it with `pip install sentencepiece protobuf`"
    return f"{name} cannot be loaded: {first_line(error)}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' progress bars and advice. What matters is raised here."""
    from transformers.utils import logging

    bar, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


BACKBONE = BackboneFamily(config=NoSettings, load=load, libraries=("transformers",), downloads=downloads)
