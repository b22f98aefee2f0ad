"""Prompts packed so that what they share is computed once: the trie of their tokens, cut into bins of equal size.

In a causal transformer a token's state follows from the tokens up to it and from nothing else. So prompts that begin
alike have one state for each token they share, and the number of states to compute is that of the trie's nodes: 328,377
for ImageNet's 1,000 classes in OpenAI's 80 templates, which are 6.2 million tokens if each is padded to 77.

Nodes are numbered depth first, so that a node's descendants are the numbers behind it up to ``last``. Consecutive
prompts of that order fill a bin, whose slots go through the layers as one short sequence; a slot attends to its
ancestors in the bin and, in front of them, to those of the trunk. The trunk is what so many prompts share that it is
computed before the others, in bins of its own; what fewer share is computed once in each bin that needs it.

Legend: N prompts, L tokens, B bins, S slots of a bin, P trunk nodes that a bin sees.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SIZES = (32, 48, 64, 96, 128)  # of a bin: fewer are too few for attention's kernels, more attend mostly to nothing
TOGETHER = 96  # so few nodes are one bin: its mask is cheaper than reading all weights a second time
SHARED_BY = 16  # prompts, about three bins: what fewer share costs less again in each of their bins
MOST_PAST = 48  # trunk nodes that a bin may see


@dataclass(frozen=True)
class Bins:
    """``nodes``: (B, S), -1 where a slot is empty. ``past``: (B, P) nodes of the trunk, -1 likewise."""

    nodes: np.ndarray
    past: np.ndarray

    def __len__(self) -> int:
        return len(self.nodes)

    @property
    def num_slots(self) -> int:
        return int(self.nodes.size)


@dataclass(frozen=True)
class Packed:
    """``token``, ``depth``, ``last``: by node. ``place``: by trunk node, its slot among all of the trunk's.

    ``prompts``: (N,) the distinct prompt that each is. ``bin``, ``slot``: where a distinct prompt ends.
    """

    token: np.ndarray
    depth: np.ndarray
    last: np.ndarray
    place: np.ndarray
    trunk: Bins | None
    leaves: Bins
    prompts: np.ndarray
    bin: np.ndarray
    slot: np.ndarray


def pack(tokens: np.ndarray, ends: np.ndarray, shared_by: int = SHARED_BY) -> Packed:
    """(N, L) tokens, not negative, of which each prompt's last is at ``ends`` (N,) -> the packed trie.

    ``shared_by``: nodes that at least so many distinct prompts share are the trunk, if there are bins enough for one.
    """
    length = int(ends.max()) + 1
    rows = np.where(np.arange(length) <= ends[:, None], tokens[:, :length], -1)
    rows, prompts = np.unique(rows, axis=0, return_inverse=True)  # in depth-first order: -1 comes first
    lengths = (rows >= 0).sum(axis=1)
    num = len(rows)
    common = np.zeros(num, dtype=np.int64)  # tokens that a prompt shares with the one before it
    if num > 1:
        differ = rows[1:] != rows[:-1]
        common[1:] = differ.argmax(axis=1)
    new = (np.arange(length) >= common[:, None]) & (np.arange(length) < lengths[:, None])
    paths = np.zeros((num, length), dtype=np.int64)
    paths[new] = np.arange(new.sum())
    paths = np.maximum.accumulate(paths, axis=0)  # what is not new is the latest at its depth
    within = np.arange(length) < lengths[:, None]
    final = paths[np.arange(num), lengths - 1]
    last = np.zeros(int(new.sum()), dtype=np.int64)
    last[paths[within]] = np.repeat(final, lengths)  # rows come in order, so the last one stays
    depth = np.nonzero(new)[1]
    if len(last) <= TOGETHER:
        trunk_depth = np.zeros(num, dtype=np.int64)
    else:
        num_prompts = np.bincount(paths[within], minlength=len(last))
        trunk_depth = ((num_prompts[paths] >= shared_by) & within).sum(axis=1)
        trunk_depth = np.minimum(trunk_depth, np.minimum(lengths - 1, MOST_PAST))  # a prompt's end is in its bin
    leaves, where = _fill(paths, lengths, common, trunk_depth, _size(paths, lengths, common, trunk_depth, len(last)))
    trunk, place = None, np.full(len(last), -1, dtype=np.int64)
    if trunk_depth.any():
        shared = common.copy()
        shared[1:] = np.minimum(common[1:], trunk_depth[:-1])
        none = np.zeros(num, dtype=np.int64)
        num_trunk = int((num_prompts >= shared_by).sum())
        size = num_trunk if num_trunk <= TOGETHER else int(max(SIZES[0], trunk_depth.max()))
        trunk, _ = _fill(paths, trunk_depth, np.minimum(shared, trunk_depth), none, size)
        flat = trunk.nodes.reshape(-1)
        place[flat[flat >= 0]] = np.nonzero(flat >= 0)[0]
    return Packed(rows[new], depth, last, place, trunk, leaves, prompts.reshape(-1), where[:, 0], where[:, 1])


def apart(tokens: np.ndarray, ends: np.ndarray) -> Packed:
    """The same where nothing can be shared, since each token sees all others: a bin holds one whole prompt."""
    rows, first, prompts = np.unique(np.column_stack([tokens, ends]), axis=0, return_index=True, return_inverse=True)
    num, length = len(rows), tokens.shape[1]
    nodes = np.arange(num * length).reshape(num, length)
    bins = Bins(nodes, np.zeros((num, 0), dtype=np.int64))
    depth = np.tile(np.arange(length), num)
    nowhere = np.full(num * length, -1, dtype=np.int64)
    token = rows[:, :-1].reshape(-1)
    return Packed(token, depth, nowhere, nowhere, None, bins, prompts.reshape(-1), np.arange(num), ends[first])


def _size(paths: np.ndarray, lengths: np.ndarray, common: np.ndarray, trunk_depth: np.ndarray, num_nodes: int) -> int:
    """Slots a bin: those with which the first 2,000 prompts cost least."""
    longest = int((lengths - trunk_depth).max())
    if num_nodes <= TOGETHER:
        return -(-num_nodes // 8) * 8
    tried = range(24, 97) if len(paths) <= 300 else SIZES  # of few bins an empty slot counts more
    sizes = [s for s in tried if s >= longest] or [longest]
    some = slice(0, 2000)

    def cost(size: int) -> float:
        bins, _ = _fill(paths[some], lengths[some], common[some], trunk_depth[some], size)
        return bins.num_slots * (1 + size / 1000)  # a slot's attention to the bin, against its linear layers

    return min(sizes, key=cost)


def _fill(
    paths: np.ndarray, lengths: np.ndarray, common: np.ndarray, trunk_depth: np.ndarray, size: int
) -> tuple[Bins, np.ndarray]:
    """Consecutive prompts into bins; (number of prompts, 2) bin and slot of each one's last node."""
    owns: list[list[int]] = []
    pasts: list[list[int]] = []
    slots: dict[int, int] = {}
    where = np.zeros((len(paths), 2), dtype=np.int64)
    rows = zip(paths.tolist(), lengths.tolist(), common.tolist(), trunk_depth.tolist(), strict=True)
    for i, (path, length, shared, trunk) in enumerate(rows):
        if length == 0:
            continue
        own, past = path[max(shared, trunk) : length], path[min(shared, trunk) : trunk]
        if not owns or len(owns[-1]) + len(own) > size or len(pasts[-1]) + len(past) > MOST_PAST:
            owns.append([])
            pasts.append([])
            slots.clear()
            own, past = path[trunk:length], path[:trunk]
        for node in own:
            slots[node] = len(owns[-1])
            owns[-1].append(node)
        pasts[-1] += past
        where[i] = len(owns) - 1, slots[path[length - 1]]
    return Bins(_padded(owns, size), _padded(pasts, max(map(len, pasts), default=0))), where


def _padded(lists: list[list[int]], width: int) -> np.ndarray:
    padded = np.full((len(lists), width), -1, dtype=np.int64)
    for row, values in zip(padded, lists, strict=True):
        row[: len(values)] = values
    return padded
