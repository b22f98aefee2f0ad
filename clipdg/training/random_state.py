"""The state of torch's random numbers, on the CPU and on every GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomState:
    """A state that was taken once and can be put back."""

    cpu: Tensor
    cuda: tuple[Tensor, ...]

    @classmethod
    def now(cls) -> RandomState:
        """Take the present state."""
        return cls(torch.get_rng_state(), tuple(torch.cuda.get_rng_state_all()) if torch.cuda.is_available() else ())

    def restore(self) -> None:
        """Go on from this state."""
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(list(self.cuda))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from ``seed`` in the block, and go on afterwards as if nothing had been drawn."""
    before = RandomState.now()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        before.restore()
