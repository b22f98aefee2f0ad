"""The labels of a table's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from clipdg.records.identity import NOT_IDENTITY, called
from clipdg.records.record import Record

if TYPE_CHECKING:
    pass


# ---------------------------------------------------------------------------------------------------------------------
# Labels


def row_labels(rows: Sequence[Sequence[Record]], keys: Sequence[str]) -> list[str]:
    """A name per row: its label, else method, objective, the backbone if there are several, and what tells it apart."""
    configs = [r[0].settings for r in rows]
    methods = [called({**r[0].config, "label": None}) for r in rows]
    given = [next((x for r in row if (x := r.config.get("label"))), None) for row in rows]
    backbones = [_backbone(r[0]) for r in rows]
    several = {b[0] for b in backbones}
    heads = []
    for method, label, (name, tag) in zip(methods, given, backbones, strict=True):
        tags = {t for n, t in backbones if n == name}
        backbone = ([name] if len(several) > 1 else []) + ([tag] if len(tags) > 1 else [])
        heads.append([label] if label else [method, *backbone])
    names = [list(head) for head in heads]
    groups: dict[tuple[str, str | None], list[int]] = {}  # rows of one method; of those with a label, of one label too
    for i in range(len(rows)):
        groups.setdefault((methods[i], given[i]), []).append(i)
    for (method, label), members in groups.items():
        if label and given.count(label) == 1:
            continue
        # One without a label is told apart from all rows of its method, those with a label too.
        peers = members if label else [j for j in range(len(rows)) if methods[j] == method]
        apart = _telling_apart(peers, rows, heads, configs)
        for i in members:
            names[i] += [text for key in apart if (text := _setting(key, configs[i].get(key)))]
    labels = [", ".join(name) for name in names]
    return [f"{x} #{key[:6]}" if labels.count(x) > 1 else x for x, key in zip(labels, keys, strict=True)]


def _telling_apart(
    peers: Sequence[int],
    rows: Sequence[Sequence[Record]],
    heads: Sequence[Sequence[str]],
    configs: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Settings that split ``peers`` further and further, the shots first, until all are apart."""
    apart: list[str] = []
    different = _num_different([heads[j] for j in peers])
    for key in sorted({k for j in peers for k in configs[j] if not _identity(k, rows[j][0])}, key=_shots_first):
        split = _num_different([(heads[j], [configs[j].get(k) for k in (*apart, key)]) for j in peers])
        if split > different:
            apart.append(key)
            different = split
    return apart


def _identity(key: str, record: Record) -> bool:
    """Settings that never tell two rows apart by themselves."""
    return (
        key in ("shift", *NOT_IDENTITY) or key.startswith(("backbone.", "benchmark.", "shift.")) or key in record.seeded
    )


def _setting(key: str, value: Any) -> str:
    name = key.rsplit(".", 1)[-1]
    if name == "shots":
        return "all images" if value is None else f"{value} shot{'s' * (value != 1)}"
    if value is None or value is False:
        return ""
    if value is True:
        return name
    if isinstance(value, list) and len(value) != 1:
        return f"{len(value)} {name}"
    text = str(value[0] if isinstance(value, list) else value)
    return f"{name}={text if len(text) <= 40 else text[:39] + '…'}"


def _backbone(record: Record) -> tuple[str, str]:
    seeded = "backbone.weights" in record.seeded
    weights = record.weights
    return str(weights.backbone), "" if seeded else str(weights.tag)


def _num_different(values: Sequence[object]) -> int:
    return len({repr(v) for v in values})


def _shots_first(key: str) -> tuple[int, str]:
    return (0 if key.endswith("shots") else 1 if key.startswith("method.") else 2, key)
