"""What a run costs beside its time: the most memory it had."""

from __future__ import annotations

import os
from contextlib import suppress

import torch

MIB = 2**20


class Memory:
    """The peak since this was made, of the GPU's memory where there is one, else of the process's."""

    def __init__(self) -> None:
        self._is_gpu = torch.cuda.is_available()
        self._starts_here = True
        if self._is_gpu:
            torch.cuda.reset_peak_memory_stats()
            return
        try:
            handle = os.open("/proc/self/clear_refs", os.O_WRONLY)
        except OSError:  # not Linux, or not allowed
            self._starts_here = False
            return
        try:
            os.write(handle, b"5")  # the peak of the resident set starts again from here
        except OSError:
            self._starts_here = False
        finally:
            os.close(handle)

    @property
    def peak_mib(self) -> float | None:
        """None where the system does not tell since when its peak is."""
        if self._is_gpu:
            return round(torch.cuda.max_memory_allocated() / MIB, 1)
        if self._starts_here:
            with suppress(OSError), open("/proc/self/status") as lines:
                kib = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)
                return None if kib is None else round(kib / 1024, 1)
        return None
