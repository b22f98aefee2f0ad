"""Text transformers in a library-neutral form, and one exact way through them that computes nothing twice.

A backbone whose text encoder is a plain pre-norm transformer describes it once (Transformer): where its weights lie,
not copies of them, so that moving, casting and training them is seen here. ``Prompts`` runs the description in three
forms that give the same features and gradients up to rounding:

    plain    every token of every prompt, padding included: what the libraries do
    cut      up to the longest prompt, exact where padding reaches nothing that is pooled
    shared   each token of a common beginning once (text/prefix_packing.py), exact where attention is causal

Towers that see their padding (SigLIP, CLIPA, MobileCLIP) are run whole in any form, each distinct prompt once. In every
form the last layer computes what is pooled and nothing else, QuickGELU is SiLU with its two factors in the neighbouring
products, and prompts go through in chunks that are laid out for a given memory before the work begins.

Legend: C prompts, L tokens, W token width, D features, H heads, T slots in a chunk, B bins, S slots of a bin, P trunk
nodes that a bin sees, K learnt vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from clipdg.core.errors import OutOfMemoryError
from clipdg.text.prefix_packing import Bins, Packed, apart, pack

if TYPE_CHECKING:
    from clipdg.core.model import TextTower
from clipdg.core.text_transformer import Block, Linear, Transformer

Form = Literal["plain", "cut", "shared"]

QUICK = 1.702
ENCODING = 192 * 2**20  # bytes of activations in a chunk without gradients; larger ones are no faster


class Prompts:
    """Prompts laid out for a tower: what depends on their tokens alone is done once, here.

    ``learnt`` marks places whose embedding is not a token's: (C, L), -1 or the number of the vector that stands there.
    The tokens there are never embedded; they only hold the place, and must not be what the tower pools at.
    """

    def __init__(
        self, tower: TextTower, tokens: Tensor, learnt: Tensor | None = None, *, form: Form = "shared"
    ) -> None:
        self._tower = tower
        self._tokens, self._learnt = tokens, learnt
        self._packed: Packed | None = None
        description = tower.description
        if description is None:
            return
        ends = description.pooled(tokens).cpu().numpy()
        ids = tokens.cpu().numpy()
        if learnt is not None:  # vectors are numbered behind the vocabulary
            vectors = learnt.cpu().numpy()
            ids = np.where(vectors >= 0, len(description.tokens) + vectors, ids)
        if description.causal and form == "shared":
            self._packed = pack(ids, ends)
        else:
            length = int(ends.max()) + 1 if description.causal and form == "cut" else ids.shape[1]
            self._packed = apart(ids[:, :length], ends)

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def num_computed(self) -> int:
        """Token states that a pass computes, padding of bins included."""
        if self._packed is None:
            return self._tokens.numel()
        trunk = self._packed.trunk
        return self._packed.leaves.num_slots + (trunk.num_slots if trunk else 0)

    def encode(
        self,
        vectors: Tensor | None = None,
        *,
        memory: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Features (C, D) in fp32 (of an fp64 tower in fp64), not of unit length. ``vectors``: (K, W), the learnt ones.

        With gradients, what does not fit into ``memory`` bytes (None: half of what is free now) is computed again on
        the way back, chunk by chunk; without, ``memory`` bounds a chunk.

        Raises OutOfMemoryError if not even one bin at a time fits.
        """
        if self._packed is None:
            return self._by_the_library(vectors, progress)
        description = self._tower.description
        assert description is not None
        run = _Run(description, self._packed, vectors)
        if vectors is not None and vectors.requires_grad and torch.is_grad_enabled():
            features = run.with_gradients(_free(description.positions.device) // 2 if memory is None else memory)
        else:
            features = run.chunk_by_chunk(ENCODING if memory is None else memory, progress)
        return features[torch.from_numpy(self._packed.prompts).to(features.device)].to(run.border)

    def _by_the_library(self, vectors: Tensor | None, progress: Callable[[int, int], None] | None) -> Tensor:
        """A tower that cannot be described, as it is, embeddings in and features out."""
        tower, step = self._tower, 256
        features = []
        for start in range(0, len(self), step):
            chosen = slice(start, start + step) if vectors is None else slice(None)
            tokens = self._tokens[chosen]
            if vectors is not None:  # the tower may have been moved since
                tokens = tokens.to(vectors.device)
            embeddings = tower.embed(tokens)
            if vectors is not None:
                assert self._learnt is not None
                learnt = self._learnt.to(tokens.device)
                embeddings = embeddings.float().masked_fill((learnt >= 0)[:, :, None], 0)
                places = (learnt >= 0).nonzero(as_tuple=True)
                embeddings = embeddings.index_put(places, vectors[learnt[places]])
            features.append(tower.encode(embeddings, tokens).float())
            if vectors is not None:
                break
            if progress:
                progress(min(start + step, len(self)), len(self))
        return torch.cat(features)


@dataclass(frozen=True)
class _Group:
    """Bins on the device. ``past``: (P,) if all bins see the same nodes, else (B, P): slots among the trunk's.

    ``mask``: (B, 1, S, P + S), 0 or -inf; None where each slot sees each. ``ends``: (B, Q) slots that are pooled.
    """

    num_bins: int
    size: int
    embedded: Tensor  # (B * S, W), positions added; zero in the place of learnt vectors
    slots: Tensor  # of the learnt vectors
    vectors: Tensor  # their numbers
    past: Tensor | None
    mask: Tensor | None
    ends: Tensor | None = None
    kept: Tensor | None = None  # which of the flattened ends are a prompt's, in the order of prompts

    def inputs(self, vectors: Tensor | None, dtype: torch.dtype) -> Tensor:
        """(B * S, W)"""
        if vectors is None or len(self.slots) == 0:
            return self.embedded.to(dtype)
        learnt = vectors.to(self.embedded.dtype)[self.vectors]
        return torch.index_add(self.embedded, 0, self.slots, learnt).to(dtype)


class _Run:
    """One pass of packed prompts."""

    def __init__(self, description: Transformer, packed: Packed, vectors: Tensor | None) -> None:
        self.description, self.packed, self.vectors = description, packed, vectors
        self.device, self.dtype = description.positions.device, description.dtype
        self.border = torch.promote_types(self.dtype, torch.float32)  # of what goes in and comes out
        element = torch.finfo(self.dtype).bits // 8
        self.slot = 16 * description.width * element  # bytes of a slot's activations within a layer
        # What a slot leaves behind in each layer for the way back: both norms' inputs, queries, the keys and values as
        # attention takes them (trunk beside), attention's output and the MLP's inside.
        seen = 1 + packed.leaves.past.shape[1] / packed.leaves.nodes.shape[1]
        self.kept_slot = int((8 + 2 * seen) * description.width * element * len(description.blocks))
        self.kept_trunk = 2 * description.width * element * len(description.blocks)

    def with_gradients(self, memory: int) -> Tensor:
        leaves, trunk = self.packed.leaves, self.packed.trunk
        num_trunk = trunk.num_slots if trunk else 0
        if (leaves.num_slots + num_trunk) * self.kept_slot <= memory:
            groups = [self._leaves(0, len(leaves))]
            if trunk:
                groups.insert(0, self._trunk(0, len(trunk)))
            return self._features(groups, [])
        size = leaves.nodes.shape[1]
        room = memory - num_trunk * self.kept_slot
        at_once = room // (size * self.kept_slot)
        if at_once < 1:
            needed, given = ((size + num_trunk) * self.kept_slot / 2**20, memory / 2**20)
            raise OutOfMemoryError(
                f"a step over {len(self.packed.prompts)} prompts needs {needed:,.3g} MiB even one after another, "
                f"and may take {given:,.3g}; give it more, or a backbone with a smaller text tower"
            )
        past = self._past(self._trunk(0, len(trunk))) if trunk else []
        features = []
        for start in range(0, len(leaves), at_once):
            group = self._leaves(start, min(start + at_once, len(leaves)))
            again = checkpoint(self._chunk, group, self.vectors, *past, use_reentrant=False)
            assert isinstance(again, Tensor)
            features.append(again)
        return torch.cat(features)

    def chunk_by_chunk(self, memory: int, progress: Callable[[int, int], None] | None) -> Tensor:
        leaves, trunk = self.packed.leaves, self.packed.trunk
        at_once = max(1, memory // (self.slot * leaves.nodes.shape[1]))
        if trunk is None and len(leaves) <= at_once:
            return self._features([self._leaves(0, len(leaves))], [])
        past: list[Tensor] = []
        if trunk:
            step = max(1, memory // (self.slot * trunk.nodes.shape[1]))
            parts = [self._past(self._trunk(i, min(i + step, len(trunk)))) for i in range(0, len(trunk), step)]
            past = [torch.cat(layer) for layer in zip(*parts, strict=True)]
        features = []
        for start in range(0, len(leaves), at_once):
            stop = min(start + at_once, len(leaves))
            features.append(self._features([self._leaves(start, stop)], past))
            if progress:
                progress(int((self.packed.bin < stop).sum()), len(self.packed.bin))
        return torch.cat(features)

    def _chunk(self, group: _Group, vectors: Tensor | None, *past: Tensor) -> Tensor:
        return self._features([group], past)

    def _trunk(self, start: int, stop: int) -> _Group:
        assert self.packed.trunk is not None
        return self._group(self.packed.trunk, start, stop)

    def _leaves(self, start: int, stop: int) -> _Group:
        """With the ends of the prompts in these bins, in the order of prompts."""
        chosen = np.nonzero((self.packed.bin >= start) & (self.packed.bin < stop))[0]
        bins, slots = self.packed.bin[chosen] - start, self.packed.slot[chosen]
        number = np.zeros(len(chosen), dtype=np.int64)  # of the end within its bin: prompts come in the bins' order
        if len(chosen):
            first = np.searchsorted(bins, bins)
            number = np.arange(len(chosen)) - first
        ends = np.zeros((stop - start, int(number.max()) + 1), dtype=np.int64)
        ends[bins, number] = slots
        group = self._group(self.packed.leaves, start, stop)
        return replace(group, ends=self._to(ends), kept=self._to(bins * ends.shape[1] + number))

    def _group(self, bins: Bins, start: int, stop: int) -> _Group:
        description, packed = self.description, self.packed
        nodes, past = bins.nodes[start:stop], bins.past[start:stop]
        empty = nodes < 0
        token, depth = packed.token[nodes], packed.depth[nodes]
        token[empty], depth[empty] = 0, 0
        learnt = token >= len(description.tokens)
        numbers = token[learnt] - len(description.tokens)
        token[learnt] = 0
        with torch.no_grad():
            embedded = F.embedding(self._to(token.reshape(-1)), description.tokens).to(self.border)
            slots = self._to(np.nonzero(learnt.reshape(-1))[0])
            embedded = embedded.index_fill(0, slots, 0.0)
            embedded += description.positions[self._to(depth.reshape(-1))]
        mask = None
        if description.causal and self.packed.last[0] >= 0:
            seen = np.concatenate([past, nodes], axis=1)  # (B, P + S)
            visible = seen[:, None, :] <= nodes[:, :, None]
            visible &= nodes[:, :, None] <= packed.last[seen][:, None, :]
            visible &= (seen >= 0)[:, None, :]
            visible[:, :, past.shape[1] :] |= np.eye(nodes.shape[1], dtype=bool) & empty[:, :, None]
            mask = self._to(visible)[:, None]
        elif description.causal:  # one whole prompt a bin
            mask = torch.ones(1, 1, nodes.shape[1], nodes.shape[1], dtype=torch.bool, device=self.device).tril()
            mask = mask.expand(len(nodes), -1, -1, -1)
        if mask is not None:
            mask = torch.zeros(mask.shape, dtype=self.dtype, device=self.device).masked_fill_(~mask, float("-inf"))
        places = None
        if past.shape[1]:
            places = self._to(np.maximum(packed.place[past], 0))
            if (past == past[0]).all():
                places = places[0]
        return _Group(len(nodes), nodes.shape[1], embedded, slots, self._to(numbers), places, mask)

    def _to(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _past(self, trunk: _Group) -> list[Tensor]:
        """Keys and values (T, 2 W) of the trunk's slots, by layer."""
        x = trunk.inputs(self.vectors, self.dtype)
        kept: list[Tensor] = []
        for block in self.description.blocks:
            y = block.norm1(x)
            kept.append(_project(block, y, 1, 3))
            if len(kept) < len(self.description.blocks):
                x = self._rest(block, x, self._attend(_project(block, y, 0, 1), kept[-1], trunk, kept[-1], trunk.mask))
        return kept

    def _features(self, groups: Sequence[_Group], past: Sequence[Tensor]) -> Tensor:
        """Of the prompts in the last group (number of them, D); the one before it, if any, is its trunk.

        ``past``: the trunk's keys and values by layer, where it is not among the groups.
        """
        *earlier, final = self.description.blocks
        width, leaves = self.description.width, groups[-1]
        x = torch.cat([g.inputs(self.vectors, self.dtype) for g in groups])  # (T, W)
        for number, block in enumerate(earlier):
            query_key_value = _project(block, block.norm1(x), 0, 3)  # (T, 3 W)
            query, key_value = query_key_value[:, :width], query_key_value[:, width:]
            source = past[number] if past else key_value
            mixed, start = [], 0
            for group in groups:
                stop = start + group.num_bins * group.size
                mixed.append(self._attend(query[start:stop], key_value[start:stop], group, source, group.mask))
                start = stop
            x = self._rest(block, x, torch.cat(mixed))
        # Of the last layer only what is pooled.
        assert leaves.ends is not None
        assert leaves.kept is not None
        start = len(x) - leaves.num_bins * leaves.size
        bins = torch.arange(leaves.num_bins, device=self.device)[:, None]
        ends = (start + bins * leaves.size + leaves.ends).reshape(-1)  # (B * Q,)
        mask = None if leaves.mask is None else leaves.mask[bins, 0, leaves.ends][:, None]  # (B, 1, Q, P + S)
        y = final.norm1(x)
        key_value = _project(final, y, 1, 3)
        source = past[-1] if past else key_value
        query = _project(final, y[ends], 0, 1)
        x = self._rest(final, x[ends], self._attend(query, key_value[start:], leaves, source, mask))
        x = self.description.norm(x[leaves.kept])
        return x if self.description.projection is None else self.description.projection(x)

    def _attend(self, query: Tensor, key_value: Tensor, group: _Group, source: Tensor, mask: Tensor | None) -> Tensor:
        """(B * Q, W) queries of a group over its own (B * S, 2 W) and what it sees of ``source`` -> (B * Q, W)."""
        num, heads, width = group.num_bins, self.description.heads, self.description.width
        seen = key_value.view(num, group.size, 2 * width)
        if group.past is not None:
            past = source[group.past]
            seen = torch.cat([past.expand(num, -1, -1), seen], dim=1)  # (B, P + S, 2 W)
        key, value = seen.view(num, seen.shape[1], 2, heads, width // heads).permute(2, 0, 3, 1, 4)
        query = query.reshape(num, -1, heads, width // heads).transpose(1, 2)  # (B, H, Q, W / H)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return mixed.transpose(1, 2).reshape(-1, width)

    def _rest(self, block: Block, x: Tensor, mixed: Tensor) -> Tensor:
        """What follows attention in a block."""
        mixed = block.out(mixed)
        x = x + (mixed if block.scales is None else mixed * block.scales[0])
        inside = self._mlp(block, block.norm2(x))
        return x + (inside if block.scales is None else inside * block.scales[1])

    def _mlp(self, block: Block, x: Tensor) -> Tensor:
        up, down = block.up, block.down
        if self.description.activation == "quick_gelu":
            assert up.bias is not None
            assert down.bias is not None
            # x sigmoid(1.702 x) = silu(1.702 x) / 1.702, with both factors inside the products
            inner = torch.addmm(up.bias * QUICK, x, up.weight.T, alpha=QUICK)
            inner = F.silu(inner, inplace=not inner.requires_grad)
            return torch.addmm(down.bias, inner, down.weight.T, alpha=1 / QUICK)
        approximate = "tanh" if self.description.activation == "tanh_gelu" else "none"
        return down(F.gelu(up(x), approximate=approximate))


def _project(block: Block, x: Tensor, start: int, stop: int) -> Tensor:
    """Queries are part 0, keys 1, values 2: those from ``start`` to ``stop``, side by side."""
    parts = block.query_key_value
    if isinstance(parts, Linear):
        width = parts.weight.shape[1]
        rows = slice(start * width, stop * width)
        return F.linear(x, parts.weight[rows], None if parts.bias is None else parts.bias[rows])
    return torch.cat([part(x) for part in parts[start:stop]], dim=1)


def _free(device: torch.device) -> int:
    """Bytes that can be had on a device now."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + cached)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        import os

        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
