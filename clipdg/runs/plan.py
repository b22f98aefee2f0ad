"""TODO clipdg.runs.plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from clipdg.records.record import Record


@dataclass(frozen=True)
class Identity:
    """What a run is called: ``earlier`` is the id it had before ids told what follows the seed."""

    shift: str
    run_id: str
    earlier: str
    seeded: tuple[str, ...]

    def among(self, known: Mapping[str, Record]) -> Record | None:
        """This run's record among records by run id."""
        record = known.get(self.run_id)
        if record is None and self.earlier in known and known[self.earlier].content["seeded"] == list(self.seeded):
            record = known[self.earlier]
        return record
