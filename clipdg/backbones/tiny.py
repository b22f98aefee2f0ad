"""tiny: a CLIP of 0.4 million parameters, pre-trained in a minute.

    tiny          ResNet image tower, causal text transformer
    tiny:vit      the same with a vision transformer as the image tower
    tiny:resnet   the ResNet alone, without projection and text tower: the body of the supervised baseline

Two encoders share one space, as in Radford et al. 2021 (arXiv:2103.00020). The text tower is causal and pools at the
end token. The tokenizer has no byte pairs: it knows the words of its captions and spells all others by letters.
"""

from __future__ import annotations

import dataclasses
import math
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from clipdg.core.errors import ConfigError, DataError
from clipdg.core.model import Preprocessing, TextTower, Weights
from clipdg.core.plugins import BackboneFamily, NoSettings
from clipdg.core.text_transformer import Block, Linear, Norm, Transformer
from clipdg.data.preprocessing import preprocess
from clipdg.storage.hub import HubClient
from clipdg.weights.files import frozen, identify, load_exactly, preprocessing_in, read, seed_of, seeded, tensors_of

SHIPPED = Path(__file__).with_name("tiny.safetensors")
MODELS = ("vit", "resnet")
MEAN, STD = (0.5, 0.5, 0.5), (0.27, 0.27, 0.27)
PAD, START, END = 0, 1, 2
CHARACTERS = string.ascii_lowercase + string.digits + string.punctuation


@dataclass(frozen=True)
class Architecture:
    """The sizes of the towers, which are stored with the weights."""

    image: Literal["resnet", "vit"] = "resnet"
    embed_dim: int | None = 64  # None: the image tower alone
    resnet_width: int = 32  # doubled by each of the two stages
    patch: int = 8
    vit_width: int = 128
    vit_layers: int = 4
    text_width: int = 64
    text_layers: int = 2
    heads: int = 4  # of either transformer
    context_length: int = 48  # room for CoOp's 16 vectors and for words spelled by letters


class Tokenizer:
    """Makes one token of a word that captions had, and one token a character of everything else."""

    def __init__(self, words: Iterable[str], context_length: int) -> None:
        self.words = sorted(set(words))
        self.context_length = context_length
        self._word_ids = {word: END + 1 + i for i, word in enumerate(self.words)}
        self._character_ids = {c: END + 1 + len(self.words) + i for i, c in enumerate(CHARACTERS)}

    def __len__(self) -> int:
        return END + 1 + len(self.words) + len(CHARACTERS)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Turn C texts into tokens (C, L) with start and end, padded.

        Raises DataError for a text that is too long or cannot be spelled.
        """
        if isinstance(texts, str):
            raise TypeError("tokenize takes a list of texts, not one text")
        tokens = torch.full((len(texts), self.context_length), PAD)
        for row, text in zip(tokens, texts, strict=True):
            ids = [START, *self._ids(text), END]
            if len(ids) > self.context_length:
                raise DataError(
                    f"'{text}' is {len(ids)} tokens for tiny, which takes {self.context_length} with start and end; "
                    "shorten it"
                )
            row[: len(ids)] = torch.tensor(ids)
        return tokens

    def decode(self, ids: Sequence[int]) -> list[str]:
        """The text of each token."""
        known = ["<pad>", "<start>", "<end>", *self.words, *CHARACTERS]
        return [known[i] for i in ids]

    def unknown_words(self, texts: Sequence[str]) -> list[str]:
        """The words that no caption had, in order. Spelled by letters, they mean nothing to these weights."""
        words = [word for text in texts for word in split(text) if word[0] in string.ascii_lowercase]
        return list(dict.fromkeys(word for word in words if word not in self._word_ids))

    def _ids(self, text: str) -> list[int]:
        ids = []
        for word in split(text):
            if word in self._word_ids:
                ids.append(self._word_ids[word])
                continue
            for c in word:
                if c not in self._character_ids:
                    raise DataError(
                        f"'{text}' has '{c}', which tiny cannot spell: it knows English letters, digits and "
                        "punctuation; use a backbone whose text encoder knows this script"
                    )
                ids.append(self._character_ids[c])
        return ids


def split(text: str) -> list[str]:
    """Split a text, in lower case, into runs of the letters a-z and single other characters."""
    return re.findall(r"[a-z]+|\S", text.lower())


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, the first of which halves the sides. The shortcut averages pixels and skips none."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = F.relu(self.shortcut(x) + self.body(x))
        return out


class ResNet(nn.Module):
    """A stem and two residual blocks, each of which halves the sides: (N, 3, S, S) -> (N, 4 * width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = 4 * width
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            ResidualBlock(width, 2 * width),
            ResidualBlock(2 * width, 4 * width),
        )

    def forward(self, x: Tensor) -> Tensor:
        # channels_last is about twice as fast for convolutions this narrow on a CPU
        out: Tensor = self.body(x.contiguous(memory_format=torch.channels_last)).mean((2, 3))
        return out


class TransformerBlock(nn.Module):
    """Attention and an MLP, each behind its norm."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    @property
    def description(self) -> Block:
        up, _, down = self.mlp
        assert isinstance(up, nn.Linear)
        assert isinstance(down, nn.Linear)
        norms, qkv, out = (Norm.of(self.norm1), Norm.of(self.norm2)), Linear.of(self.qkv), Linear.of(self.out)
        return Block(norms[0], qkv, out, norms[1], Linear.of(up), Linear.of(down))

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(n, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (N, H, L, W / H) each
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, length, width))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class VisionTransformer(nn.Module):
    """A vision transformer that pools at its class token: (N, 3, S, S) -> (N, width).

    No layer mixes images, so batches can be split.
    """

    def __init__(self, size: int, patch: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.width = width
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, width) * 0.02)
        self.blocks = nn.Sequential(*[TransformerBlock(width, heads, causal=False) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)  # (N, P, W)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.positions
        out: Tensor = self.norm(self.blocks(x)[:, 0])
        return out


class Text(nn.Module):
    """The text tower, cut at its token embeddings as core.model.TextTower asks."""

    num_prefix_tokens = 1
    causal = True

    def __init__(self, vocabulary: int, architecture: Architecture, embed_dim: int) -> None:
        super().__init__()
        self.width = architecture.text_width
        self.context_length = architecture.context_length
        self.tokens = nn.Embedding(vocabulary, self.width)
        nn.init.normal_(self.tokens.weight, std=0.1)  # CLIP's 0.02 learns more slowly in so few steps
        self.positions = nn.Parameter(torch.randn(self.context_length, self.width) * 0.01)
        a = architecture
        self.heads = a.heads
        self.blocks = nn.Sequential(*[TransformerBlock(self.width, a.heads, causal=True) for _ in range(a.text_layers)])
        self.norm = nn.LayerNorm(self.width)
        self.projection = nn.Linear(self.width, embed_dim, bias=False)

    @property
    def description(self) -> Transformer:
        """The same tower as text/prompt_encoder.py takes it."""
        return Transformer(
            self.tokens.weight,
            self.positions,
            tuple(block.description for block in self.blocks if isinstance(block, TransformerBlock)),
            Norm.of(self.norm),
            Linear.of(self.projection),
            self.heads,
            "gelu",
            causal=True,
            pool="end",
            end_token=END,
        )

    def embed(self, tokens: Tensor) -> Tensor:
        """Look up token embeddings: (C, L) -> (C, L, W), without positions."""
        embeddings: Tensor = self.tokens(tokens)
        return embeddings

    def encode(self, embeddings: Tensor, tokens: Tensor) -> Tensor:
        """Encode (C, L, W) embeddings, which stand for the (C, L) tokens -> (C, D)."""
        end = (tokens == END).int().argmax(dim=1)  # (C,), the first end token
        length = int(end.max()) + 1  # in a causal tower, what follows the end cannot reach it
        x = self.blocks(embeddings[:, :length] + self.positions[:length])
        out: Tensor = self.projection(self.norm(x[torch.arange(len(x), device=x.device), end]))
        return out


class TinyImage(nn.Module):
    """The image tower alone, which is a Backbone but no CLIP."""

    name: str
    weights: Weights

    def __init__(self, architecture: Architecture, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.sizes, self.preprocessing = architecture, preprocessing
        a = architecture
        if a.image == "vit" and preprocessing.size % a.patch:
            raise ConfigError(f"tiny:vit has patches of {a.patch} pixels, which does not divide {preprocessing.size}")
        vit = a.image == "vit"
        self.image: ResNet | VisionTransformer = (
            VisionTransformer(preprocessing.size, a.patch, a.vit_width, a.vit_layers, a.heads)
            if vit
            else ResNet(a.resnet_width)
        )
        self.embed_dim = self.image.width

    @property
    def architecture(self) -> dict[str, Any]:
        """The settings that decide, with the tensors and the preprocessing, what this backbone computes."""
        return {"family": "tiny", "sizes": dataclasses.asdict(self.sizes)}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that a file of these weights holds."""
        return tensors_of(self)

    def preprocess(self, image: Image.Image) -> Tensor:
        """Turn one RGB image into (3, S, S), normalised."""
        return preprocess(image, self.preprocessing)

    def encode_image(self, images: Tensor) -> Tensor:
        """Encode images: (N, 3, S, S) normalised -> (N, D), not of unit length."""
        features: Tensor = self.image(images)
        return features

    def forward(self, images: Tensor) -> Tensor:
        return self.encode_image(images)


class Tiny(TinyImage):
    """The CLIP, made of two towers, two projections and a temperature."""

    def __init__(self, architecture: Architecture, preprocessing: Preprocessing, words: Iterable[str]) -> None:
        super().__init__(architecture, preprocessing)
        assert architecture.embed_dim is not None
        self.embed_dim = architecture.embed_dim
        self.tokenizer = Tokenizer(words, architecture.context_length)
        self.image_projection = nn.Linear(self.image.width, self.embed_dim)
        self.text = Text(len(self.tokenizer), architecture, self.embed_dim)
        self.scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # CLIP's initial temperature

    @property
    def architecture(self) -> dict[str, Any]:
        return {**super().architecture, "words": self.tokenizer.words, "characters": CHARACTERS}

    @property
    def logit_scale(self) -> float:
        return self.scale.exp().item()

    @property
    def log_scale(self) -> nn.Parameter:
        """The logarithm of ``logit_scale``: the parameter that training learns."""
        return self.scale

    @property
    def text_tower(self) -> TextTower:
        return self.text

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Turn C texts into tokens (C, L). Raises DataError naming a text that is too long or cannot be represented."""
        return self.tokenizer(texts).to(self.scale.device)

    def decode(self, ids: Sequence[int]) -> list[str]:
        """The text of each token."""
        return self.tokenizer.decode(ids)

    def unknown_words(self, texts: Sequence[str]) -> list[str]:
        """The words that no caption had. Spelled by letters, they mean nothing to these weights."""
        return self.tokenizer.unknown_words(texts)

    @property
    def penultimate_dim(self) -> int:
        """The width of the image tower before its projection."""
        return self.image.width

    def encode_penultimate(self, images: Tensor) -> Tensor:
        """Encode images without the projection: (N, 3, S, S) normalised -> (N, penultimate_dim)."""
        features: Tensor = self.image(images)
        return features

    def encode_image(self, images: Tensor) -> Tensor:
        """Encode images: (N, 3, S, S) normalised -> (N, D), not of unit length."""
        features: Tensor = self.image_projection(self.image(images))
        return features

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Encode texts: (C, L) -> (C, D), not of unit length."""
        return self.text.encode(self.text.embed(tokens), tokens)

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]  # a CLIP takes texts too
        """Compare images and texts by scaled cosines -> logits_per_image (N, C), logits_per_text (C, N)."""
        image = F.normalize(self.encode_image(images), dim=1)
        text = F.normalize(self.encode_text(tokens), dim=1)
        logits = self.scale.exp() * image @ text.T
        return logits, logits.T


def initialise(model: str | None, seed: int, captions: Iterable[str] = (), size: int = 32) -> TinyImage:
    """Make random weights. The vocabulary has the words of ``captions``, and letters alone if there are none."""
    preprocessing = Preprocessing(size, MEAN, STD)
    with seeded(seed):
        if model == "resnet":
            backbone = TinyImage(Architecture(embed_dim=None), preprocessing)
        else:
            words = {w for caption in captions for w in split(caption) if w[0] in string.ascii_lowercase}
            backbone = Tiny(Architecture(image="vit" if model == "vit" else "resnet"), preprocessing, words)
    return _named(backbone, model, f"random:{seed}", random=True)


def load(model: str | None = None, weights: str | None = None, config: NoSettings | None = None) -> TinyImage:
    """Open ``tiny[:model]`` with the weights that ship with clipdg (None), those of a file, or ``random:SEED``."""
    check_model(model)
    seed = seed_of(weights)
    if seed is not None:
        return initialise(model, seed)
    path = SHIPPED if weights is None else Path(weights).expanduser()
    if weights is None and not path.is_file():
        raise ConfigError(
            "this installation has no weights for tiny; make some with `clipdg pretrain`, or give random:SEED"
        )
    tensors, header = read(path)
    try:
        architecture = Architecture(**header["architecture"]["sizes"])
        words = header["architecture"].get("words", ())
        preprocessing = preprocessing_in(header)
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path.name} is not a file of tiny's weights, as `clipdg pretrain` writes them: {error}"
        ) from error
    if model == "resnet":  # the file has a CLIP, of which this is the body, or the tower alone
        tensors = {name: t for name, t in tensors.items() if name.startswith("image.")}
        architecture = dataclasses.replace(architecture, embed_dim=None)
    if architecture.image != ("vit" if model == "vit" else "resnet") or (
        model != "resnet" and architecture.embed_dim is None
    ):
        there = "tiny:vit" if architecture.image == "vit" else "tiny" if architecture.embed_dim else "tiny:resnet"
        asked = f"tiny:{model}" if model else "tiny"
        raise ConfigError(
            f"{path.name} holds {there} and not {asked}; train that with `clipdg pretrain backbone={asked}`"
        )
    with seeded(0):
        backbone = (
            TinyImage(architecture, preprocessing) if model == "resnet" else Tiny(architecture, preprocessing, words)
        )
    load_exactly(backbone, tensors, path.name)
    tag = "shipped" if weights is None else path.name
    return _named(backbone, model, tag, provenance=header.get("provenance"))


def check_model(model: str | None) -> None:
    """Raises ConfigError if there is no such model."""
    if model is not None and model not in MODELS:
        raise ConfigError(f"no 'tiny:{model}'; there are tiny, tiny:vit and tiny:resnet")


def downloads(hub: HubClient, model: str | None, weights: str | None) -> set[Path]:
    """Fetch nothing, as the weights ship with clipdg. Raises ConfigError if there is no such model."""
    check_model(model)
    return set()


def _named(
    backbone: TinyImage,
    model: str | None,
    tag: str,
    *,
    random: bool = False,
    provenance: Mapping[str, object] | None = None,
) -> TinyImage:
    backbone.image.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # mypy knows only the tensor's
    frozen(backbone)
    backbone.name = f"tiny:{model}" if model else "tiny"
    backbone.weights = identify(
        backbone.name,
        tag,
        backbone,
        backbone.architecture,
        backbone.preprocessing,
        random=random,
        provenance=provenance,
    )
    return backbone


def catalogue() -> list[dict[str, Any]]:
    """List the three models. tiny and tiny:resnet share the weights that ship with clipdg."""
    width = 4 * Architecture().resnet_width
    return [
        {"name": "tiny", "tags": ["shipped"], "size": 32, "embed_dim": 64, "can_prompt": True},
        {"name": "tiny:resnet", "tags": ["shipped"], "size": 32, "embed_dim": width, "can_prompt": False},
        {"name": "tiny:vit", "tags": [], "size": 32, "embed_dim": 64, "can_prompt": True},
    ]


BACKBONE = BackboneFamily(config=NoSettings, load=load, downloads=downloads, catalogue=catalogue, initialise=initialise)
