"""Tell which of ImageNet's classes each image of a table shows: by wnid, by folder or by name, never by position.

All rows are told in one way, the first of these that the table allows:

    column "wnid"                       ImageNet-R's parquet
    the folder that an image lies in    wnids; in V2 the class index, int(folder), since folders sort as text; in
                                        ObjectNet the object's own folder
    column "label" or "cls" with names  wnids, or the names that ILSVRC/imagenet-1k or ObjectNet gives them
    the same as mere numbers            nothing says what they mean, so they count the classes that the set has, in
                                        the order of their wnids (ObjectNet: of its folders), as clip-benchmark's
                                        builder numbers them
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from clipdg.benchmarks.imagenet.classes import classes, index, objectnet_classes, subset
from clipdg.core.errors import DataError
from clipdg.core.plugins import nearest
from clipdg.data.rows import Table

LEFT_OUT = -1  # an ObjectNet class that ImageNet does not have
_LABELS = ("label", "cls", "labels", "class")
Vocabulary = Mapping[str, int]


def labels_of(table: Table, name: str, title: str) -> np.ndarray:
    """The class ids (N,) of the images of set ``name``; LEFT_OUT for an image of no class of ImageNet.

    Raises:
        DataError: a class that the set does not have, or nothing that says the class.
    """
    vocabularies = _vocabularies(name)
    if "wnid" in table.columns:
        return _joined(_texts(table, "wnid"), vocabularies[:1], table, title)
    folders = _folders(table)
    column = next((c for c in _LABELS if c in table.columns), None)
    if folders is not None and (column is None or _fits(folders, vocabularies)):
        return _joined(folders, vocabularies, table, title)
    if column is None:
        raise DataError(
            f"nothing in {table.where} says the class: its images lie in no class folders, and its columns are "
            f"{', '.join(table.columns) or 'none'}; {title} needs wnid folders or a column {' or '.join(_LABELS[:2])}"
        )
    names = table.names(column)
    if names is not None:
        of_number = _joined(names, vocabularies, table, title)
        numbers = _numbers(table, column, len(names), f"the {len(names)} names of column '{column}'", title)
        labels: np.ndarray = of_number[numbers]
        return labels
    if isinstance(table.column(column)[0], str):
        return _joined(_texts(table, column), vocabularies, table, title)
    order = _order(name)
    labels = order[_numbers(table, column, len(order), f"{title}'s {len(order)} classes", title)]
    return labels


def _vocabularies(name: str) -> list[Vocabulary]:
    """The ways in which the classes of set ``name`` may be called, each name -> class id; wnids come first."""
    if name == "objectnet":
        first = {
            one.folder: min(index()[w] for w in one.wnids) if one.wnids else LEFT_OUT for one in objectnet_classes()
        }
        called = {one.name: first[one.folder] for one in objectnet_classes()}
        wnids = {w: first[one.folder] for one in objectnet_classes() for w in one.wnids}
        return [wnids, first, called]
    chosen = subset(name)
    ids = range(len(classes())) if chosen is None else chosen.ids
    found: list[Vocabulary] = [{classes()[i].wnid: i for i in ids}, {classes()[i].hub_name: i for i in ids}]
    if name == "v2":
        found.append({str(i): i for i in ids})
    return found


def _order(name: str) -> np.ndarray:
    """The class ids of set ``name``, in the order that mere numbers count them."""
    if name == "objectnet":
        ids = [min(index()[w] for w in one.wnids) for one in objectnet_classes() if one.wnids]
    else:
        chosen = subset(name)
        ids = list(range(len(classes())) if chosen is None else chosen.ids)
    return np.array(ids, dtype=np.int64)


def _folders(table: Table) -> list[str] | None:
    """The name of the folder that each image lies in; None if an image lies in no folder."""
    if "path" not in table.columns:
        return None
    found = [path.split("/")[-2:] for path in _texts(table, "path")]
    return [parts[0] for parts in found] if all(len(parts) == 2 for parts in found) else None


def _fits(keys: Sequence[str], vocabularies: Sequence[Vocabulary]) -> bool:
    """Whether one vocabulary has all of ``keys``."""
    distinct = set(keys)
    return any(distinct <= set(vocabulary) for vocabulary in vocabularies)


def _joined(keys: Sequence[str], vocabularies: Sequence[Vocabulary], table: Table, title: str) -> np.ndarray:
    """Look up ``keys`` in the vocabulary that has most of them. Raises DataError if it lacks one."""
    distinct = set(keys)
    best = max(vocabularies, key=lambda vocabulary: len(distinct & set(vocabulary)))
    strange = sorted(distinct - set(best))
    if strange:
        more = f", nor are {len(strange) - 1} others" if len(strange) > 1 else ""
        raise DataError(
            f"'{strange[0]}' in {table.where} is no class of {title}{more}.{nearest(strange[0], list(best))} "
            f"It has {len(best)} classes, such as {next(iter(best))}."
        )
    return np.array([best[key] for key in keys], dtype=np.int64)


def _texts(table: Table, column: str) -> list[str]:
    values = table.column(column)
    return [str(value) for value in values]


def _numbers(table: Table, column: str, limit: int, of: str, title: str) -> np.ndarray:
    """Read a column of class numbers. Raises DataError for one that is not within 0 and ``limit``."""
    values = np.asarray(table.column(column))
    if not np.issubdtype(values.dtype, np.integer):
        raise DataError(
            f"column '{column}' of {table.where} holds {values.dtype}, and {title}'s labels are whole numbers"
        )
    wrong = np.flatnonzero((values < 0) | (values >= limit))
    if len(wrong):
        hidden = "; a label of -1 means that it is kept secret" if values[wrong[0]] == -1 else ""
        where, found = table.at(int(wrong[0])), values[wrong[0]]
        raise DataError(f"{where} has the label {found}, which is none of {of}, 0 to {limit - 1}{hidden}")
    return values.astype(np.int64)
