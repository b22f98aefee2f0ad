"""open_clip: the CLIPs of mlfoundations/open_clip.

    open_clip:ViT-B-32-quickgelu          weights: a pretrained tag ("openai"), a checkpoint file, or random:SEED
    open_clip:hf-hub:ORG/REPO             weights, architecture and preprocessing from the hub
    open_clip:local-dir:DIR               the same from a folder with open_clip_config.json

The library is described by Cherti et al. 2023, arXiv:2212.07143. ``TAG@REVISION`` and ``hf-hub:ORG/REPO@REVISION`` pin
a commit; the weights' provenance names the one that was loaded. Files are taken from the hub's cache, and only those
that are not there are asked for.

open_clip itself lets five mistakes pass, all of which raise here. Where it finds no weights it builds random ones, with
a log line. It runs weights under another activation than they were trained with, after a warning (4 points on ImageNet,
open_clip#1109). It stretches position embeddings that do not fit. It gives every checkpoint file OpenAI's mean and
interpolation. It cuts long texts.

Legend: N images, C texts, D features, L tokens, W token width, S pixels a side.
"""

from __future__ import annotations

import copy
import json
import logging
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
    commit_of,
    how_to_fetch,
    hub_file,
    reading,
    scaled_cosines,
    tokenizer_digest,
    unrepresentable,
)
from clipdg.core.errors import ConfigError, DataError, NetworkError, UnsafeError
from clipdg.core.model import Preprocessing, TextTower, Weights
from clipdg.core.plugins import BackboneFamily, NoSettings, nearest
from clipdg.core.text_transformer import Activation, Block, Linear, Norm, Pool, Transformer
from clipdg.data.preprocessing import preprocess
from clipdg.storage.hub import HubClient
from clipdg.weights.files import (
    first_line,
    frozen,
    identify,
    load_exactly,
    preprocessing_in,
    read,
    seed_of,
    seeded,
    tensors_of,
)

SCHEMAS = ("hf-hub:", "local-dir:")
CONFIG = "open_clip_config.json"
# The options that a configuration from elsewhere may give its tokenizer. Others would reach transformers'
# from_pretrained, which runs a repository's own code if trust_remote_code is among them.
TOKENIZER_OPTIONS = {"clean", "strip_sep_token", "language", "additional_special_tokens"}
POOLS: dict[str, Pool] = {"argmax": "argmax", "eos": "end", "first": "first", "last": "last"}
OPENAI_EXTRAS = ("input_resolution", "context_length", "vocab_size")  # numbers beside the tensors in OpenAI's files


class OpenClip(nn.Module):
    """An open_clip model as a ClipBackbone. ``model`` is open_clip's own CLIP, CustomTextCLIP or CoCa."""

    name: str
    weights: Weights

    def __init__(self, model: nn.Module, tokenizer: Any, config: Mapping[str, Any], spec: Preprocessing) -> None:
        super().__init__()
        self.model, self.tokenizer, self.config, self.preprocessing = model, tokenizer, config, spec
        self.embed_dim = int(config["embed_dim"])
        own = hasattr(tokenizer, "tokenizer")  # those of transformers; CLIP's is part of open_clip
        self._tokenizer_digest = tokenizer_digest(tokenizer.tokenizer) if own else None
        self._tower = text_tower_of(model, tokenizer)

    @property
    def architecture(self) -> dict[str, Any]:
        """The settings that decide, with the tensors and the preprocessing, what this backbone computes."""
        config = {**self.config, "text_cfg": dict(self.config["text_cfg"])}
        for key in ("hf_model_name", "hf_tokenizer_name"):
            if Path(config["text_cfg"].get(key) or "").is_absolute():  # the place is no part of the architecture
                config["text_cfg"][key] = Path(config["text_cfg"][key]).name
        described = {"family": "open_clip", "class": type(self.model).__name__, "config": config}
        own = getattr(getattr(self.model, "text", None), "config", None)  # the text tower is one of transformers'
        if own is not None:
            dropped = ("_name_or_path", "transformers_version", "architectures", "dtype")
            described["text"] = _plain({k: v for k, v in own.to_diff_dict().items() if k not in dropped})
        return described | ({"tokenizer": self._tokenizer_digest} if self._tokenizer_digest else {})

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
    def logit_bias(self) -> float:
        """The number that ``forward`` adds to the scaled cosines: SigLIP's learnt bias, 0 for a CLIP."""
        bias = self.model.logit_bias
        return 0.0 if bias is None else bias.item()  # type: ignore[operator]  # mypy sees a Tensor or Module

    @property
    def text_tower(self) -> TextTower | None:
        return self._tower

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that a file of these weights holds, under open_clip's own names: it can read the file too."""
        return tensors_of(self.model)

    def preprocess(self, image: Image.Image) -> Tensor:
        """Turn one RGB image into (3, S, S), normalised."""
        return preprocess(image, self.preprocessing)

    def decode(self, ids: Sequence[int]) -> list[str]:
        """The text of each token, as the vocabulary writes it."""
        if hasattr(self.tokenizer, "decoder"):  # CLIP's own byte pairs
            return [self.tokenizer.decoder[i] for i in ids]
        return [str(token) for token in self.tokenizer.tokenizer.convert_ids_to_tokens(list(ids))]

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Turn C texts into tokens (C, L). Raises DataError naming a text that is too long or cannot be represented."""
        if isinstance(texts, str):
            raise TypeError("tokenize takes a list of texts, not one text")
        most, reserved = self.tokenizer.context_length, _reserved(self.tokenizer)
        listed = []
        for text in texts:
            ids, num = _ids(self.tokenizer, text)
            check_length(text, num, most, self.name)
            if not reserved.isdisjoint(ids):
                raise unrepresentable(text, self.name)
            listed.append(ids)
        tokens = _padded(self.tokenizer, listed)
        if tokens is None:
            tokens = self.tokenizer(list(texts))
        return tokens.to(self.log_scale.device)

    def encode_image(self, images: Tensor) -> Tensor:
        """Encode images: (N, 3, S, S) normalised -> (N, D), not of unit length."""
        # said outright because CoCa normalises by default
        features: Tensor = self.model.encode_image(images, normalize=False)  # type: ignore[operator]  # a Tensor or Module
        return features

    @property
    def penultimate_dim(self) -> int | None:
        """The width of a ViT before its projection; None for other towers and for a ViT without a projection."""
        from open_clip.transformer import VisionTransformer

        visual = self.model.visual
        if not isinstance(visual, VisionTransformer) or visual.proj is None:
            return None
        return int(visual.proj.shape[0])

    def encode_penultimate(self, images: Tensor) -> Tensor:
        """Encode images as open_clip does but for its last line: (N, 3, S, S) normalised -> (N, penultimate_dim)."""
        visual: Any = self.model.visual
        features: Tensor = visual._pool(visual.transformer(visual._embeds(images)))[0]
        return features

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Encode texts: (C, L) -> (C, D), not of unit length."""
        if self._tower is not None:
            return self._tower.encode(self._tower.embed(tokens), tokens)
        features: Tensor = self.model.encode_text(tokens, normalize=False)  # type: ignore[operator]  # a Tensor or Module
        return features

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Compare images and texts by scaled cosines -> logits_per_image (N, C), logits_per_text (C, N).

        SigLIP's bias is added where there is one. It moves all classes alike, so that it changes a sigmoid, but neither
        a softmax nor an argmax.
        """
        image, text = self.encode_image(images), self.encode_text(tokens)
        return scaled_cosines(image, text, self.log_scale.exp(), self.model.logit_bias)


class NativeText:
    """open_clip's own text transformer, cut at its token embeddings as core.model.TextTower asks.

    It is causal (CLIP, LAION, EVA, PE, MetaCLIP 2) or not (SigLIP, CLIPA, MobileCLIP S: ``no_causal_mask``). A causal
    tower leaves out the tokens behind a batch's last pooled one, as they reach nothing that is pooled. In the others
    padding takes part in attention, as in training, so all L tokens are needed.
    """

    def __init__(self, parts: Any, num_prefix_tokens: int) -> None:
        self._parts = parts  # the CLIP itself, or a CustomTextCLIP's .text: most names are the same
        self._pool: str = parts.text_pool_type if hasattr(parts, "text_pool_type") else parts.pool_type
        self._end = int(parts.text_eos_id if hasattr(parts, "text_eos_id") else parts.eos_id)
        self.num_prefix_tokens = num_prefix_tokens
        self.width = int(parts.token_embedding.weight.shape[1])
        self.context_length = int(parts.context_length)
        self.causal = parts.attn_mask is not None

    @property
    def description(self) -> Transformer | None:
        """The same tower as text/prompt_encoder.py takes it; None where its blocks are open_clip's custom ones."""
        parts = self._parts
        blocks = [_block(b) for b in parts.transformer.resblocks]
        activation = _activation(parts.transformer.resblocks[0])
        described = tuple(b for b in blocks if b is not None)
        if len(described) < len(blocks) or activation is None:
            return None
        project = parts.text_projection
        if project is not None:
            project = Linear.of(project) if isinstance(project, nn.Linear) else Linear(project.T)
        return Transformer(
            parts.token_embedding.weight,
            parts.positional_embedding,
            described,
            Norm.of(parts.ln_final),
            project,
            int(parts.transformer.resblocks[0].attn.num_heads),
            activation,
            self.causal,
            POOLS[self._pool],
            self._end,
        )

    def embed(self, tokens: Tensor) -> Tensor:
        """Look up token embeddings: (C, L) -> (C, L, W), without positions."""
        embeddings: Tensor = self._parts.token_embedding(tokens)
        return embeddings

    def encode(self, embeddings: Tensor, tokens: Tensor) -> Tensor:
        """Encode (C, L, W) embeddings, which stand for the (C, L) tokens -> (C, D)."""
        parts = self._parts
        pooled = self._pooled(tokens)  # (C,)
        length = int(pooled.max()) + 1 if self.causal else tokens.shape[1]
        x = embeddings[:, :length] + parts.positional_embedding[:length]  # (C, L, W)
        x = parts.transformer(x, attn_mask=parts.attn_mask[:length, :length] if self.causal else None)
        x = parts.ln_final(x)[torch.arange(len(x), device=x.device), pooled]  # (C, W)
        project = parts.text_projection
        if project is not None:
            x = project(x) if isinstance(project, nn.Linear) else x @ project
        features: Tensor = x
        return features

    def _pooled(self, tokens: Tensor) -> Tensor:
        """Find the position that each text is pooled at: (C, L) -> (C,)."""
        if self._pool == "argmax":  # the end token has the highest number
            return tokens.argmax(dim=1)
        if self._pool == "eos":
            end: Tensor = tokens == self._end
            return end.int().argmax(dim=1)
        return tokens.new_full((len(tokens),), 0 if self._pool == "first" else tokens.shape[1] - 1)


class ReplacedText:
    """A text encoder that takes tokens only. The output of its embedding layer is replaced while it runs.

    So it can be cut at its token embeddings, as core.model.TextTower asks. transformers' towers (XLM-R, RoBERTa, mT5,
    NLLB) are not causal and mask their padding, which can be left out. CoCa's tower is causal, masks its padding and
    pools a class token that it appends itself.
    """

    def __init__(
        self, parts: nn.Module, layer: nn.Module, num_prefix_tokens: int, context_length: int, pad: int | None
    ) -> None:
        self._parts, self._layer = parts, layer
        self._pad = pad  # None: padding may not be left out
        self.num_prefix_tokens, self.context_length = num_prefix_tokens, context_length
        self.width = int(layer.weight.shape[1])  # type: ignore[index]  # an Embedding
        self.causal = getattr(parts, "attn_mask", None) is not None

    @property
    def description(self) -> None:
        return None

    def embed(self, tokens: Tensor) -> Tensor:
        """Look up token embeddings: (C, L) -> (C, L, W), without positions."""
        embeddings: Tensor = self._layer(tokens)
        return embeddings

    def encode(self, embeddings: Tensor, tokens: Tensor) -> Tensor:
        """Encode (C, L, W) embeddings, which stand for the (C, L) tokens -> (C, D)."""
        length = tokens.shape[1] if self._pad is None else int((tokens != self._pad).sum(dim=1).max())
        hook = self._layer.register_forward_hook(lambda *_: embeddings[:, :length])
        try:
            out = self._parts(tokens[:, :length])
        finally:
            hook.remove()
        features: Tensor = out[0] if isinstance(out, tuple) else out  # a tuple has each token's features too
        return features


def _block(block: Any) -> Block | None:
    """Describe a ResidualAttentionBlock; None for a block of another kind."""
    from open_clip.transformer import ResidualAttentionBlock

    if type(block) is not ResidualAttentionBlock:
        return None
    attention, mlp = block.attn, block.mlp
    return Block(
        Norm.of(block.ln_1),
        Linear(attention.in_proj_weight, attention.in_proj_bias),
        Linear.of(attention.out_proj),
        Norm.of(block.ln_2),
        Linear.of(mlp.c_fc),
        Linear.of(mlp.c_proj),
        None if isinstance(block.ls_1, nn.Identity) else (block.ls_1.gamma, block.ls_2.gamma),
    )


def _activation(block: Any) -> Activation | None:
    """The activation of a block's MLP; None if it is another one than those that text/prompt_encoder.py has."""
    from open_clip.transformer import QuickGELU

    function = block.mlp.gelu
    if isinstance(function, QuickGELU):
        return "quick_gelu"
    if isinstance(function, nn.GELU):
        return "tanh_gelu" if function.approximate == "tanh" else "gelu"
    return None


@dataclass(frozen=True)
class Source:
    """What a spec means: the architecture, the preprocessing and where the weights are. None of the weights is read."""

    model: str  # "ViT-B-32", "hf-hub:ORG/REPO"
    config: dict[str, Any]  # open_clip's
    preprocessing: Preprocessing
    tag: str  # for the record
    doubt: str = ""  # why ``preprocessing`` may not be the weights' own; "" if it is
    file: Path | None = None
    folder: Path | None = None  # of local-dir
    repository: str | None = None
    revision: str | None = None
    files: tuple[str, ...] = ()  # in the repository, the preferred first


def load(model: str | None = None, weights: str | None = None, config: NoSettings | None = None) -> OpenClip:
    """Open ``open_clip:model`` with ``weights``, as the top of this file says.

    Raises ConfigError for a model or a tag that there is not, with those that there are. Raises DataError for weights
    that do not fit the architecture.
    """
    import open_clip

    source, seed = resolve(model, weights), seed_of(weights)
    spoken = f"open_clip:{source.model}"
    tag = weights if seed is None else None
    path = source.file
    if path is None and seed is None:
        assert source.repository is not None
        path = hub_file(source.repository, source.files, source.revision, spoken, tag)
    tensors, header = _read(path, source.model) if path is not None else ({}, {})
    spec = source.preprocessing
    if "preprocessing" in header:  # the file is of `clipdg pretrain`, or of a run that kept its weights
        spec = preprocessing_in(header)
    elif source.doubt and path is not None:
        raise ConfigError(source.doubt)
    if spec.size != _image_size(source.config):
        raise DataError(
            f"{source.tag} was trained with images of {spec.size} pixels a side, not open_clip:{source.model}'s"
        )

    with seeded(seed or 0), _without_its_log(), reading(spoken):
        tokenizer = _tokenizer(source, spoken, tag)
        built = _build(source, spoken, tag)
        assert isinstance(built, open_clip.CLIP | open_clip.CustomTextCLIP | open_clip.CoCa)
        backbone = OpenClip(built, tokenizer, source.config, spec)
    # The place of a folder is no part of what it is.
    backbone.name = f"open_clip:local-dir:{source.folder.resolve().name}" if source.folder else spoken
    provenance: dict[str, object] = {}
    if path is not None:
        if header and header.get("architecture") != backbone.architecture:
            raise DataError(f"{path.name} holds weights of another architecture than {backbone.name}")
        load_exactly(built, _as_open_clips(built, tensors), path.name)
        provenance |= header.get("provenance") or {}
        if source.repository is not None and source.file is None:
            provenance |= {"repository": source.repository, "file": path.name, "revision": commit_of(path)}
    frozen(backbone)
    backbone.weights = identify(
        backbone.name,
        source.tag if seed is None else f"random:{seed}",
        built,
        backbone.architecture,
        spec,
        random=seed is not None,
        provenance=provenance,
    )
    return backbone


def resolve(model: str | None, weights: str | None) -> Source:
    """Find out what ``open_clip:model`` with ``weights`` means. Of a hub repository only the configuration is read.

    Raises ConfigError for a name, tag or file that there is not, and for a tag trained with the other activation.
    """
    if not model:
        raise ConfigError("open_clip needs a model, for instance open_clip:ViT-B-32-quickgelu with weights=openai")
    if not model.startswith(SCHEMAS):
        return _listed(model, weights)
    path = None
    if weights is not None and seed_of(weights) is None:
        path = Path(weights).expanduser()
        if not os.path.isfile(path):  # Path.is_file would raise for a name that is too long
            raise ConfigError(
                f"open_clip:{model} brings its own weights and '{weights}' is no file; leave weights out, or give a "
                "checkpoint file or random:SEED"
            )
    schema, _, place = model.partition(":")
    if schema == "local-dir":
        folder = Path(place).expanduser()
        config, spec = _configuration(folder / CONFIG, model)
        tag = path.name if path else folder.resolve().name
        if path is None and seed_of(weights) is None:
            path = _checkpoint_in(folder, model)
        return Source(model, config, spec, tag, file=path, folder=folder)
    repository, _, revision = place.partition("@")
    file = hub_file(repository, (CONFIG,), revision or None, f"open_clip:{model}")
    config, spec = _configuration(file, model)
    return Source(
        model,
        config,
        spec,
        path.name if path else place,
        file=path,
        repository=repository,
        revision=commit_of(file),  # the weights of the same commit
        files=_names(""),
    )


def _listed(model: str, weights: str | None) -> Source:
    """Find out what a model of open_clip's own list means."""
    import open_clip

    known = open_clip.list_models()
    if model not in known:
        raise ConfigError(
            f"no open_clip model '{model}'.{nearest(model, known)} There are {len(known)}, and hf-hub:… and local-dir:…"
        )
    if weights is None:
        raise ConfigError(f"open_clip:{model} needs weights: {_tags(model)}, a file or random:SEED")
    config = _plain(open_clip.get_model_config(model))
    cards = {tag: open_clip.get_pretrained_cfg(model, tag) for tag in open_clip.list_pretrained_tags_by_model(model)}
    specs = {tag: preprocessing_of(config, card) for tag, card in cards.items()}
    own = [specs[tag] for tag, card in cards.items() if _quick(card) == _quick(config)]
    usual = own[0] if own else preprocessing_of(config, {})
    if seed_of(weights) is not None:
        return Source(model, config, usual, "")
    tag, _, revision = weights.partition("@")
    tag = tag.lower().replace("-", "_")  # as open_clip does
    if tag not in cards:
        path = Path(weights).expanduser()
        if not os.path.isfile(path):
            raise ConfigError(
                f"no weights '{weights}' for open_clip:{model}, and no such file; there are: {_tags(model)}"
            )
        doubt = ""
        if len(set(own)) > 1:
            doubt = (
                f"{path.name} does not say how its images are preprocessed, and the tags of open_clip:{model} do it in "
                f"{len(set(own))} ways; put it in a folder with an {CONFIG} (model_cfg, preprocess_cfg) and give "
                "open_clip:local-dir:FOLDER"
            )
        return Source(model, config, usual, path.name, doubt, file=path)
    _check_activation(model, tag, _quick(cards[tag]), _quick(config))
    repository, _, file = cards[tag].get("hf_hub", "").rpartition("/")
    if not repository:
        raise ConfigError(
            f"weights '{tag}' of open_clip:{model} are not on the hub but at {cards[tag].get('url') or 'no address'}; "
            "fetch the file yourself and give it"
        )
    return Source(
        model,
        config,
        specs[tag],
        f"{tag}@{revision}" if revision else tag,
        repository=repository,
        revision=revision or None,
        files=_names(file),
    )


def downloads(hub: HubClient, model: str | None, weights: str | None) -> set[Path]:
    """Fetch the weights' file, a repository's configuration, and what transformers reads for its text towers."""
    found = set()
    schema, _, place = (model or "").partition(":")
    if schema == "hf-hub":
        repository, _, revision = place.partition("@")
        found.add(hub.first(repository, (CONFIG,), revision or None))  # ``resolve`` then finds it in the cache
    source = resolve(model, weights)
    if source.repository is not None and source.file is None and seed_of(weights) is None:
        found.add(hub.first(source.repository, source.files, source.revision))
    text = source.config["text_cfg"]
    parts = {text.get("hf_model_name")} - {None}
    if source.folder is None:
        parts |= {text.get("hf_tokenizer_name")} - {None}
    else:  # a folder holds its tokenizer, and may hold its text tower's configuration
        parts = {name for name in parts if not (source.folder / name / "config.json").is_file()}
    for name in parts:
        if not (Path(name).expanduser() / "config.json").is_file():
            found |= hub.matching(name, SETTINGS)
    return found


def catalogue() -> list[dict[str, Any]]:
    """List every model of open_clip's from its configuration. Nothing is built or fetched.

    ``tags`` are those that ``load`` takes: a tag of the other activation belongs to the model's twin ("-quickgelu").
    """
    import open_clip

    rows = []
    for model in open_clip.list_models():
        config = open_clip.get_model_config(model)
        tags = open_clip.list_pretrained_tags_by_model(model)
        rows.append(
            {
                "name": f"open_clip:{model}",
                "tags": [t for t in tags if _quick(open_clip.get_pretrained_cfg(model, t)) == _quick(config)],
                "size": _image_size(config),
                "embed_dim": int(config["embed_dim"]),
                "can_prompt": config["text_cfg"].get("tokenizer_mode") != "clips",
            }
        )
    return rows


def preprocessing_of(config: Mapping[str, Any], card: Mapping[str, Any]) -> Preprocessing:
    """The preprocessing that a card (mean, std, interpolation, resize_mode) says; what it leaves out is OpenAI's.

    The size is the image tower's.
    """
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    cfg = merge_preprocess_dict(PreprocessCfg(), dict(card))
    resize: Literal["shortest", "squash"] = "squash" if cfg["resize_mode"] == "squash" else "shortest"
    if cfg["resize_mode"] not in ("shortest", "squash") or cfg["interpolation"] not in ("bicubic", "bilinear"):
        raise ConfigError(
            f"this model's preprocessing is resize_mode={cfg['resize_mode']}, interpolation={cfg['interpolation']}; "
            "here are shortest and squash, bicubic and bilinear"
        )
    mean, std = ((v,) * 3 if isinstance(v, int | float) else tuple(v) for v in (cfg["mean"], cfg["std"]))
    if len(mean) != 3 or len(std) != 3 or 0 in std:
        raise ConfigError(f"this model's mean {mean} and std {std} are not those of three colours")
    r, g, b = (float(v) for v in mean)
    return Preprocessing(
        _image_size(config), (r, g, b), (float(std[0]), float(std[1]), float(std[2])), resize, cfg["interpolation"]
    )


def text_tower_of(model: Any, tokenizer: Any) -> TextTower | None:
    """The text tower of a model; None where a learnt context could not stand in front of the text.

    CLIPS, for instance, puts a class token after the padding.
    """
    import open_clip
    from open_clip.hf_model import HFTextEncoder

    parts = model if isinstance(model, open_clip.CLIP) else model.text
    prefix = 1
    if isinstance(tokenizer, open_clip.tokenizer.HFTokenizer):
        if tokenizer.tokenizer_mode == "clips" or tokenizer.tokenizer.padding_side != "right":
            return None
        special = tokenizer.tokenizer("a", return_special_tokens_mask=True).special_tokens_mask
        prefix = special.index(0)  # the number of [CLS], <s> or language tokens; 0 for SigLIP and mT5
    if isinstance(parts, HFTextEncoder):
        layer = parts.transformer.get_input_embeddings()
        return ReplacedText(parts, layer, prefix, tokenizer.context_length, parts.config.pad_token_id)
    if getattr(parts, "cls_emb", None) is not None:
        return ReplacedText(parts, parts.token_embedding, prefix, tokenizer.context_length, None)
    return NativeText(parts, prefix)


def _build(source: Source, spec: str, tag: str | None) -> nn.Module:
    """Build the class that open_clip.create_model would choose, without its ways of finding weights."""
    import open_clip
    import transformers

    config = copy.deepcopy(source.config)
    vision, text = config["vision_cfg"], config["text_cfg"]
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    if text.get("hf_model_name"):
        folder = _folder_of(text["hf_model_name"], source.folder, spec, tag)
        transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)  # raises if it has code of its own
        text |= {"hf_model_name": str(folder), "hf_model_pretrained": False}
    custom = config.pop("custom_text", False) or bool(text.get("hf_model_name"))
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    if custom and "multimodal_cfg" in config:
        kind = open_clip.CoCa
        if not (vision.get("output_tokens") and text.get("output_tokens")):
            raise ConfigError(
                f"open_clip:{source.model} is a CoCa whose towers lack output_tokens, which open_clip itself cannot run"
            )
    built: nn.Module = kind(**config)
    if isinstance(built, open_clip.CoCa):  # CoCa leaves it uninitialised: nothing calls its init_parameters
        nn.init.normal_(built.text_decoder.text_projection, std=built.text_decoder.width**-0.5)
    return built


def _tokenizer(source: Source, spec: str, tag: str | None) -> Any:
    """Build the tokenizer that open_clip.get_tokenizer would choose, from the configuration at hand."""
    import huggingface_hub
    import open_clip

    text = source.config["text_cfg"]
    options = dict(text.get("tokenizer_kwargs") or {})
    if not options.keys() <= TOKENIZER_OPTIONS:
        raise UnsafeError(
            f"{CONFIG} of open_clip:{source.model} gives its tokenizer {', '.join(sorted(options))}; read are only "
            f"{', '.join(sorted(TOKENIZER_OPTIONS))}"
        )
    length = text.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH)
    name = text.get("hf_tokenizer_name")
    if not name:
        if source.folder is None and source.repository is None and "siglip" in source.model.lower():
            raise ConfigError(
                f"open_clip:{source.model} has no hf_tokenizer_name, and open_clip would fetch a SigLIP tokenizer over "
                "plain HTTP; name one in its text_cfg"
            )
        return open_clip.SimpleTokenizer(context_length=length, **options)
    place = str(source.folder or name)
    options |= {"tokenizer_mode": text.get("tokenizer_mode"), "trust_remote_code": False}
    try:
        try:  # first without the network: from the cache, or from a folder
            return open_clip.tokenizer.HFTokenizer(place, length, local_files_only=True, **options)
        except (OSError, ValueError):
            if huggingface_hub.is_offline_mode() or Path(place).is_dir():
                raise
            return open_clip.tokenizer.HFTokenizer(place, length, **options)
    except (OSError, ValueError, ImportError) as error:
        if Path(place).is_dir():
            raise ConfigError(
                f"the tokenizer of open_clip:{source.model} cannot be read from {place}: {first_line(error)}"
            ) from error
        raise NetworkError(
            f"the tokenizer of open_clip:{source.model}, {name}, is not in the hub's cache and cannot be fetched: "
            f"{first_line(error)}; {how_to_fetch(spec, tag)}"
        ) from error


def _ids(tokenizer: Any, text: str) -> tuple[list[int], int]:
    """Turn a text into its own tokens, uncut, and count them with start and end."""
    import open_clip

    if isinstance(tokenizer, open_clip.tokenizer.SimpleTokenizer):
        ids: list[int] = tokenizer.encode(text)
        return ids, len(ids) + 2
    own = tokenizer.tokenizer(tokenizer.clean_fn(text), add_special_tokens=False).input_ids
    if tokenizer.tokenizer_mode == "clips":  # it adds start, end and class tokens itself
        return own, len(own) + 3
    return own, len(own) + tokenizer.tokenizer.num_special_tokens_to_add()


def _padded(tokenizer: Any, listed: Sequence[list[int]]) -> Tensor | None:
    """Pad lists of tokens as CLIP's own tokenizer does; None if the tokenizer is another one.

    Tokenizing takes 50 us a text, which the 80,000 prompts of a classifier should not pay twice.
    """
    import open_clip

    if not isinstance(tokenizer, open_clip.tokenizer.SimpleTokenizer) or tokenizer.reduction_fn is not None:
        return None
    tokens = torch.zeros(len(listed), tokenizer.context_length, dtype=torch.long)
    for row, ids in zip(tokens.numpy(), listed, strict=True):
        row[: len(ids) + 2] = [tokenizer.sot_token_id, *ids, tokenizer.eot_token_id]
    return tokens


def _reserved(tokenizer: Any) -> set[int]:
    """The tokens that no text may hold: those of what is unknown, and those that say where a text ends."""
    import open_clip

    if isinstance(tokenizer, open_clip.tokenizer.SimpleTokenizer):
        return {tokenizer.sot_token_id, tokenizer.eot_token_id}
    ids = (tokenizer.tokenizer.unk_token_id, tokenizer.tokenizer.eos_token_id, tokenizer.tokenizer.pad_token_id)
    return {i for i in ids if i is not None}


def _configuration(path: Path, model: str) -> tuple[dict[str, Any], Preprocessing]:
    """Read open_clip_config.json: open_clip's configuration, and the preprocessing."""
    wrong = f"open_clip:{model} cannot be opened:"
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
        config, card = content["model_cfg"], content.get("preprocess_cfg") or {}
        missing = {"embed_dim", "vision_cfg", "text_cfg"} - config.keys()
    except FileNotFoundError:
        raise ConfigError(f"{wrong} there is no {path}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{wrong} {path} is not a JSON object with model_cfg ({first_line(error)})") from error
    if missing:
        raise ConfigError(f"{wrong} model_cfg in {path} has no {', '.join(sorted(missing))}")
    parts = {"vision_cfg": config["vision_cfg"], "text_cfg": config["text_cfg"], "preprocess_cfg": card}
    for name, part in parts.items():
        if not isinstance(part, dict):
            raise ConfigError(f"{wrong} {name} in {path} is {part!r:.40}, not an object")
    with reading(f"open_clip:{model}"):
        return _plain(config), preprocessing_of(config, card)


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no number")


def _checkpoint_in(folder: Path, model: str) -> Path:
    """The checkpoint in a folder: the one whose name open_clip prefers, or else the only one.

    Raises ConfigError if there is none, or several of which none is preferred.
    """
    preferred = [*_names(""), "open_clip_pytorch_model.pth", "model.safetensors", "pytorch_model.bin"]
    for name in preferred:
        if (folder / name).is_file():
            return folder / name
    others = sorted(p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".pth", ".pt"))
    if len(others) == 1:
        return folder / others[0]
    raise ConfigError(
        f"open_clip:{model} has {'several checkpoints' if others else 'no checkpoint'} in {folder}"
        + (f" ({', '.join(others)})" if others else "")
        + f"; name it {preferred[0]}, or give random:SEED"
    )


def _names(file: str) -> tuple[str, ...]:
    """The names that a repository's weights may have, safetensors first. ``file`` is the name that a tag gives."""
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    if not file:
        return HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
    return tuple(dict.fromkeys((str(Path(file).with_suffix(".safetensors")), file)))


def _folder_of(name: str, folder: Path | None, spec: str, tag: str | None) -> Path:
    """Find the configuration of a text tower from transformers: beside its CLIP, in a folder, or in the cache."""
    for place in ([folder / name] if folder else []) + [Path(name).expanduser()]:
        if (place / "config.json").is_file():
            return place
    return hub_file(name, ("config.json",), None, spec, tag).parent


def _read(path: Path, model: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint and its header. Where OpenAI's own file is refused, the error points to the tag."""
    import open_clip

    try:
        return read(path)
    except UnsafeError as error:
        if "openai" not in open_clip.list_pretrained_tags_by_model(model):
            raise
        raise UnsafeError(f"{error}; OpenAI's own weights are also the tag 'openai', without a program") from error


def _as_open_clips(model: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give ``tensors`` the names and shapes of this version of open_clip. No value is changed."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    content: dict[str, Tensor] = convert_state_dict(model, dict(tensors))  # knows Apple's own MobileCLIP files
    if "positional_embedding" in content and not hasattr(model, "positional_embedding"):
        content = convert_to_custom_text_state_dict(content)
    own = model.state_dict()
    for name in ("logit_scale", "logit_bias"):  # files have them with no or one dimension
        if name in content and name in own and content[name].numel() == own[name].numel():
            content[name] = content[name].reshape(own[name].shape)
    for name in (*OPENAI_EXTRAS, "text.transformer.embeddings.position_ids"):  # transformers < 4.31 kept position_ids
        if name not in own:
            content.pop(name, None)
    return content


def _check_activation(model: str, tag: str, needs: bool, has: bool) -> None:
    """Raises ConfigError if weights were trained with QuickGELU and the model has none, or the other way round."""
    import open_clip

    if needs == has:
        return
    other = f"{model}-quickgelu" if needs else model.removesuffix("-quickgelu")
    if other == model or other not in open_clip.list_models():
        repository = open_clip.get_pretrained_cfg(model, tag)["hf_hub"].rpartition("/")[0]
        other = f"hf-hub:{repository}, whose own configuration decides"
    raise ConfigError(
        f"weights '{tag}' were trained {'with' if needs else 'without'} QuickGELU and open_clip:{model} is "
        f"{'without' if needs else 'with'} it; use open_clip:{other}"
    )


def _quick(config: Mapping[str, Any]) -> bool:
    return bool(config.get("quick_gelu"))


def _image_size(config: Mapping[str, Any]) -> int:
    size = config["vision_cfg"].get("image_size", 224)
    sides = [size] if isinstance(size, int) else list(size)
    if len(set(sides)) != 1 or not isinstance(sides[0], int) or sides[0] < 1:
        listed = " × ".join(map(str, sides))
        raise ConfigError(f"this model takes images of {listed} pixels; only square ones are read here")
    return sides[0]


def _tags(model: str) -> str:
    import open_clip

    return ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "no tags"


def _plain(value: Any) -> Any:
    """Turn a configuration into what JSON would give back: tuples become lists."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    assert value is None or isinstance(value, str | bool | int) or math.isfinite(value)
    return value


@contextmanager
def _without_its_log() -> Iterator[None]:
    """Silence open_clip, which logs on the root logger and so configures it. What matters is raised here."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


BACKBONE = BackboneFamily(
    config=NoSettings,
    load=load,
    libraries=("open_clip_torch", "timm"),  # timm has the image towers of some models
    downloads=downloads,
    catalogue=catalogue,
)
