from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from clipdg.records.record import Record


@pytest.fixture
def publish(tmp_path: Path) -> Callable[..., Path]:
    """Write records into a folder; returns the folder."""

    def write(records: Sequence[Record], name: str = "runs") -> Path:
        folder = tmp_path / name
        for record in records:
            assert record.publish(folder)
        return folder

    return write
