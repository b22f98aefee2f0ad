"""The command that makes a record again, from the settings that it was made with."""

from __future__ import annotations

import json
import shlex

from clipdg.records.identity import flatten
from clipdg.records.record import Record


def command(record: Record, width: int = 0) -> str:
    """``clipdg run key=value … --out DIR``: every setting, so that no default of another version takes its place.

    The weights are named as the record names them; a file's folder is in no record. ``width``: break lines at it.
    """
    flat = {k: v for k, v in flatten(record.config).items() if v is not None}
    names = [k for k in flat if k.endswith(".name")]
    rest = [k for k in flat if k not in names]
    words = [f"{k.removesuffix('.name')}={flat[k]}" for k in names] + [f"{k}={_value(flat[k])}" for k in rest]
    parts = ["clipdg run", *map(shlex.quote, words), "--out DIR"]
    lines = [parts[0]]
    for part in parts[1:]:
        if width and len(lines[-1]) + len(part) + 3 > width:
            lines[-1] += " \\"
            lines.append(f"  {part}")
        else:
            lines[-1] += f" {part}"
    return "\n".join(lines)


def _value(value: object) -> str:
    """As YAML reads it back: JSON, but for a plain word."""
    if isinstance(value, str):
        plain = value and all(c.isalnum() or c in "_-./: ,()'" for c in value) and value[0].isalpha()
        words = value.lower() in ("true", "false", "null")
        return value if plain and not words and ": " not in value and not value.endswith(":") else json.dumps(value)
    return json.dumps(value, ensure_ascii=False)
