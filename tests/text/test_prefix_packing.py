"""The trie of prompts and its bins, against a trie made of a dictionary."""

import numpy as np
import pytest

from clipdg.text.prefix_packing import Packed, apart, pack


def prompts(seed: int, num: int, words: int, length: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Random rows that begin alike often: token 1 first, 0 at the end and behind it."""
    rng = np.random.default_rng(seed)
    tokens = np.zeros((num, length), dtype=np.int64)
    ends = rng.integers(2, length, num)
    for row, end in zip(tokens, ends, strict=True):
        row[0] = 1
        row[1:end] = rng.integers(2, 2 + words, end - 1)
    return tokens, ends


def sequences(packed: Packed) -> list[list[int]]:
    """What each prompt's last slot sees of itself and before it, through its bin alone."""
    found = []
    for prompt in packed.prompts:
        b, slot = packed.bin[prompt], packed.slot[prompt]
        end = packed.leaves.nodes[b, slot]
        seen = [n for n in (*packed.leaves.past[b], *packed.leaves.nodes[b]) if 0 <= n <= end <= packed.last[n]]
        assert sorted(packed.depth[seen]) == list(range(len(seen)))
        found.append([int(packed.token[n]) for n in sorted(seen, key=lambda n: packed.depth[n])])
    return found


@pytest.mark.parametrize(("num", "words"), [(1, 3), (9, 2), (300, 2), (300, 30), (2000, 3)])
def test_the_end_of_each_prompt_sees_that_prompt_and_nothing_else(num: int, words: int) -> None:
    tokens, ends = prompts(num, num, words)
    expected = [row[: end + 1].tolist() for row, end in zip(tokens, ends, strict=True)]
    assert sequences(pack(tokens, ends)) == expected


def test_every_trunk_node_that_a_bin_sees_is_computed_before_it() -> None:
    tokens, ends = prompts(0, 2000, 3)
    packed = pack(tokens, ends)
    assert packed.trunk is not None
    used = packed.leaves.past[packed.leaves.past >= 0]
    assert (packed.trunk.nodes.reshape(-1)[packed.place[used]] == used).all()
    for nodes in packed.trunk.nodes:  # and in its own bin sees all that it follows from
        for node in nodes[nodes >= 0]:
            assert sum(a <= node <= packed.last[a] for a in nodes if a >= 0) == packed.depth[node] + 1


def test_a_shared_beginning_is_computed_once() -> None:
    # 200 prompts "1 2 3 4 5 x 0": the 5 tokens once in a trunk of one bin, then two of each
    tokens = np.array([[1, 2, 3, 4, 5, 100 + i, 0] for i in range(200)])
    packed = pack(tokens, np.full(200, 6))
    assert packed.trunk is not None
    assert (packed.trunk.nodes >= 0).sum() == 5
    assert (packed.leaves.nodes >= 0).sum() == 400
    assert packed.leaves.num_slots < 400 + packed.leaves.nodes.shape[1]  # bins are full


def test_few_prompts_are_one_bin() -> None:
    tokens = np.array([[1, 2, 3, 4, 0], [1, 2, 3, 5, 0], [1, 2, 3, 4, 0]])
    packed = pack(tokens, np.full(3, 4))
    assert (packed.trunk, len(packed.leaves)) == (None, 1)
    assert (packed.leaves.nodes >= 0).sum() == 7  # 1 2 3, 4 0, 5 0
    assert packed.prompts.tolist() == [0, 1, 0]


def test_prompts_that_share_nothing_are_bins_of_their_own() -> None:
    tokens = np.array([[1, 2, 3], [1, 2, 3], [1, 5, 0]])
    packed = apart(tokens, np.array([2, 2, 1]))
    assert len(packed.leaves) == 2
    assert packed.token[packed.leaves.nodes].tolist() == [[1, 2, 3], [1, 5, 0]]
    assert packed.slot[packed.prompts].tolist() == [2, 2, 1]
