"""LoRA: low-rank updates of the image tower's attention.

Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, arXiv:2106.09685; through peft. Each chosen
matrix W becomes W + alpha / rank · B A. At first A (rank, inputs) is random and B (outputs, rank) is zero, so a fit
starts at the zero-shot classifier; only A and B learn. Rank, alpha, dropout, learning rate and batch size are those of
CLIP-LoRA (Zanella and Ben Ayed, 2024, arXiv:2405.18541; MaxZanella/CLIP-LoRA at 5f32cce).

Two things differ from CLIP-LoRA. The text tower, and with it the classifier, stays as it is. The attention's output
projection is updated too. Where query, key and value are one matrix (tiny, open_clip), they share one update of this
rank.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipdg.core.benchmark import Benchmark
from clipdg.core.errors import ConfigError
from clipdg.core.fit import Fit
from clipdg.core.model import Backbone, ClipBackbone
from clipdg.core.plugins import Method
from clipdg.methods._zero_shot_head import ZeroShotHead, zero_shot_directions
from clipdg.text.templates import Prompted

FUSED = re.compile(r"model\.visual\.transformer\.resblocks\.\d+\.attn")  # open_clip
PROJECTIONS = re.compile(
    r"image\.blocks\.\d+\.(qkv|out)"  # tiny:vit
    r"|model\.vision_model\.encoder\.layers\.\d+\.self_attn\.(q_proj|k_proj|v_proj|out_proj)"  # transformers
    rf"|{FUSED.pattern}\.(qkv|out)"
)


@dataclass(frozen=True)
class Config(Prompted):
    """``dropout``: of an update's inputs. ``head``: whether the classifier learns too.

    The other settings are those of the prompts (text/templates.py) and of the fit.
    """

    rank: int = field(default=2, metadata={"min": 1})
    alpha: float = field(default=1.0, metadata={"min": 0.0})
    dropout: float = field(default=0.25, metadata={"min": 0.0, "max": 0.999})
    head: bool = False
    epochs: int = field(default=10, metadata={"min": 1})
    lr: float = field(default=2e-4, metadata={"min": 0.0, "max": 100.0})
    batch_size: int = field(default=32, metadata={"min": 1})
    weight_decay: float = field(default=0.01, metadata={"min": 0.0})
    label_smoothing: float = field(default=0.0, metadata={"min": 0.0, "max": 0.999})
    augment: Literal["none", "light", "domainbed", "crop"] = "crop"


class SelfAttention(nn.Module):
    """nn.MultiheadAttention of one input, with its parameters in two linear layers that peft can wrap.

    peft's own wrapper of nn.MultiheadAttention (0.21) adds the update of the output projection twice.
    """

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = fused.num_heads
        width = fused.embed_dim
        self.qkv, self.out = nn.Linear(width, 3 * width, device="meta"), fused.out_proj
        self.qkv.weight, self.qkv.bias = fused.in_proj_weight, fused.in_proj_bias

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, need_weights: bool, attn_mask: Tensor | None
    ) -> tuple[Tensor, None]:
        """The same (N, L, W) three times -> (N, L, W), None."""
        assert query is key is value
        assert not need_weights
        n, length, width = query.shape
        qkv = self.qkv(query).view(n, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (N, H, L, W / H) each
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.out(mixed.transpose(1, 2).reshape(n, length, width)), None


def build(config: Config, backbone: Backbone, benchmark: Benchmark) -> ZeroShotHead:
    """Build the head and put updates into ``backbone``.

    Raises ConfigError if its image tower has no attention projections that are known here, or for prompts that differ
    between domains.
    """
    assert isinstance(backbone, ClipBackbone)
    directions = zero_shot_directions("lora", config, backbone, benchmark)
    head = ZeroShotHead(directions.clone(), backbone.logit_scale, learns=config.head)
    adapt(backbone, config)
    return head


def adapt(backbone: Backbone, config: Config) -> None:
    """Put updates into ``backbone`` that are zero at first.

    Raises ConfigError if its image tower has no attention projections that are known here.
    """
    from peft import LoraConfig, inject_adapter_in_model

    assert isinstance(backbone, nn.Module)
    for name, module in list(backbone.named_modules()):
        if FUSED.fullmatch(name) and _can_be_cut(module):
            backbone.set_submodule(name, SelfAttention(module))
    names = [n for n, m in backbone.named_modules() if PROJECTIONS.fullmatch(n) and isinstance(m, nn.Linear)]
    if not names:
        raise ConfigError(
            f"lora updates the attention of vision transformers: tiny:vit, open_clip's own ViTs and those of "
            f"transformers; {backbone.name} has none of these; use wise_ft or erm with it"
        )
    updates = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules="|".join(map(re.escape, names)),
    )
    inject_adapter_in_model(updates, backbone)


def merged(backbone: Backbone, before: Backbone) -> Backbone:
    """Add the updates in ``backbone`` to the weights of ``before``, which is changed and returned.

    It is then the same function as ``backbone`` and needs no peft.
    """
    from peft.tuners.lora import LoraLayer

    assert isinstance(backbone, nn.Module)
    assert isinstance(before, nn.Module)
    places = dict(before.named_parameters())
    with torch.no_grad():
        for name, layer in backbone.named_modules():
            if not isinstance(layer, LoraLayer):
                continue
            place = f"{name}.weight"
            if place not in places or FUSED.fullmatch(name.rpartition(".")[0]):  # nn.MultiheadAttention's own names
                place = place.replace(".qkv.weight", ".in_proj_weight").replace(".out.weight", ".out_proj.weight")
            update: Tensor = layer.get_delta_weight("default")
            places[place].add_(update.to(places[place]))
    return before


def fit(config: Config) -> Fit:
    return Fit(
        optimizer="adamw",
        lr=config.lr,
        epochs=config.epochs,
        batch_size=config.batch_size,
        weight_decay=config.weight_decay,
        schedule="cosine_after_warmup",
        label_smoothing=config.label_smoothing,
        augment=config.augment,
    )


def _can_be_cut(module: nn.Module) -> bool:
    """Whether SelfAttention computes the same function as ``module``."""
    return (
        isinstance(module, nn.MultiheadAttention)
        and module.batch_first
        and module.in_proj_weight is not None
        and module.in_proj_bias is not None
        and module.bias_k is None
        and not module.add_zero_attn
        and not module.dropout
    )


METHOD = Method(
    config=Config,
    build=build,
    trains="everything",
    fit=fit,
    needs_text=True,
    represent=ZeroShotHead.represent,
    classify=ZeroShotHead.classify,
    trains_parameter=lambda name: ".lora_" in name,
    merged=merged,
)
