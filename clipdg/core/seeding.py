"""Seeds: derived by hashing, equal on every machine."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def seed_hash(*args: object) -> int:
    """DomainBed's seed from anything that prints the same everywhere: MD5 of ``str(args)``, modulo 2**31."""
    return int(hashlib.md5(str(args).encode(), usedforsecurity=False).hexdigest(), 16) % 2**31
