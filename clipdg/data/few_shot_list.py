"""Few-shot picks as lists of sample ids, which a paper can publish and a run can be given back: ``picks=FILE``.

A file is JSON, ``{"photo": ["dog/056_0001.jpg", ...], ...}`` by source domain, or the record of a few-shot run, whose
``data.fitted_on`` is just that. CoOp published none, and drew them from a folder in the disk's own order (CoOp issue
45), so nobody can train on its images.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clipdg.core import plugins
from clipdg.core.benchmark import Domain
from clipdg.core.errors import ConfigError
from clipdg.records.record import read_record
from clipdg.storage import publish


@dataclass(frozen=True)
class Picks:
    """``ids`` by domain; ``digest`` is what a run's identity rests on, since the file's name says nothing."""

    where: str
    ids: Mapping[str, tuple[str, ...]]

    @property
    def digest(self) -> str:
        return publish.digest({domain: list(names) for domain, names in self.ids.items()})

    def rows(self, domain: Domain, classes: Sequence[str], fit: np.ndarray, shots: int | None) -> np.ndarray:
        """The picked rows of a source, in the order of the list.

        ``fit``: the rows that may be fitted on. ``shots``: how many of each class there must be, if it is said.

        Raises ConfigError naming an image that is not there, stands twice or is held out, and a class that lacks some.
        """
        if domain.name not in self.ids:
            raise ConfigError(f"{self.where} has no picks of source '{domain.name}'; it has {', '.join(self.ids)}")
        names = self.ids[domain.name]
        place = {name: row for row, name in enumerate(domain.rows.ids)}
        allowed = set(fit.tolist())
        for name, times in Counter(names).items():
            if name not in place:
                hint = plugins.nearest(name, list(place))
                raise ConfigError(f"{self.where} picks {name}, which domain '{domain.name}' does not have.{hint}")
            if times > 1:
                raise ConfigError(f"{self.where} picks {name} of domain '{domain.name}' {times} times")
            if place[name] not in allowed:
                raise ConfigError(
                    f"{self.where} picks {name} of domain '{domain.name}', which is held out here; give the seed and "
                    "holdout that the picks were drawn with"
                )
        rows = np.array([place[name] for name in names], dtype=np.int64)
        counts = np.bincount(domain.rows.labels[rows], minlength=len(classes))
        for label in np.unique(domain.rows.labels).tolist():
            if counts[label] != shots if shots is not None else not counts[label]:
                wanted = f"shots is {shots}" if shots is not None else "every class needs one"
                raise ConfigError(
                    f"{self.where} picks {counts[label]} images of class '{classes[label]}' in domain "
                    f"'{domain.name}'; {wanted}"
                )
        return rows


def read(file: Path) -> Picks:
    """The picks in a file. Raises ConfigError if it holds none, RecordError if it is a record that was altered."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"picks: cannot read {file}: {getattr(error, 'strerror', None) or error}") from error
    if isinstance(content, dict) and "run_id" in content:
        found = read_record(file).data.fitted_on
        if found is None:
            raise ConfigError(f"picks: {file} is the record of a run without shots; it was fitted on all images")
        content = found
    lists = content.values() if isinstance(content, dict) else ()
    if not lists or not all(isinstance(x, list) and x and all(isinstance(i, str) for i in x) for x in lists):
        raise ConfigError(f'picks: {file} is not {{"domain": ["id", ...], ...}} and no record')
    return Picks(str(file), {domain: tuple(ids) for domain, ids in content.items()})
