"""open_clip: the CLIPs of mlfoundations/open_clip (Cherti et al. 2023, arXiv:2212.07143).

    open_clip:ViT-B-32-quickgelu          weights: a pretrained tag ("openai"), a checkpoint file, or random:SEED
    open_clip:hf-hub:ORG/REPO             weights and architecture from the hub
    open_clip:local-dir:DIR               the same from a folder with open_clip_config.json

open_clip itself builds random weights with a log line where none are found, runs weights under another activation than
they were trained with after a warning (4 points on ImageNet, open_clip#1109), and cuts long texts. Here all raise.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from clipdg.catalog import nearest
from clipdg.core import Preprocessing, TextTower, Weights
from clipdg.errors import ConfigError, DataError
from clipdg.images import preprocess
from clipdg.weights import frozen, identify, load_exactly, read, seed_of, seeded, tensors_of

SCHEMAS = ("hf-hub:", "local-dir:")


class OpenClip(nn.Module):
    """An open_clip model as a ClipBackbone; ``model`` is open_clip's own."""

    name: str
    weights: Weights

    def __init__(self, model: nn.Module, tokenizer: Any, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.embed_dim = int(config["embed_dim"])
        self.preprocessing = preprocessing_of(model)
        self._tower = CausalText.of(model, tokenizer)

    @property
    def architecture(self) -> dict[str, Any]:
        """What, beside the tensors and the preprocessing, makes this function."""
        return {"family": "open_clip", "class": type(self.model).__name__, "config": self.config}

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
    def text_tower(self) -> TextTower | None:
        """Of causal towers with CLIP's own tokenizer; the others differ in start token, padding mask and pooling."""
        return self._tower

    def tensors(self) -> dict[str, Tensor]:
        """What a file of these weights holds: open_clip's own names, so that it reads the file too."""
        return tensors_of(self.model)

    def preprocess(self, image: Image.Image) -> Tensor:
        """One RGB image -> (3, S, S), normalised."""
        return preprocess(image, self.preprocessing)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """C texts -> (C, L). Raises DataError naming a text that is too long."""
        if isinstance(texts, str):
            raise TypeError("tokenize takes a list of texts, not one text")
        most = self.tokenizer.context_length
        for text in texts:
            num = num_tokens(self.tokenizer, text)
            if num > most:
                raise DataError(
                    f"'{text}' is {num} tokens for {self.name}, which takes {most} with start and end; shorten it"
                )
        tokens: Tensor = self.tokenizer(list(texts))
        return tokens.to(self.log_scale.device)

    def encode_image(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) normalised -> (N, D), not of unit length."""
        features: Tensor = self.model.encode_image(images)  # type: ignore[operator]  # mypy sees a Tensor or Module
        return features

    def encode_text(self, tokens: Tensor) -> Tensor:
        """(C, L) -> (C, D), not of unit length."""
        if self._tower is not None:
            return self._tower.encode(self._tower.embed(tokens), tokens)
        features: Tensor = self.model.encode_text(tokens)  # type: ignore[operator]  # mypy sees a Tensor or Module
        return features

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """-> logits_per_image (N, C), logits_per_text (C, N): scaled cosines."""
        image = F.normalize(self.encode_image(images), dim=1)
        text = F.normalize(self.encode_text(tokens), dim=1)
        logits = self.log_scale.exp() * image @ text.T
        return logits, logits.T


class CausalText:
    """open_clip's causal text transformer, cut at its token embeddings (core.TextTower).

    Tokens after the last end token of a batch are left out: in a causal tower they reach nothing that is pooled.
    """

    num_prefix_tokens = 1
    causal = True

    def __init__(self, parts: Any) -> None:
        self._parts = parts  # the CLIP itself, or a CustomTextCLIP's .text: the names are the same
        self.width = int(parts.token_embedding.weight.shape[1])
        self.context_length = int(parts.context_length)

    @classmethod
    def of(cls, model: Any, tokenizer: Any) -> CausalText | None:
        """None where the model's text encoder is of another kind."""
        import open_clip
        from open_clip.transformer import TextTransformer

        if not isinstance(tokenizer, open_clip.tokenizer.SimpleTokenizer):
            return None
        if isinstance(model, open_clip.CLIP):
            parts, pool = model, model.text_pool_type
        elif isinstance(model.text, TextTransformer) and model.text.cls_emb is None and not model.text.use_pad_mask:
            parts, pool = model.text, model.text.pool_type
        else:
            return None
        return cls(parts) if parts.attn_mask is not None and pool == "argmax" else None

    def embed(self, tokens: Tensor) -> Tensor:
        """(C, L) -> (C, L, W), without positions."""
        embeddings: Tensor = self._parts.token_embedding(tokens)
        return embeddings

    def encode(self, embeddings: Tensor, tokens: Tensor) -> Tensor:
        """(C, L, W) embeddings and the (C, L) tokens they stand for -> (C, D)."""
        parts = self._parts
        end = tokens.argmax(dim=1)  # (C,), the end token has the highest number
        length = int(end.max()) + 1
        x = embeddings[:, :length] + parts.positional_embedding[:length]  # (C, L, W)
        x = parts.ln_final(parts.transformer(x, attn_mask=parts.attn_mask[:length, :length]))
        x = x[torch.arange(len(x), device=x.device), end]  # (C, W)
        project = parts.text_projection
        if project is not None:
            x = project(x) if isinstance(project, nn.Linear) else x @ project
        features: Tensor = x
        return features


def load(model: str | None = None, weights: str | None = None) -> OpenClip:
    """See the top of this file. Raises ConfigError with the names or tags that there are."""
    import open_clip

    if not model:
        raise ConfigError("open_clip needs a model, for instance open_clip:ViT-B-32-quickgelu with weights=openai")
    seed = seed_of(weights)
    if model.startswith(SCHEMAS):
        if weights is not None and seed is None:
            raise ConfigError(f"open_clip:{model} brings its own weights; leave weights out or give random:SEED")
    elif model not in open_clip.list_models():
        known = open_clip.list_models()
        raise ConfigError(
            f"no open_clip model '{model}'.{nearest(model, known)} There are {len(known)}, and hf-hub:… and local-dir:…"
        )
    path = None
    if weights is not None and seed is None:
        path = _check_tag(model, weights)
    try:
        config = _plain(open_clip.get_model_config(model))
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"open_clip:{model} cannot be opened: {_first_line(error)}") from error
    if weights is None and not model.startswith(SCHEMAS):
        raise ConfigError(f"open_clip:{model} needs weights: {_tags(model)}, a file or random:SEED")

    pretrained = seed is None and path is None
    with seeded(seed or 0), _without_its_log():
        try:
            built = open_clip.create_model(
                model,
                pretrained=weights if pretrained else None,
                load_weights=pretrained,
                require_pretrained=pretrained,
                pretrained_text=False,
                precision="fp32",
                weights_only=True,
            )
            tokenizer = open_clip.get_tokenizer(model)
        except (OSError, ValueError, RuntimeError, UserWarning) as error:
            wanted = f" with weights {weights}" if pretrained and weights else ""
            raise ConfigError(f"open_clip:{model}{wanted} cannot be loaded: {_first_line(error)}") from error
    if not isinstance(built, open_clip.CLIP | open_clip.CustomTextCLIP):
        raise ConfigError(f"open_clip:{model} is a {type(built).__name__}; here are only CLIP and CustomTextCLIP")
    backbone = OpenClip(built, tokenizer, config)
    backbone.name = f"open_clip:{model}"
    provenance: Mapping[str, object] = {}
    if path is not None:
        tensors, header = read(path)
        if header and header.get("architecture") != backbone.architecture:
            raise DataError(f"{path.name} holds weights of another architecture than {backbone.name}")
        load_exactly(built, tensors, path.name)
        provenance = header.get("provenance") or {}
    frozen(backbone)
    tag = path.name if path else weights or _tag_of(model)
    backbone.weights = identify(
        backbone.name,
        tag,
        built,
        backbone.architecture,
        backbone.preprocessing,
        random=seed is not None,
        provenance=provenance,
    )
    return backbone


def preprocessing_of(model: Any) -> Preprocessing:
    """What the weights were trained with; open_clip keeps it with the image tower."""
    cfg = model.visual.preprocess_cfg
    size = cfg["size"]
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ConfigError(f"this model takes images of {size[0]} × {size[1]} pixels; only square ones are read here")
    resize: Literal["shortest", "squash"] = "squash" if cfg["resize_mode"] == "squash" else "shortest"
    if cfg["resize_mode"] not in ("shortest", "squash") or cfg["interpolation"] not in ("bicubic", "bilinear"):
        raise ConfigError(
            f"this model's preprocessing is resize_mode={cfg['resize_mode']}, interpolation={cfg['interpolation']}; "
            "here are shortest and squash, bicubic and bilinear"
        )
    mean, std = (tuple(float(v) for v in cfg[key]) for key in ("mean", "std"))
    assert len(mean) == len(std) == 3
    return Preprocessing(int(sides.pop()), mean, std, resize, cfg["interpolation"])


def num_tokens(tokenizer: Any, text: str) -> int:
    """Tokens of a text with start and end, before anything is cut."""
    import open_clip

    if isinstance(tokenizer, open_clip.tokenizer.SimpleTokenizer):
        return len(tokenizer.encode(text)) + 2
    if isinstance(tokenizer, open_clip.tokenizer.HFTokenizer):
        if tokenizer.tokenizer_mode == "clips":  # it adds start, end and class tokens itself
            return len(tokenizer.tokenizer(tokenizer.clean_fn(text), add_special_tokens=False).input_ids) + 3
        return len(tokenizer.tokenizer(tokenizer.clean_fn(text)).input_ids)
    cleaned = open_clip.tokenizer.canonicalize_text(open_clip.tokenizer.basic_clean(text))
    return len(tokenizer.tokenizer(cleaned).input_ids)


def _check_tag(model: str, weights: str) -> Path | None:
    """The checkpoint file, or None for a tag. A tag that was trained with the other activation is refused."""
    import open_clip

    tag = open_clip.get_pretrained_cfg(model, weights)
    if not tag:
        path = Path(weights).expanduser()
        if path.is_file():
            return path
        raise ConfigError(f"no weights '{weights}' for open_clip:{model}, and no such file; there are: {_tags(model)}")
    needs, has = bool(tag.get("quick_gelu")), bool(open_clip.get_model_config(model).get("quick_gelu"))
    if needs != has:
        other = f"{model}-quickgelu" if needs else model.removesuffix("-quickgelu")
        known = other in open_clip.list_models()
        raise ConfigError(
            f"weights '{weights}' were trained {'with' if needs else 'without'} QuickGELU and open_clip:{model} is "
            f"{'without' if needs else 'with'} it" + (f"; use open_clip:{other}" if known else "")
        )
    return None


def _tags(model: str) -> str:
    import open_clip

    return ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "no tags"


def _tag_of(model: str) -> str:
    """A repository, or a folder's name without where it lies."""
    schema, _, place = model.partition(":")
    return place if schema == "hf-hub" else Path(place).name


def _plain(value: Any) -> Any:
    """A config as JSON would give it back; tuples are lists there."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    assert value is None or isinstance(value, str | bool | int) or math.isfinite(value)
    return value


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [repr(error)])[0]


@contextmanager
def _without_its_log() -> Iterator[None]:
    """open_clip logs on the root logger, which prints and configures it; what matters is raised here."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
